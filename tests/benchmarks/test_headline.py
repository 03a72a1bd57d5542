"""The headline benchmark on worlds made up in memory: arms, stored results, comparisons, learned rivals."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from headline_rows import HEAD, acting_rows, rows_of, sums_of

from benchmarks import headline
from benchmarks.headline_flops import history_share, model_at, rate_lines
from benchmarks.headline_learned import by_budget, closed_first, learned_gates
from benchmarks.headline_table import compared, scored, table, throughputs, worth_lines
from benchmarks.headline_world import VIEWS, HeadlineWorld, load_statistics, store_statistics, used_rows
from dynamix.config import Config, MaskConfig, TrainConfig
from dynamix.jobs.cell_stats import Measured
from dynamix.models.dataset import JaggedRows

TRAIN = TrainConfig(
    batch_size=128,
    epochs=1,
    min_steps=20,
    threads=1,
    embedding_dim=4,
    hidden=(8,),
    item_buckets=10,
    bootstrap=50,
)
CONFIG = Config(labels=(HEAD,), mask=MaskConfig(delta=0.10, ne_budget=0.005), train=TRAIN)
IDS = {"acts": 0, "null": 1, "rare": 2}


def made(folder: Path, rows: JaggedRows) -> HeadlineWorld:
    """A world of two segments in which stream `acts` alone acts, with statistics that say so, stored in the folder."""
    for view in VIEWS:
        ids = (1, 2) if view == "tier" else (0, 1)
        cells = {(g, f): {"dwell": 0.4 if f == "acts" else 0.0} for g in ids for f in IDS}
        measured = Measured(sums_of(cells), "s1", {g: f"{g}" for g in ids}, tuple(IDS), date(2026, 1, 1))
        store_statistics(folder / f"{view}.npz", measured)
    segment = np.asarray(rows.user % 2)
    users = np.unique(rows.user).tolist()
    truth = pd.DataFrame(
        {"segment": [g for g in (0, 1) for _ in IDS], "stream": [*IDS, *IDS], "beta": [0.4, 0.0, 0.0] * 2, "u": 0.0,
         "match": 0.0}
    )  # fmt: skip
    return HeadlineWorld(
        name="made", folder=folder, config=CONFIG, rows=replace(rows, segment=segment), n_segments=2, ids=IDS,
        shuffled={u: u % 3 % 2 for u in users}, planted={u: u % 2 for u in users},
        true_p=np.clip(rows.labels[HEAD].astype(float), 0.2, 0.8), cells=truth,
    )  # fmt: skip


@pytest.fixture(name="world")
def fixture_world(tmp_path: Path) -> HeadlineWorld:
    return made(tmp_path, acting_rows(480, effect=3.0))


def test_stored_statistics_come_back(tmp_path: Path) -> None:
    statistics = sums_of({(1, "a"): {"dwell": 0.3}, (0, "b"): {}})
    store_statistics(
        tmp_path / "own.npz", Measured(statistics, "s1", {0: "cold"}, ("a", "b"), date(2026, 1, 1))
    )
    again = load_statistics(tmp_path / "own.npz")
    assert again.heads == (HEAD,) and again.sums.keys() == statistics.sums.keys()
    assert again.recency.keys() == statistics.recency.keys()
    for key, sums in statistics.sums.items():
        assert np.array_equal(again.sums[key].pack(), sums.pack())


@pytest.mark.parametrize("name", [n for n in headline.ARMS if n not in ("gate", "budget")])
def test_every_arm_keeps_the_tokens_or_has_its_own(world: HeadlineWorld, name: str) -> None:
    tokens = round(0.6 * world.rows.tokens)
    arm = headline.ARMS[name]
    keep = arm.keep(world, tokens, 0)
    assert keep.shape == (world.rows.tokens,) and keep.dtype == bool
    if not arm.free:
        assert abs(int(keep.sum()) - tokens) <= len(world.rows)
    if name in (headline.OURS, headline.ONE, "tier", "oracle", headline.ORACLE_OWN):
        assert keep[world.rows.stream == 0].all()  # the stream that acts is the last to go
    if name == headline.ORACLE_OWN:
        assert np.array_equal(keep, world.rows.stream == 0)


def test_a_boosted_arm_runs_only_where_rows_were_collected_for_it_and_keeps_events_of_those(
    world: HeadlineWorld,
) -> None:
    arm = headline.ARMS[headline.BOOSTED]
    assert not arm.runs_in(world) and headline.ARMS[headline.DECIDED].runs_in(world)
    longer = acting_rows(480, effect=3.0, events=70)
    collected = replace(longer, segment=world.rows.segment)
    with_more = replace(world, collected=collected)
    keep = arm.keep(with_more, 0, 0)
    assert arm.runs_in(with_more) and keep.shape == (collected.tokens,)
    own = collected.keep_events(keep)
    assert 0 < own.tokens < collected.tokens and set(own.stream.tolist()) == {0}  # as decided: the others go
    result = headline.result_of(with_more, headline.BOOSTED, 0, headline.Options(arms=(), seeds=1))
    assert (
        headline.result_of(with_more, headline.BOOSTED, 0, headline.Options(arms=(), seeds=1)).keep.shape
        == keep.shape
    )
    speeds = throughputs(
        with_more, {"all": np.ones(world.rows.tokens, bool), headline.BOOSTED: result.keep}, headline.model_of(world),
        longer=[headline.BOOSTED],
    )  # fmt: skip
    assert set(speeds) == {"all", headline.BOOSTED}


def test_views_give_rows_their_segments(world: HeadlineWorld) -> None:
    assert np.array_equal(world.segment("own"), world.rows.user % 2)
    assert np.array_equal(world.segment("planted"), world.rows.user % 2)
    assert np.array_equal(world.segment("shuffled"), world.rows.user % 3 % 2)
    assert np.array_equal(world.segment("tier"), 1 + world.rows.tier)
    assert not world.segment("one").any()


def test_the_tokens_of_ours_are_those_of_its_mask(world: HeadlineWorld) -> None:
    own = headline.target(world, headline.Options(arms=(), share=None))
    assert own == int(headline.ARMS["decided"].keep(world, 0, 0).sum())
    assert headline.target(world, headline.Options(arms=(), share=0.25)) == round(0.25 * world.rows.tokens)


def test_a_finished_arm_is_not_trained_again_and_other_choices_are(
    world: HeadlineWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, tokens = headline.Options(arms=("streams",), seeds=2), world.rows.tokens // 2
    first = headline.result_of(world, "streams", tokens, options)
    assert first.p.shape == (2, 120) and len(first.kept) == len(first.passes) == 2
    assert ((first.p > 0) & (first.p < 1)).all()

    def refuse(*given: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(headline, "trained", refuse)
    again = headline.result_of(world, "streams", tokens, options)
    assert np.array_equal(again.p, first.p) and np.array_equal(again.keep, first.keep)
    assert again.kept == first.kept and again.passes == first.passes
    for changed in (replace(options, seeds=3), options):
        with pytest.raises(AssertionError, match="trained again"):
            headline.result_of(world, "streams", tokens + 500 * (changed is options), changed)


def test_a_better_arm_has_less_ne_and_ours_is_set_beside_it(world: HeadlineWorld) -> None:
    truth = world.true_p[world.rows.part == 2]
    blank = headline.Result(
        "all", np.full((2, len(truth)), truth.mean()), np.ones(0, bool), [(8.0, 8.0)] * 2, []
    )
    good = replace(blank, name="ours", p=np.stack([truth, 0.9 * truth + 0.05]), kept=[(4.0, 4.0)] * 2)
    lines = compared(world, [blank, good], base="all", ours="ours")
    assert lines[1]["high"] < 0 and lines[0]["delta"] == 0
    assert lines[0]["ours_against"]["delta_ne_pct"] == pytest.approx(lines[1]["delta"])
    assert "ours_against" not in lines[1]
    assert lines[1]["ne"] < lines[0]["ne"] == pytest.approx(1.0, abs=1e-6)  # a constant at the base rate
    speeds = {
        n: {"train_rows_per_s": r, "infer_rows_per_s": 3 * r} for n, r in (("all", 100.0), ("ours", 150.0))
    }
    shown = table(lines, speeds, {"all": "all events", "ours": "ours, removal"})
    assert "| 4.0 (4.0) | 0.500 |" in shown[3] and "150 (1.50x) | 450 (1.50x)" in shown[3]
    (said,) = worth_lines(
        world, {"all": blank, "ours": good}, pairs=[("worth", "ours", "all"), ("x", "ours", "tier")]
    )
    assert said.startswith("worth: -")


def test_without_planted_probabilities_the_labels_count(world: HeadlineWorld) -> None:
    p = np.full((1, 120), 0.5)
    real = replace(world, true_p=None, cells=None)
    assert set(scored(real, p).y.tolist()) == {0.0, 1.0}
    assert set(scored(world, p).y.tolist()) == {0.2, 0.8}


def test_hold_out_users_are_left_out_and_the_cap_takes_whole_users() -> None:
    rows = rows_of([[0]] * 80)
    held = replace(rows, holdout=rows.user == 3)
    assert 3 not in used_rows(held, max_rows=0).user and len(used_rows(held, max_rows=0)) == 76
    capped = used_rows(rows, max_rows=20)
    assert [len(capped.select(part)) for part in ("train", "validate", "test")] == [20, 20, 20]
    assert set(np.unique(capped.select("train").user, return_counts=True)[1].tolist()) == {2}


def test_rows_per_second_are_taken_of_every_arm(world: HeadlineWorld) -> None:
    keeps = {"all": np.ones(world.rows.tokens, bool), "none": np.zeros(world.rows.tokens, bool)}
    found = throughputs(world, keeps, headline.model_of(world))
    assert found["none"]["tokens_per_row"] == 0 < found["all"]["tokens_per_row"]
    assert all(v > 0 for arm in found.values() for k, v in arm.items() if k.endswith("rows_per_s"))


def test_the_learned_gate_stays_open_for_the_stream_that_acts() -> None:
    rows = acting_rows(2000, effect=4.0, events=6)
    world = HeadlineWorld("x", Path(), CONFIG, rows, 1, IDS, {}, {}, None, None)
    train = TRAIN.model_copy(update={"min_steps": 150, "learning_rate": 0.02})
    gates = learned_gates(rows, model_config=headline.model_of(world), config=train, seed=0)
    assert gates.argmax() == 0 and gates[0] > 1.2 * gates[1:].max()
    assert closed_first(gates)[0].stream == int(gates.argmin())
    assert 0 not in [c.stream for c in closed_first(gates)]


def test_the_budget_keeps_the_newest_events_and_hangs_on_length_alone(world: HeadlineWorld) -> None:
    rng = np.random.default_rng(0)
    rows = rows_of([rng.integers(3, size=n).tolist() for n in rng.integers(0, 60, 400)],
                   y=(rng.random(400) < 0.3).astype(float).tolist())  # fmt: skip
    tokens = rows.tokens // 2
    keep = by_budget(rows, tokens, head=HEAD, model_config=headline.model_of(world), config=TRAIN, seed=0)
    assert abs(int(keep.sum()) - tokens) <= len(rows)
    lengths, left = np.diff(rows.offsets), np.diff(rows.keep_events(keep).offsets)
    for i in range(len(rows)):
        own = keep[rows.offsets[i] : rows.offsets[i + 1]]
        assert own[len(own) - left[i] :].all()  # the newest
    for n in np.unique(lengths):
        assert len(set(left[lengths == n].tolist())) == 1


def test_arms_of_a_command_line() -> None:
    assert headline.chosen_arms("all") == list(headline.ARMS)
    assert headline.chosen_arms("ours,one") == ["ours", "one"]
    assert set(headline.chosen_arms(None)) <= set(headline.ARMS)
    with pytest.raises(SystemExit, match=r"--arms mine; allowed: all, all, last"):
        headline.chosen_arms("ours,mine")


def test_a_whole_world_is_measured_and_told(world: HeadlineWorld, capsys: pytest.CaptureFixture[str]) -> None:
    arms = ("last", "one", "ours", "decided", "oracle-own")
    found = headline.measure_world(world, headline.Options(arms=arms, seeds=1, share=0.6, curve=(0.5,)))
    json.dumps(found)
    assert [x["arm"] for x in found["arms"]] == ["all", *arms]
    shown = capsys.readouterr().out
    assert "worth of segments, removal against one mask for all:" in shown
    assert "tokens removed: ours as decided" in shown and "| 50% | " in shown


def test_main_arms_get_more_seeds_and_earlier_ones_are_kept(
    world: HeadlineWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = world.rows.tokens // 2
    options = headline.Options(arms=(), seeds=1, main_seeds=2)
    assert [options.seeds_of(n) for n in ("all", "one", "ours", "last")] == [2, 2, 2, 1]
    two = headline.result_of(world, "ours", tokens, options)
    seen: list[int] = []
    real = headline.trained
    monkeypatch.setattr(headline, "trained", lambda *given: seen.append(given[-1]) or real(*given))
    three = headline.result_of(world, "ours", tokens, replace(options, main_seeds=3))
    assert seen == [2]  # the two stored ones are read
    assert np.array_equal(three.p[:2], two.p) and three.p.shape[0] == 3
    assert not np.array_equal(three.p[2], two.p[1])


def test_rankers_are_found_in_which_the_history_has_a_share_of_the_flops(world: HeadlineWorld) -> None:
    base = headline.model_of(world)
    models = {share: model_at(world.rows, base, share) for share in (0.2, 0.5)}
    for share, config in models.items():
        assert history_share(config, world.rows) == pytest.approx(share, abs=0.03)
    assert models[0.2].trunk.hidden > models[0.5].trunk.hidden
    keeps = {"all": np.ones(world.rows.tokens, bool), "ours": np.zeros(world.rows.tokens, bool)}
    shown = rate_lines(world.rows, keeps, models, TRAIN)
    assert shown[1].count("history at") == 2 and shown[3].startswith("| all | 1.00x, 1.00x")
    with pytest.raises(ValueError, match="not 100%"):
        model_at(world.rows, base, 0.9999)
