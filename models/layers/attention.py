"""Target attention: the candidate asks, the ragged history answers (DIN's pooling with a softmax)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from dynamix.models.kernels.dispatch import pool
from dynamix.models.kernels.form import Form, Keys
from dynamix.models.layers.jagged import segment_sum


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
        self.form = Form(scale=1 / math.sqrt(width))

    def forward(
        self, query: Tensor, events: Tensor, bias: Tensor, offsets: Tensor, row: Tensor, keep: Tensor | None
    ) -> Tensor:
        asked, seen = self.query(query)[:, None, None], events.unsqueeze(1)  # (B, 1, 1, D), (N, 1, D)
        keys = Keys(bias.unsqueeze(1), keep)
        pooled = pool(asked, seen, seen, offsets, keys=keys, form=self.form).flatten(1)  # (B, D)
        counted = bias.new_ones(bias.shape) if keep is None else keep.to(bias.dtype)
        filled = segment_sum(counted.unsqueeze(1), offsets, row).clamp(0, 1)  # (B, 1): 1, or 0 if empty
        return self.value(pooled) + self.empty(1 - filled)  # type: ignore[no-any-return]
