"""The worlds beyond the clean one: what each preset plants, and that the older ones stay as they were."""

from __future__ import annotations

import hashlib
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynamix.features import sim_labels, sim_log, sim_tables
from dynamix.features import sim_world as W
from dynamix.features.simulate import Simulation, draw, simulate

START = date(2026, 1, 5)
PINNED = {"S0": "1d221a35d71b14ae", "S1": "e7824a18c0938b80", "S8": "d8647e57caf83eab"}
"""Content of five tables (150 users, 21 days, seed 11) as it was before any other preset existed."""


def content_hash(drawn: Simulation, *, seed: int) -> str:
    """Names, types and values of all tables; floats to nine digits, since the last ones depend on the processor."""
    events = sim_tables.event_table(
        drawn.world, drawn.content, drawn.impressions, drawn.conversions, start=START,
        rng=np.random.default_rng([seed, 6]),
    )  # fmt: skip
    tables = (
        events,
        sim_tables.truth_users(drawn.users),
        sim_tables.truth_cells(drawn.world, drawn.truth),
        sim_tables.truth_segments(drawn.world),
        sim_tables.truth_impressions(drawn.truth.p, drawn.truth.label),
    )
    digest = hashlib.sha256()
    for table in tables:
        for name in table.column_names:
            values = table[name].to_pylist()
            text = "\n".join(f"{v:.9g}" if isinstance(v, float) else str(v) for v in values)
            digest.update(f"{name} {table.schema.field(name).type}\n".encode() + text.encode())
    return digest.hexdigest()[:16]


def world_of(preset: str, seed: int = 0) -> W.World:
    return W.draw_world(W.preset_named(preset), np.random.default_rng([seed, 0]))


def contribution(drawn: Simulation, stream: int, *, days: int) -> np.ndarray:
    """What the dwell of a stream adds to the log-odds of every impression."""
    parts = sim_labels.contributions(drawn.world, drawn.users, drawn.content, drawn.impressions, days=days)
    return next(part.logit for part in parts if part.stream == stream)


@pytest.mark.parametrize("preset", sorted(PINNED))
def test_presets_of_the_first_cycle_give_the_same_rows_as_ever(preset: str) -> None:
    assert content_hash(draw(preset=preset, users=150, days=21, seed=11), seed=11) == PINNED[preset]


@pytest.mark.parametrize("preset", sorted(W.PRESETS))
def test_equal_seeds_give_equal_worlds_of_every_preset(preset: str) -> None:
    first, again = (content_hash(draw(preset=preset, users=40, days=14, seed=3), seed=3) for _ in range(2))
    assert first == again
    assert first != content_hash(draw(preset=preset, users=40, days=14, seed=4), seed=4)


@pytest.mark.parametrize("preset", sorted(set(W.PRESETS) - {"null", "null-clustered"}))
def test_kinds_of_every_preset_are_as_many_as_the_constants_say(preset: str) -> None:
    world = world_of(preset)
    for g in range(W.N_SEGMENTS):
        counts = Counter(world.kind[g].tolist())
        assert [counts[k] for k in ("strong", "weak", "trace", "u")] == [3, 6, 2, 1]
        assert counts["null"] + counts["match"] + counts["copy"] == 12
        assert world.mix[g, world.kind[g] == "null"].sum() <= W.MAX_NULL_SHARE
    assert world.mix.sum(axis=1) == pytest.approx(np.ones(W.N_SEGMENTS))


@pytest.mark.parametrize("preset", ["null", "null-clustered"])
def test_in_a_null_world_only_the_user_decides(preset: str) -> None:
    drawn = draw(preset=preset, users=300, seed=1)
    assert set(drawn.world.kind.ravel().tolist()) == {"null"}
    logit = np.log(drawn.truth.p / (1 - drawn.truth.p)) - drawn.users.effect[drawn.impressions.user]
    assert logit == pytest.approx(np.full(len(logit), logit[0]))
    spread = W.USER_EFFECT_SD if preset == "null" else W.CLUSTERED_EFFECT_SD
    assert drawn.users.effect.std() == pytest.approx(spread, rel=0.15)  # 3.7 errors of a sample of 300


