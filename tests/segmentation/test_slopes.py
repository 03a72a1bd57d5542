"""Slopes by group against a fitted logistic model, sums that add, and merging of groups that mean the same."""

from __future__ import annotations

import numpy as np
import pytest
from jagged_worlds import labelled
from sklearn.linear_model import LogisticRegression

from dynamix.segmentation.slopes import (
    Evidence,
    crossfit_gain,
    explained,
    merge_alike,
    merge_path,
    pooled_slopes,
    slope_sums,
)

KIND = np.repeat(np.arange(4), 100)
HALF = np.arange(400) % 2
TWO = np.array([[0.4, 0.0], [0.4, 0.0], [-0.4, 0.0], [-0.4, 0.0]])


def test_small_slopes_are_those_of_logistic_regression() -> None:
    evidence = labelled(np.zeros(400, np.int64), np.array([[0.2, -0.1, 0.0]]), rows=100)
    fitted = LogisticRegression(C=1e6).fit(evidence.x, evidence.y).coef_[0]
    assert pooled_slopes(evidence) == pytest.approx(fitted, abs=0.01)


def test_score_and_clustered_variance_equal_a_loop_over_users() -> None:
    evidence = labelled(KIND, TWO, rows=5)
    sums = slope_sums(evidence, KIND, HALF, n_groups=4)
    for half in (0, 1):
        for group in range(4):
            own = np.isin(evidence.user, np.flatnonzero((group == KIND) & (half == HALF)))
            x, r = evidence.x[own], (evidence.y - evidence.p)[own]
            centred = x - x.mean(axis=0)  # all weights are equal here
            each = [
                (centred * r[:, None])[evidence.user[own] == u].sum(axis=0)
                for u in np.unique(evidence.user[own])
            ]
            assert sums.half(half).score[group] == pytest.approx(np.sum(each, axis=0))
            assert sums.half(half).variance[group] == pytest.approx(np.sum(np.square(each), axis=0))
            assert sums.half(half).info[group] == pytest.approx(0.25 * (centred**2).sum(axis=0))


def test_sums_of_merged_groups_are_those_of_the_users_together() -> None:
    evidence = labelled(KIND, TWO, rows=5)
    apart = slope_sums(evidence, KIND, HALF, n_groups=4)
    together = slope_sums(evidence, KIND // 2, HALF, n_groups=2)
    both = apart.half(0) + apart.half(1)
    merged = both.merged(np.array([0, 0, 1, 1]))
    for name, value in vars(together.half(0) + together.half(1)).items():
        assert getattr(merged, name) == pytest.approx(value), name


def test_groups_with_equal_slopes_are_merged_and_others_stay() -> None:
    sums = slope_sums(labelled(KIND, TWO), KIND, HALF, n_groups=4)
    group, gains = merge_alike(sums, k_max=4)
    assert group.tolist() == [0, 0, 1, 1]
    assert gains[0] == 0 and gains[1] > 0.9 * max(gains) > 100


def test_equal_slopes_everywhere_leave_one_group() -> None:
    sums = slope_sums(labelled(KIND, np.full((4, 2), 0.3), seed=1), KIND, HALF, n_groups=4)
    group, gains = merge_alike(sums, k_max=4)
    assert group.tolist() == [0, 0, 0, 0] and max(gains) < 10


def test_a_path_merges_one_pair_a_step_and_empty_groups_first() -> None:
    sums = slope_sums(labelled(KIND, TWO), KIND, HALF, n_groups=5).half(0)
    path = merge_path(sums)
    assert [int(g.max()) + 1 for g in path] == [5, 4, 3, 2, 1]
    first, second = path[0], path[1]
    assert second[4] == second[np.flatnonzero((second == second[4]) & (first != 4))[0]]  # 4 has no users


def test_gain_is_what_the_other_half_says() -> None:
    opposite = Evidence(*vars(labelled(KIND, TWO)).values())
    flipped = np.isin(opposite.user, np.flatnonzero(HALF == 1))
    turned = Evidence(opposite.user, opposite.x * np.where(flipped, -1, 1)[:, None], opposite.y, opposite.p)
    groups = np.array([0, 0, 1, 1])
    assert crossfit_gain(slope_sums(opposite, KIND, HALF, n_groups=4), groups, fitted_on=0) > 0
    assert crossfit_gain(slope_sums(turned, KIND, HALF, n_groups=4), groups, fitted_on=0) < 0


def test_noise_explains_nothing_in_the_mean() -> None:
    values = [
        explained(
            slope_sums(labelled(KIND, np.zeros((4, 2)), rows=5, seed=s), KIND, HALF, n_groups=4).half(0)
        )
        for s in range(40)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / 40**0.5 + 0.1  # 8 slopes: 0 up to its error and O(1/n)
