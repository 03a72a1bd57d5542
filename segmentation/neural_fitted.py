"""The fitted neural segmenter: weights as arrays, applied block by block on one thread (docs/method.md A.4.2)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dynamix.segmentation.encoder import EncoderConfig, JaggedBatch, SessionEncoder, batch_of, one_thread
from dynamix.segmentation.jagged import Floats, Jagged
from dynamix.segmentation.readout import Readout, View

BLOCK = 2048
"""Users encoded at a time."""


@dataclass(frozen=True)
class Encodings:
    """What the network says of U users: z (U, d), evidence (U, K) without the prior, events (U,)."""

    z: Floats
    evidence: Floats
    n: Floats

    @property
    def view(self) -> View:
        return View(self.evidence, self.n)


@dataclass(frozen=True)
class NeuralFitted:
    """Weights as arrays and the read-out; the posterior is a pure function of both and of the events."""

    name: ClassVar[str] = "neural"
    config: EncoderConfig
    weights: Mapping[str, npt.NDArray[np.float32]]
    readout: Readout
    reason: str
    numbers: Mapping[str, float]

    @property
    def k(self) -> int:
        return self.config.k

    @property
    def n_streams(self) -> int:
        return self.config.n_streams

    @property
    def log_prior(self) -> Floats:
        """log π (K,)."""
        raw = np.asarray(self.weights["prior"], np.float64)
        return np.asarray(raw - np.log(np.exp(raw - raw.max()).sum()) - raw.max())

    def posterior(self, inputs: Jagged) -> Floats:
        """q (U, K) under the fitted temperature; users without events get the prior."""
        found = encode(self._encoder(), inputs)
        return self.readout.posterior(found.evidence, self.log_prior, found.n)

    def _encoder(self) -> SessionEncoder:
        encoder = SessionEncoder(self.config, torch.Generator())
        encoder.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in self.weights.items()})
        return encoder.eval()

    def to_json(self) -> str:
        """As JSON text with `method` first; weights are exact."""
        tree = {
            "method": self.name, "config": asdict(self.config), "readout": vars(self.readout), "reason": self.reason,
            "numbers": dict(self.numbers), "weights": {name: w.tolist() for name, w in self.weights.items()},
        }  # fmt: skip
        return json.dumps(tree)

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> NeuralFitted:
        """The segmenter that `to_json` described."""
        weights = {name: np.asarray(values, np.float32) for name, values in tree["weights"].items()}
        config, readout = EncoderConfig(**tree["config"]), Readout(**tree["readout"])
        return cls(config, weights, readout, str(tree["reason"]), dict(tree["numbers"]))


def encode(encoder: SessionEncoder, inputs: Jagged) -> Encodings:
    """z, evidence and events of every user, block by block; all events of `inputs` are seen."""
    parts = []
    with torch.no_grad(), one_thread():
        for block in user_blocks(encoder, inputs):
            found = encoder(block, torch.ones_like(block.z))
            parts.append([as_floats(value) for value in (found.z, found.evidence, found.n)])
    return Encodings(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def user_blocks(encoder: SessionEncoder, inputs: Jagged) -> Iterator[JaggedBatch]:
    """All users, BLOCK at a time and in order; one empty block where there is none."""
    for first in range(0, max(inputs.n_users, 1), BLOCK):
        rows = np.arange(first, min(first + BLOCK, inputs.n_users))
        yield batch_of(inputs.take(rows), encoder.base.device)


def as_floats(value: Tensor) -> Floats:
    """The values as float64 on the CPU."""
    return np.asarray(value.cpu().numpy(), np.float64)