def test_s2_is_ten_times_rarer() -> None:
    drawn = draw(preset="S2", users=500, seed=1)
    assert drawn.truth.p.mean() == pytest.approx(0.005, abs=1e-6)


def test_a_copy_follows_its_original_at_once_with_its_item_and_much_of_its_dwell() -> None:
    drawn = draw(preset="S3", users=1000, seed=1)
    content, world = drawn.content, drawn.world
    assert len(world.copies) == 2
    for copy in world.copies:
        original = int(world.copy_of[copy])
        rows = np.flatnonzero(content.stream == copy)
        assert (content.stream[rows - 1] == original).all()
        for name in ("user", "session", "item"):
            column = getattr(content, name)
            assert (column[rows] == column[rows - 1]).all()
        assert len(rows) / (content.stream == original).sum() == pytest.approx(W.COPY_RATE, abs=0.01)
        dwell = [np.log(content.dwell_ms[rows + shift]) for shift in (-1, 0)]
        assert np.corrcoef(dwell)[0, 1] > 0.95
        shown = np.bincount(drawn.users.segment[content.user[rows]], minlength=W.N_SEGMENTS)
        every = np.bincount(drawn.users.segment[content.user], minlength=W.N_SEGMENTS)
        assert shown / every == pytest.approx(world.mix[:, copy], abs=0.012)


def test_an_exact_copy_has_each_dwell_of_its_original_that_a_log_can_show() -> None:
    drawn = draw(preset="S3-exact", users=500, seed=1)
    content, world = drawn.content, drawn.world
    for copy in world.copies:
        original = int(world.copy_of[copy])
        rows = np.flatnonzero(content.stream == copy)
        assert (content.stream[rows - 1] == original).all() and not content.censored[rows].any()
        seen = np.flatnonzero((content.stream == original) & ~content.censored)
        assert np.array_equal(rows - 1, seen)
        z = [content.z[rows + shift] for shift in (-1, 0)]
        assert np.corrcoef(z)[0, 1] > 0.999
        share = np.isin(content.stream, [copy]).sum() / (content.stream == original).sum()
        assert share == pytest.approx(world.preset.copies_per_event, abs=0.02)


def test_only_the_original_of_a_copy_acts_though_both_exposures_are_alike() -> None:
    drawn = draw(preset="S3", users=1500, seed=2)
    world = drawn.world
    index = sim_labels.StreamIndex(drawn.content, sim_labels.acting_events(world, drawn.content))
    for copy in world.copies:
        original = int(world.copy_of[copy])
        assert set(world.kind[:, original]) == {"strong"} and set(world.kind[:, copy]) == {"copy"}
        assert not contribution(drawn, int(copy), days=42).any()
        assert contribution(drawn, original, days=42).any()
        both = [
            sim_labels.stream_exposure(world, drawn.users, drawn.impressions, index, f)[0]
            for f in (original, int(copy))
        ]
        assert np.corrcoef(both)[0, 1] > 0.8


def test_two_streams_swap_their_effects_at_mid_world() -> None:
    drawn = draw(preset="S4", users=400, days=84, seed=1)
    first, second = (int(f) for f in drawn.world.swap)
    assert set(drawn.world.kind[:, first]) == {"strong"} and set(drawn.world.kind[:, second]) == {"null"}
    late = drawn.impressions.ts_us >= 42 * W.DAY_MS * 1000
    before, after = (contribution(drawn, f, days=84) for f in (first, second))
    assert before[~late].any() and not before[late].any()
    assert after[late].any() and not after[~late].any()
    assert after[late].std() == pytest.approx(W.KIND_BETA["strong"], rel=0.01)  # standardised by segment
    assert drawn.world.second_half().second_half().beta == pytest.approx(drawn.world.beta)


