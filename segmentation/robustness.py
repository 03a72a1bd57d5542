"""Whether a cell's relevance holds under other attribution settings, and whether it lies within users or between them.

Labels depend on how outcomes are given to impressions; a verdict that another setting contradicts is none. An exposure
that differs between users can stand for the user: slopes within and between users are told apart by sums over
deviations from the user's mean and over that mean (docs/method.md A.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dynamix.config import MaskConfig
from dynamix.contracts import CHANNELS
from dynamix.features.conversions import served_head, setting_label
from dynamix.features.recency import SHARED, WIDTH, RecencySums
from dynamix.features.relevance import BETWEEN, WITHIN, CellSums
from dynamix.segmentation.bounds import cell_budget, of_entropy, support_needed
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.effects import block_test, given_rest, moments


@dataclass(frozen=True)
class Bounds:
    """Relevance of a block with its one-sided bounds, and what the cell may cost: fractions of H."""

    relevance: float
    lcb: float
    ucb: float
    budget: float
    supported: bool
    """The cell has the positives that a decision takes (A.7 rule 2)."""


def bounds(sums: CellSums, config: MaskConfig) -> Bounds:
    """Block test of the sums alone, without channels."""
    rate = sums.positives / sums.n if sums.n else 0.0
    block, dof = block_test(*moments(sums), sums.w)
    scale = of_entropy(sums.n, sums.positives)
    deff = block.trace / dof if dof else 1.0
    return Bounds(
        scale * block.estimate, scale * block.lower(), scale * block.upper(), cell_budget(rate, config.delta),
        sums.with_stream >= support_needed(config.delta, deff, support=config.support),
    )  # fmt: skip


def shown_by_recency(sums: RecencySums) -> float:
    """Lower bound of what a stream explains by bucket of recency, given what all streams share; fraction of H.

    A cell's exposure is one mean over its kept events: what its newest few alone tell is thin there (A.8).
    """
    shared, own = np.arange(SHARED), np.arange(SHARED, WIDTH)
    block, _ = block_test(*given_rest(sums, own, shared), sums.w)
    return of_entropy(sums.n, sums.positives) * block.lower()


@dataclass(frozen=True)
class Flip:
    """Two attribution settings of a head that contradict each other on a cell."""

    head: str
    matters: str
    at_least: float
    negligible: str
    at_most: float


def flip(statistics: Statistics, cell: Cell, config: MaskConfig) -> Flip | None:
    """The first head under which one setting shows more than the cell's budget and another shows less, with support.

    `own` is the config's setting. None where no two contradict each other.
    """
    if not statistics.settings:
        return None
    for head in statistics.heads:
        labels = {"own": head} | {s: setting_label(head, s) for s in statistics.settings}
        sums = {name: statistics.of(cell, label) for name, label in labels.items()}
        found = {name: bounds(own, config) for name, own in sums.items() if own is not None}
        matters = max(found, key=lambda s: found[s].lcb - found[s].budget, default=None)
        small = [s for s, b in found.items() if b.supported]
        negligible = min(small, key=lambda s: found[s].ucb - found[s].budget, default=None)
        if matters is None or negligible is None:
            continue
        high, low = found[matters], found[negligible]
        if high.lcb > high.budget and low.ucb <= low.budget:
            return Flip(head, matters, high.lcb, negligible, low.ucb)
    return None


@dataclass(frozen=True)
class Apart:
    """Slopes of one channel within and between users with their clustered errors, log-odds per SD of the exposure."""

    within: float
    within_se: float
    between: float
    between_se: float


def slopes_apart(statistics: Statistics, cell: Cell, head: str) -> Mapping[str, Apart]:
    """Slopes within and between users by channel; 0 with error 0 where the exposure does not vary so."""
    within, between = (statistics.of(cell, head, window=w) for w in (WITHIN, BETWEEN))
    if within is None or between is None:
        return {}
    parts = [moments(own) for own in (within, between)]
    found = {}
    for j, channel in enumerate(CHANNELS):
        total = sum(float(information[j, j]) for _, information, _ in parts)
        sd = np.sqrt(max(total, 0.0) / within.w) if within.w > 0 else 0.0
        slopes: list[float] = []
        for score, information, variance in parts:
            info = float(information[j, j])
            known = info > 1e-9 * max(within.w, 1e-300)
            wide = np.sqrt(max(float(variance[j, j]), info)) if known else 0.0
            slopes += [float(score[j]) / info * sd, wide / info * sd] if known else [0.0, 0.0]
        found[channel] = Apart(*map(float, slopes))
    return found


def lies_between_users(statistics: Statistics, cell: Cell, head: str, config: MaskConfig) -> Bounds | None:
    """Bounds within users of a cell that shows relevance between users only, and within them at most its budget."""
    within, between = (statistics.of(cell, served_head(head), window=w) for w in (WITHIN, BETWEEN))
    if within is None or between is None:
        return None
    inside, across = bounds(within, config), bounds(between, config)
    return inside if across.lcb > 0 and inside.lcb <= 0 and inside.ucb <= inside.budget else None
