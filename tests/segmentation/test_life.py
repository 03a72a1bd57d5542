"""The watch over a mask on made-up sums: what comes back, what is retired, and what neither may happen to."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

import numpy as np
import pytest

from dynamix.config import MaskConfig
from dynamix.contracts import CHANNELS
from dynamix.features.relevance import FINE_BINS, WHOLE, C, CellSums, D
from dynamix.segmentation.bounds import Quadratic, cell_budget
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.effects import effect
from dynamix.segmentation.life import (
    EXPIRED,
    HARMFUL,
    HOLD_OUT,
    IN_FORCE,
    LEVEL,
    MIN_POSITIVES,
    UNDER_THE_MASK,
    Watch,
    keep_restored,
    restorations,
    watch,
)
from dynamix.segmentation.masks import Verdict

CONFIG = MaskConfig()
RATE = 0.05
HEAD = "conversion"
DAY = date(2026, 3, 2)
MANY, FEW = 400_000.0, 12_000.0
"""Impressions of users under the mask and of hold-out users, in each segment."""


def sums(rng: np.random.Generator, n: float, dwell: float = 0.0, *, presence: float = 1.0) -> CellSums:
    """Sums as of n impressions with independent channels of variance 1, dwell acting by that many log-odds per SD."""
    w, users = n * RATE * (1 - RATE), 2000
    a = np.zeros(D + 1)
    a[:C] = rng.normal(size=C) * np.sqrt(w)
    a[CHANNELS.index("dwell")] += w * dwell
    a_user = rng.normal(size=(users, D + 1)) * np.sqrt(w / users)
    return CellSums(
        n=n, positives=n * RATE, with_stream=n * RATE * presence, present=n * presence, tokens=n, censored=0.0,
        w=w, wx=np.zeros(D), wxx=w * np.eye(D), a=a, aa=a_user.T @ a_user, hist=np.zeros((4, FINE_BINS + 1)),
    )  # fmt: skip


def statistics(
    effects: Mapping[Cell, tuple[float, float]], *, seed: int = 0, n: tuple[float, float] = (MANY, FEW),
    heads: tuple[str, ...] = (HEAD,), presence: float = 1.0,
) -> Statistics:  # fmt: skip
    """Every cell for both halves; effects: dwell's effect among users under the mask and among hold-out users."""
    rng = np.random.default_rng(seed)
    return Statistics(
        {
            (*cell, head, half, WHOLE): sums(rng, n[half], pair[half], presence=presence)
            for cell, pair in effects.items()
            for head in heads
            for half in (UNDER_THE_MASK, HOLD_OUT)
        },
        heads,
    )


def seen(effects: Mapping[Cell, tuple[float, float]], *, age_days: int = 7, **options: Any) -> Watch:
    return watch(statistics(effects, **options), list(effects), age_days=age_days, config=CONFIG)


NOTHING = {(g, f): (0.0, 0.0) for g in (1, 2) for f in ("a/x", "b/y", "c/z")}


def test_nothing_comes_back_where_nothing_matters() -> None:
    said = seen(NOTHING)
    assert (said.state, said.restored, said.cost, said.obsolete) == (IN_FORCE, {}, 0.0, False)
    assert said.reason == "in force: 7 days old, 0 of 6 dropped cells shown to matter"


def test_a_watch_over_null_cells_brings_something_back_about_as_rarely_as_its_level_says() -> None:
    """Nulls are shown only if they exceed the cell's budget as well, so LEVEL is an upper bound."""
    tight = MaskConfig(delta=0.001)
    alarms = [
        bool(watch(statistics(NOTHING, seed=s), list(NOTHING), age_days=1, config=tight).restored)
        for s in range(100)
    ]
    assert np.mean(alarms) <= LEVEL + 2 * np.sqrt(LEVEL * (1 - LEVEL) / 100)


def test_hold_out_users_alone_bring_a_stream_back_in_every_segment_that_drops_it() -> None:
    cells = NOTHING | {(g, "a/x"): (0.0, 0.35) for g in (1, 2)}
    said = seen(cells)
    assert set(said.restored) == {(1, "a/x"), (2, "a/x")}
    assert {one.by for one in said.restored.values()} == {"hold-out"}
    assert "a/x in segments 1, 2: hold-out (" in said.reason


def test_without_hold_out_users_nobody_shows_it() -> None:
    cells = NOTHING | {(g, "a/x"): (0.0, 0.35) for g in (1, 2)}
    both = statistics(cells)
    blind = Statistics({k: s for k, s in both.sums.items() if k[3] == UNDER_THE_MASK}, both.heads)
    assert not watch(blind, list(cells), age_days=7, config=CONFIG).restored


def test_everyone_brings_one_cell_back_and_leaves_the_stream_dropped_elsewhere() -> None:
    cells = NOTHING | {(g, "a/x"): (0.2, 0.2) if g == 1 else (0.0, 0.0) for g in range(1, 9)}
    said = seen(cells, n=(MANY, 100.0))
    assert set(said.restored) == {(1, "a/x")} and said.restored[1, "a/x"].by == "everyone"


def test_an_effect_within_the_budget_stays_dropped_however_sure_it_is() -> None:
    said = seen({(1, "a/x"): (0.05, 0.05), (1, "b/y"): (0.0, 0.0)}, n=(4e7, FEW))
    assert not said.restored
    above = seen({(1, "a/x"): (0.15, 0.15), (1, "b/y"): (0.0, 0.0)}, n=(4e7, FEW))
    assert set(above.restored) == {(1, "a/x")}


