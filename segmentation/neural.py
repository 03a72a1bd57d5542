"""The neural segmenter behind the common interface: choice of K, guards, temperature (docs/method.md A.4.2, A.4.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
import torch

from dynamix.config import SegmentationConfig
from dynamix.errors import GuardError
from dynamix.segmentation.blocks import INPUT
from dynamix.segmentation.em import HALF_A, HALF_B, user_half
from dynamix.segmentation.encoder import SessionEncoder, one_thread
from dynamix.segmentation.guards import MEASURABLE_EVENTS, length_eta2, refusal
from dynamix.segmentation.jagged import Bools, Floats, Jagged
from dynamix.segmentation.mixture import adjusted_rand
from dynamix.segmentation.neural_fitted import NeuralFitted, as_floats, encode, user_blocks
from dynamix.segmentation.objective import predictive
from dynamix.segmentation.readout import Readout, View, agreement, effective_rank, fit_readout
from dynamix.segmentation.slopes import Evidence, pooled_slopes
from dynamix.segmentation.train import TrainConfig, train

STUCK = 0.05
"""Nats that one half of a user's sessions has to tell of the other (docs/method.md A.4.4)."""
SEARCH_STEPS = 120
_HELD_OUT = 0.2


@dataclass(frozen=True)
class Neural:
    """Train for K = 1..k_max, take the smallest K near the best held-out likelihood that passes the guards.

    With `k` that number is trained without guards. `search` trains the candidates, on four fifths of the users; the
    next window of the other fifth, given their input window, compares them (one standard error, paired by user).
    """

    name: ClassVar[str] = "neural"
    config: SegmentationConfig
    training: TrainConfig = field(default_factory=TrainConfig)
    search: TrainConfig = field(default_factory=lambda: TrainConfig(steps=SEARCH_STEPS))
    k: int | None = None

    def fit(self, inputs: Jagged, evidence: Evidence | None = None) -> NeuralFitted:
        """With evidence the population slopes are an input and a target; no user's own label is.

        Users are sorted by id first, so their order does not matter.
        """
        slopes = None if evidence is None or not len(evidence.user) else pooled_slopes(evidence)
        inputs = inputs.take(np.argsort(np.asarray(inputs.users.to_pylist(), dtype=np.str_), kind="stable"))
        if not (inputs.part == INPUT).any():
            raise GuardError(
                "segment: no user has a usable event in the segmenter's input window; ingest more days"
            )
        if self.k is not None:
            return self._fitted(self._train(inputs, self.k, slopes), inputs, f"K={self.k} as given", {})
        refused: list[str] = []
        for k in range(self._ladder(inputs, slopes), 0, -1):
            encoder = self._train(inputs, k, slopes)
            numbers = guard_numbers(encoder, inputs)
            words = _refused(k, numbers, self.config)
            if k > 1 and not words:  # two more fits, so only where nothing else refuses
                numbers["split_half_ari"] = self._stability(inputs, k, slopes)
                words = _refused(k, numbers, self.config)
            if not words:
                more = f" (refused: {'; '.join(refused)})" if refused else ""
                reason = f"K={k} of K=1..{self.config.k_max} by held-out likelihood{more}"
                return self._fitted(encoder, inputs, reason, numbers)
            refused.append(f"K={k}: {words}")
        raise AssertionError("one segment is never refused")

    def _train(self, inputs: Jagged, k: int, slopes: Floats | None) -> SessionEncoder:
        return train(inputs, k=k, slopes=slopes, config=self.training)

    def _fitted(
        self, encoder: SessionEncoder, inputs: Jagged, reason: str, numbers: Mapping[str, float]
    ) -> NeuralFitted:
        weights = {name: w.detach().cpu().numpy().copy() for name, w in encoder.state_dict().items()}
        return NeuralFitted(encoder.config, weights, _temperature(encoder, inputs), reason, numbers)

    def _ladder(self, inputs: Jagged, slopes: Floats | None) -> int:
        """The smallest K within one standard error of the best prediction of the next window."""
        held = _held_out(inputs.users)
        kept, tested = inputs.take(np.flatnonzero(~held)), inputs.take(np.flatnonzero(held))
        if not kept.events.any() or not tested.events.any():
            return 1
        logs = [
            np.zeros(tested.n_users)
        ]  # one segment is the pooled emission, which is the zero of `predictive`
        for k in range(2, self.config.k_max + 1):
            encoder = train(kept, k=k, slopes=slopes, config=self.search)
            logs.append(next_window(encoder, tested))
        best = int(np.argmax([log.sum() for log in logs]))
        for place, log in enumerate(logs):
            gap = logs[best] - log
            if gap.sum() <= gap.std() * len(gap) ** 0.5:
                return place + 1
        return best + 1

    def _stability(self, inputs: Jagged, k: int, slopes: Floats | None) -> float:
        """ARI over users with enough events of the models trained on the two halves of the users."""
        long = inputs.events >= MEASURABLE_EVENTS
        half, chosen = user_half(inputs.users), inputs.take(np.flatnonzero(long))
        labels = []
        for which in (HALF_A, HALF_B):
            encoder = self._train(inputs.take(np.flatnonzero(half == which)), k, slopes)
            scores = encode(encoder, chosen).evidence + encoder.log_prior.detach().cpu().numpy()
            labels.append(scores.argmax(axis=1))
        table = np.zeros((k, k))
        np.add.at(table, (labels[0], labels[1]), 1.0)
        return adjusted_rand(table)


