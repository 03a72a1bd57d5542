"""Jagged attention as tiles over the offsets, in Triton: nothing of size L² is stored, keys stream past queries.

Running maximum m and sum l over key tiles: m' = max(m, rowmax s), l' = l e^(m−m') + rowsum p, o' = o e^(m−m') + p v;
lse = m + ln l. The backward pass computes p = e^(s − lse) again, with ds = p (dp − Δ), Δ = Σ do·o. A grid of
(tiles of the longest row, B · H) programs; one that starts past the end of its row returns at once. Source:
FlashAttention (Dao et al. 2022); the formulas of `blocked` with a stored lse. With TRITON_INTERPRET=1 set before the
start the kernels run on CPU tensors, for tests.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# kernels are Triton's language, not Python: their arguments are pointers and constants

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.runtime.interpreter import InterpretedFunction

from dynamix.models.kernels.form import Form, Keys

TILE = 32
"""Queries and keys of one tile."""


@triton.jit
def _tile_scores(q, k, bias, i, j, n, scale, CAUSAL: tl.constexpr, PRECISE: tl.constexpr):
    """Scores of a tile (queries i, keys j) in float32, and which pairs take part."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISE) * scale + bias[None, :]
    seen = (j < n)[None, :] & (bias > float("-inf"))[None, :]
    if CAUSAL:
        seen = seen & (j[None, :] <= i[:, None])
    return s, seen


@triton.jit
def _weights(s, seen, lse, SILU: tl.constexpr):
    """p and its slope dp/ds (1 for softmax, whose slope also needs Δ)."""
    if SILU:
        s = tl.where(seen, s, 0.0)
        gate = 1.0 / (1.0 + tl.exp(-s))
        return tl.where(seen, s * gate, 0.0), tl.where(seen, gate * (1.0 + s * (1.0 - gate)), 0.0)
    p = tl.where(seen, tl.exp(s - lse[:, None]), 0.0)
    return p, p


@triton.jit
def _load(base, at, n, stride, WIDTH: tl.constexpr, ROOM: tl.constexpr):
    """Events `at` of one row and head, (T, ROOM); zeros past the row's end and past the width."""
    c = tl.arange(0, ROOM)
    return tl.load(
        base + at[:, None] * stride + c[None, :], mask=(at < n)[:, None] & (c < WIDTH)[None, :], other=0.0
    )


