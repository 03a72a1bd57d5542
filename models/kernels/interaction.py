"""Feature interactions on jagged rows: products, softmax, pairs, joins. Each has a twin of its name in `twins`.

x (N, D) are events, w (B, …) rows, offsets (B+1,). Pairs are all (i, j) of one row, row after row, i before j
in the order, Σ L² long:   offsets [0, 2, 3]  ->  (0,0) (0,1) (1,0) (1,1) | (2,2)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dynamix.errors import InputError
from dynamix.models.kernels.form import check_offsets
from dynamix.models.kernels.layout import Layout
from dynamix.models.layers.jagged import expand_rows, row_index, segment_softmax, segment_sum


def jagged_dense_bmm(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """Each event times its row's matrix: x (N, D), w (B, D, T) -> (N, T)."""
    _check("jagged_dense_bmm", offsets, x.shape[0], w.shape[:2] == (offsets.shape[0] - 1, x.shape[1]), x, w)
    if torch.compiler.is_compiling():
        return (x.unsqueeze(2) * w.index_select(0, row_index(offsets, x.shape[0]))).sum(1)
    out: Tensor = _JaggedDense.apply(x, w, offsets)
    return out


def jagged_jagged_bmm(x: Tensor, y: Tensor, offsets: Tensor) -> Tensor:
    """Sum over each row's events of x yᵀ: x (N, D), y (N, T) -> (B, D, T); an empty row gives 0."""
    _check("jagged_jagged_bmm", offsets, x.shape[0], x.shape[0] == y.shape[0], x, y)
    if torch.compiler.is_compiling():
        outer = (x.unsqueeze(2) * y.unsqueeze(1)).flatten(1)
        summed = segment_sum(outer, offsets, row_index(offsets, x.shape[0]))
        return summed.view(-1, x.shape[1], y.shape[1])
    out: Tensor = _JaggedJagged.apply(x, y, offsets)
    return out


