"""Posteriors at midnights where scores do not add over events: earlier events only, equal to the posterior in memory."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from jagged_worlds import N_STREAMS, flat_world, ids, labelled, planted

from dynamix.config import SegmentationConfig
from dynamix.segmentation.blocks import INPUT
from dynamix.segmentation.fitted import FittedSegmenter
from dynamix.segmentation.jagged import FlatEvents, jagged
from dynamix.segmentation.neural import Neural
from dynamix.segmentation.prefixes import DIGITS, DatedEvents, Midnights, at_midnights
from dynamix.segmentation.segmenters import Paper2
from dynamix.segmentation.train import TrainConfig

METHODS = ("neural", "paper2")
DAYS, USERS, GAP_S = 10, 9, 1800.0


@cache
def fitted(name: str) -> FittedSegmenter:
    inputs, kind = planted(120, events=15)
    slopes = np.full((3, N_STREAMS), 0.3)
    slopes[0] = 0.8
    recipe = (
        Neural(SegmentationConfig(), TrainConfig(steps=5, batch=60), k=3) if name == "neural" else Paper2()
    )
    return recipe.fit(inputs, labelled(kind, slopes))


def drawn(seed: int = 0) -> DatedEvents:
    """Events of a week; one in five is known a day or more after it happened, the last user has none."""
    rng = np.random.default_rng(seed)
    flat = flat_world(np.arange(USERS - 1) % 3, events=12, seed=seed)
    ts = rng.uniform(0, 7, len(flat.user)) * 86_400
    late = np.where(rng.random(len(ts)) < 0.2, rng.integers(1, 4, len(ts)), 0)
    return DatedEvents(
        ids(USERS), FlatEvents(flat.user, ts, flat.stream, flat.dwell_bin, flat.z, flat.part),
        (ts // 86_400).astype(np.int64) + late,
    )  # fmt: skip


def midnights(found: DatedEvents, name: str) -> Midnights:
    return at_midnights(found, fitted(name), n_days=DAYS, n_streams=N_STREAMS, gap_s=GAP_S)


@pytest.mark.parametrize("name", METHODS)
def test_the_posterior_at_midnight_is_that_of_the_earlier_events_in_memory(name: str) -> None:
    events = drawn()
    found = midnights(events, name)
    assert found.q.shape == (USERS, DAYS, fitted(name).k)
    for day in range(DAYS):
        before = events.flat.take(np.flatnonzero(events.day < day))
        alone = FlatEvents(*(vars(before) | {"part": np.full(len(before.user), INPUT)}).values())
        inputs = jagged(alone, users=events.users, n_streams=N_STREAMS, gap_s=GAP_S)
        assert found.q[:, day] == pytest.approx(fitted(name).posterior(inputs), abs=2 * 10.0**-DIGITS)
        assert found.events[:, day].tolist() == inputs.events.tolist()
        week = (events.day < day) & (events.day >= day - 7)
        assert found.week[:, day].tolist() == np.bincount(events.flat.user[week], minlength=USERS).tolist()
    assert len(np.unique(found.q[:, -1], axis=0)) > 3


@pytest.mark.parametrize("name", METHODS)
def test_events_of_a_day_and_later_change_nothing_before(name: str) -> None:
    events = drawn(1)
    kept = np.flatnonzero(events.day < 3)
    cut = DatedEvents(events.users, events.flat.take(kept), events.day[kept])
    whole, part = midnights(events, name), midnights(cut, name)
    assert np.array_equal(whole.q[:, :4], part.q[:, :4])
    assert not np.array_equal(whole.q[:, 4:], part.q[:, 4:])


@pytest.mark.parametrize("name", METHODS)
def test_prefixes_are_worked_on_in_pieces_without_a_difference(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = midnights(drawn(2), name)
    monkeypatch.setattr("dynamix.segmentation.prefixes.PREFIX_EVENTS", 1)
    assert midnights(drawn(2), name).q == pytest.approx(whole.q, abs=2 * 10.0**-DIGITS)


def test_users_without_events_stay_at_the_prior() -> None:
    empty = DatedEvents(ids(2), drawn().flat.take(np.empty(0, np.int64)), np.empty(0, np.int64))
    found = midnights(empty, "neural")
    prior = fitted("neural").posterior(
        jagged(empty.flat, users=pa.nulls(1, pa.string()), n_streams=N_STREAMS)
    )
    assert found.q == pytest.approx(np.broadcast_to(prior, found.q.shape), abs=1e-6)
    assert not found.events.any()
