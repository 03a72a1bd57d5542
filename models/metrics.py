"""Normalised entropy, calibration, AUC and request-level AUC from additive states (docs/method.md C.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_EPS = 1e-12


def entropy(p: float) -> float:
    """H(p) in nats; 0 at p = 0 and p = 1."""
    inside = min(max(p, 0.0), 1.0)
    return float(-sum(q * np.log(q) for q in (inside, 1 - inside) if q > 0))


def cross_entropy(y: Floats, p: Floats) -> Floats:
    """Loss of each row in nats, (R,); y may be a probability (the true p), then the loss is the expected one."""
    q = np.clip(p, _EPS, 1 - _EPS)
    loss: Floats = -(y * np.log(q) + (1 - y) * np.log1p(-q))
    return loss


@dataclass(frozen=True)
class NeState:
    """Sums over rows that add up over parts: weighted loss, weight, positives and predicted positives."""

    loss: float = 0.0
    n: float = 0.0
    positives: float = 0.0
    predicted: float = 0.0

    @classmethod
    def of(cls, y: Floats, p: Floats, weight: Floats | None = None) -> NeState:
        w = np.ones(len(y)) if weight is None else weight
        return cls(float(w @ cross_entropy(y, p)), float(w.sum()), float(w @ y), float(w @ p))

    def __add__(self, other: NeState) -> NeState:
        mine, theirs = vars(self), vars(other)
        return NeState(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def logloss(self) -> float:
        return self.loss / self.n if self.n else float("nan")

    @property
    def ne(self) -> float:
        """Log loss over the entropy of the mean label; NaN where only one class is present."""
        h = entropy(self.positives / self.n) if self.n else 0.0
        return self.logloss / h if h > 0 else float("nan")

    @property
    def calibration(self) -> float:
        """Σp/Σy; NaN without positives."""
        return self.predicted / self.positives if self.positives > 0 else float("nan")


def auc(y: Floats, p: Floats) -> float:
    """Area under the ROC curve, ties at their mean rank; NaN where only one class is present."""
    positives = float((y > 0.5).sum())
    negatives = len(y) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    ranks = mean_ranks(np.zeros(len(p), np.int64), p)
    return float((ranks[y > 0.5].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def gauc(y: Floats, p: Floats, group: NDArray[np.int64]) -> tuple[float, int]:
    """Mean AUC inside groups that hold both classes, weighted by their rows, and the number of such groups.

    Group 0 means no group. NaN and 0 where no group holds both classes.
    """
    inside = group != 0
    if not inside.any():
        return float("nan"), 0
    y, p = y[inside] > 0.5, p[inside]
    _, code = np.unique(group[inside], return_inverse=True)
    ranks = mean_ranks(code, p)
    rows = np.bincount(code).astype(float)
    positives = np.bincount(code, weights=y)
    negatives = rows - positives
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        return float("nan"), 0
    rank_sum = np.bincount(code, weights=ranks * y)
    area = (rank_sum[both] - positives[both] * (positives[both] + 1) / 2) / (
        positives[both] * negatives[both]
    )
    return float(np.average(area, weights=rows[both])), int(both.sum())


def mean_ranks(group: NDArray[np.int64], p: Floats) -> Floats:
    """Rank of p inside its group, from 1, equal values at their mean rank."""
    order = np.lexsort((p, group))
    g, v = group[order], p[order]
    at = np.arange(len(p))
    group_start = np.maximum.accumulate(np.where(np.append(True, g[1:] != g[:-1]), at, 0))
    fresh = np.append(True, (g[1:] != g[:-1]) | (v[1:] != v[:-1]))
    first = np.flatnonzero(fresh)
    last = np.append(first[1:], len(p)) - 1
    tie = np.cumsum(fresh) - 1
    ranks = np.empty(len(p))
    ranks[order] = (first[tie] + last[tie]) / 2 - group_start + 1
    return ranks


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one prediction on one set of rows; `expected_ne` only where the true p is known."""

    rows: int
    positives: int
    ne: float
    logloss: float
    calibration: float
    auc: float
    gauc: float
    gauc_groups: int
    segment_ne: Mapping[str, float]
    expected_ne: float | None = None

    def flat(self, prefix: str = "") -> dict[str, float]:
        """Finite numbers by name, for a log."""
        named = {"ne": self.ne, "logloss": self.logloss, "calibration": self.calibration, "auc": self.auc}
        named |= {"gauc": self.gauc, "rows": float(self.rows), "positives": float(self.positives)}
        named |= {f"ne_segment_{g}": v for g, v in self.segment_ne.items()}
        if self.expected_ne is not None:
            named["expected_ne"] = self.expected_ne
        return {prefix + k: float(v) for k, v in named.items() if np.isfinite(v)}


def evaluate(
    y: Floats,
    p: Floats,
    *,
    weight: Floats | None = None,
    request: NDArray[np.int64] | None = None,
    segment: NDArray[np.integer] | None = None,
    true_p: Floats | None = None,
) -> Evaluation:
    """Evaluation of p (R,) against labels y (R,); rows with an unknown label (NaN) are left out."""
    known = np.isfinite(y)
    y, p = y[known].astype(float), p[known].astype(float)
    w = None if weight is None else weight[known]
    state = NeState.of(y, p, w)
    area, groups = (float("nan"), 0) if request is None else gauc(y, p, request[known])
    by_segment: dict[str, float] = {}
    if segment is not None:
        own = segment[known]
        for g in np.unique(own):
            at = own == g
            by_segment[str(int(g))] = NeState.of(y[at], p[at], None if w is None else w[at]).ne
    expected = None if true_p is None else NeState.of(true_p[known], p, w).ne
    return Evaluation(
        len(y), int((y > 0.5).sum()), state.ne, state.logloss, state.calibration, auc(y, p), area, groups,
        by_segment, expected,
    )  # fmt: skip


def oracle_gap_closure(true_p: Floats, p: Floats) -> float:
    """(NE_base − NE) / (NE_base − NE_oracle) in expected NE: 0 = base rate, 1 = the truth itself."""
    oracle, model = NeState.of(true_p, true_p).ne, NeState.of(true_p, p).ne
    return float((1 - model) / (1 - oracle)) if oracle < 1 else float("nan")
