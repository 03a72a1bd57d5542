"""HSTU layer (Zhai et al. 2024): pointwise attention over ragged rows, gated, with a bias by relative time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamix.models.kernels.dispatch import attention, pool
from dynamix.models.kernels.form import Form, Keys

N_HARMONICS = 4


@dataclass(frozen=True)
class Tokens:
    """What a layer knows of the N tokens of B rows beside their vectors, oldest first.

    `clock` (N,) in [0, 1], `log_weight` (N,) of each token, `bias` (N, H) added to the scores of each key, `keep` (N,)
    bool or None, `last` (B,) long, the place of each row's newest token.
    """

    offsets: Tensor
    clock: Tensor
    log_weight: Tensor
    bias: Tensor
    keep: Tensor | None
    last: Tensor


class RelativeTime(nn.Module):
    """Bias of each head by the difference of two clocks: a Fourier series with N_HARMONICS terms, zero at start.

    b(i, j) = Σ_k a_k cos kπ(τ_i − τ_j) + s_k sin kπ(τ_i − τ_j) is a dot product of features of i and of j, so it joins
    queries and keys, and every kernel has it. HSTU itself looks a bucket of t_i − t_j up, for each pair.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2, heads, N_HARMONICS))  # a, s

    def forward(self, clock: Tensor) -> tuple[Tensor, Tensor]:
        """Features of queries and of keys, both (N, H, 2·N_HARMONICS), from clock (N,)."""
        harmonic = torch.arange(1, N_HARMONICS + 1, device=clock.device, dtype=clock.dtype)
        angle = (math.pi * clock.unsqueeze(1) * harmonic).unsqueeze(1)  # (N, 1, K)
        cos, sin = angle.cos(), angle.sin()
        a, s = self.bias[0], self.bias[1]  # (H, K)
        asked = torch.cat([cos, sin], 2).expand(-1, a.shape[0], -1)
        return asked, torch.cat([a * cos - s * sin, a * sin + s * cos], 2)


class HstuLayer(nn.Module):
    """x + W₂ (norm(A v) ⊙ u) with u, v, q, k = silu(W₁ norm(x)) and A = silu(q·k/√d + bias + relative time), causal.

    x (N, D) -> (N, D). A token's weight e^log_weight multiplies its v. Sums are not divided by their number: the norm
    behind them takes that out.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.inner = heads, -(-width // heads)
        self.before = nn.LayerNorm(width)
        self.mixed = nn.Linear(width, 4 * heads * self.inner)
        self.time = RelativeTime(heads)
        self.after = nn.LayerNorm(heads * self.inner)
        self.out = nn.Linear(heads * self.inner, width)
        self.form = Form(causal=True, activation="silu", scale=1.0)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        u, v, q, k = self._parts(x, tokens)
        found = attention(q, k, v, tokens.offsets, keys=Keys(tokens.bias, tokens.keep), form=self.form)
        return self._close(x, u, found)

    def newest(self, x: Tensor, tokens: Tokens) -> Tensor:
        """The same for the newest token of each row alone, (B, D): one query a row instead of all."""
        u, v, q, k = self._parts(x, tokens)
        asked = q.index_select(0, tokens.last).unsqueeze(1)  # (B, 1, H, d)
        form = Form(activation="silu", scale=1.0)  # the newest token sees its whole row
        found = pool(asked, k, v, tokens.offsets, keys=Keys(tokens.bias, tokens.keep), form=form)
        return self._close(x.index_select(0, tokens.last), u.index_select(0, tokens.last), found)

    def _parts(self, x: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u, v (N, H, d), and q, k (N, H, d + 2·N_HARMONICS) with the features of time."""
        mixed = F.silu(self.mixed(self.before(x))).view(-1, 4, self.heads, self.inner)
        u, v, q, k = mixed.unbind(1)
        asked, known = self.time(tokens.clock)
        v = v * tokens.log_weight.exp()[:, None, None]
        return u, v, torch.cat([q / math.sqrt(self.inner), asked], 2), torch.cat([k, known], 2)

    def _close(self, x: Tensor, u: Tensor, found: Tensor) -> Tensor:
        return x + self.out(self.after(found.flatten(1)) * u.flatten(1))  # type: ignore[no-any-return]
