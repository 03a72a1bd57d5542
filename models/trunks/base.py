"""What every trunk shares: its sizes, the embeddings of candidate and events, and the segment × stream gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamix.contracts import N_DWELL_BINS
from dynamix.models.batch import RankBatch
from dynamix.models.layers.gate import StreamGate

N_DENSE = 4
N_TIERS = 2
N_EVENT_FLOATS = 5

Represented: TypeAlias = tuple[Tensor, Tensor]
"""Row vectors r (B, width_out) and stream summary x (B, F, C)."""


@dataclass(frozen=True)
class TrunkConfig:
    """Kind and sizes of a trunk: `n_segments` counts segment 0, `n_surfaces` the unknown surface 0.

    `layers` and `attention_heads` are those of kind `hstu`. Models stored before there were kinds are `din`.
    """

    n_streams: int
    n_segments: int
    n_surfaces: int
    item_buckets: int
    width: int = 16
    hidden: tuple[int, ...] = (64, 32)
    kind: str = "din"
    layers: int = 2
    attention_heads: int = 2


class Trunk(nn.Module):
    """RankBatch -> row vectors r (B, width_out) and the stream summary x (B, F, C).

    A kind adds its layers and `forward(batch, scale)`, scale (F·C,) being the summary's. Removed and masked events must
    give the same r, so positions come from age or from ranks among kept events, and a row must not see another.
    Segment and tier are part of the candidate; the gate, the identity at start, weighs events by segment and stream.
    """

    width_out: int

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.item = nn.Embedding(config.item_buckets, width)
        self.stream = nn.Embedding(config.n_streams, width)
        self.dwell = nn.Embedding(N_DWELL_BINS, width)
        self.event = nn.Linear(
            N_EVENT_FLOATS, width, bias=False
        )  # z, log age, usable, item and category match
        self.surface = nn.Embedding(config.n_surfaces, width)
        self.segment = nn.Embedding(config.n_segments, width)
        self.tier = nn.Embedding(N_TIERS, width)
        self.dense = nn.Linear(N_DENSE, width)
        self.gate = StreamGate(config.n_segments, config.n_streams)

    def forward(self, batch: RankBatch, scale: Tensor) -> Represented:
        """r (B, width_out) and x (B, F, C)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward; a kind of trunk writes its own")

    def log_weight(self, batch: RankBatch, row: Tensor) -> Tensor:
        """Log weight of each event (N,): the gate's, with the mask's boost where the batch has one."""
        weight: Tensor = self.gate(batch.segment, batch.stream, row)
        return weight if batch.log_boost is None else weight + batch.log_boost

    def candidate(self, batch: RankBatch) -> Tensor:
        """Embedding (B, D) of what is to be ranked, for whom and where."""
        known = self.surface(batch.surface) + self.segment(batch.segment) + self.tier(batch.tier)
        return known + self.item(batch.item_id) + self.dense(batch.dense)  # type: ignore[no-any-return]

    def events(self, batch: RankBatch) -> Tensor:
        """Event embedding (N, D): stream × dwell bin in one look-up, item, and a linear of the floats."""
        table = (self.stream.weight.unsqueeze(1) + self.dwell.weight).flatten(0, 1)  # (F·bins, D)
        kind = F.embedding(batch.stream * N_DWELL_BINS + batch.dwell_bin, table)
        usable = batch.usable.to(batch.z.dtype)
        floats = torch.stack(
            [
                batch.z * usable,
                batch.log_age / 10,
                usable,
                (batch.match & 1).to(batch.z.dtype),
                (batch.match >> 1).to(batch.z.dtype),
            ],
            dim=1,
        )  # (N, 5)
        return kind + self.item(batch.item) + self.event(floats)  # type: ignore[no-any-return]


def perceptron(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these sizes, each followed by a ReLU."""
    return nn.Sequential(*(layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())))


def initialise(trunk: Trunk, *, seed: int) -> None:
    """Draw every weight from one generator, so that the seed alone decides; gates and biases stay the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in trunk.named_parameters():
            owner = trunk.get_submodule(name.rsplit(".", 1)[0])
            if name.endswith("log_weight") or name.endswith("bias"):
                weight.zero_()
            elif isinstance(owner, nn.LayerNorm):
                weight.fill_(1)
            elif isinstance(owner, nn.Embedding):
                weight.normal_(0, 0.01 if name == "item.weight" else 0.1, generator=generator)
            else:
                weight.normal_(0, (2 / (weight.shape[0] + weight.shape[1])) ** 0.5, generator=generator)
