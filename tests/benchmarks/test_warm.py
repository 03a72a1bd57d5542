"""The benchmark of a mask switched on under a live ranker, on rows made up in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from headline_rows import HEAD, acting_rows

from benchmarks import warm
from benchmarks.headline_arms import row_of
from benchmarks.warm import ARMS, DAYS, World, told_apart
from dynamix.config import TrainConfig
from dynamix.contracts import PARTS
from dynamix.features.calendar import DAY_US
from dynamix.models.train import predict

TRAIN = TrainConfig(
    batch_size=128, epochs=1, min_steps=30, threads=1, embedding_dim=4, hidden=(8,), item_buckets=10, bootstrap=50,
    device="cpu",
)  # fmt: skip


@pytest.fixture(name="world", scope="module")
def fixture_world() -> World:
    """60 rows a day of days -14 to 6; the mask drops stream 1, which does nothing."""
    made = acting_rows(21 * 60, effect=3.0)
    day = np.random.default_rng(1).permutation(len(made)) % 21 - 14
    rows = replace(
        made, event_us=(day + 100) * DAY_US + np.arange(len(made)), user=np.arange(len(made)) // 4 * 7919,
        part=np.where(day >= 0, PARTS.index("test"), 0).astype(np.int8),
    )  # fmt: skip
    y = rows.labels[HEAD].astype(float)
    return World("made", rows, rows.stream != 1, y, TRAIN, HEAD, n_streams=3, n_segments=1)


def test_the_mask_begins_at_the_switch_and_grows_by_whole_users(world: World) -> None:
    assert [warm.ramp(day) for day in range(DAYS)] == [10, 10, 50, 50, 100, 100, 100]
    under = {name: warm._under(world, arm) for name, arm in ARMS.items()}
    before = world.day < 0
    assert before.any() and not any(own[before].any() for own in under.values())
    assert under["daily"][~before].all() and not under["unmasked"].any()
    days = [set(world.rows.user[under["ramp"] & (world.day == d)].tolist()) for d in range(DAYS)]
    first, second = days[0] | days[1], days[2] | days[3]
    everyone = set(world.rows.user[~before].tolist())
    assert 0 < len(first) < len(second) < len(everyone)
    ever = {u for u in everyone if u % 100 < 10}
    assert first <= ever and not (second & everyone) - {u for u in everyone if u % 100 < 50}
    masked = world.masked(under["ramp"])
    gone = np.diff(world.rows.offsets) - np.diff(masked.offsets)
    streams = np.bincount(row_of(world.rows), weights=world.rows.stream == 1, minlength=len(world.rows))
    assert np.array_equal(gone, np.where(under["ramp"], streams, 0))


def test_no_morning_learns_from_a_day_whose_labels_are_not_mature(world: World) -> None:
    for day in range(DAYS):
        for part in (warm._newest_day(world, day), warm._window(world, day)):
            learned = world.day[part != PARTS.index("test")]
            assert (learned <= day - 2).all()
        newest = world.day[warm._newest_day(world, day) == 0]
        assert set(newest.tolist()) == ({day - 2} if day >= 2 else set())
        assert set(world.day[warm._window(world, day) == 1].tolist()) == set(range(day - 6, day - 1))


def test_a_ranker_that_knows_versions_predicts_as_before_until_it_learns(world: World) -> None:
    ranker = warm.champion(world, 0)
    knows = warm.knows_versions(ranker)
    under = world.day >= 3
    told = told_apart(world.rows, under)
    assert told.surfaces == ("feed", "feed under the mask") and set(told.surface[under].tolist()) == {2}
    p = [predict(model, rows, batch_size=512)[HEAD] for model, rows in ((ranker, world.rows), (knows, told))]
    assert p[1] == pytest.approx(p[0], abs=1e-7)
    later = warm._trained(world, told, warm._newest_day(world, 5), knows, 0)
    weight = later.trunk.surface.weight
    assert later.config.surfaces == told.surfaces and not np.allclose(weight[1].tolist(), weight[2].tolist())


def test_every_arm_is_judged_on_the_same_days_against_cold(world: World) -> None:
    names = ("still", "daily", "cold", "ramp")
    judged = warm.by_arm(world, names, 1)
    days = (world.day >= 0) & (world.day < DAYS)
    assert all(np.array_equal(np.isfinite(p[0]), days) for p in judged.values())
    assert np.array_equal(
        judged["still"][0][world.day < 2], judged["daily"][0][world.day < 2], equal_nan=True
    )
    assert not np.array_equal(judged["still"][0][world.day == 2], judged["daily"][0][world.day == 2])
    lines = {x["arm"]: x for x in warm.compared(world, judged)}
    assert lines["cold"]["delta"] == 0 and len(lines["daily"]["days"]) == DAYS
    ratio = 100 * (lines["daily"]["ne"] / lines["cold"]["ne"] - 1)
    assert lines["daily"]["delta"] == pytest.approx(ratio, abs=1e-6)
    told = warm.table(world, list(lines.values()), 1)
    assert len(told) == 3 + len(names) and told[-1].count("|") == 4 + DAYS
