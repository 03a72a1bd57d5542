"""Bounds of quadratic statistics against SciPy's distributions, simulation and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dynamix.segmentation.bounds import (
    Quadratic,
    cell_budget,
    delta_for,
    entropy,
    lower_noncentrality,
    support_needed,
    upper_noncentrality,
)

GRID = [
    (0.5, 1.0),
    (4.0, 1.0),
    (12.0, 6.0),
    (40.0, 6.0),
    (35.0, 21.5),
    (400.0, 330.0),
    (1e4, 6.0),
    (1e5, 60.0),
]


@pytest.mark.parametrize(("q", "dof"), GRID)
def test_the_upper_bound_inverts_the_distribution_function(q: float, dof: float) -> None:
    bound = upper_noncentrality(q, dof)
    if bound:
        assert stats.ncx2.cdf(q, dof, bound) == pytest.approx(0.05, abs=1e-5)
    else:
        assert stats.chi2.cdf(q, dof) <= 0.05


@pytest.mark.parametrize(("q", "dof"), GRID)
def test_the_lower_bound_inverts_the_survival_function(q: float, dof: float) -> None:
    bound = lower_noncentrality(q, dof)
    if bound:
        assert stats.ncx2.sf(q, dof, bound) == pytest.approx(0.05, abs=1e-5)
    else:
        assert stats.chi2.sf(q, dof) >= 0.05


def test_one_degree_of_freedom_is_close_to_the_square_of_a_normal_bound() -> None:
    for z in (3.0, 5.0, 9.0):
        assert math.sqrt(upper_noncentrality(z * z, 1)) == pytest.approx(z + 1.645, abs=1e-3)
        assert math.sqrt(lower_noncentrality(z * z, 1)) == pytest.approx(z - 1.645, abs=1e-2)


def test_bounds_are_zero_where_no_effect_is_refuted_or_nothing_is_measured() -> None:
    assert upper_noncentrality(0.001, 1) == 0.0  # chi-squared of one is that small in under 5 % of cases
    assert lower_noncentrality(3.8, 1) == 0.0
    assert upper_noncentrality(5.0, 0) == lower_noncentrality(5.0, 0) == 0.0
    assert Quadratic().upper() == Quadratic().lower() == 0.0


def test_a_spread_of_one_in_every_direction_is_the_plain_noncentral_bound() -> None:
    q = Quadratic(q=30.0, trace=6.0, square=6.0)
    assert q.upper() == pytest.approx(upper_noncentrality(30.0, 6.0))
    assert q.lower() == pytest.approx(lower_noncentrality(30.0, 6.0))
    assert q.estimate == 24.0


def test_a_common_factor_of_the_spread_scales_the_bounds() -> None:
    plain, wide = Quadratic(30.0, 6.0, 6.0), Quadratic(54.0, 10.8, 6 * 1.8**2)
    assert wide.upper() == pytest.approx(1.8 * plain.upper())
    assert wide.lower() == pytest.approx(1.8 * plain.lower())


def test_statistics_add_up() -> None:
    a, b = Quadratic(3.0, 2.0, 2.5), Quadratic(9.0, 6.0, 7.0)
    assert a + b == Quadratic(12.0, 8.0, 9.5)
    assert a + Quadratic() == a


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_bounds_of_sums_with_unequal_spreads_cover_at_their_level(shift: float) -> None:
    rng = np.random.default_rng(int(shift))
    spread = np.array([1.0, 1.0, 1.2, 1.8, 1.8, 2.5])
    mean = np.full(6, shift)
    s = mean + rng.normal(size=(600, 6)) * np.sqrt(spread)
    found = [Quadratic(float(x @ x), float(spread.sum()), float((spread**2).sum())) for x in s]
    true = float(mean @ mean)
    assert np.mean([q.upper() >= true for q in found]) >= 0.93
    assert np.mean([q.lower() <= true for q in found]) >= 0.92


def test_entropy_is_that_of_a_coin() -> None:
    assert entropy(0.5) == pytest.approx(math.log(2))
    assert entropy(0.01) == pytest.approx(-(0.01 * math.log(0.01) + 0.99 * math.log(0.99)))
    assert entropy(0.0) == entropy(1.0) == 0.0


@pytest.mark.parametrize(
    ("rate", "delta", "budget"), [(0.01, 0.10, 0.00088), (0.05, 0.10, 0.0012), (0.05, 0.2, 0.0048)]
)
def test_cell_budgets_are_those_of_the_method(rate: float, delta: float, budget: float) -> None:
    assert cell_budget(rate, delta) == pytest.approx(budget, rel=0.01)
    assert delta_for(rate, cell_budget(rate, delta)) == pytest.approx(delta)


def test_the_budget_of_a_cell_is_the_loss_of_leaving_its_effect_out() -> None:
    # expected log loss with and without an effect of delta per SD on a normal feature, by quadrature
    rate, delta = 0.05, 0.1
    z, weight = np.polynomial.hermite_e.hermegauss(60)
    weight = weight / weight.sum()
    p = 1 / (1 + np.exp(-(math.log(rate / (1 - rate)) + delta * z)))
    mean = float(weight @ p)
    gain = entropy(mean) - float(weight @ np.array([entropy(v) for v in p]))
    assert gain / entropy(mean) == pytest.approx(cell_budget(mean, delta), rel=0.02)


def test_support_grows_with_the_design_effect_but_never_shrinks_below_it() -> None:
    assert support_needed(0.1, 1.4, support=2.93) == pytest.approx(1200, rel=0.01)
    assert support_needed(0.1, 0.5, support=2.93) == support_needed(0.1, 1.0, support=2.93)
