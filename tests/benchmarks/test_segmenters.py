"""The segmenters' contest: its worlds hold what they say, and its measures see slopes, changed ids and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from benchmarks import segmenters
from benchmarks.segment_coles import exported
from benchmarks.segment_methods import Answer, Method, coles, k_means, methods
from benchmarks.segment_worlds import SegmentWorld, orthogonal, slope_types, thinned
from benchmarks.segmenters import Options, churn, measured, score, shown, slope_gain
from dynamix.errors import EnvironmentTrouble
from dynamix.segmentation.blocks import INPUT, NEXT
from dynamix.segmentation.em import user_half

STAND_IN = """#!{python}
import sys
import numpy as np

given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
with np.load(given["--events"]) as events:
    first, stream, silence = events["first"], events["stream"], events["silence"]
    assert len(silence) == len(stream) == first[-1] and (np.diff(first) > 0).all()
    share = [np.bincount(stream[a:b], minlength=24) / (b - a) for a, b in zip(first[:-1], first[1:])]
np.savez(given["--out"], embedding=np.array(share, np.float32), fit_s=2.0 + int(given["--seed"]), apply_s=1.0)
"""


@pytest.fixture(scope="module")
def world() -> SegmentWorld:
    """300 users of S0 with 30 events each in the mean."""
    return thinned(300, 30.0, 1)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """An interpreter in place of that with pytorch-lifestream: a user's embedding is the share of each stream."""
    script = tmp_path / "python"
    script.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
    script.chmod(0o755)
    return script


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
    assert slope_gain(np.zeros_like(world.truth), later, half) == pytest.approx(0.0, abs=1e-2)


def test_s9_has_two_slope_types_that_its_composition_hardly_shows() -> None:
    world, later = slope_types(2500, 50.0, 0)
    half = user_half(world.inputs.users)
    assert set(world.truth.tolist()) == set(world.optimal.tolist()) == {0, 1}
    assert (
        0.6 < (world.truth == world.optimal).mean() < 0.85
    )  # single composition types are far easier to tell
    assert slope_gain(world.truth, later, half) > 1.5
    assert slope_gain(np.random.default_rng(0).permutation(world.truth), later, half) < 0.2
    assert later.p.mean() == pytest.approx(later.rows.y.mean(), rel=0.15)


def test_figures_of_a_perfect_and_of_an_unsure_answer(world: SegmentWorld) -> None:
    perfect = score(world, Answer(np.eye(6)[world.optimal - 1], "perfect", 2.0, 1.0))
    unsure = score(world, Answer(np.full((300, 6), 1 / 6), "unsure", 2.0, 1.0))
    assert [perfect["ratio"], unsure["ratio"]] == pytest.approx([1.0, 0.0])
    assert perfect["coverage"] == pytest.approx((world.inputs.events >= 15).mean())
    assert unsure["coverage"] == 0 and np.isnan(unsure["sure_ari"])
    assert k_means(3, clr=True)(world, 0).q.sum(axis=1).tolist() == [1.0] * 300


def test_churn_counts_users_whose_stable_id_changes_and_not_renumbered_segments(world: SegmentWorld) -> None:
    q = np.eye(6)[world.truth]
    assert churn(world, q, q[:, [3, 1, 5, 0, 2, 4]]) == {"churn": 0.0, "assigned_churn": 0.0}
    long = np.flatnonzero(world.inputs.events >= 15)[:30]
    short = np.flatnonzero(world.inputs.events < 15)[:12]
    moved = world.truth.copy()
    moved[long], moved[short] = (moved[long] + 1) % 6, (moved[short] + 1) % 6
    found = churn(world, q, np.eye(6)[moved])
    assert found == pytest.approx({"churn": 42 / 300, "assigned_churn": 30 / 300})
    without = np.eye(6)[
        np.where(world.truth == 5, 0, world.truth)
    ]  # a segment that ends takes its users' ids with it
    assert churn(world, q, without)["churn"] == pytest.approx((world.truth == 5).mean())


