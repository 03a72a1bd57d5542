"""The HSTU layer against plain loops in NumPy: one sequence, one head, one pair of tokens at a time.

The reference runs in complex numbers too, so its derivative is Im f(x + ih)/h without a rounding error (complex step).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dynamix.models.layers.hstu import N_HARMONICS, HstuLayer, Tokens

WIDTH, HEADS = 4, 2
INNER = WIDTH // HEADS
LENGTHS = (3, 1, 5)
KEEP = np.array([True, False, True, True, False, True, True, False, True])
Values = Mapping[str, NDArray[np.complex128]]


def silu(x: NDArray[np.complex128]) -> NDArray[np.complex128]:
    return x / (1 + np.exp(-x))


def norm(
    x: NDArray[np.complex128], weight: NDArray[np.complex128], bias: NDArray[np.complex128]
) -> NDArray[np.complex128]:
    centred = x - x.mean()
    return centred / np.sqrt((centred**2).mean() + 1e-5) * weight + bias


def reference(w: Values, begin: int, end: int, *, keep: NDArray[np.bool_]) -> NDArray[np.complex128]:
    """Output (L, D) of one sequence, whose tokens are begin .. end of `w`."""
    parts = []
    for n in range(begin, end):
        mixed = silu(
            w["mixed.weight"] @ norm(w["x"][n], w["before.weight"], w["before.bias"]) + w["mixed.bias"]
        )
        parts.append(mixed.reshape(4, HEADS, INNER))
    out = []
    for i in range(end - begin):
        found = np.zeros((HEADS, INNER), complex)
        for h in range(HEADS):
            for j in range(i + 1):
                if not keep[begin + j]:
                    continue
                score = parts[i][2, h] @ parts[j][3, h] / np.sqrt(INNER) + w["bias"][begin + j, h]
                gap = w["clock"][begin + i] - w["clock"][begin + j]
                for k in range(N_HARMONICS):
                    a, s = w["time.bias"][:, h, k]
                    score = score + a * np.cos((k + 1) * np.pi * gap) + s * np.sin((k + 1) * np.pi * gap)
                found[h] += silu(score) * np.exp(w["log_weight"][begin + j]) * parts[j][1, h]
        gated = norm(found.reshape(-1), w["after.weight"], w["after.bias"]) * parts[i][0].reshape(-1)
        out.append(w["x"][begin + i] + w["out.weight"] @ gated + w["out.bias"])
    return np.stack(out)


def total(w: Values, direction: NDArray[np.float64], *, newest: bool, keep: NDArray[np.bool_]) -> complex:
    """Weighted sum of all outputs, or of those of the newest tokens."""
    ends = np.cumsum([0, *LENGTHS])
    rows = [reference(w, a, b, keep=keep) for a, b in pairwise(ends)]
    out = np.stack([r[-1] for r in rows]) if newest else np.concatenate(rows)
    return complex((out * direction).sum())


@pytest.fixture(name="values")
def fixture_values() -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(3)
    n = sum(LENGTHS)
    layer = HstuLayer(WIDTH, HEADS)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    shapes |= {"x": (n, WIDTH), "clock": (n,), "log_weight": (n,), "bias": (n, HEADS)}
    return {name: rng.normal(0, 0.6, shape) for name, shape in shapes.items()}


def run(
    values: Mapping[str, NDArray[np.float64]], *, newest: bool, keep: NDArray[np.bool_] | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output of the layer, and the leaves that it was made of."""
    layer = HstuLayer(WIDTH, HEADS).double()
    leaves = {name: torch.tensor(v, requires_grad=True) for name, v in values.items()}
    offsets = torch.tensor(np.cumsum([0, *LENGTHS]))
    tokens = Tokens(
        offsets, leaves["clock"], leaves["log_weight"], leaves["bias"],
        None if keep is None else torch.from_numpy(keep), offsets[1:] - 1,
    )  # fmt: skip
    own = {name: leaves[name] for name, _ in layer.named_parameters()}
    call = _Newest(layer) if newest else layer
    names = {f"layer.{k}" if newest else k: v for k, v in own.items()}
    return torch.func.functional_call(call, names, (leaves["x"], tokens)), leaves


class _Newest(torch.nn.Module):
    def __init__(self, layer: HstuLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        return self.layer.newest(x, tokens)


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("keep", [None, KEEP])
def test_forward_and_every_gradient_equal_plain_loops(
    values: dict[str, NDArray[np.float64]], newest: bool, keep: NDArray[np.bool_] | None
) -> None:
    out, leaves = run(values, newest=newest, keep=keep)
    direction = np.random.default_rng(0).normal(size=tuple(out.shape))
    (out * torch.from_numpy(direction)).sum().backward()
    taken = np.ones(sum(LENGTHS), bool) if keep is None else keep
    plain = {name: v.astype(complex) for name, v in values.items()}
    assert float((out.detach().numpy() * direction).sum()) == pytest.approx(
        total(plain, direction, newest=newest, keep=taken).real, abs=1e-9
    )
    checked = 0
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        found = leaf.grad.flatten().tolist()
        for at in np.random.default_rng(1).permutation(len(found))[:12]:
            stepped = {**plain, name: plain[name].copy()}
            stepped[name].flat[at] += 1e-30j
            wanted = total(stepped, direction, newest=newest, keep=taken).imag / 1e-30
            assert found[at] == pytest.approx(wanted, abs=1e-9), (name, at)
            checked += abs(wanted) > 1e-3
    assert checked > 40  # most of the gradients say something


def test_the_newest_token_alone_is_the_last_row_of_the_whole(values: dict[str, NDArray[np.float64]]) -> None:
    whole, alone = (run(values, newest=n, keep=KEEP)[0] for n in (False, True))
    torch.testing.assert_close(alone, whole[np.cumsum(LENGTHS) - 1], atol=1e-12, rtol=0)
