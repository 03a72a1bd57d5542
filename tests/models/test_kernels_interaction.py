from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from dynamix.errors import InputError
from dynamix.models.kernels import interaction, twins
from dynamix.models.kernels.dense import from_padded, to_padded
from dynamix.models.layers.jagged import row_index, segment_max, segment_mean

LENGTHS = [[0], [1], [3, 0, 1, 4, 4, 0], [2, 9]]


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor(list(accumulate(lengths, initial=0)))


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def assert_same(found: Tensor, wanted: Tensor, *inputs: Tensor) -> None:
    """Values and gradients of a fixed weighted sum agree to 1e-9."""
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)
    weight = torch.cos(torch.arange(found.numel(), dtype=found.dtype)).view(found.shape)
    ours = torch.autograd.grad((found * weight).sum(), inputs, retain_graph=True)
    theirs = torch.autograd.grad((wanted * weight).sum(), inputs, retain_graph=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_products_and_softmax_equal_their_twins(lengths: list[int]) -> None:
    offsets, n, rows = offsets_of(lengths), sum(lengths), len(lengths)
    x, y, w, row = draw(1, n, 3), draw(2, n, 2), draw(3, rows, 3, 2), draw(4, rows, 3)
    assert_same(interaction.jagged_dense_bmm(x, w, offsets), twins.jagged_dense_bmm(x, w, offsets), x, w)
    assert_same(interaction.jagged_jagged_bmm(x, y, offsets), twins.jagged_jagged_bmm(x, y, offsets), x, y)
    assert_same(interaction.jagged_softmax(x, offsets), twins.jagged_softmax(x, offsets), x)
    assert_same(
        interaction.dense_jagged_add(row, x, offsets), twins.dense_jagged_add(row, x, offsets), row, x
    )
    joined, longer = interaction.dense_jagged_concat(row, x, offsets)
    assert longer.diff().tolist() == [n + 1 for n in lengths]
    assert_same(joined, twins.dense_jagged_concat(row, x, offsets), row, x)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_joined_order_puts_each_row_behind_its_events(lengths: list[int]) -> None:
    offsets, n = offsets_of(lengths), sum(lengths)
    order, longer = interaction.join_order(offsets, n)
    wanted: list[int] = []
    for i, (a, b) in enumerate(pairwise(offsets.tolist())):
        wanted += [*range(a, b), n + i]
    assert order.tolist() == wanted
    assert longer.diff().tolist() == [k + 1 for k in lengths]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_pairs_equal_their_twins(lengths: list[int]) -> None:
    offsets, n = offsets_of(lengths), sum(lengths)
    x, y = draw(1, n, 3), draw(2, n, 3)
    pairs = interaction.jagged_pairs(offsets)
    scores, square = interaction.pair_scores(x, y, pairs), twins.pair_scores(x, y, offsets)
    assert scores.shape == (sum(k * k for k in lengths),)
    assert_same(scores, twins.pair_values(square, offsets), x, y)
    soft = twins.pair_softmax(square, offsets)
    assert_same(interaction.pair_softmax(scores, pairs), twins.pair_values(soft, offsets), x, y)
    assert_same(interaction.pair_sum(scores, y, pairs), twins.pair_sum(square, y, offsets), x, y)
    longest = max(lengths)
    mask = draw(5, longest + 1, longest + 1).detach()
    wanted = twins.pair_values(square * mask[:longest, :longest], offsets)
    assert_same(interaction.pair_mask(scores, mask, pairs, offsets), wanted, x, y)
    difference = twins.pair_values(twins.pair_difference(x, offsets), offsets)
    assert_same(interaction.pair_difference(x, pairs), difference, x)


def test_pairs_are_drawn_row_after_row() -> None:
    pairs = interaction.jagged_pairs(torch.tensor([0, 2, 2, 3]))
    assert pairs.first.tolist() == [0, 0, 1, 1, 2]
    assert pairs.second.tolist() == [0, 1, 0, 1, 2]


def test_pair_softmax_and_sum_are_attention() -> None:
    offsets, x, y, v = offsets_of([3, 0, 5]), draw(1, 8, 3), draw(2, 8, 3), draw(3, 8, 2)
    pairs = interaction.jagged_pairs(offsets)
    found = interaction.pair_sum(
        interaction.pair_softmax(interaction.pair_scores(x, y, pairs), pairs), v, pairs
    )
    wanted = torch.cat([(x[a:b] @ y[a:b].T).softmax(1) @ v[a:b] for a, b in pairwise(offsets)])
    assert_same(found, wanted, x, y, v)


def test_gradients_of_products_equal_finite_differences_twice() -> None:
    """The gradient of each product is made of the other one, so the second derivative exists too."""
    offsets = offsets_of([2, 0, 3])
    x, y, w = draw(1, 5, 3), draw(2, 5, 2), draw(3, 3, 3, 2)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x, w: interaction.jagged_dense_bmm(x, w, offsets), (x, w))
        assert check(lambda x, y: interaction.jagged_jagged_bmm(x, y, offsets), (x, y))


