"""DIN-type trunk: target attention over the ragged history beside the pooled summaries of the streams."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamix.contracts import N_DWELL_BINS
from dynamix.models.batch import RankBatch
from dynamix.models.layers.attention import TargetAttention
from dynamix.models.layers.gate import StreamGate
from dynamix.models.layers.jagged import row_index
from dynamix.models.layers.summary import N_SUMMARY, StreamLinear, stream_summary

N_DENSE = 4
N_TIERS = 2
N_EVENT_FLOATS = 5


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes of the trunk: `n_segments` counts segment 0, `n_surfaces` the unknown surface 0."""

    n_streams: int
    n_segments: int
    n_surfaces: int
    item_buckets: int
    width: int = 16
    hidden: tuple[int, ...] = (64, 32)


class DinTrunk(nn.Module):
    """Representation r (B, hidden[-1]) and stream summary x (B, F, C) of a RankBatch."""

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
        self.attention = TargetAttention(width)
        self.summary = nn.Linear(config.n_streams * N_SUMMARY, width)
        sizes = (4 * width, *config.hidden)
        self.mlp = nn.Sequential(
            *(layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU()))
        )
        self.width_out = sizes[-1]

    def forward(self, batch: RankBatch, scale: Tensor) -> tuple[Tensor, Tensor]:
        row = row_index(batch.offsets, batch.stream.shape[0])  # (N,)
        x = stream_summary(batch, row, self.config.n_streams)  # (B, F, C)
        candidate = self._candidate(batch)  # (B, D)
        bias = self.gate(batch.segment, batch.stream, row)  # (N,)
        if batch.log_boost is not None:
            bias = bias + batch.log_boost
        pooled = self.attention(
            candidate, self._events(batch), bias, batch.offsets, row, batch.keep
        )  # (B, D)
        pressed = self.summary(x.flatten(1) * scale)  # (B, D)
        r = self.mlp(torch.cat([candidate, pooled, candidate * pooled, pressed], dim=1))
        return r, x

    def _candidate(self, batch: RankBatch) -> Tensor:
        known = self.surface(batch.surface) + self.segment(batch.segment) + self.tier(batch.tier)
        return known + self.item(batch.item_id) + self.dense(batch.dense)  # type: ignore[no-any-return]

    def _events(self, batch: RankBatch) -> Tensor:
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


def initialise(trunk: DinTrunk, *, seed: int) -> None:
    """Draw every weight from one generator, so that the seed alone decides; gates stay the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in trunk.named_parameters():
            if name.endswith("log_weight") or name.endswith("bias"):
                weight.zero_()
            elif isinstance(trunk.get_submodule(name.rsplit(".", 1)[0]), nn.Embedding):
                weight.normal_(0, 0.01 if name == "item.weight" else 0.1, generator=generator)
            else:
                weight.normal_(0, (2 / (weight.shape[0] + weight.shape[1])) ** 0.5, generator=generator)


__all__ = ["N_DENSE", "DinTrunk", "StreamLinear", "TrunkConfig", "initialise"]
