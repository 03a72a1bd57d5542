"""The segmenters' contest: its worlds hold what they say, and its measure sees slopes and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from benchmarks.segment_worlds import orthogonal, thinned
from benchmarks.segmenters import Answer, Line, k_means, score, slope_gain
from dynamix.segmentation.blocks import INPUT, NEXT
from dynamix.segmentation.em import user_half


def test_a_thinned_world_has_the_asked_events_and_best_labels_from_them() -> None:
    dense, sparse = thinned(400, 40.0, 0), thinned(400, 4.0, 0)
    assert dense.inputs.events.mean() == pytest.approx(40, rel=0.15)
    assert sparse.inputs.events.mean() == pytest.approx(4, rel=0.15)
    assert set(dense.inputs.part.tolist()) == {INPUT, NEXT}
    best = [adjusted_rand_score(world.truth, world.optimal) for world in (dense, sparse)]
    assert best[0] > 0.8 > best[1] + 0.2
    assert len(dense.evidence.user) > 400 and 0 < dense.evidence.y.mean() < 0.2


def test_slopes_by_true_type_gain_and_by_chance_do_not() -> None:
    world, later = orthogonal(1500, 30.0, 0)
    half = user_half(world.inputs.users)
    chance = np.random.default_rng(0).permutation(world.truth)
    assert slope_gain(world.truth, later, half) > 2.0
    assert slope_gain(chance, later, half) < 0.2
    assert slope_gain(np.zeros_like(world.truth), later, half) == pytest.approx(0.0, abs=1e-6)


def test_figures_of_a_perfect_and_of_an_unsure_answer() -> None:
    world = thinned(300, 30.0, 1)
    line = Line()
    score(line, world, Answer(np.eye(6)[world.optimal - 1], "perfect", 2.0, 1.0))
    score(line, world, Answer(np.full((300, 6), 1 / 6), "unsure", 2.0, 1.0))
    assert line.ratio == pytest.approx([1.0, 0.0])
    assert line.coverage[0] == pytest.approx((world.inputs.events >= 15).mean())
    assert line.coverage[1] == 0 and np.isnan(line.sure_ari[1])
    assert k_means(3, clr=True)(world).q.sum(axis=1).tolist() == [1.0] * 300
