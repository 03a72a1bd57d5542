"""Attention pooling with sums over ragged rows: no padding, no sorting, dynamic shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from dynamix.models.kernels.form import Form, Keys
from dynamix.models.layers.jagged import expand_rows, segment_softmax, segment_sum


def segment_pool(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, row: Tensor, keys: Keys, form: Form
) -> Tensor:
    """Output (B, H, T, e) of T queries a row, q (B, H, T, d), over its events k (N, H, d), v (N, H, e).

    Holds (N, H, T, e) numbers: meant for one or a few queries.
    """
    asked = expand_rows((q * form.scale_of(q.shape[3])).flatten(1), offsets, row).view(-1, *q.shape[1:])
    scores = (asked * k.unsqueeze(2)).sum(3)  # (N, H, T)
    if keys.bias is not None:
        scores = scores + keys.bias.unsqueeze(2)
    flat = scores.flatten(1)  # (N, H·T)
    if form.activation == "softmax":
        weights = segment_softmax(flat, offsets, row, keys.keep)
    else:
        weights = torch.nn.functional.silu(flat) / form.norm
        if keys.keep is not None:
            weights = weights.masked_fill(~keys.keep[:, None], 0)
    weighed = weights.view(scores.shape).unsqueeze(3) * v.unsqueeze(2)  # (N, H, T, e)
    return segment_sum(weighed.flatten(1), offsets, row).view(-1, *weighed.shape[1:])
