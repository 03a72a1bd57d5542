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

from dynamix.features import sim_labels, sim_tables
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
        sim_tables.truth_impressions(drawn.impressions, drawn.truth),
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
    assert drawn.world.swapped().swapped().beta == pytest.approx(drawn.world.beta)


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
    ("preset", "name", "rows"),
    [("S3", "truth_copies", 2), ("S4", "truth_swaps", 2), ("S9", "truth_types", 6), ("S0", "", 0)],
)
def test_what_only_some_presets_plant_has_a_table_of_its_own(
    tmp_path: Path, preset: str, name: str, rows: int
) -> None:
    for _ in range(2):  # the second time over the first
        simulate(tmp_path / "world", preset=preset, users=30, days=10, seed=1)
    extra = {"truth_copies", "truth_swaps", "truth_types"} & {c.name for c in (tmp_path / "world").iterdir()}
    assert extra == ({name} if name else set())
    if name:
        assert pq.read_table(tmp_path / "world" / name).num_rows == rows


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
