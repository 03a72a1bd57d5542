from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dynamix.errors import ConfigError
from dynamix.models.kernels import blocked, dispatch, flash, layout
from dynamix.models.kernels.dispatch import attention, attention_with_lse, pool
from dynamix.models.kernels.form import Form, Keys
from dynamix.models.layers.attention import TargetAttention
from dynamix.models.layers.jagged import row_index

LENGTHS = [[0], [1], [0, 1, 5, 2, 0, 9], [37, 0, 3, 3, 3, 1, 12]]
FORMS = [Form(causal=c, activation=a, norm=3.0) for c in (False, True) for a in ("softmax", "silu")]  # type: ignore[arg-type]
ids = [f"{f.activation}{'-causal' if f.causal else ''}" for f in FORMS]


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor(list(accumulate(lengths, initial=0)))


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def qkv(n: int, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k (N, 2, 4), v (N, 2, 3) and a key bias (N, 2)."""
    return (
        draw(1, n, 2, 4, dtype=dtype),
        draw(2, n, 2, 4, dtype=dtype),
        draw(3, n, 2, 3, dtype=dtype),
        draw(4, n, 2, dtype=dtype),
    )


def keep_some(n: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(5)) < 0.5


def results(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Output and gradients of a fixed weighted sum of it."""
    weight = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]


def assert_same(found: list[Tensor], wanted: list[Tensor], *, atol: float = 1e-9) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)


def loop(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], keys: Keys, form: Form) -> Tensor:
    """The definition, one query of one head at a time."""
    out = torch.zeros(*v.shape, dtype=v.dtype)
    for begin, end in pairwise(accumulate(lengths, initial=0)):
        for h in range(q.shape[1]):
            for i in range(begin, end):
                seen = [
                    j
                    for j in range(begin, i + 1 if form.causal else end)
                    if keys.keep is None or bool(keys.keep[j])
                ]
                if not seen:
                    continue
                s = k[seen, h] @ q[i, h] / q.shape[2] ** 0.5
                s = s if keys.bias is None else s + keys.bias[seen, h]
                p = s.softmax(0) if form.activation == "softmax" else s * torch.sigmoid(s) / form.norm
                out[i, h] = p @ v[seen, h]
    return out


@pytest.mark.parametrize("form", FORMS, ids=ids)
@pytest.mark.parametrize("backend", ["dense", "bucketed", "sequence"])
def test_output_equals_the_definition(backend: str, form: Form) -> None:
    lengths = [0, 1, 5, 2]
    q, k, v, bias = (x.detach() for x in qkv(8))
    for keys in (Keys(), Keys(bias), Keys(bias, keep_some(8))):
        found = attention(q, k, v, offsets_of(lengths), keys=keys, form=form, backend=backend)
        torch.testing.assert_close(found, loop(q, k, v, lengths, keys, form), atol=1e-9, rtol=0)


@pytest.mark.parametrize("form", FORMS, ids=ids)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("room", [1 << 18, 60], ids=["whole", "tiles"])
def test_gradients_equal_those_of_the_dense_twin(
    form: Form, masked: bool, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """room: scores in a block; 60 cuts a row of 37 events into tiles of its queries."""
    monkeypatch.setattr(blocked, "BLOCK_SCORES", room)
    monkeypatch.setattr(layout, "BLOCK_SCORES", room)
    monkeypatch.setattr(blocked, "LEAST_TILE", 2)
    for lengths in LENGTHS:
        q, k, v, bias = qkv(sum(lengths))
        keys = Keys(bias, keep_some(sum(lengths))) if masked else Keys()
        inputs = [q, k, v, bias] if masked else [q, k, v]
        runs = [
            results(attention(q, k, v, offsets_of(lengths), keys=keys, form=form, backend=backend), inputs)
            for backend in ("dense", "bucketed", "sequence")
        ]
        assert_same(runs[1], runs[0])
        assert_same(runs[2], runs[0])


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.booleans())
def test_any_lengths_equal_padded_sdpa_of_torch(lengths: list[int], causal: bool) -> None:
    """Single precision too: 2e-5 is the bar for it."""
    offsets, longest = offsets_of(lengths), max(lengths)
    for dtype, atol in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
        q, k, v, _ = qkv(sum(lengths), dtype=dtype)
        real = torch.arange(longest) < offsets.diff()[:, None]  # (B, L)
        mask = real[:, None, None, :] & (torch.ones(longest, longest).tril() > 0 if causal else True)

        def padded(x: Tensor, real: Tensor = real) -> Tensor:
            return (
                x.new_zeros(*real.shape, *x.shape[1:])
                .masked_scatter(real[:, :, None, None], x)
                .transpose(1, 2)
            )

        if longest:
            theirs = F.scaled_dot_product_attention(padded(q), padded(k), padded(v), attn_mask=mask)
            wanted = results(theirs.transpose(1, 2)[real], [q, k, v])
            for backend in ("bucketed", "sequence"):
                ours = attention(q, k, v, offsets, form=Form(causal=causal), backend=backend)
                assert_same(results(ours, [q, k, v]), wanted, atol=atol)


