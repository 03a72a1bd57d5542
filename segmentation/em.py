"""EM on Spark or in memory: all candidate mixtures advance together, one pass over the users per iteration."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from dynamix.segmentation.blocks import CountBlock, count_block
from dynamix.segmentation.mixture import Ints, Mixture, Sums, e_step, m_step

T = TypeVar("T")
Counts: TypeAlias = DataFrame | CountBlock
"""Rows of `user_counts` on Spark, or the same users as one block in memory."""
TOLERANCE = 1e-6
"""Relative gain in log likelihood below which a candidate has converged."""
ALL, HALF_A, HALF_B = -1, 0, 1


@dataclass(frozen=True)
class Candidate:
    """A mixture on its way: which users it sees (all, or one half by hash) and where its likelihood stands."""

    mixture: Mixture
    half: int = ALL
    restart: int = 0
    loglik: float = -np.inf
    iterations: int = 0
    converged: bool = False

    @property
    def k(self) -> int:
        return self.mixture.k


def fit(
    counts: Counts,
    candidates: Sequence[Candidate],
    *,
    width: int,
    parts: tuple[int, ...],
    max_iter: int,
    prior: float,
    group: Ints | None = None,
) -> list[Candidate]:
    """Iterate until every candidate has converged or `max_iter` is reached; the order is kept.

    `counts` as of segmentation/counts.py, best persisted; `parts` names the windows that count; `group` (J,) as in
    `m_step`. Results do not depend on the partitioning: addends are on a 2^-20 grid, so sums are exact.
    """
    current = list(candidates)
    for _ in range(max_iter):
        open_ = [i for i, c in enumerate(current) if not c.converged]
        if not open_:
            break
        sums = _e_pass(counts, [current[i] for i in open_], width, parts)
        for i, total in zip(open_, sums, strict=True):
            current[i] = _advance(current[i], total, prior, group)
    return current


def _advance(candidate: Candidate, sums: Sums, prior: float, group: Ints | None) -> Candidate:
    gain = sums.loglik - candidate.loglik
    done = np.isfinite(candidate.loglik) and gain <= TOLERANCE * abs(sums.loglik)
    return replace(
        candidate,
        mixture=m_step(sums, prior=prior, group=group),
        loglik=sums.loglik,
        iterations=candidate.iterations + 1,
        converged=bool(done),
    )


def _e_pass(
    counts: Counts, candidates: Sequence[Candidate], width: int, parts: tuple[int, ...]
) -> list[Sums]:
    listed = [(c.mixture, c.half) for c in candidates]

    def block_sums(block: CountBlock) -> list[Sums]:
        matrix = block.matrix(width, *parts)
        half = user_half(block.users)
        by_half = {ALL: matrix, HALF_A: matrix[half == HALF_A], HALF_B: matrix[half == HALF_B]}
        return [e_step(mixture, by_half[which]) for mixture, which in listed]

    def add(a: list[Sums], b: list[Sums]) -> list[Sums]:
        return [x + y for x, y in zip(a, b, strict=True)]

    zero = [Sums(np.zeros((m.k, width)), np.zeros(m.k), 0.0) for m, _ in listed]
    return reduce_blocks(counts, block_sums, add, zero)


def reduce_blocks(counts: Counts, work: Callable[[CountBlock], T], add: Callable[[T, T], T], zero: T) -> T:
    """Sum of `work` over all blocks of users: added up within a partition, then on the driver."""
    if isinstance(counts, CountBlock):
        return add(zero, work(counts)) if len(counts.users) else zero

    def partition(batches: Iterator[Any]) -> Iterator[Any]:
        total: T | None = None
        for batch in batches:
            if batch.num_rows:
                part = work(count_block(batch))
                total = part if total is None else add(total, part)
        if total is not None:
            yield pa.record_batch({"state": pa.array([pickle.dumps(total)], pa.binary())})

    result = zero
    for row in counts.mapInArrow(partition, "state binary").collect():
        result = add(result, pickle.loads(bytes(row["state"])))  # written by the lines above, nobody else
    return result


def user_half(users: Any) -> Any:
    """0 or 1 per user id, by a hash that no other split of users shares."""
    from hashlib import blake2b

    return np.array(
        [blake2b(f"half|{u}".encode(), digest_size=1).digest()[0] & 1 for u in users.to_pylist()], np.int64
    )
