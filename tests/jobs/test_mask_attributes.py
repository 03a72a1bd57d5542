"""Attributes that a mask version takes: nothing where it is off, the grid's array, the one mask of all users."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import cache
from typing import Any

import numpy as np
from made_histories import HEAD, blocks, statistics

from dynamix.config import Config, load_config
from dynamix.features.exposure import exposure_block
from dynamix.jobs.cell_stats import Measured
from dynamix.jobs.context import Run
from dynamix.jobs.decide import decide
from dynamix.jobs.mask import _grid_rows, _version
from dynamix.jobs.mask_attributes import in_every_segment, kept_attributes, lost_attributes
from dynamix.jobs.mask_audit import audit_rows
from dynamix.segmentation.attributes import Without
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.life import Restoration, Stay

SETTINGS = ("mask.ne_budget=0.01", "attributes=[device]")
ONE = Without(1, "s0", ("dwell", "recency"), 7.0, 0.001, 0.002, "without dwell and recency: …")


@cache
def world(users: int = 12_000) -> Statistics:
    """Two streams of 5 events a user: the matches of s0 act; s1 tells by its count what makes it the most relevant."""
    draw = np.random.default_rng(1)
    count = np.column_stack([np.full(users, 5), draw.integers(1, 9, users)])
    user = np.repeat(np.arange(users), count.sum(axis=1))
    stream = np.repeat(np.tile([0, 1], users), count.ravel())
    stream = stream[np.lexsort((draw.random(len(user)), user))]
    made = blocks(user, draw.normal(size=len(user)), stream, draw.integers(0, 5, len(user)), users=users)
    x = exposure_block(*made, n_streams=2)
    acts = [(v - v.mean()) / v.std() for v in (x[:, 0, 5], x[:, 1, 1])]
    y = (draw.random(users) < 1 / (1 + np.exp(2.5 - 0.4 * acts[0] - 0.8 * acts[1]))).astype(np.float64)
    return statistics(made, y)


def decided(
    *settings: str, stays: Mapping[Cell, Stay] | None = None
) -> tuple[Any, list[dict[str, Any]], list[dict[str, Any]], str]:
    """Decision, rows of `masks` and of `mask_audit`, and the version under the settings."""
    config = load_config(settings=[*SETTINGS, *settings])
    run: Any = Run(None, None, config, date(2026, 2, 1), "r", quiet=True)  # type: ignore[arg-type]
    measured = Measured(world(), "s1", {1: "one"}, ("s0", "s1"), date(2026, 1, 31))
    decision = decide(config, measured, stays or {})
    version = _version(run, measured, decision)
    return decision, _grid_rows(run, measured, decision, version), audit_rows(decision, version), version


def test_off_takes_nothing_and_is_the_default() -> None:
    decision, grid, audit, version = decided()
    assert Config().mask.attributes == "off" and decision.without == {}
    assert {row["attributes"] for row in grid} == {None} and not [
        r for r in audit if r["rule"] == "attributes"
    ]
    off, bound = load_config(), load_config(settings=["mask.attributes=bound"])
    assert off.digest("mask") != bound.digest("mask")
    assert version == decided("mask.attributes=off")[3] != decided("mask.attributes=bound")[3]


def test_the_grid_names_what_is_kept_why_the_rest_went_and_the_audit_its_bound() -> None:
    decision, grid, audit, _ = decided("mask.attributes=bound")
    row = next(r for r in grid if r["stream"] == "s0")
    without = decision.without[1, "s0"]
    assert without.attributes == ("dwell", "recency")
    assert row["attributes"] == ["category", "device", "item"] and row["keep"]
    assert row["reason"].endswith(without.reason)
    (noted,) = [r for r in audit if r["rule"] == "attributes" and r["stream"] == "s0"]
    assert (noted["value"], noted["limit"], noted["passed"]) == (without.ucb, without.budget, True)
    plain = {r["stream"]: r for r in decided()[1]}
    same = ("keep", "quota", "verdict", "relevance")
    assert all(row[name] == plain[row["stream"]][name] for row in grid for name in same)


def test_what_a_watch_brought_back_keeps_all() -> None:
    back = Restoration(date(2026, 1, 20), "hold-out users", 0.01, 0.001, date(2026, 3, 1))
    decision, grid, _, _ = decided("mask.attributes=bound", stays={(1, "s0"): back})
    row = next(r for r in grid if r["stream"] == "s0")
    assert (1, "s0") not in decision.without and row["attributes"] is None
    assert row["reason"].count(back.sentence()) == 1


def test_kept_attributes_are_those_declared_less_what_goes() -> None:
    config = load_config(
        settings=["streams={s/x: {attributes: [item, dwell, recency]}}", "attributes=[device]"]
    )
    assert kept_attributes(config, "s/x", ONE) == ["item"]
    assert kept_attributes(config, "s/y", ONE) == ["category", "device", "item"]
    assert kept_attributes(config, "s/x", None) is None


def test_the_one_mask_takes_the_same_from_every_segment_with_its_own_tokens() -> None:
    sums = world().of((1, "s0"), HEAD)
    assert sums is not None
    pooled = {(0, "s0"): Without(0, *list(vars(ONE).values())[1:])}
    found = in_every_segment(pooled, world(), [(1, "s0"), (1, "s1"), (2, "s0")])
    assert list(found) == [(1, "s0")]
    assert (found[1, "s0"].segment_id, found[1, "s0"].tokens) == (1, sums.tokens)


def test_nothing_is_worked_out_where_it_is_off() -> None:
    assert lost_attributes(load_config(), Statistics({}, (HEAD,)), [], {}) == {}
