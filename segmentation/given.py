"""What is predicted without any history: the p that residuals of the relevance statistics are taken against.

baseline  logit p = rate of surface × position + offset of the segment, a ridge logistic fit on grouped counts
none      logit p = base rate of the segment
champion  p of the champion's scores, one per impression (read by the job)
Source: docs/method.md A.3, "given a prediction".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dynamix.features.relevance import MAX_POSITION, Prediction

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
RIDGE = 1.0
_STEPS = 30


@dataclass(frozen=True)
class Rates:
    """Grouped counts: surface name, position code, segment id, impressions n (M,), positives per head (M,)."""

    surface: Sequence[str]
    position: Ints
    segment: Ints
    n: Floats
    positives: dict[str, Floats]


def fit_given(rates: Rates, *, kind: str, n_segments: int) -> Prediction:
    """Prediction of kind `baseline` or `none`; `n_segments` counts segment ids from 0 on."""
    surfaces = tuple(sorted(set(rates.surface)))
    place = {name: i for i, name in enumerate(surfaces)}
    cell_of = np.array([place[s] for s in rates.surface], np.int64) * (MAX_POSITION + 2) + rates.position
    cells, offsets = {}, {}
    width = (len(surfaces) + 1) * (MAX_POSITION + 2)
    for head, y in rates.positives.items():
        groups = cell_of if kind == "baseline" else np.zeros_like(cell_of)
        cell, offset = fit_additive(groups, rates.segment, rates.n, y, width=width, n_segments=n_segments)
        if kind != "baseline":
            cell = np.full(width, cell[0])
        cells[head] = cell.reshape(len(surfaces) + 1, MAX_POSITION + 2)
        offsets[head] = offset
    return Prediction(surfaces=surfaces, cell=cells, offset=offsets)


def fit_additive(
    cell: Ints, segment: Ints, n: Floats, y: Floats, *, width: int, n_segments: int
) -> tuple[Floats, Floats]:
    """Logits cell (width,) and offset (n_segments,) of logit p = base + cell + offset, by damped Newton steps.

    A ridge of one pseudo-unit pulls both towards the base rate; groups without rows stay there. Cell logits
    include the base rate.
    """
    total, positives = float(n.sum()), float(y.sum())
    base = np.log((positives + 0.5) / (total - positives + 0.5))
    cells, offset = np.zeros(width), np.zeros(n_segments)
    for _ in range(_STEPS):
        for index, values, size in ((cell, cells, width), (segment, offset, n_segments)):
            p = 1.0 / (1.0 + np.exp(-(base + cells[cell] + offset[segment])))
            gradient = np.bincount(index, weights=y - n * p, minlength=size) - RIDGE * values
            curvature = np.bincount(index, weights=n * p * (1 - p), minlength=size) + RIDGE
            values += np.clip(gradient / curvature, -2.0, 2.0)
    return cells + base, offset
