"""Target attention: the candidate asks, the ragged history answers (DIN's pooling with a softmax)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from dynamix.models.layers.jagged import expand_rows, segment_softmax, segment_sum


class TargetAttention(nn.Module):
    """Candidate-weighted mean of the events of each row, (B, D); a row without events gets a learned default.

    query (B, D), events (N, D), bias (N,) log weights, offsets (B+1,), row (N,), keep (N,) or None. The keys
    are never built: q·(K e) = (Kᵀ q)·e, so the projection costs B rows instead of N events.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width, bias=False)
        self.empty = nn.Linear(1, width, bias=False)  # learned default of an empty history
        self.scale = 1 / math.sqrt(width)

    def forward(
        self, query: Tensor, events: Tensor, bias: Tensor, offsets: Tensor, row: Tensor, keep: Tensor | None
    ) -> Tensor:
        asked = expand_rows(self.query(query) * self.scale, offsets, row)  # (N, D)
        weight = segment_softmax((asked * events).sum(1) + bias, offsets, row, keep)  # (N,)
        pooled = segment_sum(events * weight.unsqueeze(1), offsets, row)  # (B, D)
        filled = segment_sum(weight.detach().unsqueeze(1), offsets, row).clamp(
            0, 1
        )  # (B, 1): 1, or 0 if empty
        return self.value(pooled) + self.empty(1 - filled)  # type: ignore[no-any-return]
