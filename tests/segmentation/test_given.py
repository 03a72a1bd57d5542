"""Predictions without history: calibrated, unknown surfaces served, no effect of rare groups."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from scipy import optimize

from dynamix.segmentation.given import Rates, fit_additive, fit_given

Floats = npt.NDArray[np.float64]


def rates(seed: int = 0) -> Rates:
    """Two surfaces × positions 0..2 × segments 0..2 with additive log-odds and a head of 2 % and one of 20 %."""
    rng = np.random.default_rng(seed)
    surface, position, segment = (a.ravel() for a in np.meshgrid([0, 1], [0, 1, 2], [0, 1, 2], indexing="ij"))
    n = rng.integers(2_000, 20_000, len(surface)).astype(float)
    shape = 0.5 * surface - 0.3 * position + np.array([0.0, 0.8, -0.6])[segment]

    def positives(base: float) -> Floats:
        return rng.binomial(n.astype(int), 1 / (1 + np.exp(-(base + shape)))).astype(float)

    names = [("feed", "search")[s] for s in surface]
    return Rates(names, position, segment, n, {"conversion": positives(-4.0), "click": positives(-1.3)})


def frame_of(r: Rates) -> object:
    return pa.table({"surface": list(r.surface), "position": r.position, "segment_id": r.segment})


@pytest.mark.parametrize("kind", ["baseline", "none"])
@pytest.mark.parametrize("head", ["conversion", "click"])
def test_predictions_are_calibrated_in_every_segment(kind: str, head: str) -> None:
    r = rates()
    p = fit_given(r, kind=kind, n_segments=3).of(frame_of(r), head)
    for segment in range(3):
        own = r.segment == segment
        assert (p * r.n)[own].sum() == pytest.approx(r.positives[head][own].sum(), rel=0.003)


def test_the_baseline_is_also_calibrated_by_surface_and_position() -> None:
    r = rates()
    p = fit_given(r, kind="baseline", n_segments=3).of(frame_of(r), "click")
    for surface in ("feed", "search"):
        for position in range(3):
            own = (np.array(r.surface) == surface) & (r.position == position)
            assert (p * r.n)[own].sum() == pytest.approx(r.positives["click"][own].sum(), rel=0.003)


def test_without_a_baseline_all_impressions_of_a_segment_are_alike() -> None:
    r = rates()
    p = fit_given(r, kind="none", n_segments=3).of(frame_of(r), "click")
    assert [len(set(p[r.segment == g].round(12))) for g in range(3)] == [1, 1, 1]


def test_an_unknown_surface_or_segment_gets_the_base_rate() -> None:
    r = rates()
    new = pa.table(
        {"surface": ["banner", "feed", "banner"], "position": [1, 77, None], "segment_id": [3, 3, 1]}
    )
    for kind in ("baseline", "none"):
        given = fit_given(r, kind=kind, n_segments=4)
        p = given.of(new, "click")
        total, y = r.n.sum(), r.positives["click"].sum()
        base = (y + 0.5) / (total + 1)
        assert p[:2] == pytest.approx(
            base, rel=0.1 if kind == "none" else 1e-9
        )  # `none` shares a common shift
        own = r.segment == 1
        odds = given.offset["click"][1] + np.log(p[0] / (1 - p[0]))
        assert p[2] == pytest.approx(1 / (1 + np.exp(-odds)))
        if kind == "none":
            assert p[2] == pytest.approx(r.positives["click"][own].sum() / r.n[own].sum(), rel=0.003)


def test_the_fit_is_the_optimum_of_the_ridge_likelihood() -> None:
    r = rates()
    cell = np.array([("feed", "search").index(s) for s in r.surface]) * 3 + r.position
    y, n = r.positives["click"], r.n
    found_cell, found_offset = fit_additive(cell, r.segment, n, y, width=6, n_segments=3)
    base = np.log((y.sum() + 0.5) / (n.sum() - y.sum() + 0.5))

    def loss(theta: Floats) -> float:
        logit = base + theta[:6][cell] + theta[6:][r.segment]
        return float((n * np.logaddexp(0, logit) - y * logit).sum() + 0.5 * (theta**2).sum())

    best = optimize.minimize(loss, np.zeros(9), method="BFGS", options={"gtol": 1e-3})
    mine = loss(np.concatenate([found_cell - base, found_offset]))
    assert mine - best.fun < 0.2  # nats, of some 10^5; one standard error of one coefficient is half a nat


def test_a_group_of_few_impressions_stays_near_the_base_rate() -> None:
    cell, offset = fit_additive(
        np.array([0, 1]),
        np.array([0, 0]),
        np.array([10_000.0, 2.0]),
        np.array([500.0, 2.0]),
        width=2,
        n_segments=1,
    )
    p = 1 / (1 + np.exp(-(cell + offset[0])))
    assert p[0] == pytest.approx(0.05, abs=0.001)
    assert 0.05 < p[1] < 0.4  # two of two positives do not make it certain


def test_a_head_with_one_positive_only_keeps_finite_logits() -> None:
    r = Rates(
        ["feed", "feed"],
        np.array([0, 1]),
        np.array([0, 1]),
        np.array([50.0, 50.0]),
        {"click": np.array([0.0, 1.0])},
    )
    p = fit_given(r, kind="baseline", n_segments=2).of(frame_of(r), "click")
    assert np.isfinite(p).all() and 0 < p[0] < p[1] < 0.2
