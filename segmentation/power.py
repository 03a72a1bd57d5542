"""What this data can decide: the keep rule's formulas inverted for cells that were null (docs/method.md A.7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dynamix.config import MaskConfig
from dynamix.features.relevance import CellSums
from dynamix.segmentation.bounds import (
    Quadratic,
    cell_budget,
    delta_for,
    entropy,
    support_needed,
)
from dynamix.segmentation.cells import Cell, population
from dynamix.segmentation.effects import effect

POWER = 0.8
"""Chance with which a null cell should pass: its q is taken at this quantile of χ²."""


@dataclass(frozen=True)
class Need:
    """One cell at one budget: the share of tokens it holds, how many times this data it takes, what is short."""

    cell: Cell
    tokens: float
    factor: float
    limit: str

    @property
    def decidable(self) -> bool:
        return self.factor <= 1.0


@dataclass(frozen=True)
class Power:
    """One NE budget: δ at the mean rate, cells that could be dropped were they null, and their share of all tokens.

    `token_share` counts cells that pass alone and together under the joint bound; `factor_90` is how many times this
    data it takes until cells with 90 % of the tokens pass alone (infinite where a cell has no positive).
    """

    budget: float
    delta: float
    decidable: int
    cells: int
    token_share: float
    factor_90: float
    needs: tuple[Need, ...]


def power_of(
    sums: Mapping[Cell, CellSums], budget: float, config: MaskConfig, *, delta: float | None = None
) -> Power:
    """Power at `budget`; `delta` is derived from the budget and the mean rate when not given."""
    n, rate = population(sums)
    if not 0.0 < rate < 1.0:
        return Power(budget, 0.0, 0, len(sums), 0.0, float("inf"), ())
    delta = delta or delta_for(rate, budget)
    needs = [_need(cell, s, delta, config) for cell, s in sorted(sums.items())]
    total = sum(x.tokens for x in needs)
    passing = _together(sums, [x for x in needs if x.decidable], budget, n, rate)
    share = sum(x.tokens for x in passing) / total if total else 0.0
    return Power(budget, delta, len(passing), len(needs), share, _factor_for(needs, 0.9), tuple(needs))


def _need(cell: Cell, sums: CellSums, delta: float, config: MaskConfig) -> Need:
    e = effect(sums)
    if e.h == 0 or e.positives == 0 or e.dof == 0:
        return Need(cell, sums.tokens, float("inf"), "no positive has the stream")
    deff = max(e.deff, 1.0)
    noise = expected(e.quadratic, POWER).upper() / (2 * e.n * e.h)
    block = noise / cell_budget(e.rate, delta)
    support = support_needed(delta, deff, support=config.support) / e.positives
    name = "block bound" if block >= support else "positives"
    return Need(cell, sums.tokens, float(max(block, support)), name)


def expected(block: Quadratic, power: float | None = None) -> Quadratic:
    """The statistic of a null with this spread: at its mean, or at the quantile `power` of its distribution."""
    if power is None:
        return Quadratic(block.trace, block.trace, block.square)
    c, dof = block.square / block.trace, block.trace**2 / block.square
    return Quadratic(c * float(stats.chi2.ppf(power, dof)), block.trace, block.square)


def _together(
    sums: Mapping[Cell, CellSums], passing: Sequence[Need], budget: float, n: float, rate: float
) -> list[Need]:
    """Cells, most tokens first, for as long as the joint bound of half the users is expected to hold."""
    scale = n * entropy(rate)  # 2 · (n/2) · H
    taken: list[Need] = []
    total = Quadratic()
    for need in sorted(passing, key=lambda x: (-x.tokens, x.cell)):
        total = total + expected(effect(sums[need.cell]).quadratic)
        if total.upper() / scale > budget:
            break
        taken.append(need)
    return taken


def _factor_for(needs: Sequence[Need], share: float) -> float:
    """Smallest factor of data at which cells with `share` of the tokens pass alone."""
    ordered = sorted(needs, key=lambda x: x.factor)
    total = sum(x.tokens for x in needs)
    reached = np.cumsum([x.tokens for x in ordered])
    if not total:
        return float("inf")
    return ordered[int(np.searchsorted(reached, share * total - 1e-9))].factor
