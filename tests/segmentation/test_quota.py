"""Quotas against planted horizons: sums by recency against a loop, the shortest history that loses nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_histories import HEAD, blocks, statistics

from dynamix.config import MaskConfig
from dynamix.features.quotas import from_newest
from dynamix.features.recency import EDGES, SIZE, RecencySums, recency_block
from dynamix.segmentation.bounds import Quadratic
from dynamix.segmentation.cells import Statistics
from dynamix.segmentation.masks import Verdict, judge
from dynamix.segmentation.quota import Spent, older, quotas

CONFIG = MaskConfig(delta=0.10, ne_budget=0.005)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.none() | st.integers(-3, 3), st.integers(0, 1), st.integers(1, 14)),
        max_size=12,
    )
)
def test_buckets_equal_a_loop_over_the_history(runs: list[tuple[int, int | None, int, int]]) -> None:
    rows = [(stream, z, item) for stream, z, item, times in runs for _ in range(times)]
    values = np.array([math.nan if z is None else float(z) for _, z, _ in rows])
    events, asked, offsets, index = blocks(
        np.zeros(len(rows), np.int64), values, [s for s, _, _ in rows], [i for _, _, i in rows], users=1
    )
    found, tokens = recency_block(events, asked, offsets, index, n_streams=2)
    for stream in (0, 1):
        newest = [row for row in rows[::-1] if row[0] == stream]
        for bucket, (low, high) in enumerate(zip((0, *EDGES), (*EDGES, len(rows)), strict=True)):
            own = newest[low:high]
            z_own = [z for _, z, _ in own if z is not None]
            assert tokens[0, stream, bucket] == len(own)
            assert found[0, stream, bucket].tolist() == pytest.approx(
                [
                    sum(z_own) / (len(z_own) + 1),
                    math.log(1 + len(own)),
                    math.log(1 + sum(item == 0 for _, _, item in own)),
                ]
            )


@cache
def world(
    horizon: int, beta: float, *, users: int, events: int = 45, seed: int = 0, streams: int = 2
) -> Statistics:
    """One segment: the newest `horizon` dwells of stream 0 act with `beta` log-odds per SD; the other streams do not."""
    draw = np.random.default_rng(seed)
    count = draw.integers(events // 2, events + 1, size=(users, streams))
    user = np.repeat(np.arange(users), count.sum(axis=1))
    kinds = np.repeat(np.tile(np.arange(streams), users), count.ravel())
    stream = kinds[np.lexsort((draw.random(len(user)), user))]
    made = blocks(user, draw.normal(size=len(user)), stream, users=users)
    z = made[0].z
    acts = (stream == 0) & (from_newest(user * streams + stream) < horizon)
    x = np.bincount(user[acts], weights=z[acts], minlength=users)
    x /= np.bincount(user[acts], minlength=users) + 1.0
    p = 1 / (1 + np.exp(-(-2.5 + beta * (x - x.mean()) / x.std())))
    y = (draw.random(users) < p).astype(np.float64)
    return statistics(made, y)


def decided(found: Statistics, config: MaskConfig = CONFIG) -> dict[str, int]:
    """Quota of each stream that is cut."""
    verdicts = judge(found, config)
    spent = Spent.by_drops(found, verdicts)
    return {q.stream: q.events for q in quotas(found, verdicts, config, spent=spent)}


@pytest.mark.parametrize("horizon", [3, 10])
def test_the_quota_is_the_planted_horizon(horizon: int) -> None:
    assert decided(world(horizon, 0.5, users=40_000))["s0"] == horizon


def test_a_history_that_acts_as_a_whole_is_not_cut() -> None:
    assert "s0" not in decided(world(45, 0.5, users=40_000))


def test_few_positives_cut_nothing() -> None:
    assert decided(world(3, 0.5, users=1_500)) == {}


def test_what_the_drops_cost_is_not_there_for_cuts() -> None:
    found = world(3, 0.5, users=40_000)
    verdicts = judge(found, CONFIG)
    free = {half: Spent.by_drops(found, verdicts).of(HEAD, half) for half in (0, 1)}
    full = Quadratic(q=CONFIG.ne_budget / free[0][1], trace=1.0, square=1.0)
    spent = Spent({(HEAD, half): (full, scale) for half, (_, scale) in free.items()})
    assert quotas(found, verdicts, CONFIG, spent=spent) == []
    assert decided(found, CONFIG.model_copy(update={"ne_budget": 1e-6})) == {}


def test_protected_and_curved_streams_and_dropped_ones_are_not_cut() -> None:
    found = world(3, 0.5, users=40_000)
    verdicts = judge(found, CONFIG)
    spent = Spent.by_drops(found, verdicts)

    def cut(change: Callable[[Verdict], Verdict]) -> set[str]:
        return {q.stream for q in quotas(found, [change(v) for v in verdicts], CONFIG, spent=spent)}

    def failing(rule: str) -> Callable[[Verdict], Verdict]:
        return lambda v: replace(v, checks=tuple(replace(c, passed=c.rule != rule) for c in v.checks))

    assert "s0" in cut(lambda v: v)
    assert "s0" not in cut(failing("protected")) | cut(failing("curvature"))
    assert cut(lambda v: replace(v, verdict="drop")) == set()


def test_of_several_heads_the_longest_quota_counts() -> None:
    short, long = (world(horizon, 0.5, users=40_000) for horizon in (3, 10))
    heads = ("click", HEAD)
    sums = {
        (*k[:2], h, *k[3:]): s
        for h, own in zip(heads, (short, long), strict=True)
        for k, s in own.recency.items()
    }
    whole = {
        (*k[:2], h, *k[3:]): s
        for h, own in zip(heads, (short, long), strict=True)
        for k, s in own.sums.items()
    }
    assert decided(Statistics(whole, heads, recency=sums))["s0"] == 10


def test_sums_add_up_and_keep_their_shape() -> None:
    found = world(10, 0.5, users=2_000)
    one, two = (found.recency[1, "s0", HEAD, half] for half in (0, 1))
    both = found.by_recency((1, "s0"), HEAD)
    assert both is not None and both.pack().shape == (SIZE,)
    np.testing.assert_allclose(both.pack(), one.pack() + two.pack())
    assert older(found, (1, "s0"), 10) == both.tokens[2:].sum()
    twice = {(2, *k[1:]): s for k, s in found.recency.items()} | dict(found.recency)
    pooled = Statistics({}, (HEAD,), recency=twice).pooled()
    np.testing.assert_allclose(pooled.by_recency((0, "s0"), HEAD).pack(), 2 * both.pack())  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=f"allowed: {SIZE}"):
        RecencySums.unpack(np.zeros(SIZE - 1))


def test_what_only_the_newest_events_tell_keeps_a_stream_that_looks_negligible_as_a_whole() -> None:
    """The mean over some 67 dwells thins the effect of the newest three to a twentieth."""
    config = MaskConfig(delta=0.20, ne_budget=0.005)
    found = world(3, 0.28, users=20_000, events=90)
    strong = world(90, 1.0, users=20_000, events=90)  # so that the other is not the most relevant
    sums = {(g, "strong", *rest): own for (g, f, *rest), own in strong.sums.items() if f == "s0"}
    sums |= found.sums

    def verdict(recency: Mapping[tuple[int, str, str, int], RecencySums]) -> Verdict:
        statistics = replace(found, sums=sums, recency=recency)
        return next(v for v in judge(statistics, config) if v.stream == "s0")

    assert verdict({}).verdict == "drop"
    kept = verdict(found.recency)
    assert kept.verdict == "keep" and kept.reason.startswith("by recency: ")
    assert {c.rule for c in kept.checks if not c.passed} == {"recency"}
