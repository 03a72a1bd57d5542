"""The dense twins: every row padded to the longest. They are the oracles, and what an exported program holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynamix.models.kernels.form import HIDDEN, Form, Keys


def padded_places(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Event of each place (B, L) long, and whether there is one, (B, L) bool; L = length of the longest row.

    A place without an event points at number N, one past the last.
    """
    lengths = offsets.diff()
    longest: Any = lengths.max().item() if offsets.shape[0] > 1 else 0  # a symbol while exporting
    torch._check(longest >= 0)
    slot = torch.arange(longest, device=offsets.device)
    real = slot < lengths[:, None]
    return torch.where(real, offsets[:-1, None] + slot, offsets[-1]), real


def to_padded(x: Tensor, offsets: Tensor, *, fill: float = 0.0) -> Tensor:
    """x (N, …) as (B, L, …) with `fill` where a row has no event."""
    return _padded(x, padded_places(offsets)[0], fill)


def _padded(x: Tensor, at: Tensor, fill: float = 0.0) -> Tensor:
    more = torch.cat([x, x.new_full((1, *x.shape[1:]), fill)])
    return more.index_select(0, at.flatten()).view(*at.shape, *x.shape[1:])


def from_padded(padded: Tensor, offsets: Tensor, row: Tensor) -> Tensor:
    """The events (N, …) of padded (B, L, …); row (N,) long is the row of each event."""
    slot = torch.arange(row.shape[0], device=row.device) - offsets.index_select(0, row)
    return padded.flatten(0, 1).index_select(0, row * padded.shape[1] + slot)


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    row: Tensor,
    keys: Keys,
    form: Form,
    *,
    with_lse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Output (N, H, e) and log-sum-exp (N, H) of attention over padded rows; q, k (N, H, d), v (N, H, e).

    The log-sum-exp has no entries unless `with_lse`.
    """
    places = padded_places(offsets)  # once: every reading of the longest row is a new symbol while exporting
    scores, seen = _scores(_padded(q, places[0]).transpose(1, 2), k, places, keys, form)
    out = _mixed(scores, seen, _padded(v, places[0]).transpose(1, 2), form)
    found = from_padded(out.transpose(1, 2), offsets, row)
    if not with_lse:
        return found, found.new_empty(0, q.shape[1])
    return found, from_padded(scores.detach().logsumexp(3).transpose(1, 2), offsets, row)


def dense_pool(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, keys: Keys, form: Form) -> Tensor:
    """Output (B, H, T, e) of T queries a row, q (B, H, T, d), over its padded events."""
    places = padded_places(offsets)
    scores, seen = _scores(q, k, places, keys, form)
    return _mixed(scores, seen, _padded(v, places[0]).transpose(1, 2), form)


def _scores(
    q: Tensor, k: Tensor, places: tuple[Tensor, Tensor], keys: Keys, form: Form
) -> tuple[Tensor, Tensor]:
    """Scores (B, H, T, L) of queries (B, H, T, d), HIDDEN where a pair takes no part, and which do."""
    at, real = places
    scores = form.scale_of(q.shape[3]) * q @ _padded(k, at).transpose(1, 2).mT
    if keys.bias is not None:
        scores = scores + _padded(keys.bias, at).transpose(1, 2).unsqueeze(2)
    seen = (real if keys.keep is None else _padded(keys.keep, at))[:, None, None]  # (B, 1, 1, L)
    if form.causal:
        seen = seen & scores.new_ones(scores.shape[2:], dtype=torch.bool).tril()
    return scores.masked_fill(~seen, HIDDEN[form.activation]), seen


def _mixed(scores: Tensor, seen: Tensor, v: Tensor, form: Form) -> Tensor:
    """Weighted values (B, H, T, e)."""
    if form.activation == "silu":
        return torch.nn.functional.silu(scores) @ v / form.norm
    blind = ~seen.any(3, keepdim=True)  # queries that see no key
    return scores.masked_fill(blind, 0).softmax(3).masked_fill(~seen, 0) @ v
