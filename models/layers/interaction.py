"""Dot products between the vectors of fields and streams, and the sums of events that make a stream's vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def stream_sums(events: Tensor, weight: Tensor, cell: Tensor, cells: int) -> Tensor:
    """Σ w e / √(1 + Σ w) of each cell, (cells, D); a cell without events gives 0.

    events (N, D), weight (N,), cell (N,) long. The root keeps the spread of a sum over few and many events alike.
    """
    summed = events.new_zeros(cells, events.shape[1]).index_add(0, cell, events * weight.unsqueeze(1))
    total = weight.new_zeros(cells).index_add(0, cell, weight)
    return summed / (1 + total).sqrt().unsqueeze(1)


class Interaction(nn.Module):
    """Linear map (B, T) of all fields, and of the dot products of every two vectors divided by √D, each pair once.

    fields (B, C, D), streams (B, F, D). The weights of streams stand apart, so that they can grow with the data.
    """

    def __init__(self, n_fields: int, n_streams: int, width: int, width_out: int) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(width)
        self.fields = nn.Linear(n_fields * (width + n_fields), width_out)
        self.across = nn.Linear(n_streams * n_fields, width_out, bias=False)
        self.pairs = nn.Linear(n_streams * n_streams, width_out, bias=False)

    def forward(self, fields: Tensor, streams: Tensor) -> Tensor:
        scaled = streams * self.scale
        inner = (fields @ fields.mT * self.scale).tril(-1)  # (B, C, C)
        found = self.fields(torch.cat([fields.flatten(1), inner.flatten(1)], dim=1))
        found = found + self.across((scaled @ fields.mT).flatten(1))  # (B, F, C)
        return found + self.pairs((scaled @ streams.mT).tril(-1).flatten(1))  # type: ignore[no-any-return]
