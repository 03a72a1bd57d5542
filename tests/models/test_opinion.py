"""Where the second opinion contradicts a drop: prices held against the budget of a cell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dynamix.models.dataset import JaggedRows
from dynamix.models.evidence import Scored, gate_mask
from dynamix.models.opinion import CellPrice, held_against

DELTA = 0.1
NAMES = {(g, f): f"feed/{f}" for g in (0, 1) for f in range(4)}


@pytest.fixture(name="plain")
def fixture_plain(rows: JaggedRows) -> JaggedRows:
    """2,000 rows: segment 0 converts at 50 %, segment 1 at 10 %, segment 2 has ten rows."""
    picked = rows.take(np.arange(2000) % len(rows))
    segment = np.repeat([0, 1, 2], [990, 1000, 10])
    label = np.concatenate([np.arange(990) % 2, np.arange(1000) % 10 == 0, np.ones(10)]).astype(np.float32)
    return replace(picked, segment=segment, labels={"conversion": label}, weight=np.ones(2000, np.float32))


def price(segment: int, stream: int, delta: float, se: float = 0.05) -> CellPrice:
    return CellPrice(segment, stream, delta, delta - 1.96 * se, delta + 1.96 * se, 10)


def entropy(rate: float) -> float:
    return float(-rate * np.log(rate) - (1 - rate) * np.log(1 - rate))


def test_the_budget_is_that_of_the_cell_as_a_share_of_all_impressions(plain: JaggedRows) -> None:
    """ε_cell H_g n_g = n_g ȳ(1−ȳ)δ²/2 nats, over the entropy of all rows."""
    checks = held_against([price(0, 1, 0.0), price(1, 2, 0.0)], NAMES, plain, "conversion", delta=DELTA)
    rate = float(plain.labels["conversion"].mean())
    nats = [990 * 0.25 * DELTA**2 / 2, 1000 * 0.09 * DELTA**2 / 2]
    assert [c.allowed for c in checks] == pytest.approx([100 * x / (2000 * entropy(rate)) for x in nats])
    assert [(c.segment_id, c.stream, c.passed) for c in checks] == [(0, "feed/1", True), (1, "feed/2", True)]


def test_only_drops_that_are_shown_to_cost_more_are_contradicted(plain: JaggedRows) -> None:
    kept, dear, unclear, few = price(0, 0, 9.0), price(0, 1, 0.5), price(1, 1, 0.5, se=0.4), price(2, 1, 9.0)
    names = {cell: name for cell, name in NAMES.items() if cell != (0, 0)} | {(2, 1): "feed/1"}
    checks = held_against([kept, dear, unclear, few], names, plain, "conversion", delta=DELTA)
    assert {(c.segment_id, c.passed) for c in checks} == {(0, False), (1, True)}
    assert checks[0].told().startswith("second opinion of segment 0 × feed/1 +0.4")


def test_one_cell_of_many_needs_more_than_a_cell_alone(plain: JaggedRows) -> None:
    """1.8 standard errors beyond the budget: enough alone (1.645), not as the largest of eight (2.50)."""
    budget = held_against([price(0, 0, 0.0)], NAMES, plain, "conversion", delta=DELTA)[0].allowed
    assert budget is not None
    one = price(0, 0, budget + 1.8 * 0.05)
    others = [price(g, f, 0.0) for g, f in NAMES if (g, f) != (0, 0)]
    assert not held_against([one], NAMES, plain, "conversion", delta=DELTA)[0].passed
    assert held_against([one, *others], NAMES, plain, "conversion", delta=DELTA)[0].passed


def test_a_contradiction_refuses_a_mask_that_all_users_would_let_pass(plain: JaggedRows) -> None:
    y = plain.labels["conversion"].astype(float)
    same = Scored(np.full((1, 2000), y.mean()), y, np.arange(1, 2001))
    checks = held_against([price(0, 1, 0.5)], NAMES, plain, "conversion", delta=DELTA)
    assert gate_mask(same, same, ne_budget=0.001, replicates=30).passed
    verdict = gate_mask(same, same, ne_budget=0.001, replicates=30, further=checks)
    assert (verdict.passed, verdict.status) == (False, "retired")
    assert verdict.reason.startswith("retired (second opinion of segment 0 × feed/1 ")