def guard_numbers(encoder: SessionEncoder, inputs: Jagged) -> dict[str, float]:
    """What the guards look at, of one trained encoder; the split-half ARI, which takes more fits, stands at 1."""
    k = encoder.config.k
    found = encode(encoder, inputs)
    share = encoder.log_prior.detach().exp().cpu().numpy().astype(np.float64)
    long = found.n >= MEASURABLE_EVENTS
    log_n = np.log(found.n[long])
    label = (found.evidence + np.log(share)).argmax(axis=1)[long]
    sums = [np.bincount(label, weights=w, minlength=k) for w in (None, log_n, log_n**2)]
    entropy = float(-(share * np.log(share)).sum())
    return {
        "min_share": float(share.min()),
        "perplexity": float(np.exp(entropy)),
        "measured_users": float(long.sum()),
        "effective_rank": effective_rank(found.z[found.n > 0]),
        "agreement": _agreement(encoder, inputs),
        "length_eta2": length_eta2(np.stack(sums, axis=1).astype(np.float64)),
        "split_half_ari": 1.0,
    }


def collapse(k: int, numbers: Mapping[str, float]) -> str:
    """Why K ≥ 2 prototypes are stuck or lie on top of each other, in words; empty when they do not.

    Stuck: halves of a user say nothing of each other, less than .05 nats, so the loss of one given the other is within
    .05 of where it stands without any segments (ln K for equal shares). Source: docs/method.md A.4.4.
    """
    if k == 1:
        return ""
    if numbers["agreement"] < STUCK:
        return f"halves of the users agree by {numbers['agreement']:.3f} nats < {STUCK}: collapsed"
    if numbers["effective_rank"] < max(2, k - 2):
        return f"effective rank {numbers['effective_rank']:.2f} < {max(2, k - 2)}"
    return ""


def _refused(k: int, numbers: Mapping[str, float], config: SegmentationConfig) -> str:
    return refusal(k, numbers, config) or collapse(k, numbers)


def next_window(encoder: SessionEncoder, inputs: Jagged) -> Floats:
    """log p(next window | input window) of every user (U,) as gain over the pooled emission, in nats."""
    parts = []
    with torch.no_grad(), one_thread():
        for block in user_blocks(encoder, inputs):
            seen = block.is_input[block.session].float()
            parts.append(as_floats(predictive(encoder, block, encoder(block, seen), 1.0 - seen)))
    return np.concatenate(parts)


def _agreement(encoder: SessionEncoder, inputs: Jagged) -> float:
    """Agreement of even and odd sessions under the read-out, over users who have both; 0 without such a user."""
    a, b = (encode(encoder, half).view for half in inputs.halves())
    both = (a.n > 0) & (b.n > 0)
    if not both.any():
        return 0.0
    prior = encoder.log_prior.detach().cpu().numpy().astype(np.float64)
    first, second = (View(x.evidence[both], x.n[both]) for x in (a, b))
    return agreement(fit_readout(first, second, prior), first, second, prior)


def _temperature(encoder: SessionEncoder, inputs: Jagged) -> Readout:
    first, second = (encode(encoder, half).view for half in inputs.halves())
    return fit_readout(first, second, encoder.log_prior.detach().cpu().numpy().astype(np.float64))


def _held_out(users: Any) -> Bools:
    """True for a fifth of the users, by a hash that no other split shares."""
    draws = [blake2b(f"held-out|{u}".encode(), digest_size=2).digest() for u in users.to_pylist()]
    return np.array([int.from_bytes(d, "big") < _HELD_OUT * 65536 for d in draws], bool)
