"""Jagged softmax attention on the CPU by torch's own flash kernel, block of rows by block of rows.

For the plain case alone: no bias, no hidden keys, values as wide as keys. There torch's fused kernel does a block faster
than batched products (models/kernels/blocked.py), and needs no room for scores. Source: FlashAttention (Dao et al. 2022).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dynamix.models.kernels.form import Form, Keys
from dynamix.models.kernels.layout import Block, Layout, spare


def fits(q: Tensor, v: Tensor, keys: Keys, form: Form) -> bool:
    """Whether this is the plain case, on the CPU."""
    plain = form.activation == "softmax" and keys.bias is None and keys.keep is None
    return plain and q.device.type == "cpu" and q.shape[-1] == v.shape[-1]


def flash_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, form: Form) -> tuple[Tensor, Tensor]:
    """Output (N, H, d) and log-sum-exp of the scores (N, H), which has no gradient, from q, k, v (N, H, d)."""
    out, lse = _Flash.apply(q, k, v, layout, form)
    return out, lse


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, form: Form
    ) -> tuple[Tensor, Tensor]:
        out, lse = spare(q), spare(q[:, :, 0])
        for block in layout.blocks:
            own = [_read(block, x) for x in (q, k, v)]
            found, logs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *own, 0.0, form.causal, attn_mask=_hidden(block, q, form), scale=form.scale_of(q.shape[-1])
            )
            block.put(out, found.flatten(0, 1))
            block.put(lse, logs.flatten(0, 1))
        out, lse = out[:-1], lse[:-1]
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layout, ctx.form = layout, form
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        form: Form = ctx.form
        grads = [spare(x) for x in (q, k, v)]
        for block in ctx.layout.blocks:
            own = [_read(block, x) for x in (grad, q, k, v, out, lse)]
            if (
                block.padding is not None
            ):  # a slot without an event repeats the last one, whose gradient counts once
                own[0] = own[0].masked_fill(block.padding.view(*own[0].shape[:3], 1), 0)
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *own, 0.0, form.causal, attn_mask=_hidden(block, q, form), scale=form.scale_of(q.shape[-1])
            )
            for target, value in zip(grads, found, strict=True):
                block.put(target, value.flatten(0, 1))
        return *(g[:-1] for g in grads), None, None


def _read(block: Block, x: Tensor) -> Tensor:
    """Events of x (N, H, …) as (n, H, L, …)."""
    return block.read(x).view(len(block.rows), block.heads, block.length, *x.shape[2:])


def _hidden(block: Block, like: Tensor, form: Form) -> Tensor | None:
    """What hides the slots without an event from the queries, (n, 1, 1, L); causal queries do not reach them."""
    if block.padding is None or form.causal:
        return None
    empty = block.padding.view(len(block.rows), block.heads, block.length)[:, 0]
    return like.new_zeros(empty.shape).masked_fill(empty, -torch.inf)[:, None, None]