@triton.jit
def _store(base, at, n, stride, value, WIDTH: tl.constexpr, ROOM: tl.constexpr):
    c = tl.arange(0, ROOM)
    tl.store(base + at[:, None] * stride + c[None, :], value, mask=(at < n)[:, None] & (c < WIDTH)[None, :])


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, bias_ptr, offsets_ptr, out_ptr, lse_ptr, scale, norm, tokens,
    HEADS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, ROOM_D: tl.constexpr, ROOM_E: tl.constexpr,
    CAUSAL: tl.constexpr, SILU: tl.constexpr, PRECISE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    begin = tl.load(offsets_ptr + row)
    n = tl.load(offsets_ptr + row + 1) - begin
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    if tl.program_id(0) * TILE < n:
        first = begin * HEADS + head  # entry of the row's first event
        q = _load(q_ptr + first * D, i, n, HEADS * D, D, ROOM_D)
        m = tl.full((TILE,), float("-inf"), tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        acc = tl.zeros((TILE, ROOM_E), tl.float32)
        end = n
        if CAUSAL:
            end = tl.minimum(n, (tl.program_id(0) + 1) * TILE)
        for start in range(0, end, TILE):
            j = start + tl.arange(0, TILE)
            k = _load(k_ptr + first * D, j, n, HEADS * D, D, ROOM_D)
            v = _load(v_ptr + first * E, j, n, HEADS * E, E, ROOM_E)
            bias = tl.load(bias_ptr + first + j * HEADS, mask=j < n, other=float("-inf"))
            s, seen = _tile_scores(q, k, bias, i, j, n, scale, CAUSAL, PRECISE)
            if SILU:
                p, _ = _weights(s, seen, m, SILU)
            else:
                s = tl.where(seen, s, float("-inf"))
                top = tl.maximum(m, tl.max(s, 1))
                safe = tl.where(top == float("-inf"), 0.0, top)  # no key seen yet
                p = tl.exp(s - safe[:, None])
                shrink = tl.exp(m - safe)
                total = total * shrink + tl.sum(p, 1)
                acc = acc * shrink[:, None]
                m = top
            acc += tl.dot(p.to(v.dtype), v, input_precision=PRECISE)
        if SILU:
            acc = acc / norm
        else:
            acc = acc / tl.where(total > 0, total, 1.0)[:, None]
            lse = tl.where(total > 0, m + tl.log(tl.where(total > 0, total, 1.0)), float("-inf"))
            tl.store(lse_ptr + head * tokens + begin + i, lse, mask=i < n)
        _store(out_ptr + first * E, i, n, HEADS * E, acc.to(out_ptr.dtype.element_ty), E, ROOM_E)


@triton.jit
def _slopes(s, seen, lse, delta, dp, SILU: tl.constexpr):
    """p and ds of a tile."""
    p, slope = _weights(s, seen, lse, SILU)
    if SILU:
        return p, slope * dp
    return p, p * (dp - delta[:, None])


@triton.jit
def _backward_queries(
    q_ptr, k_ptr, v_ptr, bias_ptr, offsets_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, scale, tokens,
    HEADS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, ROOM_D: tl.constexpr, ROOM_E: tl.constexpr,
    CAUSAL: tl.constexpr, SILU: tl.constexpr, PRECISE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    begin = tl.load(offsets_ptr + row)
    n = tl.load(offsets_ptr + row + 1) - begin
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    if tl.program_id(0) * TILE < n:
        first = begin * HEADS + head
        q = _load(q_ptr + first * D, i, n, HEADS * D, D, ROOM_D)
        do = _load(do_ptr + first * E, i, n, HEADS * E, E, ROOM_E)
        lse = tl.load(lse_ptr + head * tokens + begin + i, mask=i < n, other=0.0)
        delta = tl.load(delta_ptr + head * tokens + begin + i, mask=i < n, other=0.0)
        dq = tl.zeros((TILE, ROOM_D), tl.float32)
        end = n
        if CAUSAL:
            end = tl.minimum(n, (tl.program_id(0) + 1) * TILE)
        for start in range(0, end, TILE):
            j = start + tl.arange(0, TILE)
            k = _load(k_ptr + first * D, j, n, HEADS * D, D, ROOM_D)
            v = _load(v_ptr + first * E, j, n, HEADS * E, E, ROOM_E)
            bias = tl.load(bias_ptr + first + j * HEADS, mask=j < n, other=float("-inf"))
            s, seen = _tile_scores(q, k, bias, i, j, n, scale, CAUSAL, PRECISE)
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISE)
            _, ds = _slopes(s, seen, lse, delta, dp, SILU)
            dq += tl.dot(ds.to(k.dtype), k, input_precision=PRECISE)
        _store(dq_ptr + first * D, i, n, HEADS * D, (dq * scale).to(dq_ptr.dtype.element_ty), D, ROOM_D)


@triton.jit
def _backward_keys(
    q_ptr, k_ptr, v_ptr, bias_ptr, offsets_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, dbias_ptr, scale, tokens,
    HEADS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, ROOM_D: tl.constexpr, ROOM_E: tl.constexpr,
    CAUSAL: tl.constexpr, SILU: tl.constexpr, PRECISE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    begin = tl.load(offsets_ptr + row)
    n = tl.load(offsets_ptr + row + 1) - begin
    j = tl.program_id(0) * TILE + tl.arange(0, TILE)
    if tl.program_id(0) * TILE < n:
        first = begin * HEADS + head
        k = _load(k_ptr + first * D, j, n, HEADS * D, D, ROOM_D)
        v = _load(v_ptr + first * E, j, n, HEADS * E, E, ROOM_E)
        bias = tl.load(bias_ptr + first + j * HEADS, mask=j < n, other=float("-inf"))
        dk = tl.zeros((TILE, ROOM_D), tl.float32)
        dv = tl.zeros((TILE, ROOM_E), tl.float32)
        db = tl.zeros((TILE,), tl.float32)
        from_query = 0
        if CAUSAL:
            from_query = tl.program_id(0) * TILE
        for start in range(from_query, n, TILE):
            i = start + tl.arange(0, TILE)
            q = _load(q_ptr + first * D, i, n, HEADS * D, D, ROOM_D)
            do = _load(do_ptr + first * E, i, n, HEADS * E, E, ROOM_E)
            lse = tl.load(lse_ptr + head * tokens + begin + i, mask=i < n, other=0.0)
            delta = tl.load(delta_ptr + head * tokens + begin + i, mask=i < n, other=0.0)
            s, seen = _tile_scores(q, k, bias, i, j, n, scale, CAUSAL, PRECISE)
            seen = seen & (i < n)[:, None]
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISE)
            p, ds = _slopes(s, seen, lse, delta, dp, SILU)
            dv += tl.dot(tl.trans(p.to(do.dtype)), do, input_precision=PRECISE)
            dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision=PRECISE)
            db += tl.sum(ds, 0)
        _store(dk_ptr + first * D, j, n, HEADS * D, (dk * scale).to(dk_ptr.dtype.element_ty), D, ROOM_D)
        _store(dv_ptr + first * E, j, n, HEADS * E, dv.to(dv_ptr.dtype.element_ty), E, ROOM_E)
        tl.store(dbias_ptr + first + j * HEADS, db, mask=j < n)


