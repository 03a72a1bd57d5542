"""Named output heads: a logit per label, starting at the label's base rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn


class Heads(nn.Module):
    """Logits (B, H) = linear(r) + offset, heads in the order of `names`; starts as the base rate of each.

    r (B, D), offset (B, H). The weights start at zero, so that the first output is the bias alone.
    """

    def __init__(self, width: int, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.out = nn.Linear(width, len(self.names))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def start_at(self, base_rates: Mapping[str, float]) -> None:
        """Set each bias to the logit of its base rate."""
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor([logit(base_rates[n]) for n in self.names]))

    def forward(self, r: Tensor, offset: Tensor) -> Tensor:
        return self.out(r) + offset  # type: ignore[no-any-return]


def logit(p: float) -> float:
    """ln(p/(1−p)) with p held inside [1e-6, 1−1e-6]."""
    inside = min(max(float(p), 1e-6), 1 - 1e-6)
    return float(np.log(inside) - np.log1p(-inside))
