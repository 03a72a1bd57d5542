"""Dense twins of `interaction`: the same results over rows padded to the longest, as oracles."""

from __future__ import annotations

import torch
from torch import Tensor

from dynamix.models.kernels.dense import from_padded, padded_places, to_padded
from dynamix.models.layers.jagged import row_index


def jagged_dense_bmm(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """(N, T) from x (N, D), w (B, D, T)."""
    return _events(to_padded(x, offsets) @ w, offsets, x.shape[0])


def jagged_jagged_bmm(x: Tensor, y: Tensor, offsets: Tensor) -> Tensor:
    """(B, D, T) from x (N, D), y (N, T)."""
    return to_padded(x, offsets).mT @ to_padded(y, offsets)


def jagged_softmax(x: Tensor, offsets: Tensor) -> Tensor:
    """(N, D): softmax over the second axis of the padded tensor."""
    return _events(to_padded(x, offsets, fill=-torch.inf).softmax(1), offsets, x.shape[0])


def dense_jagged_add(w: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    """(N, D) from w (B, D), x (N, D)."""
    return _events(to_padded(x, offsets) + w.unsqueeze(1), offsets, x.shape[0])


def dense_jagged_concat(w: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    """(N + B, D) from w (B, D), x (N, D)."""
    longer = torch.cat([w.unsqueeze(1), to_padded(x, offsets)], 1)
    return longer[_real(offsets + torch.arange(offsets.shape[0]))]


def pair_scores(x: Tensor, y: Tensor, offsets: Tensor) -> Tensor:
    """Padded (B, L, L)."""
    return to_padded(x, offsets) @ to_padded(y, offsets).mT


def pair_values(square: Tensor, offsets: Tensor) -> Tensor:
    """The pairs (M, …) of a padded (B, L, L, …), in the order of `interaction.jagged_pairs`."""
    real = _real(offsets)
    return square[real.unsqueeze(2) & real.unsqueeze(1)]


def pair_softmax(square: Tensor, offsets: Tensor) -> Tensor:
    """Padded (B, L, L): softmax over the last axis, of events only."""
    return square.masked_fill(~_real(offsets).unsqueeze(1), -torch.finfo(square.dtype).max).softmax(2)


def pair_sum(square: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """(N, T) from padded weights (B, L, L), which are 0 at padding, and v (N, T)."""
    return _events(square @ to_padded(v, offsets), offsets, v.shape[0])


def pair_difference(x: Tensor, offsets: Tensor) -> Tensor:
    """Padded (B, L, L, …)."""
    padded = to_padded(x, offsets)
    return padded.unsqueeze(2) - padded.unsqueeze(1)


def _real(offsets: Tensor) -> Tensor:
    return padded_places(offsets)[1]


def _events(padded: Tensor, offsets: Tensor, tokens: int) -> Tensor:
    return from_padded(padded, offsets, row_index(offsets, tokens))