def test_too_few_positives_with_the_stream_show_nothing() -> None:
    few = MIN_POSITIVES / (RATE * MANY) * 0.9
    cells = {(1, "a/x"): (2.0, 2.0)}
    assert not seen(cells, presence=few, n=(MANY, 100.0)).restored
    assert seen(cells, presence=2 * few, n=(MANY, 100.0)).restored


def test_what_matters_to_one_of_two_heads_comes_back() -> None:
    said = seen(NOTHING | {(1, "a/x"): (0.3, 0.3)}, heads=("click", "conversion"))
    assert set(said.restored) >= {(1, "a/x")}


def test_the_cost_is_what_the_drop_loses_of_all_impressions() -> None:
    """One of two equal segments loses R = β²·ȳ(1−ȳ)/(2H); the stream counts once, whoever shows it."""
    cells = {(1, "a/x"): (0.2, 0.2), (2, "b/y"): (0.0, 0.0)}
    expected = cell_budget(RATE, 0.2) / 2
    assert seen(cells, n=(FEW, MANY)).cost == pytest.approx(expected, rel=0.1)
    all_over = {(g, "a/x"): (0.2, 0.2) for g in (1, 2)}
    assert seen(all_over, n=(FEW, MANY)).cost == pytest.approx(2 * expected, rel=0.1)


def test_of_a_stream_that_hold_out_users_show_the_cost_is_theirs() -> None:
    """Users under the mask show nothing where the log depends on it, so everyone together shows too little."""
    cells = NOTHING | {(g, "a/x"): (0.0, 0.3) for g in (1, 2)}
    said = seen(cells, n=(MANY, MANY / 4))
    assert said.cost == pytest.approx(cell_budget(RATE, 0.3), rel=0.1)
    masked = seen(NOTHING | {(g, "a/x"): (0.3, 0.0) for g in (1, 2)}, n=(MANY, 100.0))
    assert masked.cost == pytest.approx(cell_budget(RATE, 0.3), rel=0.1)


def test_a_mask_is_retired_when_its_drops_cost_more_than_the_budget_and_not_before() -> None:
    harmful = seen({(1, "a/x"): (0.2, 0.2), (2, "b/y"): (0.0, 0.0)})
    assert harmful.state == HARMFUL and harmful.obsolete
    assert harmful.reason.startswith("harmful: what it drops costs 0.") and "budget 0.100%" in harmful.reason
    rare = {(1, "a/x"): (0.2, 0.2)} | {(g, "b/y"): (0.0, 0.0) for g in range(2, 12)}
    mild = seen(rare)
    assert mild.state == IN_FORCE and set(mild.restored) == {(1, "a/x")}


def test_a_mask_is_in_force_until_its_time_is_over() -> None:
    states = [seen(NOTHING, age_days=days).state for days in (27, 28, 200)]
    assert states == [IN_FORCE, EXPIRED, EXPIRED]
    assert seen(NOTHING, age_days=28).reason == "expired: 28 days old, retired from 28 on"
    assert seen({(1, "a/x"): (0.4, 0.4)}, age_days=28).state == HARMFUL


def test_without_statistics_only_age_counts() -> None:
    empty = Statistics({}, (HEAD,))
    assert watch(empty, list(NOTHING), age_days=3, config=CONFIG).state == IN_FORCE
    assert watch(empty, list(NOTHING), age_days=30, config=CONFIG).state == EXPIRED
    assert watch(empty, [], age_days=3, config=CONFIG).restored == {}


def test_the_chance_of_a_quadratic_is_that_of_a_chi_squared() -> None:
    assert Quadratic(q=3.841, trace=1.0, square=1.0).chance() == pytest.approx(0.05, abs=1e-4)
    assert Quadratic(q=2 * 12.592, trace=12.0, square=24.0).chance() == pytest.approx(0.05, abs=1e-4)
    assert Quadratic().chance() == 1.0


def verdict(cell: Cell, word: str) -> Verdict:
    return Verdict(*cell, word, "because", HEAD, effect(sums(np.random.default_rng(0), 1000.0)), 1.0)


def test_a_restored_cell_is_kept_with_its_reason_until_the_cycle_begins_after_it() -> None:
    cells = NOTHING | {(g, "a/x"): (0.0, 0.35) for g in (1, 2)}
    back = restorations(seen(cells), day=DAY, days=42)
    assert {r.until for r in back.values()} == {date(2026, 4, 13)} and set(back) == {(1, "a/x"), (2, "a/x")}
    before = [verdict((1, "a/x"), "drop"), verdict((2, "a/x"), "undecided"), verdict((1, "b/y"), "drop")]
    after = keep_restored(before, back)
    assert [v.verdict for v in after] == ["keep", "undecided", "drop"] and after[1:] == before[1:]
    assert after[0].reason.startswith("restored on 2026-03-02: hold-out showed a relevance of ")
    assert after[0].reason.endswith("begins after it; by the statistics: because")


def test_the_cold_keep_a_stream_that_stays_in_another_segment() -> None:
    cells = NOTHING | {(g, "a/x"): (0.0, 0.35) for g in (1, 2)}
    back = restorations(seen(cells), day=DAY, days=42)
    before = [verdict((0, "a/x"), "drop"), verdict((0, "b/y"), "drop"), verdict((0, "c/z"), "undecided")]
    after = keep_restored(before, back)
    assert [v.verdict for v in after] == ["keep", "drop", "undecided"]
    assert after[0].reason == "cold: segment 1 keeps the stream; by the statistics: because"
    assert keep_restored(before, {(0, "b/y"): back[1, "a/x"]})[0].verdict == "drop"
