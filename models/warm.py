"""Warm start: a training that begins with the weights of a registered ranker instead of drawn ones.

Stream and segment ids are never given twice, so their weights go where they were; surfaces go by name. What the older
model has never seen keeps its cold start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dynamix.config import TrainConfig
from dynamix.errors import ConfigError
from dynamix.models.ranker import Ranker, RankerConfig
from dynamix.models.service import load_preparation, load_ranker
from dynamix.models.trunks.base import N_TIERS
from dynamix.models.trunks.dlrm import FIELDS

_GROWS: Mapping[str, tuple[str, ...]] = {
    "trunk.stream.weight": ("stream", "rest"),
    "trunk.segment.weight": ("segment", "rest"),
    "trunk.surface.weight": ("surface", "rest"),
    "trunk.gate.log_weight": ("segment", "stream", "rest"),
    "trunk.summary.weight": ("width", "stream", "rest"),
    "trunk.tier_gate.log_weight": ("tier", "stream", "rest"),
    "trunk.interaction.across.weight": ("rest", "stream", "field"),
    "trunk.interaction.pairs.weight": ("rest", "stream", "stream"),
    "trunk.cell_bias.segment_bias": ("segment", "stream", "rest"),
    "trunk.cell_bias.tier_bias": ("tier", "stream", "rest"),
    "linear.shared": ("head", "stream", "rest"),
    "linear.by_segment": ("segment", "head", "stream", "rest"),
    "linear.scale": ("stream", "rest"),
}
"""Weights of any trunk whose size follows the data, with what their axes are when unfolded; all others keep theirs."""


@dataclass(frozen=True)
class WarmStart:
    """A ranker to begin from, the stream ids that it knows, and its address for sentences and tags."""

    model: Ranker
    streams: Mapping[str, int]
    address: str

    @classmethod
    def load(cls, folder: Path, address: str) -> WarmStart:
        """From the artefacts of a registered version."""
        streams = {name: scale.stream_id for name, scale in load_preparation(folder).streams.items()}
        return cls(load_ranker(folder), streams, address)

    def refuse_other_contract(
        self, *, config: TrainConfig, heads: Sequence[str], streams: Mapping[str, int]
    ) -> None:
        """ConfigError (exit 2) naming everything in which that model could not go on under this config and warehouse."""
        own = self.model.config
        wanted = {
            "labels": (own.heads, tuple(heads)),
            "train.trunk": (own.trunk.kind, config.trunk),
            "train.item_buckets": (own.trunk.item_buckets, config.item_buckets),
            "train.embedding_dim": (own.trunk.width, config.embedding_dim),
            "train.hidden": (tuple(own.trunk.hidden), tuple(config.hidden)),
        }
        if own.trunk.kind == config.trunk == "hstu":
            wanted["train.layers"] = (own.trunk.layers, config.layers)
            wanted["train.attention_heads"] = (own.trunk.attention_heads, config.attention_heads)
        trouble = [
            f"{key} is {there} there, {here} here" for key, (there, here) in wanted.items() if there != here
        ]
        moved = sorted(name for name, number in self.streams.items() if streams.get(name, number) != number)
        if moved:
            trouble.append(f"stream ids are others ({', '.join(moved[:3])}), so it is of another warehouse")
        if trouble:
            raise ConfigError(
                f"--warm-start: {self.address} has another contract: {'; '.join(trouble)}; set the config as it was, or "
                "leave --warm-start out for a cold start"
            )

    def begin(self, model: Ranker) -> None:
        """Put its weights into `model`, which has had its cold start; shapes may have grown with the data."""
        there, here = self.model.config, model.config
        state = model.state_dict()
        for name, old in self.model.state_dict().items():
            axes = _GROWS.get(name)
            state[name] = old if axes is None else _laid_over(state[name], old, axes, here, there)
        model.load_state_dict(state)


def _laid_over(
    new: Tensor, old: Tensor, axes: tuple[str, ...], here: RankerConfig, there: RankerConfig
) -> Tensor:
    """`new` with the entries of `old` whose stream, segment and surface both know."""
    wide, narrow = new.clone().view(_shape(axes, here)), old.view(_shape(axes, there))
    pairs = [
        _surfaces(here, there) if axis == "surface" else [(i, i) for i in range(min(a, b))]
        for axis, a, b in zip(axes, wide.shape, narrow.shape, strict=True)
    ]
    to, origin = (
        torch.meshgrid(*[torch.tensor([pair[side] for pair in axis], dtype=torch.int64) for axis in pairs], indexing="ij")
        for side in (0, 1)
    )  # fmt: skip
    wide[to] = narrow[origin]
    return wide.view(new.shape)


def _shape(axes: tuple[str, ...], config: RankerConfig) -> list[int]:
    sizes = {
        "stream": config.trunk.n_streams, "segment": config.trunk.n_segments, "surface": config.trunk.n_surfaces,
        "head": len(config.heads), "width": config.trunk.width, "tier": N_TIERS, "field": len(FIELDS),
    }  # fmt: skip
    return [sizes.get(axis, -1) for axis in axes]


def _surfaces(here: RankerConfig, there: RankerConfig) -> list[tuple[int, int]]:
    """(place here, place there) of the unknown surface 0 and of every surface that both name."""
    old = {name: place for place, name in enumerate(there.surfaces, 1)}
    named = [(place, old[name]) for place, name in enumerate(here.surfaces, 1) if name in old]
    return [(0, 0), *named]
