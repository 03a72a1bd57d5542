"""Learned weights by segment × stream and tier × stream that every arm's ranker has (docs/method.md A.8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StreamGate(nn.Module):
    """Log weight of each event by its row's segment (or tier) and stream: (N,) float, to be added or exponentiated.

    segment (B,) long, stream (N,) long, row (N,) long. Starts as zeros, so the gate is the identity.
    """

    def __init__(self, n_segments: int, n_streams: int) -> None:
        super().__init__()
        self.n_streams = n_streams
        self.log_weight = nn.Parameter(torch.zeros(n_segments * n_streams, 1))  # (G·F, 1)

    def forward(self, segment: Tensor, stream: Tensor, row: Tensor) -> Tensor:
        cell = segment.index_select(0, row) * self.n_streams + stream  # (N,)
        return F.embedding(cell, self.log_weight).squeeze(1)


class CellBias(nn.Module):
    """Attention bias of each event and head by segment × stream and by tier × stream: (N, H) float, zeros at start.

    segment, tier (B,) long, stream, row (N,) long.
    """

    def __init__(self, n_segments: int, n_tiers: int, n_streams: int, heads: int) -> None:
        super().__init__()
        self.n_streams = n_streams
        self.segment_bias = nn.Parameter(torch.zeros(n_segments * n_streams, heads))  # (G·F, H)
        self.tier_bias = nn.Parameter(torch.zeros(n_tiers * n_streams, heads))

    def forward(self, segment: Tensor, tier: Tensor, stream: Tensor, row: Tensor) -> Tensor:
        by_segment = F.embedding(segment.index_select(0, row) * self.n_streams + stream, self.segment_bias)
        return by_segment + F.embedding(tier.index_select(0, row) * self.n_streams + stream, self.tier_bias)
