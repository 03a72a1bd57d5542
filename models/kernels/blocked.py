"""Jagged attention in blocks of rows: batched products, recomputed in the backward pass.

Nothing quadratic outlives its block: scores and weights lie in two buffers that all blocks share. Forward
s = scale · q·k + bias, p = softmax(s) over the keys, o = p v; backward dv = pᵀ do, dp = do vᵀ,
ds = p (dp − Σ p dp), dq = scale · ds k, dk = scale · dsᵀ q, dbias = Σ ds over queries. Source: FlashAttention
(Dao et al. 2022), with tiles of queries against whole rows of keys. Pointwise weights silu(s) / norm: HSTU
(Zhai et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dynamix.models.kernels.form import HIDDEN, Form, Keys
from dynamix.models.kernels.layout import BLOCK_SCORES, Block, Layout, spare

LEAST_TILE = 16
"""Queries that one pass over the keys of a long row serves at least."""


def blocked_attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Keys, layout: Layout, form: Form, *, with_lse: bool = False
) -> tuple[Tensor, Tensor]:
    """Output (N, H, e) and log-sum-exp of the scores (N, H) from q, k (N, H, d), v (N, H, e).

    float32 or float64 on any device. A query without a visible key: output 0, log-sum-exp −inf. The
    log-sum-exp has no gradient and no entries unless `with_lse`.
    """
    out, lse = _Blocked.apply(q, k, v, keys.bias, keys.keep, layout, form, with_lse)
    return out, lse


def blocked_pool(q: Tensor, k: Tensor, v: Tensor, keys: Keys, layout: Layout, form: Form) -> Tensor:
    """Output (B, H, T, e) of T queries a row, q (B, H, T, d), over its events; rows without events give 0."""
    out: Tensor = _Blocked.apply(q, k, v, keys.bias, keys.keep, layout, form, False)[0]
    return out


class _Blocked(torch.autograd.Function):
    """Queries by event where q is (N, H, d), by row where it is (B, H, T, d)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, keep: Tensor | None,
        layout: Layout, form: Form, with_lse: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        out, lse = _Work(layout, form, q, k, v, Keys(bias, keep)).forward(with_lse=with_lse)
        ctx.save_for_backward(q, k, v, bias, keep)
        ctx.layout, ctx.form = layout, form
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, keep = ctx.saved_tensors
        work = _Work(ctx.layout, ctx.form, q, k, v, Keys(bias, keep))
        return *work.backward(grad, with_bias=ctx.needs_input_grad[3]), None, None, None, None


class _Held(NamedTuple):
    """One block's contiguous copies; P = n·H products of T queries with L slots."""

    block: Block
    q: Tensor  # (P, T, d)
    k: Tensor  # (P, L, d)
    v: Tensor  # (P, L, e)
    added: Tensor | None  # (P, L), what is added to the scores of each key
    kept: Tensor | None  # (P, L) bool, only where a softmax could meet a query without keys


