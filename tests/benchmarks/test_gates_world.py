"""The worlds of the gates: dwells as the oracle has them, histories as the rows say, losses as in closed form."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import gates_sums
from benchmarks import gates_world as gw
from benchmarks.gates_broken import same_window
from benchmarks.gates_loss import PlantedRows, true_loss
from benchmarks.gates_sums import planted_sums, statistics_of, world_sums
from dynamix.features import oracle, oracle_tables
from dynamix.features import sim_world as W
from dynamix.features.calendar import since_1970
from dynamix.features.relevance import CellSums
from dynamix.features.simulate import Simulation, draw
from dynamix.segmentation.bounds import cell_budget

CONFIG = gw.world_config()


@pytest.fixture(scope="module")
def world() -> Simulation:
    return draw(preset="S1", users=80, seed=3)


@pytest.fixture(scope="module")
def made(world: Simulation) -> gw.Histories:
    return gw.histories(world, days=42, config=CONFIG)


def oracle_z(drawn: Simulation, *, first_day: int, last_day: int, censor_last: bool) -> list[float | None]:
    """z of every content event by loops and the oracle's cap and shrinkage; habits of days first..last."""
    content = drawn.content
    rows = range(len(content.user))
    ms: list[int | None] = [
        int(content.dwell_ms[e]) if not content.censored[e] else None if censor_last else 0 for e in rows
    ]
    day = [int(t) // W.DAY_MS for t in content.ts_ms]
    stream = content.stream.tolist()
    by_stream = defaultdict(list)
    for e in rows:
        if ms[e] is not None and day[e] < 7:  # the baseline window of 42 days
            by_stream[stream[e]].append(ms[e])
    caps = {f: oracle.cap(values, CONFIG.dwell.cap_quantile) for f, values in by_stream.items()}
    logs = {f: [math.log1p(min(v, caps[f])) for v in values] for f, values in by_stream.items()}
    mu = {f: sum(x) / len(x) for f, x in logs.items()}
    sigma = {f: math.sqrt(sum((v - mu[f]) ** 2 for v in x) / (len(x) - 1)) for f, x in logs.items()}
    groups = defaultdict(list)
    residual: list[float | None] = []
    for e in rows:
        known = ms[e] is not None
        residual.append(math.log1p(min(ms[e], caps[stream[e]])) - mu[stream[e]] if known else None)
        if known and first_day <= day[e] < last_day:
            groups[int(content.user[e])].append(residual[e])
    kappa = oracle_tables.shrinkage(groups.values())
    habit = {u: sum(r) / (len(r) + kappa) for u, r in groups.items()}
    return [
        None if r is None
        else max(-3.0, min(3.0, (r - habit.get(int(content.user[e]), 0.0)) / sigma[stream[e]]))
        for e, r in enumerate(residual)
    ]  # fmt: skip


@pytest.mark.parametrize("censor_last", [True, False])
@pytest.mark.parametrize("window", ["earlier", "same"])
def test_z_is_that_of_loops_with_the_oracles_cap_and_shrinkage(
    world: Simulation, censor_last: bool, window: str
) -> None:
    calendar = gw.world_calendar(42)
    config = gw.world_config(f"dwell.censor_last={str(censor_last).lower()}")
    days = {"earlier": (0, 7), "same": (7, 28)}[window]
    got = gw.pipeline_dwells(world, config, calendar if window == "earlier" else same_window(calendar))
    expected = oracle_z(world, first_day=days[0], last_day=days[1], censor_last=censor_last)
    assert np.isnan(got.z).tolist() == [z is None for z in expected]
    assert got.z[~np.isnan(got.z)] == pytest.approx([z for z in expected if z is not None], abs=1e-9)
    assert (got.censored == (world.content.censored & censor_last)).all()


def test_without_a_habit_window_the_users_own_pace_stays_in_the_dwell(world: Simulation) -> None:
    calendar = gw.world_calendar(42)
    own = gw.pipeline_dwells(world, CONFIG, calendar).z
    none = gw.pipeline_dwells(world, CONFIG, replace(calendar, habit=None)).z
    pace = world.users.habit[world.content.user]
    seen = ~np.isnan(own)
    with_habit, without = (np.corrcoef(z[seen], pace[seen])[0, 1] for z in (none, own))
    assert with_habit > 0.2 > abs(without)


def test_habits_of_users_who_do_not_differ_are_zero() -> None:
    assert not gw.habits(np.array([1.0, -1.0, 1.0, -1.0]), np.array([0, 0, 1, 1]), 3).any()


def test_rows_are_the_mature_impressions_of_the_statistics_period(
    world: Simulation, made: gw.Histories
) -> None:
    day = world.impressions.ts_us / (W.DAY_MS * 1000)
    expected = np.flatnonzero((day >= 7) & (day + 1 <= 28))  # day 8 to 28, a day for the conversion
    assert made.rows.place.tolist() == expected.tolist()
    assert (made.rows.given == world.users.segment[world.impressions.user[expected]] + 1).all()
    assert sum(len(block.asked.user) for block in made.blocks) == len(expected)


def test_histories_are_the_newest_events_before_the_embargo(world: Simulation, made: gw.Histories) -> None:
    content, (block, *_) = world.content, made.blocks
    epoch = since_1970(gw.midnight(gw.START))
    for i in range(0, len(block.asked.user), 37):
        user, t = int(block.asked.user[i]), int(block.asked.ts_us[i]) - epoch
        mine = range(content.first[user], content.first[user + 1])
        past = [e for e in mine if content.ts_ms[e] * 1000 < t - 60_000_000]
        kept = [e for e in past if sum(content.stream[o] == content.stream[e] for o in past if o > e) < 50]
        got = block.index[block.offsets[i] : block.offsets[i + 1]] + block.events.start
        assert got.tolist() == kept[-200:]


def test_sums_do_not_depend_on_the_blocks(
    world: Simulation, made: gw.Histories, monkeypatch: pytest.MonkeyPatch
) -> None:
    dwells = gw.pipeline_dwells(world, CONFIG, made.calendar)
    whole = world_sums(made, dwells)
    monkeypatch.setattr(gw, "BLOCK_USERS", 30)
    again = gw.histories(world, days=42, config=CONFIG)
    assert len(again.blocks) == 3
    other = world_sums(again, dwells)
    assert np.allclose(other.cells, whole.cells, rtol=1e-9, atol=1e-9)
    assert np.allclose(other.together, whole.together, rtol=1e-9, atol=1e-9)
    found = statistics_of(whole, world.world.streams)
    for g in range(W.N_SEGMENTS):
        sums = found.of((g + 1, world.world.streams[0]), gw.HEAD)
        rows = made.rows.segment == g
        assert (sums.n if sums else 0) == rows.sum()
        assert (sums.positives if sums else 0) == made.rows.label[rows].sum()


def test_planted_sums_are_those_of_a_head_whose_labels_are_the_planted_p(
    world: Simulation, made: gw.Histories
) -> None:
    dwells = gw.planted_dwells(world)
    planted = planted_sums(made, dwells)
    as_head = gates_sums._sums(made, dwells, heads=(gw.EXPECTED,))
    assert np.allclose(planted.recency, as_head.recency, rtol=1e-9, atol=1e-9) and planted.recency.any()
    hist = CellSums.unpack(planted.cells[1, 0, 0, 0]).hist.size
    assert np.allclose(
        planted.cells[:, :, :, 0, :-hist], as_head.cells[:, :, :, 0, :-hist], rtol=1e-9, atol=1e-9
    )
    assert not planted.together.any()


def test_users_under_fifteen_events_at_midnight_are_in_segment_0_where_users_are_cold() -> None:
    drawn = draw(preset="S6", users=60, seed=2)
    rows = gw.histories(drawn, days=42, config=CONFIG).rows
    for place, segment, given in zip(rows.place, rows.segment, rows.given, strict=True):
        user = drawn.impressions.user[place]
        midnight = drawn.impressions.ts_us[place] // (W.DAY_MS * 1000) * W.DAY_MS
        mine = drawn.content.ts_ms[drawn.content.first[user] : drawn.content.first[user + 1]]
        assert given == (segment + 1 if (mine < midnight).sum() >= 15 else 0)
    assert 0 < (rows.given == 0).mean() < 1


def test_expected_p_is_the_mean_over_user_effects(made: gw.Histories) -> None:
    effects = np.linspace(-8, 8, 4001)
    density = np.exp(-(effects**2) / 2)
    density /= density.sum()
    for row in range(0, len(made.rows.place), 50):
        p = 1 / (1 + np.exp(-(made.rows.fixed[row] + W.USER_EFFECT_SD * effects)))
        assert made.rows.expected[row] == pytest.approx(float(density @ p), abs=1e-6)


N = 400_000
NO_COPY = np.full(3, -1)


def planted_rows(parts: np.ndarray, *, told: dict[int, np.ndarray] | None = None) -> PlantedRows:
    """Two segments of equal size; stream 2 is a near-copy of stream 1 where `told` says what it tells."""
    fixed = -3.0 + parts.sum(axis=1)
    copy_of = np.array([-1, -1, 1]) if told else NO_COPY
    segment = 1 + np.arange(len(parts)) % 2
    return PlantedRows(
        segment, fixed, 1 / (1 + np.exp(-fixed)), parts.astype(np.float32), told or {}, copy_of
    )


def dropped(*cells: tuple[int, int]) -> np.ndarray:
    gone = np.zeros((3, 3), bool)
    for cell in cells:
        gone[cell] = True
    return gone


def test_a_drop_costs_what_the_cells_budget_says_of_its_effect() -> None:
    rng = np.random.default_rng(0)
    rows = planted_rows(rng.normal(size=(N, 3)) * [0.1, 0.2, 0.0])
    rate = float(rows.expected.mean())
    loss = true_loss(rows, dropped((1, 1)))
    assert loss.by_segment[1] == pytest.approx(cell_budget(rate, 0.2), rel=0.05)  # second order in beta
    assert loss.total == pytest.approx(loss.by_segment[1] / 2, rel=0.02) and loss.by_segment[2] == 0
    both = true_loss(rows, dropped((1, 1), (2, 0)))
    assert both.total == pytest.approx(loss.total + cell_budget(rate, 0.1) / 2, rel=0.05)
    assert true_loss(rows, dropped((1, 2))).total == pytest.approx(0.0, abs=1e-12)
    assert true_loss(rows, dropped()).total == 0.0


def test_what_a_kept_copy_tells_is_not_lost() -> None:
    rng = np.random.default_rng(1)
    own = rng.normal(size=N)
    copy = 0.9 * own + math.sqrt(1 - 0.81) * rng.normal(size=N)
    rows = planted_rows(np.stack([np.zeros(N), 0.3 * own, np.zeros(N)], axis=1), told={1: 0.3 * 0.9 * copy})
    alone = true_loss(rows, dropped((1, 1))).by_segment[1]
    both = true_loss(rows, dropped((1, 1), (1, 2))).by_segment[1]
    assert true_loss(rows, dropped((1, 2))).total == pytest.approx(0.0, abs=1e-12)
    assert alone == pytest.approx((1 - 0.81) * both, rel=0.1)


def test_planted_rows_of_two_chunks_are_those_of_both() -> None:
    rng = np.random.default_rng(2)
    parts = rng.normal(size=(1000, 3)) * 0.2
    told = {1: rng.normal(size=1000) * 0.1}
    whole = planted_rows(parts, told=told)
    halves = [planted_rows(parts[s], told={1: told[1][s]}) for s in (slice(0, 500), slice(500, 1000))]
    gone = dropped((1, 1), (2, 0))
    assert true_loss(halves[0] + halves[1], gone).total == pytest.approx(true_loss(whole, gone).total)
