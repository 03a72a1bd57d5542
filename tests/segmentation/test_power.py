"""What the data can decide: the keep rule's formulas inverted, checked against the rule itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dynamix.config import MaskConfig
from dynamix.features.relevance import C, CellSums, D
from dynamix.segmentation.bounds import Quadratic, cell_budget, delta_for, support_needed
from dynamix.segmentation.cells import Cell
from dynamix.segmentation.effects import effect
from dynamix.segmentation.power import POWER, expected, power_of

CONFIG = MaskConfig()
RATE = 0.05


def cell_sums(
    n: float, *, q: float = 0.0, deff: float = 1.0, presence: float = 1.0, tokens: float = 3.0
) -> CellSums:
    """A cell of n impressions with six independent channels of variance 1 and a block statistic of q."""
    w = n * RATE * (1 - RATE)
    a = np.zeros(D + 1)
    a[:C] = math.sqrt(q * w / C)
    return CellSums(
        n=n, positives=n * RATE, with_stream=n * RATE * presence, present=n * presence, tokens=n * tokens,
        censored=0.0, w=w, wx=np.zeros(D), wxx=w * np.eye(D), a=a, aa=deff * w * np.eye(D + 1),
        hist=np.zeros((4, 65)),
    )  # fmt: skip


def world(scale: float = 1.0) -> dict[Cell, CellSums]:
    """Two segments × three streams of very different support."""
    return {
        (g, f): cell_sums(scale * n, presence=presence, tokens=tokens)
        for g, n in ((1, 120_000.0), (2, 15_000.0))
        for f, presence, tokens in (("a", 0.9, 5.0), ("b", 0.4, 1.0), ("c", 0.02, 0.1))
    }


def test_the_made_up_cells_have_the_statistic_they_claim() -> None:
    found = effect(cell_sums(10_000, q=9.0, deff=1.8))
    assert found.quadratic.q == pytest.approx(9.0)
    assert (found.dof, found.deff) == (6, pytest.approx(1.8))


def test_a_cell_is_decidable_iff_a_likely_null_would_pass_block_and_support() -> None:
    budget = 0.001
    for cell, sums in world().items():
        found = power_of(world(), budget, CONFIG)
        (need,) = [n for n in found.needs if n.cell == cell]
        null = expected(effect(sums).quadratic, POWER).q
        e = effect(replace(sums, a=cell_sums(sums.n, q=null).a))
        passes = e.ucb <= cell_budget(e.rate, found.delta) and e.positives >= support_needed(
            found.delta, e.deff, support=CONFIG.support
        )
        assert need.decidable == passes == (need.factor <= 1.0)


@pytest.mark.parametrize("budget", [0.005, 0.001, 0.0002])
def test_with_the_factor_times_as_much_data_a_cell_is_just_decidable(budget: float) -> None:
    for cell, sums in world().items():
        (need,) = power_of({cell: sums}, budget, CONFIG).needs
        for more, decidable in ((1.01, True), (0.99, False)):
            scaled = cell_sums(
                sums.n * need.factor * more, presence=sums.present / sums.n, tokens=sums.tokens / sums.n
            )
            assert power_of({cell: scaled}, budget, CONFIG).needs[0].decidable is decidable


def test_the_quantile_of_a_null_is_passed_in_four_of_five_draws() -> None:
    rng = np.random.default_rng(0)
    spread = np.array([1.0, 1.2, 1.8, 2.2])
    draws = (rng.normal(size=(4000, 4)) ** 2 * spread).sum(axis=1)
    found = expected(Quadratic(0.0, float(spread.sum()), float((spread**2).sum())), POWER)
    assert (draws <= found.q).mean() == pytest.approx(POWER, abs=0.03)
    assert expected(found).q == pytest.approx(spread.sum())


def test_more_data_never_lowers_the_decidable_share() -> None:
    shares, factors = [], []
    for scale in (0.1, 0.3, 1, 3, 10, 30, 100, 1000):
        found = power_of(world(scale), 0.001, CONFIG)
        shares.append(found.token_share)
        factors.append(found.factor_90)
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == pytest.approx(1.0)
    assert factors == sorted(factors, reverse=True)


def test_a_larger_budget_never_lowers_the_decidable_share() -> None:
    found = [power_of(world(), b, CONFIG) for b in (0.0001, 0.001, 0.01, 0.1)]
    assert [p.token_share for p in found] == sorted(p.token_share for p in found)
    assert [p.delta for p in found] == pytest.approx([delta_for(RATE, b) for b in (0.0001, 0.001, 0.01, 0.1)])


@pytest.mark.parametrize("budget", [0.0002, 0.001, 0.02])
@pytest.mark.parametrize("rate", [0.003, 0.05, 0.4])
def test_delta_is_the_inverse_of_the_cell_budget(rate: float, budget: float) -> None:
    assert cell_budget(rate, delta_for(rate, budget)) == pytest.approx(budget)


def test_the_configured_delta_is_taken_where_given() -> None:
    assert power_of(world(), 0.001, CONFIG, delta=0.25).delta == 0.25


def test_clustered_users_need_more_data() -> None:
    plain, clustered = (power_of({(1, "a"): cell_sums(50_000, deff=d)}, 0.001, CONFIG) for d in (1.0, 1.8))
    assert clustered.needs[0].factor == pytest.approx(1.8 * plain.needs[0].factor, rel=1e-6)


def test_a_cell_without_a_positive_can_never_be_decided() -> None:
    cells = world() | {(1, "d"): replace(cell_sums(120_000, tokens=50.0), with_stream=0.0)}
    found = power_of(cells, 0.005, CONFIG)
    (need,) = [n for n in found.needs if n.cell == (1, "d")]
    assert need.factor == math.inf and need.limit == "no positive has the stream"
    assert found.factor_90 == math.inf  # the cell holds more than a tenth of the tokens


@pytest.mark.parametrize("positives", [0.0, 1.0])
def test_without_both_outcomes_nothing_is_decidable(positives: float) -> None:
    cells = {(1, "a"): replace(cell_sums(1000), positives=1000 * positives)}
    found = power_of(cells, 0.001, CONFIG)
    assert (found.decidable, found.token_share, found.factor_90) == (0, 0.0, math.inf)


def test_cells_that_pass_alone_are_limited_by_the_budget_of_all_together() -> None:
    many = {(1, f"s{i:03d}"): cell_sums(400_000, tokens=1.0 + i / 1000) for i in range(200)}
    found = power_of(many, 0.001, CONFIG)
    assert all(n.decidable for n in found.needs)
    assert 0 < found.decidable < 200
    assert found.token_share == pytest.approx(
        sum(1 + i / 1000 for i in range(200 - found.decidable, 200)) / (200 + 19.9)
    )