INTERPRETED = isinstance(_forward, InterpretedFunction)
"""Whether the kernels run in Triton's interpreter, on CPU tensors."""


def triton_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, keys: Keys, form: Form
) -> tuple[Tensor, Tensor]:
    """Output (N, H, e) and log-sum-exp (H, N) float32, from q, k (N, H, d), v (N, H, e) on a CUDA device.

    float32, bfloat16 or float16; products add up in float32. A query without a visible key: 0 and −inf.
    """
    bias = q.new_zeros(q.shape[:2]) if keys.bias is None else keys.bias
    out, lse = _Tiled.apply(q, k, v, bias, keys.keep, offsets, form)
    return out, lse


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor,
        keep: Tensor | None,
        offsets: Tensor,
        form: Form,
    ) -> tuple[Tensor, Tensor]:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        wide = bias.float().contiguous()
        wide = wide if keep is None else wide.masked_fill(~keep.unsqueeze(1), -torch.inf)
        out, lse = torch.empty_like(v), torch.zeros(q.shape[1], q.shape[0], device=q.device)
        grid, options = _plan(q, v, offsets, form)
        scale = form.scale_of(q.shape[2])
        if q.shape[0]:
            _forward[grid](q, k, v, wide, offsets, out, lse, scale, form.norm, q.shape[0], **options)
        ctx.save_for_backward(q, k, v, wide, offsets, out, lse)
        ctx.form, ctx.grid, ctx.options, ctx.dtype = form, grid, options, bias.dtype
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, offsets, out, lse = ctx.saved_tensors
        softmax = ctx.form.activation == "softmax"
        do = grad.contiguous() if softmax else (grad / ctx.form.norm).contiguous()
        delta = (do.float() * out.float()).sum(2).T.contiguous()  # (H, N)
        dq, dk, dv, dbias = (torch.empty_like(x) for x in (q, k, v, bias))
        shared = (q, k, v, bias, offsets, do, lse, delta)
        scale = ctx.form.scale_of(q.shape[2])
        if q.shape[0]:
            _backward_queries[ctx.grid](*shared, dq, scale, q.shape[0], **ctx.options)
            _backward_keys[ctx.grid](*shared, dk, dv, dbias, scale, q.shape[0], **ctx.options)
        return dq, dk, dv, dbias.to(ctx.dtype), None, None, None


def _plan(q: Tensor, v: Tensor, offsets: Tensor, form: Form) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and constants of the kernels; the longest row is read once from the device."""
    longest = int(offsets.diff().max()) if offsets.shape[0] > 1 else 0
    heads, d, e = q.shape[1], q.shape[2], v.shape[2]
    options: dict[str, Any] = {
        "HEADS": heads, "D": d, "E": e, "CAUSAL": form.causal, "SILU": form.activation == "silu", "TILE": TILE,
        "ROOM_D": max(16, triton.next_power_of_2(d)), "ROOM_E": max(16, triton.next_power_of_2(e)),
        "PRECISE": "ieee" if q.dtype == torch.float32 else "tf32",
    }  # fmt: skip
    return (triton.cdiv(longest, TILE), (offsets.shape[0] - 1) * heads), options
