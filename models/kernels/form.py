"""What jagged attention computes, and the checks that all its backends share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dynamix.errors import InputError

HIDDEN = {"softmax": -math.inf, "silu": -1e30}
"""Score of a pair that takes no part: both weights, and the slope of SiLU, are then exactly 0 and never NaN."""


@dataclass(frozen=True)
class Form:
    """Weights of jagged attention: softmax(s), or silu(s) / norm, with s_ij = scale · q_i·k_j + bias_j.

    causal: query i sees the keys 0..i of its own row. scale: None means 1/√d. norm: what pointwise weights
    are divided by, a constant of the model, such as the longest history: the batch must not decide it.
    """

    causal: bool = False
    activation: Literal["softmax", "silu"] = "softmax"
    scale: float | None = None
    norm: float = 1.0

    def scale_of(self, width: int) -> float:
        return 1 / math.sqrt(width) if self.scale is None else self.scale


@dataclass(frozen=True)
class Keys:
    """What is added to the scores of each key: bias (N, H) float or None, keep (N,) bool or None.

    A key with keep False takes no part; a query that sees no key at all gets 0.
    """

    bias: Tensor | None = None
    keep: Tensor | None = None


PLAIN = Form()
ALL_KEYS = Keys()


def check_offsets(offsets: Tensor, tokens: int) -> None:
    """InputError unless offsets (B+1,) are int64, start at 0, never fall and end at `tokens`.

    Their values are looked at on the CPU only: a GPU would have to be waited for.
    """
    if offsets.dtype != torch.int64 or offsets.dim() != 1 or offsets.shape[0] < 1:
        raise InputError(
            f"offsets are {offsets.dtype} of shape {tuple(offsets.shape)}; allowed: int64 of shape (B+1,)"
        )
    if torch.compiler.is_compiling() or offsets.device.type != "cpu":
        return
    ends = offsets[[0, -1]].tolist()
    if ends != [0, tokens] or bool((offsets.diff() < 0).any()):
        raise InputError(
            f"offsets run from {ends[0]} to {ends[1]} for {tokens} events, or fall; "
            "allowed: from 0 to the number of events, never falling"
        )


def check_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, keys: Keys) -> None:
    """InputError naming every shape or dtype that does not fit: q, k (N, H, d), v (N, H, e)."""
    trouble = [] if q.shape == k.shape else [f"q has shape {tuple(q.shape)}; allowed: that of k"]
    _check(q, k, v, offsets, keys, trouble)


def check_pool(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, keys: Keys) -> None:
    """InputError naming every shape or dtype that does not fit: q (B, T, H, d), k (N, H, d), v (N, H, e)."""
    wanted = (offsets.shape[0] - 1, *q.shape[1:2], *k.shape[1:])
    trouble = [] if q.shape == wanted else [f"q has shape {tuple(q.shape)}; allowed: (B, T, H, d) = {wanted}"]
    _check(q, k, v, offsets, keys, trouble)


def _check(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, keys: Keys, trouble: list[str]) -> None:
    if k.dim() != 3 or v.dim() != 3 or v.shape[:2] != k.shape[:2]:
        shapes = f"{tuple(k.shape)}, {tuple(v.shape)}"
        trouble.append(f"k, v have shapes {shapes}; allowed: (N, H, d), (N, H, e)")
    if not q.dtype.is_floating_point or {k.dtype, v.dtype} != {q.dtype}:
        trouble.append(f"dtypes are {q.dtype}, {k.dtype}, {v.dtype}; allowed: one floating dtype")
    if keys.bias is not None and (keys.bias.shape != k.shape[:2] or keys.bias.dtype != q.dtype):
        trouble.append(
            f"bias is {keys.bias.dtype} {tuple(keys.bias.shape)}; allowed: {q.dtype} {tuple(k.shape[:2])}"
        )
    if keys.keep is not None and (keys.keep.dtype != torch.bool or keys.keep.shape != k.shape[:1]):
        trouble.append(f"keep is {keys.keep.dtype} {tuple(keys.keep.shape)}; allowed: bool ({k.shape[0]},)")
    if trouble:
        raise InputError("jagged attention: " + "; ".join(trouble))
    check_offsets(offsets, k.shape[0])