def test_padded_and_back_is_the_identity() -> None:
    offsets, x = offsets_of([3, 0, 1]), draw(1, 4, 2)
    padded = to_padded(x, offsets, fill=7.0)
    assert padded.shape == (3, 3, 2)
    assert padded[1].eq(7).all() and padded[2, 1:].eq(7).all()
    assert_same(from_padded(padded, offsets, row_index(offsets, 4)), x * 1, x)


def test_mean_and_maximum_of_rows() -> None:
    offsets, x = offsets_of([2, 0, 1]), torch.tensor([[1.0], [4.0], [-2.0]])
    row = row_index(offsets, 3)
    assert segment_mean(x, offsets, row).flatten().tolist() == [2.5, 0.0, -2.0]
    assert segment_max(x, offsets, row).flatten().tolist() == [4.0, -torch.inf, -2.0]


def test_the_linear_layer_is_that_of_every_event() -> None:
    x, weight, bias = draw(1, 4, 3), draw(2, 2, 3), draw(3, 2)
    wanted = torch.stack([weight @ row + bias for row in x])
    assert_same(interaction.jagged_linear(x, weight, bias), wanted, x, weight, bias)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"jagged_dense_bmm: shapes \(4, 3\), \(2, 3, 2\)"):
        interaction.jagged_dense_bmm(draw(1, 4, 3), draw(2, 2, 3, 2), offsets_of([1, 2, 1]))


def test_fbgemm_agrees_where_it_loads() -> None:
    """fbgemm's jagged operators are a second oracle; the product never imports them."""
    pytest.importorskip("fbgemm_gpu", reason="fbgemm-gpu-cpu is not installed: an optional oracle")
    pytest.importorskip("fbgemm_gpu.sll", reason="this fbgemm has no jagged operators")
    offsets, ops = offsets_of([3, 0, 1, 4]), torch.ops.fbgemm
    x, y, w = (t.detach().float() for t in (draw(1, 8, 3), draw(2, 8, 2), draw(3, 4, 3, 2)))
    close = {"atol": 2e-5, "rtol": 0}
    torch.testing.assert_close(
        interaction.jagged_dense_bmm(x, w, offsets),
        ops.sll_jagged_dense_bmm(x, w, offsets, 4, False),
        **close,
    )
    torch.testing.assert_close(
        interaction.jagged_jagged_bmm(x, y, offsets),
        ops.sll_jagged_jagged_bmm(x, y, offsets, 4, False),
        **close,
    )
    torch.testing.assert_close(
        interaction.jagged_softmax(x, offsets), ops.sll_jagged_softmax(x, offsets, 4), **close
    )
    padded = ops.jagged_to_padded_dense(x, [offsets], [4], 0.0)
    torch.testing.assert_close(to_padded(x, offsets), padded, **close)
