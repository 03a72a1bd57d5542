"""What a dropped set of cells truly costs in a simulated world: expected NE under the planted probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dynamix.models.metrics import cross_entropy, entropy

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_STEPS = 8


@dataclass(frozen=True)
class PlantedRows:
    """What is planted in B impressions.

    segment (B,): segment id that the mask sees; fixed (B,): log-odds without the user effect; expected (B,): p with
    that effect integrated out; parts (B, F): what each stream adds to `fixed`; told: copied stream -> the part of its
    column (B,) that its near-copy tells as well; copy_of (F,): original of each near-copy, -1 for none.
    """

    segment: Ints
    fixed: Floats
    expected: Floats
    parts: npt.NDArray[np.float32]
    told: Mapping[int, Floats]
    copy_of: Ints

    def of(self, own: Bools) -> PlantedRows:
        """Those of the impressions (B,) named."""
        told = {f: x[own] for f, x in self.told.items()}
        segment, fixed, expected = self.segment[own], self.fixed[own], self.expected[own]
        return PlantedRows(segment, fixed, expected, self.parts[own], told, self.copy_of)

    def __add__(self, other: PlantedRows) -> PlantedRows:
        pairs = [(getattr(self, n), getattr(other, n)) for n in ("segment", "fixed", "expected", "parts")]
        told = {f: np.concatenate([x, other.told[f]]) for f, x in self.told.items()}
        segment, fixed, expected, parts = (np.concatenate(pair) for pair in pairs)
        return PlantedRows(segment, fixed, expected, parts, told, self.copy_of)


@dataclass(frozen=True)
class Loss:
    """Relative NE lost by the drops: over all impressions, and within each segment id (G + 1,); base rate's NE = 1."""

    total: float
    by_segment: Floats


def true_loss(rows: PlantedRows, dropped: Bools) -> Loss:
    """Expected NE without the dropped cells minus the one with all; dropped (G + 1, F).

    Both sides know the planted effects and no user effect; what is gone leaves the log-odds, what a kept near-copy
    tells stays, and level and slope of what is left are fitted anew within the segment: parts are independent and
    centred, so this is the best prediction that remains, up to the curvature of the logistic. NE is in units of
    the base rate's entropy, as in the keep rule's budget (docs/method.md A.7).
    """
    lost = np.zeros(len(dropped))
    total = 0.0
    for segment in np.flatnonzero(dropped.any(axis=1)):
        own = np.flatnonzero(rows.segment == segment)
        if not len(own):
            continue
        p, fixed = rows.expected[own], rows.fixed[own]
        left = fixed - _gone(rows, own, dropped[segment])
        nats = float((cross_entropy(p, _fitted(left, p)) - cross_entropy(p, _fitted(fixed, p))).sum())
        lost[segment] = nats / (len(own) * entropy(float(p.mean())))
        total += nats
    n = len(rows.segment)
    return Loss(total / (n * entropy(float(rows.expected.mean()))) if n else 0.0, lost)


def _gone(rows: PlantedRows, own: Ints, dropped: Bools) -> Floats:
    """Log-odds that the dropped streams take away (B',)."""
    gone = rows.parts[np.ix_(own, np.flatnonzero(dropped))].sum(axis=1, dtype=np.float64)
    for copy in np.flatnonzero(rows.copy_of >= 0):
        original = int(rows.copy_of[copy])
        if dropped[original] and not dropped[copy]:
            gone -= rows.told[original][own]
    return np.asarray(gone, np.float64)


def _fitted(logit: Floats, p: Floats) -> Floats:
    """sigmoid(a + b·logit) with a and b that predict p best, by Newton steps."""
    x = np.stack([np.ones_like(logit), logit], axis=1)
    theta = np.array([0.0, 1.0])
    for _ in range(_STEPS):
        now = 1.0 / (1.0 + np.exp(-(x @ theta)))
        curvature = x.T @ ((now * (1 - now))[:, None] * x) + 1e-9 * np.eye(2)
        theta += np.linalg.solve(curvature, x.T @ (p - now))
    return np.asarray(1.0 / (1.0 + np.exp(-(x @ theta))))