@pytest.mark.parametrize("form", FORMS, ids=ids)
def test_gradients_equal_finite_differences(form: Form) -> None:
    offsets, keep = offsets_of([2, 0, 3, 1]), torch.tensor([True, False, True, True, False, True])

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return attention(q, k, v, offsets, keys=Keys(bias, keep), form=form, backend="bucketed")

    assert torch.autograd.gradcheck(run, qkv(6))


@pytest.mark.parametrize("causal", [False, True])
def test_log_sum_exp_is_that_of_the_scores(causal: bool) -> None:
    lengths, (q, k, v, bias) = [3, 0, 11, 1], qkv(15)
    keys = Keys(bias, keep_some(15))
    runs = [
        attention_with_lse(q, k, v, offsets_of(lengths), keys=keys, form=Form(causal=causal), backend=b)[1]
        for b in ("dense", "bucketed", "sequence")
    ]
    assert runs[0].shape == (2, 15)
    assert bool(runs[0].isinf().any())  # some query sees no key
    assert_same(runs[1:], [runs[0], runs[0]])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_fused_kernel_of_torch_is_taken_in_the_plain_case_alone(
    causal: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    real = flash.flash_attention

    def spy(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        taken.append(given)
        return real(*given)

    monkeypatch.setattr(flash, "flash_attention", spy)
    monkeypatch.setattr(dispatch, "LONG", 2.0)
    form = Form(causal=causal, scale=0.4)
    for lengths in [*LENGTHS, [5, 5], [0, 9, 9, 3, 40]]:
        q, k, v, bias = qkv(sum(lengths), dtype=dtype)
        offsets = offsets_of(lengths)
        v = v[..., : q.shape[-1]].detach().clone().requires_grad_()
        q, k = (x[..., : v.shape[-1]].detach().clone().requires_grad_() for x in (q, k))
        taken.clear()
        own = attention_with_lse(q, k, v, offsets, form=form)
        seen = sum(n * n for n in lengths) / max(sum(lengths), 1)
        assert bool(taken) == (len(lengths) > 1 and seen >= 2)
        asked = attention_with_lse(q, k, v, offsets, form=form, backend="flash")
        wanted = attention_with_lse(q, k, v, offsets, form=form, backend="dense")
        atol = 1e-9 if dtype == torch.float64 else 2e-5
        dense = results(wanted[0], [q, k, v])
        for found in (own, asked):
            assert_same(results(found[0], [q, k, v]), dense, atol=atol)
            torch.testing.assert_close(found[1], wanted[1], atol=atol, rtol=0)
        taken.clear()
        attention(q, k, v, offsets, keys=Keys(bias[:, : q.shape[1]]), form=form)
        attention(q, k, v, offsets, form=Form(activation="silu"))
        assert not taken
    with pytest.raises(ConfigError, match=r"'flash' .* takes softmax on a CPU"):
        attention(q, k, v, offsets, keys=Keys(bias), backend="flash")


def test_a_row_alone_and_in_a_batch_are_bitwise_equal() -> None:
    lengths = [7, 0, 33, 1, 18]
    q, k, v, _ = (x.detach() for x in qkv(59, dtype=torch.float32))
    together = attention(q, k, v, offsets_of(lengths), backend="sequence")
    for begin, end in pairwise(accumulate(lengths, initial=0)):
        alone = attention(
            q[begin:end], k[begin:end], v[begin:end], offsets_of([end - begin]), backend="sequence"
        )
        assert torch.equal(alone, together[begin:end])


def test_masked_keys_equal_removed_events() -> None:
    offsets, keep = (
        offsets_of([6, 4]),
        torch.tensor([True, False, True, True, False, True, False, True, True, False]),
    )
    q, k, v, _ = qkv(10)
    masked = attention(q, k, v, offsets, keys=Keys(keep=keep), form=Form(causal=True))
    removed = attention(q[keep], k[keep], v[keep], offsets_of([4, 2]), form=Form(causal=True))
    torch.testing.assert_close(masked[keep], removed, atol=1e-9, rtol=0)


def test_one_huge_row_is_cut_into_tiles() -> None:
    """1,500 events: 9 million scores of 4 heads in tiles of 43 queries."""
    n = 1500
    q, k, v = (draw(i, n, 4, 8, dtype=torch.float32) for i in range(3))
    out = attention(q, k, v, offsets_of([n]))
    out.sum().backward()
    at = torch.arange(0, n, 47)
    scores = torch.einsum("ihd,jhd->hij", q[at], k) / 8**0.5
    torch.testing.assert_close(out[at], torch.einsum("hij,jhd->ihd", scores.softmax(2), v), atol=2e-5, rtol=0)
    assert v.grad is not None
    torch.testing.assert_close(
        v.grad.sum((0, 2)), torch.full((4,), n * 8.0), atol=0.5, rtol=0
    )  # rows sum to 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_as_it_went_in(dtype: torch.dtype) -> None:
    """0.02: two units in the last place of bfloat16 at 1."""
    q, k, v, _ = qkv(9)
    wide = attention(q, k, v, offsets_of([4, 5]))
    half = attention(q.to(dtype), k.to(dtype), v.to(dtype), offsets_of([4, 5]))
    assert half.dtype == dtype
    torch.testing.assert_close(half.double(), wide, atol=0.02, rtol=0)


@pytest.mark.parametrize("activation", ["softmax", "silu"])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("shared", [False, True], ids=["by_row", "shared"])
def test_pooling_equals_its_dense_twin(activation: str, queries: int, shared: bool) -> None:
    form = Form(activation=activation, norm=3.0)  # type: ignore[arg-type]
    for lengths in LENGTHS:
        _, k, v, bias = qkv(sum(lengths))
        q = draw(6, queries, 2, 4) if shared else draw(6, len(lengths), queries, 2, 4)
        keys = Keys(bias, keep_some(sum(lengths)))
        runs = {
            b: results(pool(q, k, v, offsets_of(lengths), keys=keys, form=form, backend=b), [q, k, v, bias])
            for b in ("dense", "segment", "bucketed", "sequence")
        }
        assert runs["dense"][0].shape == (len(lengths), queries, 2, 3)
        for backend in ("segment", "bucketed", "sequence"):
            assert_same(runs[backend], runs["dense"])
        empty = torch.tensor(lengths) == 0
        assert not runs["bucketed"][0][empty].any()


@pytest.mark.parametrize("backend", ["segment", "bucketed"])
def test_gradients_of_pooling_equal_finite_differences(backend: str) -> None:
    _, k, v, bias = qkv(6)

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return pool(q, k, v, offsets_of([2, 0, 3, 1]), keys=Keys(bias), backend=backend)

    assert torch.autograd.gradcheck(run, (draw(6, 2, 2, 4), k, v, bias))


def test_target_attention_equals_its_formula() -> None:
    """Softmax of (W_q c + b)·e/√D + log weight over each row's kept events; an empty row gives its default."""
    layer, lengths = TargetAttention(5).double(), [3, 0, 2]
    query, events, bias = (draw(i, *s).detach() for i, s in enumerate([(3, 5), (5, 5), (5,)]))
    keep = torch.tensor([True, False, True, False, False])
    offsets = offsets_of(lengths)
    found = layer(query, events, bias, offsets, row_index(offsets, 5), keep)
    weight = (events[[0, 2]] @ layer.query(query)[0] / 5**0.5 + bias[[0, 2]]).softmax(0)
    default = layer.empty(torch.ones(1, dtype=torch.float64))
    nothing = layer.empty(torch.zeros(1, dtype=torch.float64))
    wanted = torch.stack([layer.value(weight @ events[[0, 2]]) + nothing, default, default])
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)
