"""The mixture segmenter: candidates, choice of K, and the final fit (docs/method.md A.4.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from scipy import sparse

from dynamix.config import SegmentationConfig
from dynamix.contracts import N_DWELL_BINS
from dynamix.errors import GuardError
from dynamix.segmentation.blocks import INPUT, NEXT, CountBlock, cell_width, count_block
from dynamix.segmentation.em import ALL, HALF_A, HALF_B, Candidate, Counts, fit, user_half
from dynamix.segmentation.guards import Choice, Trial, Verdict, choose, measure
from dynamix.segmentation.mixture import Ints, Mixture, started

SEED_USERS = 4000
"""Users with the most events, on which k-means starts the candidates."""
HALF_RESTARTS = 2


@dataclass(frozen=True)
class Fitted:
    """A fitted segmenter before it has stable ids: the mixture, why this K, and what it cost."""

    mixture: Mixture
    choice: Choice
    iterations: int
    evidence: str = "none"


def fit_mixture(
    counts: Counts,
    *,
    n_streams: int,
    config: SegmentationConfig,
    progress: Callable[[str], None] = lambda text: None,
) -> Fitted:
    """Fit K = 1..k_max on the input window, choose K by the next window, refit on both.

    `counts` as of segmentation/counts.py, persisted by the caller; `n_streams` is the number of stream ids, so
    the model has n_streams × 13 cells (conversion streams keep empty columns). The emission is refitted on
    input and next window together: population parameters may know later days, a user's posterior may not.
    GuardError when no user has an event in the input window. Source: docs/method.md A.4.3, A.4.4.
    """
    width = cell_width(n_streams, dwell_bins=config.dwell_bins)
    group = np.arange(width) // N_DWELL_BINS if config.dwell_bins else np.arange(width)
    seeds, half = _seed_users(counts, width, INPUT)
    starts = [s for k in range(1, config.k_max + 1) for s in _starts(seeds, half, group, k, config)]
    progress(f"segment: {len(starts)} candidates of K = 1..{config.k_max}")
    fitted = fit(
        counts, starts, parts=(INPUT,), width=width, max_iter=config.max_iter, prior=config.emission_prior,
        group=group,
    )  # fmt: skip
    trials = _trials(fitted, config)
    choice = choose(trials, measure(counts, trials, width=width), config=config)
    progress(f"segment: {choice.reason}")
    chosen = next(t for t in trials if t.k == choice.k)
    final = fit(
        counts, [Candidate(chosen.full)], parts=(INPUT, NEXT), width=width, max_iter=config.max_iter,
        prior=config.emission_prior, group=group,
    )[0]  # fmt: skip
    return Fitted(final.mixture, choice, max(c.iterations for c in fitted) + final.iterations)


def fit_fixed(counts: Counts, *, n_streams: int, k: int, config: SegmentationConfig, reason: str) -> Fitted:
    """A control without choice of K: `k` components with the pooled emission (K = 1, or labels set elsewhere)."""
    width = cell_width(n_streams, dwell_bins=config.dwell_bins)
    one = Candidate(Mixture(np.full((1, width), -np.log(width)), np.zeros(1)))
    fitted = fit(counts, [one], parts=(INPUT, NEXT), width=width, max_iter=2, prior=config.emission_prior)
    pooled = fitted[0].mixture
    mixture = Mixture(np.repeat(pooled.log_p, k, axis=0), np.full(k, -np.log(k)))
    verdict = Verdict(k, float("nan"), {}, "")
    return Fitted(mixture, Choice(k, reason, (verdict,)), 2)


def fit_given(counts: Counts, *, n_streams: int, k: int, config: SegmentationConfig, reason: str) -> Fitted:
    """The best restart of `k` components on input and next window, without choice of K and without guards.

    GuardError when no user has an event in the input window.
    """
    width = cell_width(n_streams, dwell_bins=config.dwell_bins)
    group = np.arange(width) // N_DWELL_BINS if config.dwell_bins else np.arange(width)
    seeds, half = _seed_users(counts, width, INPUT, NEXT)
    starts = [start for start in _starts(seeds, half, group, k, config) if start.half == ALL]
    fitted = fit(
        counts,
        starts,
        parts=(INPUT, NEXT),
        width=width,
        max_iter=config.max_iter,
        prior=config.emission_prior,
        group=group,
    )
    best = max(fitted, key=lambda c: c.loglik)
    return Fitted(best.mixture, Choice(k, reason, (Verdict(k, float("nan"), {}, ""),)), best.iterations)


def _seed_users(counts: Counts, width: int, *parts: int) -> tuple[sparse.csr_matrix, Ints]:
    """Counts in these windows of the users most active in the input window (ties by id) and the half of each."""
    found = _most_active(counts) if isinstance(counts, CountBlock) else _most_active_rows(counts)
    seeds = found.matrix(width, *parts)
    if seeds.shape[0] == 0:
        raise GuardError(
            "segment: no user has a usable event in the segmenter's input window; ingest more days"
        )
    return seeds, user_half(found.users)


def _most_active(counts: CountBlock) -> CountBlock:
    own = counts.part == INPUT
    events = np.bincount(counts.row[own], weights=counts.n[own], minlength=len(counts.users))
    name = np.argsort(np.argsort(np.asarray(counts.users.to_pylist(), dtype=np.str_), kind="stable"))
    order = np.lexsort((name, -events))
    chosen = order[events[order] > 0][:SEED_USERS]
    place = np.full(len(counts.users), -1, np.int64)
    place[chosen] = np.arange(len(chosen))
    row = place[counts.row]
    kept = row >= 0
    return CountBlock(
        counts.users.take(pa.array(chosen)), row[kept], counts.day[kept], counts.part[kept], counts.cell[kept],
        counts.n[kept],
    )  # fmt: skip


def _most_active_rows(counts: DataFrame) -> CountBlock:
    events = F.aggregate(
        "entries", F.lit(0), lambda total, e: total + F.when(e["part"] == INPUT, e["n"]).otherwise(0)
    )
    most = counts.withColumn("events", events).where("events > 0").orderBy(F.desc("events"), "user_id")
    table = most.limit(SEED_USERS).select("user_id", "entries").toArrow()
    if not table.num_rows:
        none = np.empty(0, np.int64)
        return CountBlock(pa.array([], pa.string()), none, none, none, none, none)
    batch: Any = pa.Table.from_batches(table.to_batches()).combine_chunks().to_batches()[0]
    return count_block(batch)


def _starts(
    seeds: sparse.csr_matrix, half: Ints, group: Ints, k: int, config: SegmentationConfig
) -> list[Candidate]:
    starts = []
    for which in (ALL, HALF_A, HALF_B):
        rows = seeds if which == ALL or not (half == which).any() else seeds[half == which]
        restarts = 1 if k == 1 else config.restarts if which == ALL else min(config.restarts, HALF_RESTARTS)
        for restart in range(restarts):
            seed = config.seed + 1000 * k + 10 * restart + which + 1
            mixture = started(rows, k=k, group=group, prior=config.emission_prior, seed=seed)
            starts.append(Candidate(mixture, which, restart))
    return starts


def _trials(fitted: list[Candidate], config: SegmentationConfig) -> list[Trial]:
    """The best restart of every K, on all users and on each half."""

    def best(k: int, half: int) -> Mixture:
        own = [c for c in fitted if c.k == k and c.half == half]
        return max(own, key=lambda c: c.loglik).mixture

    return [Trial(best(k, ALL), best(k, HALF_A), best(k, HALF_B)) for k in range(1, config.k_max + 1)]
