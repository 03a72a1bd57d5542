"""Rivals of the rankers that read one flat row: a constant, logistic regression, LightGBM on the same summaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from dynamix.errors import EnvironmentTrouble
from dynamix.models.baselines import Baseline, fit_logistic, item_rate
from dynamix.models.contest import Floats
from dynamix.models.dataset import JaggedRows
from dynamix.models.layers.jagged import row_index
from dynamix.models.layers.summary import stream_summary
from dynamix.models.metrics import NeState

PENALTIES = (0.0003, 0.003, 0.03, 0.3)
"""Inverse strengths of the ridge; the one with the least validation NE is taken."""
ROUNDS, PATIENCE = 2000, 50
TREES: dict[str, Any] = {
    "objective": "binary", "learning_rate": 0.05, "num_leaves": 31, "min_data_in_leaf": 50, "feature_fraction": 0.5,
    "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 1.0, "num_threads": 1, "deterministic": True,
    "verbosity": -1,
}  # fmt: skip
_PIECE = 8192


class Model(Protocol):
    """Anything that was fitted on jagged rows and predicts them."""

    def predict(self, rows: JaggedRows) -> Floats:
        """Probabilities (R,)."""


@dataclass(frozen=True)
class Constant:
    """The base rate of the training rows for everybody."""

    rate: float

    def predict(self, rows: JaggedRows) -> Floats:
        """The rate, (R,)."""
        return np.full(len(rows), self.rate)


@dataclass(frozen=True)
class Shape:
    """What turns rows into a flat design: sizes, and the item rates of the training rows in `baseline`."""

    n_streams: int
    n_segments: int
    baseline: Baseline

    def design(self, rows: JaggedRows, *, own: Floats | None = None) -> NDArray[np.float32]:
        """Summaries of all streams (F·C), dense, item rate, surface, segment and tier, (R, K); `own` as in item_rate."""
        b = self.baseline
        rate = item_rate(
            rows.item_hash, b.items, b.item_rows, b.item_positives, base_rate=b.base_rate, own=own
        )
        parts = []
        for start in range(0, len(rows), _PIECE):
            batch = rows.batch(np.arange(start, min(start + _PIECE, len(rows))))
            x = stream_summary(batch, row_index(batch.offsets, batch.tokens), self.n_streams)
            parts.append(x.flatten(1).numpy())
        summaries = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
        surface = rows.surface[:, None] == np.arange(1, len(rows.surfaces) + 1)
        segment = rows.segment[:, None] == np.arange(self.n_segments)
        flat = [summaries, rows.dense, rate[:, None], surface, segment, rows.tier[:, None]]
        return np.hstack(flat).astype(np.float32)


@dataclass(frozen=True)
class Logistic:
    """Ridge regression on the standardised design."""

    shape: Shape
    model: LogisticRegression
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]

    def predict(self, rows: JaggedRows) -> Floats:
        """Probabilities (R,)."""
        x = (self.shape.design(rows) - self.mean) / self.scale
        return np.asarray(self.model.predict_proba(x)[:, 1], np.float64)


@dataclass(frozen=True)
class Trees:
    """Gradient-boosted trees on the design, at the round with the least validation loss."""

    shape: Shape
    booster: Any

    def predict(self, rows: JaggedRows) -> Floats:
        """Probabilities (R,)."""
        return np.asarray(self.booster.predict(self.shape.design(rows), num_threads=1), np.float64)


def fit_constant(rows: JaggedRows, head: str) -> Constant:
    """Weighted base rate of the training rows."""
    train, y = _labelled(rows, "train", head)
    return Constant(float(train.weight @ y / train.weight.sum()))


def fit_product(rows: JaggedRows, head: str, *, n_streams: int) -> Baseline:
    """The product's own baseline: position, item rate, surfaces, counts and matches by stream."""
    return fit_logistic(rows.select("train"), head, n_streams=n_streams)


def fit_ridge(rows: JaggedRows, head: str, *, n_streams: int, n_segments: int) -> Logistic:
    """Logistic regression on the design; its ridge is chosen on validation rows."""
    shape, x, y, train = _training(rows, head, n_streams, n_segments)
    validate, wanted = _labelled(rows, "validate", head)
    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-3)
    tried = []
    for strength in PENALTIES:
        model = LogisticRegression(C=strength, max_iter=300)
        fitted = Logistic(shape, model.fit((x - mean) / scale, y, sample_weight=train.weight), mean, scale)
        tried.append((NeState.of(wanted, fitted.predict(validate), validate.weight.astype(float)).ne, fitted))
    return min(tried, key=lambda pair: pair[0])[1]


def fit_trees(rows: JaggedRows, head: str, *, n_streams: int, n_segments: int, seed: int) -> Trees:
    """LightGBM on the design, stopped on validation rows. EnvironmentTrouble where it is not installed."""
    try:
        import lightgbm
    except ImportError as trouble:
        raise EnvironmentTrouble(
            "lightgbm is not installed; install the extra `bench` of pyproject.toml, or leave its arm out"
        ) from trouble
    shape, x, y, train = _training(rows, head, n_streams, n_segments)
    validate, wanted = _labelled(rows, "validate", head)
    data = lightgbm.Dataset(x, y, weight=train.weight)
    held = data.create_valid(shape.design(validate), wanted, weight=validate.weight)
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    booster = lightgbm.train(
        {**TREES, "seed": seed}, data, num_boost_round=ROUNDS, valid_sets=[held], callbacks=[stop]
    )
    return Trees(shape, booster)


def _training(
    rows: JaggedRows, head: str, n_streams: int, n_segments: int
) -> tuple[Shape, NDArray[np.float32], Floats, JaggedRows]:
    train, y = _labelled(rows, "train", head)
    shape = Shape(n_streams, n_segments, fit_logistic(train, head, n_streams=n_streams))
    return shape, shape.design(train, own=y), y, train


def _labelled(rows: JaggedRows, part: str, head: str) -> tuple[JaggedRows, Floats]:
    """Rows of a part whose label is known, and the labels."""
    chosen = rows.select(part)
    chosen = chosen.take(np.flatnonzero(np.isfinite(chosen.labels[head])))
    return chosen, chosen.labels[head].astype(np.float64)