def test_in_s5_a_null_stream_becomes_strong_in_every_segment_at_mid_world() -> None:
    drawn = draw(preset="S5", users=400, days=84, seed=1)
    (stream,) = (int(f) for f in drawn.world.turned_on)
    later = drawn.world.second_half()
    assert set(drawn.world.kind[:, stream]) == {"null"} and set(later.kind[:, stream]) == {"strong"}
    others = np.arange(W.N_STREAMS) != stream
    assert np.array_equal(later.beta[:, others], drawn.world.beta[:, others])
    late = drawn.impressions.ts_us >= 42 * W.DAY_MS * 1000
    acts = contribution(drawn, stream, days=84)
    assert not acts[~late].any()
    assert acts[late].std() == pytest.approx(W.KIND_BETA["strong"], rel=0.01)


def test_a_log_under_a_mask_lacks_what_it_drops_for_everyone_but_hold_out_users() -> None:
    drawn = draw(preset="S5", users=300, days=28, seed=2)
    content, segment = drawn.content, drawn.users.segment
    holdout = np.arange(300) < 30
    dropped = np.zeros((W.N_SEGMENTS, W.N_STREAMS), bool)
    dropped[0, 3] = dropped[1, 5] = True
    masks = [sim_log.Served(7, 14, dropped), sim_log.Served(14, 21, np.zeros_like(dropped))]
    gone = sim_log.unlogged(content, segment=segment, holdout=holdout, masks=masks)
    expected = [
        7 * W.DAY_MS <= t < 14 * W.DAY_MS and u >= 30 and (int(segment[u]), int(f)) in {(0, 3), (1, 5)}
        for t, u, f in zip(content.ts_ms, content.user, content.stream, strict=True)
    ]
    assert gone.tolist() == expected and gone.any()
    left, imps = sim_log.thinned(content, drawn.impressions, gone)
    assert len(left.user) == (~gone).sum() and left.first[-1] == len(left.user)
    assert (np.repeat(np.arange(300), np.diff(left.first)) == left.user).all()
    assert np.array_equal(left.ts_ms, content.ts_ms[~gone]) and np.array_equal(left.z, content.z[~gone])
    on_screen = drawn.impressions.anchor
    there = ~gone[on_screen]
    assert np.array_equal(left.ts_ms[imps.anchor[there]], content.ts_ms[on_screen[there]])
    assert (left.ts_ms[imps.anchor[~there]] != content.ts_ms[on_screen[~there]]).all() and (~there).any()


def test_most_users_of_s6_stay_under_the_events_that_a_segment_asks_for() -> None:
    drawn = draw(preset="S6", users=3000, seed=1)
    few = np.diff(drawn.content.first) < 15
    assert few.mean() == pytest.approx(W.COLD_SHARE, abs=0.05)
    assert not drawn.users.active[drawn.users.planned <= W.COLD_EVENTS_MAX].any()
    assert len(np.unique(drawn.users.planned[few])) >= W.COLD_EVENTS_MAX


def test_in_s1_late_the_events_of_the_habit_window_do_not_act() -> None:
    drawn = draw(preset="S1-late", users=200, seed=1)
    early = drawn.content.ts_ms < 7 * W.DAY_MS
    assert (sim_labels.acting_events(drawn.world, drawn.content) == ~early).all() and early.any()
    shown = drawn.impressions.ts_us < 7 * W.DAY_MS * 1000
    parts = sim_labels.contributions(drawn.world, drawn.users, drawn.content, drawn.impressions, days=42)
    for part in parts:  # without an acting event an impression of a segment has one and the same exposure, 0
        for g in range(W.N_SEGMENTS):
            own = part.logit[shown & (drawn.users.segment[drawn.impressions.user] == g)]
            assert len(np.unique(own)) <= 1


