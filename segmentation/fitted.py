"""Fitted segmenters: what a fit leaves, how it places users, how it is stored. Plain NumPy, without Spark.

Training, executors and serving share these; the network's part is in segmentation/neural_fitted.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from dynamix.errors import ConfigError
from dynamix.segmentation.blocks import INPUT, NEXT, cell_width
from dynamix.segmentation.jagged import Floats, Ints, Jagged
from dynamix.segmentation.mixture import Mixture
from dynamix.segmentation.readout import Readout

METHODS = ("mix", "mix-merge", "neural", "paper2")
"""Names of all segmenters."""


class FittedSegmenter(Protocol):
    """What a fit leaves: plain arrays and numbers; safe to pickle and to store as JSON."""

    name: ClassVar[str]

    @property
    def k(self) -> int:
        """Number of segments."""

    @property
    def n_streams(self) -> int:
        """Number of stream ids that it knows."""

    @property
    def reason(self) -> str:
        """Why this number of segments, in a sentence."""

    def posterior(self, inputs: Jagged) -> Floats:
        """q (U, K), rows sum to 1; users without events get the prior."""

    def to_json(self) -> str:
        """Everything that `from_json` needs to give the same posterior."""


@dataclass(frozen=True)
class MixFitted:
    """A mixture of K₀ components; `group` (K₀,) says which segment each belongs to (mix: every component its own)."""

    name: ClassVar[str] = "mix"
    mixture: Mixture
    group: Ints
    dwell_bins: bool
    reason: str

    @property
    def k(self) -> int:
        return int(self.group.max()) + 1

    @property
    def n_streams(self) -> int:
        return int(self.mixture.log_p.shape[1]) // cell_width(1, dwell_bins=self.dwell_bins)

    def posterior(self, inputs: Jagged) -> Floats:
        """q (U, K): posteriors of the components added up by segment."""
        width = cell_width(inputs.n_streams, dwell_bins=self.dwell_bins)
        counts = inputs.counts(dwell_bins=self.dwell_bins).matrix(width, INPUT, NEXT)
        one_hot = np.eye(self.k)[self.group]
        return np.asarray(self.mixture.posterior(counts) @ one_hot)

    def to_json(self) -> str:
        """As JSON text with `method` first."""
        tree = {
            "method": self.name, "log_p": self.mixture.log_p.tolist(), "log_pi": self.mixture.log_pi.tolist(),
            "group": self.group.tolist(), "dwell_bins": self.dwell_bins, "reason": self.reason,
        }  # fmt: skip
        return json.dumps(tree)

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> MixFitted:
        """The segmenter that `to_json` described."""
        mixture = Mixture(np.asarray(tree["log_p"], np.float64), np.asarray(tree["log_pi"], np.float64))
        return cls(
            mixture, np.asarray(tree["group"], np.int64), bool(tree["dwell_bins"]), str(tree["reason"])
        )


@dataclass(frozen=True)
class MixMergeFitted(MixFitted):
    """A mixture whose components are merged where their slopes are alike."""

    name: ClassVar[str] = "mix-merge"


@dataclass(frozen=True)
class Paper2Fitted:
    """Active (0) above the border of a_u = Σ_f β_f x̄_f, passive (1) below; β (F,), `scale` the spread of a."""

    name: ClassVar[str] = "paper2"
    beta: Floats
    border: float
    scale: float
    log_prior: Floats
    readout: Readout
    reason: str

    @property
    def k(self) -> int:
        return len(self.log_prior)

    @property
    def n_streams(self) -> int:
        return len(self.beta)

    def evidence(self, inputs: Jagged) -> Floats:
        """(U, K): half the distance to the border in spreads for active, its opposite for passive."""
        distance = (inputs.exposure() @ self.beta - self.border) / self.scale
        distance = np.where(inputs.events > 0, distance, 0.0)
        return np.stack([distance, -distance], axis=1)[:, : self.k]

    def posterior(self, inputs: Jagged) -> Floats:
        """q (U, 2), one half each on the border and without events; (U, 1) where nothing separates."""
        return self.readout.posterior(self.evidence(inputs), self.log_prior, inputs.events.astype(np.float64))

    def to_json(self) -> str:
        """As JSON text with `method` first."""
        tree = {
            "method": self.name, "beta": self.beta.tolist(), "border": self.border, "scale": self.scale,
            "log_prior": self.log_prior.tolist(), "readout": vars(self.readout), "reason": self.reason,
        }  # fmt: skip
        return json.dumps(tree)

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Paper2Fitted:
        """The segmenter that `to_json` described."""
        beta, log_prior = (np.asarray(tree[name], np.float64) for name in ("beta", "log_prior"))
        readout = Readout(**tree["readout"])
        return cls(beta, float(tree["border"]), float(tree["scale"]), log_prior, readout, str(tree["reason"]))


def load(text: str) -> FittedSegmenter:
    """The fitted segmenter that `to_json` wrote; ConfigError for an unknown method.

    torch is imported for `neural` alone.
    """
    tree = json.loads(text)
    method = str(tree.get("method"))
    if method not in METHODS:
        raise ConfigError.unknown_name("segmenter", method, METHODS)
    if method == "neural":
        from dynamix.segmentation.neural_fitted import NeuralFitted

        return NeuralFitted.from_tree(tree)
    plain = {cls.name: cls for cls in (MixFitted, MixMergeFitted, Paper2Fitted)}
    return plain[method].from_tree(tree)
