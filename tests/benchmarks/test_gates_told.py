"""The loss of what a log tells: an effect that no history shows costs nothing, one that a kept copy tells neither."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gates_loss import PlantedRows, true_loss
from benchmarks.gates_measure import DAYS, START
from benchmarks.gates_told import EACH, GIVEN, WIDTH, Told, told_loss, told_sums
from benchmarks.gates_world import F, G, histories, pipeline_dwells, planted_logits, world_config
from dynamix.features import sim_world as W
from dynamix.features.simulate import draw_in
from dynamix.models.metrics import entropy

BETA, RATE, ROWS = 0.2, 0.05, 6_000
SHOWN, HIDDEN, COPY = 0, 1, 2


def dropped(*streams: int) -> np.ndarray:
    gone = np.zeros((G + 1, F), bool)
    gone[1, list(streams)] = True
    return gone


@pytest.fixture(scope="module")
def sums() -> Told:
    """Segment 1: a stream whose dwell acts and is seen, one whose dwell acts unseen, one that is a copy of the first."""
    draw = np.random.default_rng(0)
    total = Told(*(np.zeros((G + 1, 2, *size)) for size in ((), (), (WIDTH, WIDTH), (WIDTH, F))))
    for half in (0, 1):
        x, parts = draw.normal(size=(ROWS, WIDTH)), np.zeros((ROWS, F))
        x[:, GIVEN + COPY * EACH] = x[:, GIVEN + SHOWN * EACH]
        parts[:, SHOWN] = BETA * x[:, GIVEN + SHOWN * EACH]
        parts[:, HIDDEN] = BETA * draw.normal(size=ROWS)
        weighted = x * RATE * (1 - RATE)
        total.n[1, half], total.p[1, half] = ROWS, ROWS * RATE
        total.information[1, half], total.cross[1, half] = weighted.T @ x, weighted.T @ parts
    return total


FULL = 0.5 * RATE * (1 - RATE) * BETA**2 / entropy(RATE)


def test_what_the_histories_show_is_lost_and_what_they_hide_is_not(sums: Told) -> None:
    assert told_loss(sums, dropped(SHOWN, COPY)).total == pytest.approx(FULL, rel=0.1)  # of 6,000 drawn rows
    assert told_loss(sums, dropped(HIDDEN)).total == pytest.approx(0.0, abs=0.1 * FULL)
    assert told_loss(sums, dropped()).total == 0.0


def test_what_a_kept_copy_tells_is_not_lost(sums: Told) -> None:
    for one in (SHOWN, COPY):
        assert told_loss(sums, dropped(one)).total == pytest.approx(0.0, abs=0.01 * FULL)


def test_losses_stand_by_segment_and_sums_add_up(sums: Told) -> None:
    gone = dropped(SHOWN, COPY)
    found, twice = told_loss(sums, gone), told_loss(sums + sums, gone)
    assert found.by_segment[1] == pytest.approx(found.total) and found.by_segment[2] == 0
    assert twice.total == pytest.approx(found.total, rel=1e-3)


def test_where_everything_is_seen_it_is_the_planted_loss() -> None:
    """S0, 3,000 users: the weak cells of its largest segment dropped."""
    world = W.draw_world(W.preset_named("S0"), np.random.default_rng([1, 0]))
    drawn = draw_in(world, users=3_000, days=DAYS, start=START, key=(1,))
    made = histories(drawn, days=DAYS, config=world_config())
    parts, by_copy = planted_logits(made, days=DAYS)
    gone = np.zeros((G + 1, F), bool)
    gone[1] = world.kind[0] == "weak"
    rows = PlantedRows(made.rows.given, made.rows.fixed, made.rows.expected, parts, by_copy, world.copy_of)
    planted = true_loss(rows.of(made.rows.expected > 0), gone).total
    found = told_loss(told_sums(made, pipeline_dwells(drawn, world_config(), made.calendar), parts), gone)
    assert planted > 0.005 and found.total == pytest.approx(planted, rel=0.2)