def test_s9_has_slope_types_across_composition_types() -> None:
    world = world_of("S9")
    composition, slope = world.types[:, 0], world.types[:, 1]
    assert len({tuple(pair) for pair in world.types.tolist()}) == W.N_SEGMENTS
    for a in range(W.N_SEGMENTS):
        for b in range(a):
            same = slope[a] == slope[b]
            assert (world.kind[a] == world.kind[b]).all() == same
            assert (world.horizon[a] == world.horizon[b]).all() == same
            apart = np.abs(np.log(world.mix[a] / world.mix[b])).max()
            assert (apart < 0.3) == (composition[a] == composition[b])  # twice the tilt, and the scaling to 1


def test_s7_has_habits_censoring_copies_matches_and_cold_users_at_once() -> None:
    drawn = draw(preset="S7", users=1000, seed=1)
    assert drawn.users.habit.std() == pytest.approx(W.HABIT_SD, rel=0.1)
    assert drawn.world.preset.censored_acts and drawn.users.end_rate.std() > 0.02
    assert len(drawn.world.copies) == len(drawn.world.match_streams) == 2
    assert not set(drawn.world.match_streams) & (set(drawn.world.copies) | set(drawn.world.copy_of))
    assert (np.diff(drawn.content.first) < 15).mean() > 0.4


@pytest.mark.parametrize(
    ("preset", "tables"),
    [
        ("S3", {"truth_copies": 2}),
        ("S4", {"truth_swaps": 2}),
        ("S5", {"truth_turned_on": 1}),
        ("S9", {"truth_types": 6}),
        ("S10", {"truth_intent": 2, "truth_paths": None}),
        ("S0", {}),
    ],
)
def test_what_only_some_presets_plant_has_a_table_of_its_own(
    tmp_path: Path, preset: str, tables: dict[str, int | None]
) -> None:
    for _ in range(2):  # the second time over the first
        simulate(tmp_path / "world", preset=preset, users=30, days=10, seed=1)
    extra = {c.name for c in (tmp_path / "world").iterdir() if c.name.startswith("truth_")} - {
        "truth_users", "truth_cells", "truth_segments", "truth_impressions",
    }  # fmt: skip
    assert extra == set(tables)
    for name, rows in tables.items():
        assert pq.read_table(tmp_path / "world" / name).num_rows == rows or rows is None


def test_truth_tables_of_copies_and_swaps_name_both_streams() -> None:
    world = world_of("S3")
    table = sim_tables.truth_copies(world).to_pylist()
    for row in table:
        copy, original = (world.streams.index(row[name]) for name in ("stream", "copy_of"))
        assert world.copy_of[copy] == original
    world = world_of("S4")
    swaps = sim_tables.truth_swaps(world, start=START, days=84)
    assert swaps.schema.field("from_ts").type == pa.timestamp("us", tz="UTC")
    rows = swaps.to_pylist()
    assert {r["stream"] for r in rows} == {r["takes_over"] for r in rows}
    assert {r["from_ts"].date() for r in rows} == {date(2026, 2, 16)}


def test_the_table_of_a_stream_that_turns_on_says_when_and_by_how_much() -> None:
    world = world_of("S5")
    (row,) = sim_tables.truth_turned_on(world, start=START, days=84).to_pylist()
    assert row["stream"] == world.streams[int(world.turned_on[0])] and row["beta"] == 0.5
    assert row["from_ts"].date() == date(2026, 2, 16)


@pytest.fixture(scope="module")
def intent_world() -> Simulation:
    return draw(preset="S10", users=1500, seed=1)