def test_a_permuted_world_keeps_every_users_events_truth_and_evidence(world: SegmentWorld) -> None:
    order = np.random.default_rng(0).permutation(300)
    other = world.permuted(order)
    back = np.argsort(order)
    assert other.inputs.users.to_pylist() == [f"u{i:07d}" for i in order]
    assert (other.inputs.events[back] == world.inputs.events).all() and (
        other.truth[back] == world.truth
    ).all()
    sums = [np.bincount(w.evidence.user, w.evidence.x[:, 3], minlength=300) for w in (world, other)]
    assert sums[1][back] == pytest.approx(sums[0])


def test_a_refit_hands_back_users_in_their_first_order(world: SegmentWorld) -> None:
    seen: list[int] = []

    def by_truth(given: SegmentWorld, starts: int) -> Answer:
        seen.append(starts)
        return Answer(np.eye(6)[given.truth], "", 1.0, 1.0)

    assert measured(world, None, Method(by_truth))["churn"] == 0.0
    assert "churn" not in measured(world, None, Method(by_truth, refit=False))
    assert seen == [0, 1, 0]


def test_stored_lines_are_not_measured_again_under_the_same_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = Options(users=200, seeds=2, events=[20.0], folder=tmp_path, arms=["k-means CLR"])
    segmenters.main(["S0"], chosen)
    first = capsys.readouterr().out
    assert "| k-means CLR | 6, 6 |" in first and "churn" in first
    with monkeypatch.context() as patched:
        patched.setattr(segmenters, "drawn", lambda *_: pytest.fail("drawn again"))
        segmenters.main(["S0"], chosen)
    assert capsys.readouterr().out == first
    path = tmp_path / "S0-20-200-1" / "k-means-CLR.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(stored | {"config": stored["config"] | {"seed": 7}}), encoding="utf-8")
    segmenters.main(["S0"], chosen)
    assert json.loads(path.read_text(encoding="utf-8"))["config"] == stored["config"]


def test_unknown_methods_and_worlds_are_named(tmp_path: Path) -> None:
    chosen = Options(users=200, seeds=1, events=[20.0], folder=tmp_path, arms=["mix", "magic"])
    with pytest.raises(SystemExit, match="magic; allowed: all, mix, neural"):
        segmenters.main(["S0"], chosen)
    with pytest.raises(SystemExit, match="S1; allowed: S0, S9, orthogonal"):
        segmenters.main(["S1"], chosen)


def test_a_cell_shows_the_spread_of_the_seeds_and_leaves_out_what_is_not_known() -> None:
    assert shown([{"x": 0.5}, {"x": 1.0}, {"x": float("nan")}], "x", digits=2) == "0.75 [0.50, 1.00]"
    assert shown([{"x": 0.5}], "x", digits=2) == "0.50" and shown([{"y": 1.0}], "x") == ""


def test_embeddings_come_back_to_the_users_with_events(elsewhere: Path) -> None:
    world = thinned(300, 1.5, 0)
    assert not world.inputs.events.all()
    found = coles(6, elsewhere)(world, 0)
    assert found.q.sum(axis=1).tolist() == [1.0] * 300 and found.fit_s > 2.0 and found.apply_s == 1.0
    silent = found.q[world.inputs.events == 0].argmax(axis=1)
    assert (
        len(set(silent.tolist())) == 1 and silent[0] == found.q[world.inputs.events > 0].sum(axis=0).argmax()
    )
    assert "CoLES + k-means" in methods(6, lifestream=elsewhere) and "CoLES + k-means" not in methods(6)


def test_what_is_handed_over_is_the_events_with_the_silence_before_their_session(world: SegmentWorld) -> None:
    own, given = world.inputs, exported(world.inputs)
    assert np.diff(given["first"]).tolist() == own.events.tolist()
    assert np.flatnonzero(given["silence"]).tolist() == own.first_event[:-1][own.gap > 0].tolist()
    assert given["silence"].sum() == pytest.approx(own.gap.sum())


def test_what_cannot_be_run_is_said(elsewhere: Path, world: SegmentWorld) -> None:
    elsewhere.write_text("#!/bin/sh\necho no such module >&2\nexit 3\n", encoding="utf-8")
    with pytest.raises(EnvironmentTrouble, match=r"ended with 3: no such module"):
        coles(6, elsewhere)(world, 0)
    with pytest.raises(EnvironmentTrouble, match="name an interpreter with pytorch-lifestream"):
        coles(6, elsewhere.with_name("nobody"))(world, 0)
