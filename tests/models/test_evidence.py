from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dynamix.models.evidence import (
    Scored,
    compare,
    gate_mask,
    gate_ranker,
    ne_interval,
    poisson_weights,
    write_evidence,
)
from dynamix.models.metrics import NeState


def world(n_users: int = 800, rows: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    user = np.repeat(rng.integers(1, 2**62, n_users), rows)
    p = 1 / (1 + np.exp(2 - np.repeat(rng.normal(size=n_users), rows) - rng.normal(size=n_users * rows)))
    return (rng.random(len(p)) < p).astype(float), p, user


def scored(y: np.ndarray, p: np.ndarray, user: np.ndarray) -> Scored:
    request = user + np.arange(len(user)) // 5
    return Scored(np.atleast_2d(p), y, user, request)


def test_replicate_weights_are_poisson_and_follow_the_user_not_the_order() -> None:
    users = np.arange(1, 50_001, dtype=np.int64)
    w = poisson_weights(users, 3)
    assert (w.mean(), w.var()) == (pytest.approx(1, abs=0.02), pytest.approx(1, abs=0.03))
    assert np.array_equal(poisson_weights(users[::-1], 3), w[::-1])
    assert not np.array_equal(poisson_weights(users, 4), w)


def test_delta_is_the_ratio_of_ne_on_the_same_rows() -> None:
    y, p, user = world()
    worse = np.clip(p * 1.3, 0, 0.99)
    delta = compare(scored(y, worse, user), scored(y, p, user), replicates=60)
    assert delta.delta_ne_pct == pytest.approx(100 * (NeState.of(y, worse).ne / NeState.of(y, p).ne - 1))
    assert delta.low < delta.delta_ne_pct < delta.high


def test_two_calls_agree_to_the_bit() -> None:
    y, p, user = world()
    new, base = scored(y, np.sqrt(p), user), scored(y, p, user)
    assert compare(new, base, replicates=50) == compare(new, base, replicates=50)


def test_interval_widens_with_rows_of_one_user_taken_as_independent_users() -> None:
    """Copies of every row carry no information: clustered by user, they leave the error as it is."""
    y, p, user = world(300, 1)
    new = np.clip(p + 0.05, 0, 0.99)
    once = compare(scored(y, new, user), scored(y, p, user), replicates=200)
    four = [np.repeat(a, 4) for a in (y, new, p, user)]
    copied = compare(scored(four[0], four[1], four[3]), scored(four[0], four[2], four[3]), replicates=200)
    assert copied.user_se == pytest.approx(once.user_se)


def test_bootstrap_error_agrees_with_the_clustered_formula() -> None:
    y, p, user = world(2000, 3)
    new = np.clip(p * 1.1, 0, 0.99)
    a, b = (np.bincount(np.unique(user, return_inverse=True)[1], weights=v) for v in (
        -(y * np.log(new) + (1 - y) * np.log1p(-new)), -(y * np.log(p) + (1 - y) * np.log1p(-p))))  # fmt: skip
    ratio = a.sum() / b.sum()
    formula = 100 * np.sqrt(((a - ratio * b) ** 2).sum()) / b.sum()
    found = compare(scored(y, new, user), scored(y, p, user), replicates=500)
    assert found.user_se == pytest.approx(formula, rel=0.12)  # 500 replicates: relative error about 3 %


def test_seeds_widen_the_interval_and_one_seed_says_so() -> None:
    y, p, user = world()
    rng = np.random.default_rng(1)
    seeds = np.stack([np.clip(p * f, 0, 0.99) for f in 1 + 0.2 * rng.random(4)])
    many = compare(Scored(seeds, y, user), Scored(np.stack([p] * 4), y, user), replicates=50)
    assert many.seed_sd is not None and many.seed_sd > 0
    assert many.high - many.delta_ne_pct > 1.96 * many.user_se
    assert compare(scored(y, p, user), scored(y, p, user), replicates=50).seed_sd is None


def test_equal_arms_are_published() -> None:
    y, p, user = world()
    verdict = gate_mask(scored(y, p, user), scored(y, p, user), ne_budget=0.001, replicates=50)
    assert (verdict.passed, verdict.status) == (True, "published")
    assert "resolved to" in verdict.reason


def test_a_mask_that_shows_harm_is_retired() -> None:
    y, p, user = world(4000)
    blind = np.full(len(p), p.mean())
    verdict = gate_mask(scored(y, blind, user), scored(y, p, user), ne_budget=0.001, replicates=50)
    assert (verdict.passed, verdict.status) == (False, "retired")
    assert not next(c for c in verdict.checks if c.rule == "ne").passed


def test_rows_that_cannot_tell_leave_the_mask_proposed() -> None:
    y, p, user = world(40)
    one, two = np.clip(p * np.random.default_rng(0).uniform(0.3, 1.7, (2, len(p))), 0.01, 0.99)
    verdict = gate_mask(scored(y, one, user), scored(y, two, user), ne_budget=0.001, replicates=50)
    assert (verdict.passed, verdict.status) == (False, "proposed")
    assert "unresolvable" in verdict.reason


def test_a_shifted_total_fails_the_calibration_ratio() -> None:
    y, p, user = world()
    verdict = gate_mask(scored(y, p * 1.05, user), scored(y, p, user), ne_budget=0.4, replicates=50)
    assert not next(c for c in verdict.checks if c.rule == "calibration ratio").passed


def test_first_champion_must_beat_base_rate_and_logistic() -> None:
    y, p, user = world(3000)
    rate = scored(y, np.full(len(p), y.mean()), user)
    rivals = {"base rate": rate, "logistic regression": scored(y, np.sqrt(p * p.mean()), user)}
    assert gate_ranker(scored(y, p, user), rivals, ne_budget=0.001, replicates=50, superior=True).passed
    assert not gate_ranker(rate, {"base rate": rate}, ne_budget=0.001, replicates=50, superior=True).passed


def test_ne_interval_covers_its_point() -> None:
    y, p, user = world()
    ne, low, high = ne_interval(scored(y, p, user), replicates=100)
    assert ne == pytest.approx(NeState.of(y, p).ne)
    assert low < ne < high


def test_evidence_file_is_strict_json(tmp_path: Path) -> None:
    y, p, user = world()
    verdict = gate_mask(scored(y, p, user), scored(y, p, user), ne_budget=0.001, replicates=50)
    path = write_evidence(
        tmp_path / "evidence.json", {"gate": verdict, "nan": float("nan"), "n": np.int64(3)}
    )
    stored = json.loads(path.read_text())
    assert stored["nan"] is None and stored["n"] == 3 and stored["gate"]["status"] == "published"
