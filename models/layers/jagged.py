"""Sums, softmax and expansion over ragged rows: one pass, no padding, empty rows give zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def row_index(offsets: Tensor, tokens: int) -> Tensor:
    """Row of each event, (N,) long, from offsets (B+1,)."""
    rows = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff(), output_size=tokens)


def segment_sum(x: Tensor, offsets: Tensor, row: Tensor) -> Tensor:
    """Sum of x (N, …) inside each row, (B, …)."""
    if _plain(x):
        return torch.segment_reduce(x, "sum", offsets=offsets, axis=0, initial=0.0)
    return x.new_zeros((offsets.shape[0] - 1, *x.shape[1:])).index_add(0, row, x)


def expand_rows(x: Tensor, offsets: Tensor, row: Tensor) -> Tensor:
    """Repeat x (B, D) over the events of its row, (N, D)."""
    if _plain(x) and torch.is_grad_enabled() and x.requires_grad:
        expanded: Tensor = _Expand.apply(x, offsets, row)
        return expanded
    return x.index_select(0, row)


def segment_softmax(score: Tensor, offsets: Tensor, row: Tensor, keep: Tensor | None = None) -> Tensor:
    """Softmax of score (N,) or (N, C) inside each row; events with keep (N,) False get exactly 0."""
    flat = score.unsqueeze(1) if score.dim() == 1 else score  # (N, C)
    if keep is not None:
        flat = flat.masked_fill(~keep.unsqueeze(1), -torch.inf)
    with torch.no_grad():
        top = segment_max(flat, offsets, row)
        top = torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    weight = (flat - top.index_select(0, row)).exp()
    total = segment_sum(weight, offsets, row)
    tiny = torch.finfo(weight.dtype).tiny
    return (weight / expand_rows(total, offsets, row).clamp_min(tiny)).view(score.shape)


def segment_mean(x: Tensor, offsets: Tensor, row: Tensor) -> Tensor:
    """Mean of x (N, C) inside each row, (B, C); an empty row gives 0."""
    count = offsets.diff().clamp_min(1).to(x.dtype).unsqueeze(1)
    return segment_sum(x, offsets, row) / count


def segment_max(x: Tensor, offsets: Tensor, row: Tensor) -> Tensor:
    """Greatest of x (N, C) inside each row, (B, C); an empty row gives −inf. Ties share the gradient evenly."""
    start = x.new_full((offsets.shape[0] - 1, x.shape[1]), -torch.inf)
    return start.scatter_reduce(0, row.unsqueeze(1).expand(-1, x.shape[1]), x, "amax")


def cell_sum(x: Tensor, cell: Tensor, cells: int) -> Tensor:
    """Sum of x (N,) by cell number, (cells,)."""
    return x.new_zeros(cells).scatter_add(0, cell, x)


def _plain(x: Tensor) -> bool:
    """Eager CPU or CUDA run; exported programs take the index_add form, which has dynamic shapes."""
    return not torch.compiler.is_compiling() and x.shape[0] > 0


class _Expand(torch.autograd.Function):
    """index_select whose gradient is a segment sum: on CPU several times faster than index_add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, offsets: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(offsets)
        return x.index_select(0, row)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (offsets,) = ctx.saved_tensors
        return (
            torch.segment_reduce(grad.contiguous(), "sum", offsets=offsets, axis=0, initial=0.0),
            None,
            None,
        )
