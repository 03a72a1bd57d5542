"""Learned segment × stream gate that every arm's ranker has (docs/method.md A.8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StreamGate(nn.Module):
    """Log weight of each event by its row's segment and stream: (N,) float, to be added or exponentiated.

    segment (B,) long, stream (N,) long, row (N,) long. Starts as zeros, so the gate is the identity.
    """

    def __init__(self, n_segments: int, n_streams: int) -> None:
        super().__init__()
        self.n_streams = n_streams
        self.log_weight = nn.Parameter(torch.zeros(n_segments * n_streams, 1))  # (G·F, 1)

    def forward(self, segment: Tensor, stream: Tensor, row: Tensor) -> Tensor:
        cell = segment.index_select(0, row) * self.n_streams + stream  # (N,)
        return F.embedding(cell, self.log_weight).squeeze(1)
