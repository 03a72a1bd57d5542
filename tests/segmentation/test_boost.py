"""Boosts against planted horizons: what lies beyond the base has to tell, and freed tokens have to pay for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dynamix.config import MaskConfig
from dynamix.features.history import EventBlock, ImpressionBlock
from dynamix.features.quotas import BaseQuota, from_newest
from dynamix.features.recency import BUCKETS, BeyondSums, RecencySums
from dynamix.features.relevance import BEYOND, BY_RECENCY, WHOLE, CellSums, Prediction, relevance_kernel
from dynamix.segmentation.boost import Boost, boosted, boosts, candidates
from dynamix.segmentation.bounds import ALPHA
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.masks import Verdict, judge
from dynamix.segmentation.quota import Quota, tail

HEAD = "conversion"
BASE, LONGEST = 50, 100
CONFIG = MaskConfig(delta=0.30, ne_budget=0.01, boost_to=LONGEST)
ACTING: Cell = (1, "s0")


@cache
def world(horizon: int, *, users: int = 4_000, seed: int = 0, longest: int = LONGEST) -> Statistics:
    """One segment: the newest `horizon` dwells of stream 0 act; s1 and s2 do not. Histories go to `longest` events.

    Stream 0 has 60 to 120 events before an impression, the others 55: what lies beyond their base is five events.
    """
    draw = np.random.default_rng(seed)
    count = np.stack([draw.integers(60, 121, users), np.full(users, 55), np.full(users, 55)], axis=1)
    user = np.repeat(np.arange(users), count.sum(axis=1))
    kinds = np.repeat(np.tile(np.arange(3), users), count.ravel())
    stream = kinds[np.lexsort((draw.random(len(user)), user))]
    rank = from_newest(user * 3 + stream)
    z = draw.normal(size=len(user))
    acts = (stream == 0) & (rank < horizon)
    x = np.bincount(user[acts], weights=z[acts], minlength=users)
    x = x / (np.bincount(user[acts], minlength=users) + 1.0)
    p = 1 / (1 + np.exp(-(-2.5 + 0.6 * (x - x.mean()) / max(x.std(), 1e-9))))
    return statistics(user, stream, z, (draw.random(users) < p).astype(np.float64), rank < longest)


def statistics(user: Any, stream: Any, z: Any, y: Any, kept: Any) -> Statistics:
    """Sums by the kernel of the product; one impression a user after all of its events, halves by parity."""
    n, users, ts = len(user), len(y), np.flatnonzero(kept)
    user, stream, z = user[kept], stream[kept], z[kept]
    none, zeros = np.full(len(ts), -1), np.zeros(len(ts), np.int8)
    events = EventBlock(
        user=user, ts_us=ts, ingest_us=ts, request=none, stream=stream.astype(np.int16), item=none, category=none, z=z,
        dwell_bin=zeros, censored=zeros > 0, item_name=None, category_name=None,
    )  # fmt: skip
    own = np.arange(users)
    frame = pa.table({
        "user_id": own.astype(str), "segment_id": np.ones(users, int), "half": own % 2, f"label_{HEAD}": y,
        "surface": np.full(users, "feed"), "position": np.ones(users, int),
    })  # fmt: skip
    minus = np.full(users, -1)
    asked = ImpressionBlock(own, n + 1 + own % 3, minus, minus, minus, frame)
    offsets = np.searchsorted(user, np.arange(users + 1)).astype(np.int64)
    logit = np.log(y.mean() / (1 - y.mean()))
    given = Prediction(("feed",), {HEAD: np.full((2, 52), logit)}, {HEAD: np.zeros(2)})
    kernel = relevance_kernel(given, (HEAD,), 3, (n + 2, n + 3), together=False, base=BaseQuota(BASE))
    whole: dict[tuple[int, str, str, int, int], CellSums] = {}
    by_recency: dict[tuple[int, str, str, int], RecencySums] = {}
    beyond: dict[tuple[int, str, str, int], BeyondSums] = {}
    for r in kernel(events, asked, offsets, np.arange(len(ts))).to_pylist():
        key = (r["segment_id"], f"s{r['stream_id']}", HEAD, r["half"])
        if r["window"] == BEYOND:
            beyond[key] = BeyondSums.unpack(r["sums"])
        elif r["window"] == BY_RECENCY:
            by_recency[key] = RecencySums.unpack(r["sums"])
        elif r["window"] >= WHOLE:
            whole[*key, r["window"]] = CellSums.unpack(r["sums"])
    return Statistics(whole, (HEAD,), recency=by_recency, beyond=beyond)


def decided(found: Statistics, config: MaskConfig = CONFIG) -> tuple[list[Verdict], dict[Cell, Boost]]:
    verdicts = judge(found, config)
    return verdicts, boosts(found, verdicts, {}, config, base=BASE)


def test_a_history_that_acts_beyond_the_base_is_boosted() -> None:
    verdicts, taken = decided(world(100))
    assert {v.stream for v in verdicts if v.verdict == "drop"} == {"s1", "s2"}  # which pay for it
    assert set(taken) == {ACTING}
    own = taken[ACTING]
    sums = world(100).by_cell(HEAD)
    assert own.events == LONGEST
    assert (
        own.tokens == own.candidate.beyond.tokens == pytest.approx(4_000 * 37, rel=0.05)
    )  # 10 to 50 of each
    assert own.share == pytest.approx(
        (sums[ACTING].tokens + own.tokens) / sum(s.tokens for s in sums.values())
    )
    told = next(v for v in boosted(verdicts, taken) if v.stream == "s0")
    assert told.verdict == "boost"
    assert told.reason.startswith("boost: its newest 100: events beyond 50 explain at least ")
    assert [c.rule for c in told.checks][-3:] == ["beyond", "beyond_support", "token_budget"]
    assert all(c.passed for c in told.checks[-3:])
    assert [v for v in boosted(verdicts, taken) if v.stream != "s0"] == [
        v for v in verdicts if v.stream != "s0"
    ]


@pytest.mark.parametrize("horizon", [3, 10, 30])
def test_a_history_that_acts_within_the_base_is_not_boosted(horizon: int) -> None:
    assert decided(world(horizon))[1] == {}


def test_where_nothing_acts_boosts_are_as_rare_as_the_level_says() -> None:
    """At 5 % a world, two or more of eight would have a chance of .06; the gate of null worlds counts a hundred."""
    found = [world.__wrapped__(0, users=1_000, seed=seed) for seed in range(8)]
    low = CONFIG.model_copy(update={"support": 1.5})
    assert all(len(candidates(one, low)) == 3 for one in found)
    assert sum(bool(decided(one, low)[1]) for one in found) <= 1


def test_without_the_option_nothing_is_boosted() -> None:
    assert decided(world(100), CONFIG.model_copy(update={"boost_to": 0}))[1] == {}


def test_nothing_is_boosted_where_no_tokens_are_free() -> None:
    found = world(100)
    verdicts = judge(found, CONFIG)
    kept = [replace(v, verdict="keep") for v in verdicts]
    assert boosts(found, kept, {}, CONFIG, base=BASE) == {}
    tight = CONFIG.model_copy(update={"token_budget": decided(found)[1][ACTING].share - 0.001})
    assert boosts(found, verdicts, {}, tight, base=BASE) == {}
    free = sum(s.tokens for c, s in found.by_cell(HEAD).items() if c != ACTING)
    cuts = {(1, "s1"): Quota(1, "s1", 3, free, 0.0, 0.1, "")}  # what a cut frees counts like a drop
    assert set(boosts(found, kept, cuts, CONFIG, base=BASE)) == {ACTING}


def test_the_dearer_of_two_cells_goes_without_and_a_smaller_one_still_fits() -> None:
    sums = world(100).beyond
    found = replace(
        world(100),
        sums={(1, f, *k[2:]): s for f in ("a", "b", "c", "d") for k, s in world(100).sums.items() if k[1] == "s0"},
        beyond={
            (1, f, *k[2:]): replace_tokens(s, size)
            for f, size in (("a", 1.0), ("b", 2.0), ("c", 0.5))
            for k, s in sums.items()
            if k[1] == "s0"
        },
    )  # fmt: skip
    verdicts = [replace(judge(world(100), CONFIG)[0], stream=f, verdict="keep") for f in "abcd"]
    verdicts[3] = replace(verdicts[3], verdict="drop")
    one = tail(found.beyond_base((1, "a"), HEAD), BUCKETS).tokens  # type: ignore[arg-type]
    base = found.by_cell(HEAD)[1, "a"].tokens
    budget = CONFIG.model_copy(update={"token_budget": (3 * base + 1.6 * one) / (4 * base)})
    taken = boosts(found, verdicts, {}, budget, base=BASE)
    assert list(taken) == [(1, "c"), (1, "a")]  # the cheapest first; b does not fit beside them
    assert taken[1, "a"].share == pytest.approx((3 * base + 1.5 * one) / (4 * base))


def replace_tokens(sums: BeyondSums, factor: float) -> BeyondSums:
    return replace(sums, tokens=np.append(sums.tokens[:-1], factor * sums.tokens[-1]))


def test_protected_dropped_cut_and_excluded_cells_are_not_boosted() -> None:
    found = world(100)
    verdicts = judge(found, CONFIG)

    def taken(change: Callable[[Verdict], Verdict], **options: Any) -> set[Cell]:
        return set(
            boosts(found, [change(v) for v in verdicts], base=BASE, config=CONFIG, **{"cuts": {}, **options})
        )

    def protected(v: Verdict) -> Verdict:
        return replace(v, checks=tuple(replace(c, passed=c.rule != "protected") for c in v.checks))

    cut: Mapping[Cell, Quota] = {ACTING: Quota(1, "s0", 30, 1.0, 0.0, 0.1, "")}
    assert taken(lambda v: v) == {ACTING}
    assert taken(protected) == set()
    assert taken(lambda v: replace(v, verdict="drop")) == set()
    assert taken(lambda v: v, cuts=cut) == taken(lambda v: v, never={ACTING}) == set()


def test_few_positives_boost_nothing() -> None:
    assert decided(world(100), CONFIG.model_copy(update={"support": 8.0}))[1] == {}
    assert candidates(world(100), CONFIG.model_copy(update={"support": 8.0})) == []


def test_candidates_share_the_level_of_the_family() -> None:
    found = world(100)
    family = candidates(found, CONFIG)
    assert [c.cell for c in family] == [(1, "s0"), (1, "s1"), (1, "s2")]
    own = family[0]
    assert own.nats == pytest.approx(own.beyond.quadratic.lower(alpha=ALPHA / 3) / 2)
    assert own.nats < own.beyond.quadratic.lower() / 2
    alone = replace(found, beyond={k: s for k, s in found.beyond.items() if k[1] == "s0"})
    assert candidates(alone, CONFIG)[0].nats == pytest.approx(own.beyond.quadratic.lower() / 2)


def test_of_several_heads_the_one_that_gains_most_counts() -> None:
    null, acting = world(0), world(100)
    both = replace(
        acting,
        sums={**acting.sums, **{(*k[:2], "click", *k[3:]): s for k, s in null.sums.items()}},
        heads=("click", HEAD),
        beyond={**acting.beyond, **{(*k[:2], "click", *k[3:]): s for k, s in null.beyond.items()}},
    )
    assert {c.cell: c.head for c in candidates(both, CONFIG)}[ACTING] == HEAD


def test_the_base_decides_as_it_does_where_nothing_is_collected_beyond_it() -> None:
    found, short = world(100), world(100, longest=BASE)
    assert judge(found, CONFIG) == judge(short, CONFIG)
    assert candidates(short, CONFIG) == []
    pooled = found.pooled()
    assert pooled.beyond_base((0, "s0"), HEAD) is not None