def test_in_s10_the_intent_of_a_session_moves_dwell_and_label_and_its_streams_do_not_act(
    intent_world: Simulation,
) -> None:
    content, world = intent_world.content, intent_world.world
    assert set(world.kind[:, world.intent].ravel()) == {"null"}
    opens = np.flatnonzero(np.diff(content.session, prepend=-1))
    assert (
        content.intent == np.repeat(content.intent[opens], np.diff(opens, append=len(content.user)))
    ).all()
    own = np.isin(content.stream, world.intent) & ~content.censored
    other = ~np.isin(content.stream, world.intent) & ~content.censored
    log = np.log(content.dwell_ms) - world.dwell_mean[content.stream]
    assert np.polyfit(content.intent[own], log[own], 1)[0] == pytest.approx(W.INTENT_DWELL, abs=0.05)
    assert np.polyfit(content.intent[other], log[other], 1)[0] == pytest.approx(0.0, abs=0.05)
    imps, truth = intent_world.impressions, intent_world.truth
    fixed = sum(
        part.logit for part in sim_labels.contributions(world, intent_world.users, content, imps, days=42)
    )
    credited = truth.p > 0
    rest = np.log(truth.p[credited] / (1 - truth.p[credited])) - fixed[credited]
    rest -= intent_world.users.effect[imps.user[credited]]
    assert np.ptp(rest - W.INTENT_LOG_ODDS * content.intent[imps.anchor[credited]]) == pytest.approx(
        0, abs=1e-9
    )
    assert not contribution(intent_world, int(world.intent[0]), days=42).any()


def test_intent_is_within_users_and_not_between_them(intent_world: Simulation) -> None:
    content = intent_world.content
    opens = np.flatnonzero(np.diff(content.session, prepend=-1))
    user, intent = content.user[opens], content.intent[opens]
    n = np.bincount(user)
    mean = np.bincount(user, intent) / np.maximum(n, 1)
    many = n >= 20
    assert mean[many].std() < 1.2 * np.sqrt(np.mean(1 / n[many]))  # what chance alone leaves
    assert intent.std() == pytest.approx(1.0, abs=0.02)


def test_a_path_is_one_item_on_two_surfaces_within_a_day_and_the_last_touch_has_the_conversion(
    intent_world: Simulation,
) -> None:
    imps, content, truth = intent_world.impressions, intent_world.content, intent_world.truth
    later = np.flatnonzero(imps.path_from >= 0)
    first = imps.path_from[later]
    assert len(np.unique(np.concatenate([later, first]))) == 2 * len(later)
    for name in ("user", "item"):
        assert (getattr(imps, name)[later] == getattr(imps, name)[first]).all()
    gap = imps.ts_us[later] - imps.ts_us[first]
    assert gap.min() > 0 and gap.max() <= W.ATTRIBUTION_MS * 1000
    surface = content.stream[imps.anchor] // len(W.TYPES)
    assert (surface[later] != surface[first]).all()
    other_session = content.session[imps.anchor[later]] != content.session[imps.anchor[first]]
    assert 0.1 < other_session.mean() < 0.9 and 0.1 < len(first) / len(imps.user) < 0.3
    assert not truth.p[first].any() and not truth.label[first].any()
    assert truth.p[truth.p > 0].mean() == pytest.approx(W.BASE_RATE, abs=1e-6)

    linked = conversions_by_touch(intent_world)
    matured = intent_world.impressions.ts_us <= 41 * W.DAY_MS * 1000
    assert {row for row in linked["last"] if matured[row]} == set(np.flatnonzero(truth.label & matured))
    moved = set(first.tolist()) & linked["first"]
    assert moved and not moved & linked["last"]
    assert linked["any"] == linked["first"] | linked["last"]


def conversions_by_touch(drawn: Simulation) -> dict[str, set[int]]:
    """Impressions credited under each setting, by loops: same user and item, at most 24 h before the conversion."""
    imps, sales = drawn.impressions, drawn.conversions
    shown: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, (user, item, ts) in enumerate(zip(imps.user, imps.item, imps.ts_us, strict=True)):
        shown.setdefault((int(user), int(item)), []).append((int(ts), row))
    credited: dict[str, set[int]] = {"first": set(), "last": set(), "any": set()}
    for user, item, ts in zip(sales.user, sales.item, sales.ts_us, strict=True):
        near = sorted(
            (t, row) for t, row in shown[int(user), int(item)] if 0 <= ts - t <= W.ATTRIBUTION_MS * 1000
        )
        credited["first"].add(near[0][1])
        credited["last"].add(near[-1][1])
        credited["any"] |= {row for _, row in near}
    return credited
