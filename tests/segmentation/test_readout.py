"""The temperature against posteriors whose truth is known, and the rank of a matrix."""

from __future__ import annotations

import numpy as np
import pytest

from dynamix.segmentation.readout import Readout, View, agreement, effective_rank, fit_readout

P = np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
PRIOR = np.log([0.6, 0.4])


def views(users: int, scale: float, *, seed: int = 0) -> tuple[View, View, np.ndarray]:
    """Two halves of 1 to 12 events each of two kinds, evidence multiplied by `scale`, and the true kind."""
    rng = np.random.default_rng(seed)
    kind = (rng.random(users) < 0.4).astype(np.int64)
    n = rng.integers(1, 13, size=(2, users))
    parts = []
    for half in n:
        counts = np.array([rng.multinomial(m, P[k]) for m, k in zip(half, kind, strict=True)])
        parts.append(View(scale * counts @ np.log(P).T, half.astype(np.float64)))
    return parts[0], parts[1], kind


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_wrong_scale(scale: float) -> None:
    first, second, kind = views(8000, scale)
    found = fit_readout(first, second, PRIOR)
    q = found.posterior(first.evidence + second.evidence, PRIOR, first.n + second.n)
    sure = q.max(axis=1) > 0.8
    assert found.level + found.slope * np.log1p(12.0) == pytest.approx(np.log(scale), abs=0.3)
    assert (q.argmax(axis=1) == kind)[sure].mean() == pytest.approx(q.max(axis=1)[sure].mean(), abs=0.03)


def test_a_user_without_events_gets_the_prior_and_rows_sum_to_one() -> None:
    q = Readout(0.4, -0.2).posterior(np.array([[0.0, 0.0], [5.0, -800.0]]), PRIOR, np.array([0.0, 4.0]))
    assert q[0] == pytest.approx(np.exp(PRIOR))
    assert q.sum(axis=1) == pytest.approx([1.0, 1.0])


def test_too_few_users_leave_the_scores_as_they_are() -> None:
    first, second, _ = views(20, 3.0)
    assert fit_readout(first, second, PRIOR) == Readout()


def test_halves_agree_by_what_they_share_and_by_nothing_for_strangers() -> None:
    first, second, _ = views(8000, 1.0)
    strangers = View(np.roll(second.evidence, 1, axis=0), np.roll(second.n, 1))
    assert agreement(Readout(), first, second, PRIOR) > 0.1
    assert fit_readout(first, strangers, PRIOR).level > 1.0  # tells nothing: as flat as it may be
    assert agreement(fit_readout(first, strangers, PRIOR), first, strangers, PRIOR) == pytest.approx(
        0.0, abs=0.01
    )


def test_effective_rank_counts_directions() -> None:
    rng = np.random.default_rng(0)
    assert effective_rank(np.ones((50, 4))) == 1.0
    assert effective_rank(rng.normal(size=(50, 1)) @ rng.normal(size=(1, 4))) == pytest.approx(1.0, abs=1e-6)
    assert effective_rank(rng.normal(size=(20_000, 4))) == pytest.approx(4.0, abs=0.05)
