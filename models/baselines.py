"""What a ranker has to beat: the base rate, and logistic regression on position, item rate and stream counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from dynamix.errors import GuardError
from dynamix.models.batch import CATEGORY_MATCH, ITEM_MATCH
from dynamix.models.dataset import JaggedRows

_PRIOR_ROWS = 20.0
"""Rows of prior weight in an item's rate."""
_ITERATIONS = 300


@dataclass(frozen=True)
class Baseline:
    """Fitted logistic regression of one head; `item_rates` maps hashed items to (rows, positives)."""

    head: str
    model: LogisticRegression
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    items: NDArray[np.int64]
    item_rows: NDArray[np.float64]
    item_positives: NDArray[np.float64]
    base_rate: float
    n_streams: int

    def predict(self, rows: JaggedRows) -> NDArray[np.float64]:
        """Probabilities (R,)."""
        x = self._inputs(rows, own=None)
        p: NDArray[np.float64] = self.model.predict_proba((x - self.mean) / self.scale)[:, 1]
        return p

    def _inputs(self, rows: JaggedRows, own: NDArray[np.float64] | None) -> NDArray[np.float64]:
        rate = item_rate(
            rows.item_hash, self.items, self.item_rows, self.item_positives, base_rate=self.base_rate, own=own
        )
        return inputs(rows, rate, n_streams=self.n_streams)


def fit_logistic(rows: JaggedRows, head: str, *, n_streams: int) -> Baseline:
    """Logistic regression of one head on all given rows with a known label. GuardError if only one class."""
    known = np.flatnonzero(np.isfinite(rows.labels[head]))
    train = rows.take(known)
    y = train.labels[head].astype(float)
    if len(np.unique(y)) < 2:
        raise GuardError(
            f"label {head!r}: the {len(y)} training rows hold one class only; nothing can be learned"
        )
    items, code = np.unique(train.item_hash, return_inverse=True)
    item_rows, positives = (
        np.bincount(code).astype(np.float64),
        np.bincount(code, weights=y).astype(np.float64),
    )
    base_rate = float(y.mean())
    rate = item_rate(train.item_hash, items, item_rows, positives, base_rate=base_rate, own=y)
    x = inputs(train, rate, n_streams=n_streams)
    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
    model = LogisticRegression(C=1.0, max_iter=_ITERATIONS).fit(
        (x - mean) / scale, y, sample_weight=train.weight
    )
    return Baseline(head, model, mean, scale, items, item_rows, positives, base_rate, n_streams)


def item_rate(
    item: NDArray[np.int64],
    items: NDArray[np.int64],
    rows: NDArray[np.float64],
    positives: NDArray[np.float64],
    *,
    base_rate: float,
    own: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Shrunken log-odds of the item over the base rate's, (R,); `own` labels leave each training row out."""
    place = np.clip(np.searchsorted(items, item), 0, max(len(items) - 1, 0))
    found = (items[place] == item) & (item != 0)
    n = np.where(found, rows[place], 0.0)
    k = np.where(found, positives[place], 0.0)
    if own is not None:
        n, k = n - found, k - found * own
    p = (k + _PRIOR_ROWS * base_rate) / (n + _PRIOR_ROWS)
    ratio: NDArray[np.float64] = np.log(p / (1 - p)) - np.log(base_rate / (1 - base_rate))
    return ratio


def inputs(rows: JaggedRows, rate: NDArray[np.float64], *, n_streams: int) -> NDArray[np.float64]:
    """Design (R, 3 + S + 3F): position, its absence, item rate, surfaces, log counts and log matches per stream."""
    row = np.repeat(np.arange(len(rows)), np.diff(rows.offsets))
    cell = row * n_streams + rows.stream
    shape = (len(rows), n_streams)

    def counted(weight: NDArray[np.float64] | None) -> NDArray[np.float64]:
        sums = np.bincount(cell, weights=weight, minlength=shape[0] * shape[1])
        return np.log1p(sums.reshape(shape))

    surfaces = rows.surface[:, None] == np.arange(1, len(rows.surfaces) + 1)
    item = counted(((rows.match & ITEM_MATCH) > 0).astype(float))
    category = counted(((rows.match & CATEGORY_MATCH) > 0).astype(float))
    return np.hstack([rows.dense[:, :2], rate[:, None], surfaces, counted(None), item, category]).astype(
        float
    )