class _Work:
    """One pass over all blocks, forward or backward."""

    def __init__(self, layout: Layout, form: Form, q: Tensor, k: Tensor, v: Tensor, keys: Keys) -> None:
        self.layout, self.form, self.keys = layout, form, keys
        self.q, self.k, self.v = q, k, v
        self.pooling = q.dim() == 4
        self.scale, self.hidden = form.scale_of(q.shape[-1]), HIDDEN[form.activation]
        sizes = [b.packs * (at.stop - at.start) * end for b in layout.blocks for at, end in self._cuts(b)]
        self.buffers = q.new_empty(2, max(sizes, default=0))

    def forward(self, *, with_lse: bool) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp where the queries lie."""
        out, lse = self._target(self.v.shape[-1:]), self._target(torch.Size())
        for held in self._blocks():
            parts, logs = [], []
            for at, end in self._cuts(held.block):
                scores, weights = self._weigh(held, at, end)
                parts.append(torch.bmm(weights, held.v[:, :end]))
                if with_lse:
                    top = scores.amax(2)
                    found = top - weights.amax(2).log_()
                    logs.append(torch.where(torch.isinf(top), top, found))
            self._write(held.block, out, _joined(parts))
            if with_lse:
                self._write(held.block, lse, _joined(logs))
        if self.form.activation == "silu":
            out.mul_(1 / self.form.norm)
        return self._real(out), self._real(lse) if with_lse else lse[:0]

    def backward(self, grad: Tensor, *, with_bias: bool) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and bias from that of the output."""
        dq = self._target(self.q.shape[-1:])
        dk, dv = spare(self.k), spare(self.v)
        dbias = spare(self.k[:, :, 0]) if with_bias else None
        for held in self._blocks():
            block, do = held.block, self._read_grad(held.block, grad)
            parts, sums = [], _Sums()
            for at, end in self._cuts(block):
                ds = self._slopes(held, do[:, at], at, end, sums)
                parts.append(torch.bmm(ds, held.k[:, :end]))
                sums.add("k", held.k, ds.mT, held.q[:, at])
                if dbias is not None:
                    sums.add("bias", held.k[:, :, :1], ds.mT, ds.new_ones(1, 1, 1).expand(*ds.shape[:2], 1))
            self._write(block, dq, _joined(parts).mul_(self.scale))
            block.put(dk, sums.found["k"].mul_(self.scale))
            block.put(dv, sums.found["v"])
            if dbias is not None:
                block.put(dbias, sums.found["bias"].squeeze(2))
        return self._real(dq), dk[:-1], dv[:-1], None if dbias is None else dbias[:-1]

    def _slopes(self, held: _Held, do: Tensor, at: slice, end: int, sums: _Sums) -> Tensor:
        """ds (P, T, K) of a tile, in a shared buffer; its part of dv joins the sums."""
        scores, weights = self._weigh(held, at, end)
        v = held.v[:, :end]
        sums.add("v", held.v, weights.mT, do)
        if self.form.activation == "softmax":
            torch.bmm(do, v.mT, out=scores)  # dp, where the scores lay
            return torch.ops.aten._softmax_backward_data.out(  # type: ignore[no-any-return]
                scores, weights, -1, scores.dtype, grad_input=scores
            )
        torch.bmm(do, v.mT, out=weights)
        return torch.ops.aten.silu_backward.grad_input(weights, scores, grad_input=weights)  # type: ignore[no-any-return]

    def _weigh(self, held: _Held, at: slice, end: int) -> tuple[Tensor, Tensor]:
        """Scores and weights (P, T, K) of a tile, in the two shared buffers."""
        q, k = held.q[:, at], held.k[:, :end]
        shape = (q.shape[0], q.shape[1], end)
        scores, weights = (b[: q.shape[0] * q.shape[1] * end].view(shape) for b in self.buffers)
        added = self._added(held, at, end)
        if added is None:
            scores.baddbmm_(q, k.mT, beta=0, alpha=self.scale)
        else:
            torch.baddbmm(added, q, k.mT, alpha=self.scale, out=scores)
        if self.form.activation == "silu":
            torch.ops.aten.silu.out(scores, out=weights)
            return scores, weights
        torch.softmax(scores, -1, out=weights)
        if held.kept is not None:
            seen = (
                (held.kept.cumsum(1) > 0)[:, at, None]
                if self.form.causal
                else held.kept.any(1)[:, None, None]
            )
            weights.masked_fill_(~seen, 0)
        return scores, weights

    def _added(self, held: _Held, at: slice, end: int) -> Tensor | None:
        """What is added to a tile's scores, broadcasting to (P, T, K)."""
        own = None if held.added is None else held.added[:, None, :end]
        if not self.form.causal:
            return own
        later = held.q.new_full((1, at.stop - at.start, end), self.hidden).triu_(at.start + 1)
        return later if own is None else own + later

    def _cuts(self, block: Block) -> Iterator[tuple[slice, int]]:
        """Queries of each tile and how many keys they see; a tile has about BLOCK_SCORES scores."""
        queries = self.q.shape[2] if self.pooling else block.length
        room = BLOCK_SCORES // (block.packs * block.length)
        step = queries if room >= queries else max(LEAST_TILE, room)
        for begin in range(0, queries, step):
            end = min(begin + step, queries)
            yield slice(begin, end), end if self.form.causal else block.length

    def _blocks(self) -> Iterator[_Held]:
        for block in self.layout.blocks:
            bias, keep, padding = self.keys.bias, self.keys.keep, block.padding
            added = None if bias is None else block.read(bias)
            kept = None
            if keep is not None:
                kept = block.read(keep[:, None].expand(-1, self.k.shape[1]))
                kept = kept if padding is None else kept & ~padding
                padding = ~kept
            if padding is not None and not (self.form.causal and keep is None):
                base = self.q.new_zeros(padding.shape) if added is None else added
                added = base.masked_fill(
                    padding, self.hidden
                )  # no causal query reaches the padding behind it
            q = block.read_rows(self.q) if self.pooling else block.read(self.q)
            blind = kept if self.form.activation == "softmax" else None
            yield _Held(block, q, block.read(self.k), block.read(self.v), added, blind)

    def _read_grad(self, block: Block, grad: Tensor) -> Tensor:
        if self.pooling:
            do = block.read_rows(grad)
        else:
            do = block.read(grad)
            if block.padding is not None:
                do = do.masked_fill_(block.padding.unsqueeze(2), 0)
        return do if self.form.activation == "softmax" else do / self.form.norm

    def _target(self, rest: torch.Size) -> Tensor:
        """Room for results (…, *rest) where the queries lie; zeros where rows have no events."""
        if self.pooling:
            return self.q.new_zeros(*self.q.shape[:3], *rest)
        return self.q.new_empty(self.q.shape[0] + 1, self.q.shape[1], *rest)

    def _write(self, block: Block, target: Tensor, value: Tensor) -> None:
        (block.put_rows if self.pooling else block.put)(target, value)

    def _real(self, target: Tensor) -> Tensor:
        return target if self.pooling else target[:-1]


class _Sums:
    """Sums over the tiles of one block, by name."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def add(self, name: str, like: Tensor, left: Tensor, right: Tensor) -> None:
        """left (P, K, T) · right (P, T, c) to the first K slots of a sum shaped as `like` (P, L, c)."""
        if name not in self.found and left.shape[1] == like.shape[1]:
            self.found[name] = torch.bmm(left, right)
            return
        total = self.found.setdefault(name, torch.zeros_like(like))
        total[:, : left.shape[1]].baddbmm_(left, right)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
