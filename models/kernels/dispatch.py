"""The one door to the jagged kernels: chooses a backend by device, dtype, lengths and whether a graph is traced.

| backend  | what it is                                             | chosen for                               |
|----------|--------------------------------------------------------|------------------------------------------|
| bucketed | rows of similar length in one batched product          | CPU; CUDA in float64 or without Triton   |
| flash    | the same blocks by torch's fused kernel                | CPU: long rows, softmax, no bias or keep |
| sequence | one row after the other, bitwise the same in any batch | one row                                  |
| triton   | tiles over the offsets, compiled for the GPU           | CUDA in float32, bfloat16 and float16    |
| segment  | sums over ragged rows (pooling only)                   | one query a row; exported pooling        |
| dense    | every row padded to the longest                        | exported attention; the oracle           |
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from dynamix.errors import ConfigError, EnvironmentTrouble, InputError
from dynamix.models.kernels import flash
from dynamix.models.kernels.blocked import blocked_attention, blocked_pool
from dynamix.models.kernels.dense import dense_attention, dense_pool
from dynamix.models.kernels.form import ALL_KEYS, PLAIN, Form, Keys, check_attention, check_pool
from dynamix.models.kernels.layout import Layout
from dynamix.models.kernels.pooling import segment_pool
from dynamix.models.layers.jagged import row_index

ATTENTION = ("flash", "sequence", "bucketed", "triton", "dense")
POOLING = ("segment", "sequence", "bucketed", "dense")
HALF = (torch.float16, torch.bfloat16)
LONG = 256.0
"""Events that an event sees in the mean from which on torch's fused kernel is the faster one (docs/experiments.md)."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    keys: Keys = ALL_KEYS,
    form: Form = PLAIN,
    backend: str | None = None,
) -> Tensor:
    """Every event's attention over its own row: (N, H, e) from q, k (N, H, d), v (N, H, e), offsets (B+1,).

    Rows never see each other; empty rows and N = 0 are fine. `backend` overrides the choice. Raises
    InputError for shapes, dtypes or offsets that do not fit, ConfigError for an unknown backend,
    EnvironmentTrouble for one that cannot run here.
    """
    return _attention(q, k, v, offsets, keys, form, backend, with_lse=False)[0]


