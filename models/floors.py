"""Floors of the mask gate: no segment and no tier may lose much more than all users together may.

An improvement of all users can hide the harm of a few. Per group the gate's own paired difference is taken on the
group's rows, and Holm's steps keep the chance of refusing a harmless mask at LEVEL, however many groups there are
(docs/method.md A.7, E20).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dynamix.contracts import TIERS
from dynamix.models import evidence
from dynamix.models.dataset import JaggedRows
from dynamix.models.evidence import EVERY, Z90_POWER, Z95, Delta, Floor, Scored, compare, rows_of

FLOOR_BUDGETS = 3.0
"""NE budgets that a group may lose; a group is smaller than all users, and so is what its rows can tell."""
LEVEL = 0.05
"""Chance that any of several one-sided tests rejects where nothing is there to find."""
Group = tuple[int | None, str]
"""Segment and tier; (None, tier) is the tier over all segments, (segment, EVERY) the segment over both tiers."""


def holm(statistics: Sequence[float], *, level: float = LEVEL) -> list[float]:
    """Quantile of N(0, 1) that each one-sided statistic has to exceed: Holm's step-down over all of them.

    The k-th largest of m is held against the quantile of 1 − level/(m − k + 1); those after the first that does not
    exceed its own share that one's. Source: Holm 1979. The order of equals does not matter.
    """
    quantiles = [0.0] * len(statistics)
    steps = sorted(range(len(statistics)), key=lambda i: -statistics[i])
    quantile, stopped = 0.0, False
    for k, place in enumerate(steps):
        if not stopped:
            quantile = NormalDist().inv_cdf(1 - level / (len(steps) - k))
            stopped = statistics[place] <= quantile
        quantiles[place] = quantile
    return quantiles


def groups_of(rows: JaggedRows, known: NDArray[np.bool_]) -> dict[Group, NDArray[np.bool_]]:
    """Which of the rows with a known label (R,) lie in each segment and tier; none that holds all or no rows."""
    segment, active = rows.segment[known], rows.tier[known] == 1
    found: dict[Group, NDArray[np.bool_]] = {(int(g), EVERY): segment == g for g in np.unique(segment)}
    found |= {(None, name): active == (name == TIERS[0]) for name in TIERS}
    return {group: at for group, at in found.items() if at.any() and not at.all()}


def floors(
    new: Scored, base: Scored, groups: Mapping[Group, NDArray[np.bool_]], *, ne_budget: float, replicates: int
) -> tuple[Floor, ...]:
    """The floor of every group, in the order given; groups under MIN_POSITIVES positives are not measurable.

    A group may lose max(3 NE budgets, (1.645 + z) SE): with z Holm's quantile, the upper 95 % bound exceeds the second
    iff the loss is more than z SE. So a group is refused iff a loss is shown and three budgets are not excluded.
    """
    deltas: dict[Group, Delta] = {}
    for group, at in groups.items():
        if new.y[at].sum() >= evidence.MIN_POSITIVES:
            deltas[group] = compare(rows_of(new, at), rows_of(base, at), replicates=replicates)
    errors = {group: d.resolvable_pct / (Z95 + Z90_POWER) for group, d in deltas.items()}
    losses = [_in_errors(deltas[group].delta_ne_pct, errors[group]) for group in deltas]
    quantile = dict(zip(deltas, holm(losses), strict=True))
    found = []
    for (segment, tier), at in groups.items():
        delta = deltas.get((segment, tier))
        limit = float("nan")
        if delta is not None:
            resolved = (Z95 + quantile[segment, tier]) * errors[segment, tier]
            limit = max(100 * FLOOR_BUDGETS * ne_budget, resolved)
        found.append(Floor(segment, tier, float(new.y[at].sum()), delta, limit))
    return tuple(found)


def _in_errors(loss: float, error: float) -> float:
    """The loss in standard errors; without any, arms that differ at all differ for sure."""
    if error > 0:
        return loss / error
    return float("inf") if loss > 0 else 0.0
