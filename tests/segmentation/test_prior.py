"""The prior over effect sizes: its density against scipy's, expected losses against planted ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dynamix.segmentation.bounds import Quadratic
from dynamix.segmentation.prior import GRID, expected_losses, log_density

CHANNELS = 6


def test_the_density_is_that_of_scipy_and_finite_everywhere() -> None:
    x, dof, shift = np.meshgrid(
        [0.01, 0.7, 5.0, 80.0, 900.0], [1.0, 2.5, 6.0, 12.0], [1e-6, 0.3, 9.0, 300.0, 2000.0]
    )
    found, wanted = log_density(x, dof, shift), stats.ncx2.logpdf(x, dof, shift)
    ordinary = wanted > -600
    np.testing.assert_allclose(found[ordinary], wanted[ordinary], rtol=1e-6, atol=1e-6)
    assert np.isfinite(log_density(np.array([0.0, 1e9]), np.array([6.0, 6.0]), np.array([0.0, 1e-3]))).all()


def planted(sizes: np.ndarray, weight: float, seed: int = 0) -> list[Quadratic]:
    """Quadratics of cells whose effect of that size lies in one of six independent channels."""
    score = np.random.default_rng(seed).normal(size=(len(sizes), CHANNELS))
    score[:, 0] += sizes * np.sqrt(weight)
    return [Quadratic(float(s @ s), float(CHANNELS), float(CHANNELS)) for s in score]


def test_losses_are_those_of_most_cells_where_the_own_data_say_little() -> None:
    sizes = np.repeat([0.0, 0.2], [150, 50])
    weight = 5_000.0
    mean, sd = expected_losses(planted(sizes, weight), [weight] * 200)
    truth = sizes**2 * weight
    assert mean[:150].mean() < 0.02 * truth[-1]
    assert mean[150:].mean() == pytest.approx(truth[-1], rel=0.2)
    assert mean.sum() == pytest.approx(truth.sum(), rel=0.2)
    assert np.mean(np.abs(mean - truth) <= 2 * sd + 0.2 * truth + 1e-9) > 0.9  # the grid has steps of a fifth


def test_cells_without_information_have_no_loss_and_one_beyond_the_grid_the_largest() -> None:
    mean, sd = expected_losses([Quadratic(), Quadratic(1e6, 6.0, 6.0)], [10.0, 100.0])
    assert (mean[0], sd[0]) == (0.0, 0.0)
    assert mean[1] == pytest.approx(GRID[-1] ** 2 * 100.0)
    assert [len(x) for x in expected_losses([], [])] == [0, 0]


def test_the_order_of_the_cells_does_not_matter() -> None:
    quadratics = planted(np.repeat([0.0, 0.1, 0.3], 20), 2_000.0)
    mean, _ = expected_losses(quadratics, [2_000.0] * 60)
    again, _ = expected_losses(quadratics[::-1], [2_000.0] * 60)
    np.testing.assert_allclose(mean, again[::-1])
