"""Streams of a segment one after the other: what each adds to those before it, and which to take next.

    ΔR(f|S) = (s'² / I' − tr(I'⁻¹V')) / (2nH),   s' = s_f − I_fS I_SS⁻¹ s_S,   I' = I_ff − I_fS I_SS⁻¹ I_Sf

All from one Gram matrix (features/gram.py), with the variance V' between users of the residual score s'. Of two copies
the second adds next to nothing. Source: docs/method.md A.3, redundancy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from dynamix.features.gram import GramSums, columns_of
from dynamix.features.recency import SHARED
from dynamix.segmentation.bounds import Quadratic, of_entropy
from dynamix.segmentation.effects import block_quadratic

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_LEFT = 1e-4
"""Directions that keep less than this share of a value's own information are told by what is given already."""
_SHARED_LEFT = 1e-9
"""The same for the values shared by all streams."""
_EQUAL = 1e-9
_LEAST_CORRELATION = 1e-3
"""Of the classic criteria: a smaller correlation counts as this, so that a quotient stays finite."""


class Chain:
    """What streams add in turn: values taken so far are projected out of score, information and variance of the rest.

    Starts with what all streams share given.
    """

    def __init__(self, sums: GramSums) -> None:
        width = len(sums.wx)
        centre = sums.wx / sums.w if sums.w > 0 else np.zeros(width)
        information = sums.wxx - np.outer(sums.wx, centre)
        own = np.diag(information)
        varies = own > 1e-9 * max(sums.w, 1e-300)
        root = np.where(varies, 1.0 / np.sqrt(np.where(varies, own, 1.0)), 0.0)
        self._left = information * np.outer(root, root)  # (W, W), in units of each value's own information
        self._map = root[:, None] * np.concatenate([np.eye(width), -centre[:, None]], axis=1)  # a_u -> scores
        self._a, self._aa = sums.a, sums.aa
        self._project(np.arange(SHARED), _SHARED_LEFT)

    def adds(self, stream: int) -> Quadratic:
        """The quadratic of a stream's values given what was taken."""
        columns = columns_of(stream)
        to_scores = self._whitened(columns, _LEFT).T @ self._map[columns]
        return block_quadratic(to_scores @ self._a, to_scores @ self._aa @ to_scores.T)

    def take(self, stream: int) -> None:
        """From here on the stream is given."""
        self._project(columns_of(stream), _LEFT)

    def _project(self, columns: Ints, least: float) -> None:
        basis = self._whitened(columns, least)
        load = self._left[:, columns] @ basis
        to_scores = basis.T @ self._map[columns]
        self._left = self._left - load @ load.T
        self._map = self._map - load @ to_scores

    def _whitened(self, columns: Ints, least: float) -> Floats:
        values, vectors = np.linalg.eigh(self._left[np.ix_(columns, columns)])
        use = values > least
        return np.asarray(vectors[:, use] / np.sqrt(values[use]))


def along(sums: GramSums, order: Sequence[int]) -> list[Quadratic]:
    """What each stream of `order` adds to those before it; all together they are the block test of the whole order."""
    chain = Chain(sums)
    found = []
    for stream in order:
        found.append(chain.adds(stream))
        chain.take(stream)
    return found


def greedy(sums: Sequence[GramSums], streams: Sequence[int], *, start: Sequence[int] = ()) -> list[int]:
    """`streams` by maximum relevance with redundancy: next is the one that adds most to `start` and those taken.

    `sums` has one entry a head; relevances, fractions of H, are added over heads. Ties go to the first of `streams`.
    """
    chains = [Chain(own) for own in sums]
    scales = [of_entropy(own.n, own.positives) for own in sums]
    for stream in start:
        for chain in chains:
            chain.take(stream)
    left, taken = list(streams), []
    while left:
        gains = [
            sum(scale * chain.adds(f).estimate for chain, scale in zip(chains, scales, strict=True))
            for f in left
        ]
        best = left.pop(_first_of_the_greatest(gains))
        taken.append(best)
        for chain in chains:
            chain.take(best)
    return taken


def _first_of_the_greatest(gains: Sequence[float]) -> int:
    """Place of the greatest; what rounding alone could tell apart is equal."""
    greatest = max(gains)
    return next(i for i, gain in enumerate(gains) if gain >= greatest - _EQUAL * abs(greatest))


def carrier(sums: GramSums, stream: int, kept: Sequence[int]) -> int:
    """The one of `kept` (not empty) given which alone the stream adds least; ties go to the first."""
    left = []
    for other in kept:
        chain = Chain(sums)
        chain.take(other)
        left.append(chain.adds(stream).estimate)
    return kept[int(np.argmin(left))]


def classic(
    sums: GramSums,
    streams: Sequence[int],
    *,
    k: int,
    criterion: Literal["miq", "mid"] = "miq",
    channel: int = 0,
) -> list[int]:
    """The first k of `streams` by mRMR: F statistic over (miq) or minus (mid) mean absolute correlation with those taken.

    One channel a stream and one label, whose residuals are taken against a constant p (prediction `none`, one
    segment): then every weight is equal and the F statistic of the two classes is (n − 2) ρ²/(1 − ρ²) of the same sums.
    Users do not count. C. Ding and H. Peng, "Minimum redundancy feature selection from microarray gene expression
    data", 2005; docs/method.md A.3.
    """
    columns = np.array([columns_of(stream)[channel] for stream in streams])
    centre = sums.wx[columns] / sums.w
    information = sums.wxx[np.ix_(columns, columns)] - np.outer(sums.wx[columns], centre)
    spread = np.sqrt(np.diag(information))
    correlation = np.maximum(np.abs(information / np.outer(spread, spread)), _LEAST_CORRELATION)
    score = sums.a[columns] - centre * sums.a[-1]
    with_label = score**2 / (np.diag(information) * sums.n)  # Σ (x − x̄)² = I/w and Σ (y − ȳ)² = n w, w equal
    relevance = (sums.n - 2.0) * with_label / (1.0 - with_label)
    taken: list[int] = []
    while len(taken) < min(k, len(streams)):
        if taken:
            redundancy = correlation[:, taken].mean(axis=1)
            gain = relevance / redundancy if criterion == "miq" else relevance - redundancy
        else:
            gain = relevance.copy()
        gain[taken] = -np.inf
        taken.append(int(np.argmax(gain)))
    return [streams[i] for i in taken]