def attention_with_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    keys: Keys = ALL_KEYS,
    form: Form = PLAIN,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`attention` and the log-sum-exp of each query's scores (H, N), which has no gradient.

    Errors as for `attention`; pointwise weights have no log-sum-exp.
    """
    if form.activation != "softmax":
        raise InputError(f"log-sum-exp of {form.activation!r} weights; allowed: 'softmax'")
    return _attention(q, k, v, offsets, keys, form, backend, with_lse=True)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, keys: Keys, form: Form, backend: str | None,
    *, with_lse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type) if q.is_cuda else torch.float32
        with torch.autocast(q.device.type, enabled=False):
            q, k, v, keys = _alike(q, k, v, keys, dtype)
            return _attention(q, k, v, offsets, keys, form, backend, with_lse=with_lse)
    check_attention(q, k, v, offsets, keys)
    chosen = attention_backend(q, offsets, backend)
    plain = flash.fits(q, v, keys, form)
    if chosen == "flash" and not plain:
        raise ConfigError(
            "backend 'flash' of the jagged kernels takes softmax on a CPU, without bias and hidden keys and with values "
            "as wide as keys; leave the backend open"
        )
    if chosen == "flash" or (chosen == "bucketed" and backend is None and plain and _seen(offsets) >= LONG):
        out, lse = flash.flash_attention(_wide(q), _wide(k), _wide(v), _layout(chosen, offsets, q), form)
        return out.to(q.dtype), lse.T
    if chosen == "triton":
        from dynamix.models.kernels.triton_attention import triton_attention

        return triton_attention(q, k, v, offsets, keys, form)
    if chosen == "dense":
        row = row_index(offsets, q.shape[0])
        out, lse = dense_attention(q, k, v, offsets, row, keys, form, with_lse=with_lse)
        return out, lse.T
    layout, wide_keys = _layout(chosen, offsets, q), Keys(_wide_or_none(keys.bias), keys.keep)
    out, lse = blocked_attention(_wide(q), _wide(k), _wide(v), wide_keys, layout, form, with_lse=with_lse)
    return out.to(q.dtype), lse.T


def pool(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    keys: Keys = ALL_KEYS,
    form: Form = PLAIN,
    backend: str | None = None,
) -> Tensor:
    """Broadcast-query pooling: T queries a row over its events, (B, T, H, e); a row without events gives 0.

    q (B, T, H, d), or (T, H, d) for the same queries in every row, whose gradient then sums over the rows;
    k (N, H, d), v (N, H, e), offsets (B+1,). Errors as for `attention`; causal has no meaning here.
    """
    if q.dim() == 3:
        q = q.expand(offsets.shape[0] - 1, *q.shape)
    if torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            q, k, v, keys = _alike(q, k, v, keys, torch.float32)
            return pool(q, k, v, offsets, keys=keys, form=form, backend=backend)
    check_pool(q, k, v, offsets, keys)
    if form.causal:
        raise InputError("pooling with causal=True; allowed: False, since its queries have no place in time")
    chosen = pooling_backend(q, backend)
    by_head = q.transpose(1, 2)  # (B, H, T, d)
    if chosen == "segment":
        row = row_index(offsets, k.shape[0])
        out = segment_pool(by_head, k, v, offsets, row, keys, form)
    elif chosen == "dense":
        out = dense_pool(by_head, k, v, offsets, keys, form)
    else:
        layout, wide_keys = _layout(chosen, offsets, k), Keys(_wide_or_none(keys.bias), keys.keep)
        out = blocked_pool(_wide(by_head), _wide(k), _wide(v), wide_keys, layout, form).to(q.dtype)
    return out.transpose(1, 2)


def attention_backend(q: Tensor, offsets: Tensor, asked: str | None = None) -> str:
    """Backend of `attention` for these tensors; `asked` wins where it can run."""
    if asked is not None:
        return _usable(asked, ATTENTION, q)
    if torch.compiler.is_compiling():  # also while exporting: the plan of rows is Python
        return "dense"
    if q.is_cuda and q.dtype != torch.float64 and find_spec("triton") is not None:
        return "triton"
    return "sequence" if offsets.shape[0] <= 2 else "bucketed"


def pooling_backend(q: Tensor, asked: str | None = None) -> str:
    """Backend of `pool` for queries (B, T, H, d); `asked` wins where it can run."""
    if asked is not None:
        return _usable(asked, POOLING, q)
    return "segment" if torch.compiler.is_compiling() or q.shape[1] == 1 else "bucketed"


def _usable(asked: str, known: tuple[str, ...], q: Tensor) -> str:
    if asked not in known:
        raise ConfigError(f"unknown backend {asked!r} of the jagged kernels; allowed: {', '.join(known)}")
    if asked == "triton":
        if find_spec("triton") is None:
            raise EnvironmentTrouble("backend 'triton': triton is not installed; leave the backend open")
        from dynamix.models.kernels.triton_attention import INTERPRETED

        if not q.is_cuda and not INTERPRETED:
            raise EnvironmentTrouble(
                f"backend 'triton' on {q.device}: it needs a CUDA device, or TRITON_INTERPRET=1 before the start; "
                "leave the backend open"
            )
    if torch.compiler.is_compiling() and asked not in ("dense", "segment"):
        raise ConfigError(f"backend {asked!r} in a traced program; allowed: dense, segment")
    return asked


def _seen(offsets: Tensor) -> float:
    """Σ n² / Σ n over the rows: the length of its row, as the mean event has it."""
    lengths = offsets.diff().double()
    return float(lengths.square().sum() / lengths.sum().clamp_min(1))


def _alike(
    q: Tensor, k: Tensor, v: Tensor, keys: Keys, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Keys]:
    """All of them in one dtype: autocast leaves products in bfloat16 beside embeddings in float32."""
    bias = None if keys.bias is None else keys.bias.to(dtype)
    return q.to(dtype), k.to(dtype), v.to(dtype), Keys(bias, keys.keep)


def _layout(chosen: str, offsets: Tensor, k: Tensor) -> Layout:
    make = Layout.by_row if chosen == "sequence" else Layout.by_length
    return make(offsets, k.shape[1])


def _wide(x: Tensor) -> Tensor:
    """Half precision as float32: products of the blocks add up in float32."""
    return x.float() if x.dtype in HALF else x


def _wide_or_none(x: Tensor | None) -> Tensor | None:
    return None if x is None else _wide(x)