class _JaggedDense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(x, w, offsets)
        out = x.new_empty(x.shape[0] + 1, 1, w.shape[2])
        for block in Layout.by_length(offsets, 1).blocks:
            block.put(out, torch.bmm(block.read(x.unsqueeze(1)), block.read_rows(w.unsqueeze(1))))
        return out[:-1, 0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, w, offsets = ctx.saved_tensors
        return jagged_dense_bmm(grad, w.mT, offsets), jagged_jagged_bmm(x, grad, offsets), None


class _JaggedJagged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, offsets)
        out = x.new_zeros(offsets.shape[0] - 1, 1, x.shape[1], y.shape[1])
        for block in Layout.by_length(offsets, 1).blocks:
            left = block.read(x.unsqueeze(1))
            if block.padding is not None:
                left = left.masked_fill_(block.padding.unsqueeze(2), 0)
            block.put_rows(out, torch.bmm(left.mT, block.read(y.unsqueeze(1))))
        return out[:, 0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, y, offsets = ctx.saved_tensors
        return jagged_dense_bmm(y, grad.mT, offsets), jagged_dense_bmm(x, grad, offsets), None


def jagged_softmax(x: Tensor, offsets: Tensor) -> Tensor:
    """Softmax of each column over the events of each row, (N, D)."""
    _check("jagged_softmax", offsets, x.shape[0], x.dim() == 2, x)
    return segment_softmax(x, offsets, row_index(offsets, x.shape[0]))


def jagged_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b of every event, (N, D'): a flat product, no row is looked at."""
    return F.linear(x, weight, bias)


def dense_jagged_add(w: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    """Row vector w (B, D) added to each event of its row, (N, D)."""
    _check("dense_jagged_add", offsets, x.shape[0], w.shape == (offsets.shape[0] - 1, x.shape[1]), w, x)
    return x + expand_rows(w, offsets, row_index(offsets, x.shape[0]))


def dense_jagged_concat(w: Tensor, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Row vector w (B, D) put in front of the events of its row: (N + B, D) and its offsets (B+1,)."""
    _check("dense_jagged_concat", offsets, x.shape[0], w.shape == (offsets.shape[0] - 1, x.shape[1]), w, x)
    row = row_index(offsets, x.shape[0])
    rows = torch.arange(w.shape[0], device=x.device)
    places = torch.cat([offsets[:-1] + rows, torch.arange(x.shape[0], device=x.device) + row + 1])
    return torch.cat([w, x]).index_select(0, _inverse(places)), _longer(offsets)


def join_order(offsets: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Order (N + B,) that takes cat(events, rows) to each row's events with the row behind them, and its offsets.

    offsets [0, 2, 2]  ->  order [0, 1, 2, 3], offsets [0, 3, 4]: e0 e1 r0 | r1
    """
    row = row_index(offsets, tokens)
    rows = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    places = torch.cat([torch.arange(tokens, device=offsets.device) + row, offsets[1:] + rows])
    return _inverse(places), _longer(offsets)


def _inverse(places: Tensor) -> Tensor:
    return torch.empty_like(places).scatter_(0, places, _count(places))


def _longer(offsets: Tensor) -> Tensor:
    """Offsets of rows that are one token longer each."""
    return offsets + torch.arange(offsets.shape[0], device=offsets.device)


class Pairs(NamedTuple):
    """Events of each pair, and where the pairs of each first event begin."""

    first: Tensor  # (M,) long
    second: Tensor  # (M,) long
    offsets: Tensor  # (N+1,) long


def jagged_pairs(offsets: Tensor) -> Pairs:
    """All pairs inside each row, M = Σ L²."""
    lengths = offsets.diff()
    row = torch.repeat_interleave(lengths)  # (N,)
    by_event = torch.cat([offsets.new_zeros(1), lengths[row].cumsum(0)])  # (N+1,)
    first = torch.repeat_interleave(by_event.diff())  # (M,)
    second = _count(first) - by_event[first] + offsets[row[first]]
    return Pairs(first, second, by_event)


def pair_scores(x: Tensor, y: Tensor, pairs: Pairs) -> Tensor:
    """x_i · y_j of every pair, (M,), from x, y (N, D)."""
    return (x.index_select(0, pairs.first) * y.index_select(0, pairs.second)).sum(1)


def pair_softmax(score: Tensor, pairs: Pairs) -> Tensor:
    """Softmax of score (M,) over the second event, for each first one."""
    return segment_softmax(score, pairs.offsets, pairs.first)


def pair_mask(value: Tensor, mask: Tensor, pairs: Pairs, offsets: Tensor) -> Tensor:
    """value (M,) times mask (L, L) at the pair's two places in its row; L at least the longest row."""
    start = offsets.index_select(0, row_index(offsets, pairs.offsets.shape[0] - 1))
    i, j = (at - start.index_select(0, pairs.first) for at in (pairs.first, pairs.second))
    return value * mask[i, j]


def pair_sum(weight: Tensor, v: Tensor, pairs: Pairs) -> Tensor:
    """Σ_j weight_ij v_j of each event, (N, T), from weight (M,) and v (N, T)."""
    return segment_sum(weight.unsqueeze(1) * v.index_select(0, pairs.second), pairs.offsets, pairs.first)


def pair_difference(x: Tensor, pairs: Pairs) -> Tensor:
    """x_i − x_j of every pair, (M, …), from x (N, …)."""
    return x.index_select(0, pairs.first) - x.index_select(0, pairs.second)


def _count(like: Tensor) -> Tensor:
    return torch.arange(like.shape[0], device=like.device)


def _check(name: str, offsets: Tensor, tokens: int, fits: bool, *given: Tensor) -> None:
    if not fits:
        shapes = ", ".join(str(tuple(t.shape)) for t in given)
        rows = offsets.shape[0] - 1
        raise InputError(
            f"{name}: shapes {shapes} do not fit {rows} rows; see its docstring for the allowed ones"
        )
    check_offsets(offsets, tokens)
