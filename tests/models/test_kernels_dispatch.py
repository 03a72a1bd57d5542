from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from dynamix.errors import ConfigError, EnvironmentTrouble, InputError
from dynamix.models.kernels.dispatch import (
    attention,
    attention_backend,
    attention_with_lse,
    pool,
    pooling_backend,
)
from dynamix.models.kernels.form import Form, Keys
from dynamix.models.kernels.layout import BLOCK_SCORES, Layout

SCRIPT = Path(__file__).with_name("run_triton.py")


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor(list(accumulate(lengths, initial=0)))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def test_the_backend_follows_device_and_rows() -> None:
    x = draw(5, 2, 4)
    assert attention_backend(x, offsets_of([3, 2])) == "bucketed"
    assert attention_backend(x, offsets_of([5])) == "sequence"
    assert attention_backend(x, offsets_of([3, 2]), "dense") == "dense"
    assert pooling_backend(draw(2, 1, 2, 4)) == "segment"
    assert pooling_backend(draw(2, 3, 2, 4)) == "bucketed"


def test_an_unknown_backend_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'fast'.*flash, sequence, bucketed, triton, dense"):
        attention(draw(5, 2, 4), draw(5, 2, 4), draw(5, 2, 4), offsets_of([5]), backend="fast")


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed with this torch")
def test_triton_on_the_cpu_is_refused_with_the_next_step() -> None:
    with pytest.raises(EnvironmentTrouble, match=r"on cpu.*TRITON_INTERPRET=1"):
        attention(draw(5, 2, 4), draw(5, 2, 4), draw(5, 2, 4), offsets_of([5]), backend="triton")


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (torch.tensor([0, 3]), "from 0 to 3 for 5 events"),
        (torch.tensor([0, 4, 3, 5]), "fall"),
        (torch.tensor([0, 5], dtype=torch.int32), "int32"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(offsets: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attention(draw(5, 2, 4), draw(5, 2, 4), draw(5, 2, 4), offsets)


def test_every_shape_and_dtype_that_does_not_fit_is_named_at_once() -> None:
    keys = Keys(draw(5, 3), torch.ones(4, dtype=torch.bool))
    with pytest.raises(InputError, match=r"q has shape \(5, 2, 3\).*dtypes.*bias.*keep"):
        attention(draw(5, 2, 3), draw(5, 2, 4), draw(5, 2, 4).double(), offsets_of([5]), keys=keys)
    with pytest.raises(InputError, match=r"allowed: \(B, T, H, d\) = \(1, 3, 2, 4\)"):
        pool(draw(3, 2, 5), draw(5, 2, 4), draw(5, 2, 4), offsets_of([5]))
    with pytest.raises(InputError, match="causal"):
        pool(draw(3, 2, 4), draw(5, 2, 4), draw(5, 2, 4), offsets_of([5]), form=Form(causal=True))
    with pytest.raises(InputError, match="log-sum-exp"):
        x = draw(5, 2, 4)
        attention_with_lse(x, x, x, offsets_of([5]), form=Form(activation="silu"))


def test_buckets_hold_every_row_once_and_stay_small() -> None:
    lengths = [0, 200, 3, 3, 150, 90, 0, 1, 77, 40, 4, 2, 88]
    blocks = Layout.by_length(offsets_of(lengths), 4).blocks
    assert sorted(row for b in blocks for row in b.rows) == [i for i, n in enumerate(lengths) if n]
    assert all(b.packs * b.length**2 <= BLOCK_SCORES for b in blocks)
    assert len(blocks) < 8  # of 11 rows: short ones share
    assert all(lengths[row] == n for b in blocks for row, n in zip(b.rows, b.lengths, strict=True))


class Model(nn.Module):
    """Attention, then pooling by two queries: what a transformer trunk with pooling would export."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form, self.query = form, nn.Parameter(draw(2, 2, 4))

    def forward(self, x: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
        mixed = attention(x, x, x, offsets, keys=Keys(bias), form=self.form)
        return pool(self.query, mixed, mixed, offsets, keys=Keys(bias))


@pytest.mark.parametrize(
    "form", [Form(causal=True), Form(activation="silu", norm=9.0)], ids=["softmax", "silu"]
)
def test_an_exported_program_equals_the_eager_kernels_at_any_size(form: Form) -> None:
    model = Model(form).eval()
    rows, tokens = Dim("rows", min=2), Dim("tokens", min=2)
    example = (draw(7, 2, 4), draw(7, 2), offsets_of([4, 3]))
    shapes = ({0: tokens}, {0: tokens}, {0: rows + 1})
    program = torch.export.export(model, example, dynamic_shapes=shapes).module()
    for lengths in ([4, 3], [0, 2, 0], [1, 30, 0, 5, 5]):
        n = sum(lengths)
        given = (draw(n, 2, 4), draw(n, 2), offsets_of(lengths))
        torch.testing.assert_close(program(*given), model(*given), atol=2e-5, rtol=0)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed with this torch")
def test_the_triton_kernel_equals_the_dense_twin_under_the_interpreter() -> None:
    """A process of its own: the interpreter is chosen when triton is first imported. Bars: see the script."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["softmax", "softmax-causal", "silu"]
