"""Attributes of kept cells against planted effects: what tells stays, what tells nothing goes within the budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from made_histories import HEAD, blocks, statistics

from dynamix.config import MaskConfig
from dynamix.features.exposure import exposure_block
from dynamix.features.recency import recency_block
from dynamix.features.relevance import history_values, logit
from dynamix.segmentation.attributes import Without, after_cuts, dispensable, lost
from dynamix.segmentation.bounds import Quadratic
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.masks import Verdict, judge
from dynamix.segmentation.quota import Quota, Spent, tail

CONFIG = MaskConfig(delta=0.10, ne_budget=0.005)
EFFECTS = {"dwell": 0, "match": 1, "both": 2, "neither": 3, "recency": 4}
"""Streams by what acts through them; `strong` is the last, whose count acts, so that no other is the most relevant."""
ITEMS = 6


@cache
def world(
    users: int = 24_000, *, beta: float = 0.4, bent: bool = False, dwells: bool = True, seed: int = 0
) -> Statistics:
    """One segment, six streams of 4 to 10 events a user on few items; labels by dwell, by match, both, nothing, age.

    `bent`: the dwell of stream 3 acts by its square. `dwells`: False leaves stream 3 without any.
    """
    draw = np.random.default_rng(seed)
    streams = len(EFFECTS) + 1
    count = draw.integers(4, 11, size=(users, streams))
    user = np.repeat(np.arange(users), count.sum(axis=1))
    stream = np.repeat(np.tile(np.arange(streams), users), count.ravel())
    stream = stream[np.lexsort((draw.random(len(user)), user))]
    z = draw.normal(size=len(user))
    if not dwells:
        z[stream == EFFECTS["neither"]] = np.nan
    events, *asked = blocks(user, z, stream, draw.integers(0, ITEMS, len(user)), users=users)
    age_us = np.exp(draw.normal(8, 2, len(user))) * 1e6
    age_us = age_us[np.lexsort((-age_us, user))]  # oldest first inside a user
    made = (replace(events, ts_us=asked[0].ts_us[0] - age_us.astype(np.int64)), *asked)
    x = exposure_block(*made, n_streams=streams)

    def unit(values: Any) -> Any:
        return (values - values.mean()) / values.std()

    dwell, match = (lambda f: unit(x[:, f, 0])), (lambda f: unit(x[:, f, 5]))
    acts = dwell(0) + match(1) + (dwell(2) + match(2)) + unit(x[:, 4, 2]) + 2 * unit(x[:, 5, 1])
    if bent:
        acts = acts + 1.5 * unit(x[:, EFFECTS["neither"], 0] ** 2)
    y = (draw.random(users) < 1 / (1 + np.exp(2.5 - beta * acts))).astype(np.float64)
    return statistics(made, y)


def kept_all(found: Statistics) -> list[Verdict]:
    """The rule's verdicts, as if it had dropped nothing."""
    return [replace(v, verdict="keep") if v.verdict == "drop" else v for v in judge(found, CONFIG)]


def decided(
    found: Statistics, *, cuts: Mapping[Cell, Quota] | None = None, change: Callable[[Verdict], Verdict] = lambda v: v,
    spent: Spent | None = None, **config: float,
) -> dict[str, Without]:  # fmt: skip
    """What each stream loses."""
    verdicts = [change(v) for v in kept_all(found)]
    own = CONFIG.model_copy(update=config)
    cost = spent or after_cuts(found, Spent.by_drops(found, verdicts), cuts or {})
    return {w.stream: w for w in dispensable(found, verdicts, own, spent=cost, cuts=cuts or {})}


def gone(found: Statistics, **more: Any) -> dict[str, tuple[str, ...]]:
    return {stream: one.attributes for stream, one in decided(found, **more).items()}


def test_what_acts_stays_and_what_does_not_goes() -> None:
    found = gone(world())
    assert found["s0"] == ("item", "recency")  # its dwell acts
    assert found["s1"] == ("dwell", "recency")  # the match acts
    assert found["s2"] == ("recency",)
    assert found["s3"] == ("dwell", "item", "recency")
    assert found["s4"] == ("dwell", "item")  # how long ago acts


def test_a_sentence_says_what_went_with_its_bound_and_what_was_not_measured() -> None:
    found = decided(world())
    one, other = found["s1"], found["s3"]
    assert 0 <= one.ucb <= one.budget
    assert one.reason.startswith(
        f"without dwell and recency: beside what stays they explain at most {one.ucb:.3%}".replace("%", " %")
    )
    assert "not measured" in other.reason and "not measured" not in one.reason


def test_an_effect_without_a_slope_keeps_the_dwell() -> None:
    assert "dwell" in gone(world())["s3"]
    assert "dwell" not in gone(world(bent=True))["s3"]


def test_never_under_the_support() -> None:
    """Positives needed are (support/δ)² · deff: with .8 of the root s3 loses some, with twice it nothing."""
    found = world()
    sums = found.by_recency((1, "s3"), HEAD)
    assert sums is not None
    root = float(sums.with_bucket[0]) ** 0.5 * CONFIG.delta
    assert "s3" in decided(found, support=0.8 * root)
    assert decided(found, support=2.0 * root) == {}


def test_all_together_keep_within_what_drops_and_quotas_left() -> None:
    found = world()
    every = decided(found)
    verdicts = kept_all(found)
    spent = Spent.by_drops(found, verdicts)
    for half in (0, 1):
        total, scale = spent.of(HEAD, half)
        for stream, one in every.items():
            sums = found.by_recency((1, stream), HEAD, half=half)
            assert sums is not None
            total = total + lost(sums, one.attributes).quadratic
        assert total.upper() * scale <= CONFIG.ne_budget
    scale = spent.of(HEAD, 0)[1]
    full = Quadratic(q=CONFIG.ne_budget / scale, trace=1.0, square=1.0)
    assert decided(found, spent=Spent({(HEAD, half): (full, scale) for half in (0, 1)})) == {}
    tokens = [
        sum(w.tokens * len(w.attributes) for w in decided(found, ne_budget=b).values())
        for b in (1e-3, 1.2e-3, 5e-3)
    ]
    assert tokens[0] <= tokens[1] <= tokens[2] and tokens[0] < tokens[2]


def test_cuts_are_counted_before_attributes() -> None:
    found = world()
    cut = Quota(1, "s0", 3, 1.0, 0.0, 1.0, "")
    free = Spent.by_drops(found, kept_all(found))
    after = after_cuts(found, free, {(1, "s0"): cut})
    for half in (0, 1):
        sums = found.by_recency((1, "s0"), HEAD, half=half)
        assert sums is not None
        assert after.of(HEAD, half)[0] == free.of(HEAD, half)[0] + tail(sums, 1).quadratic


def test_of_a_cut_cell_the_part_that_stays_is_judged() -> None:
    found = world()
    cut = {(1, "s3"): Quota(1, "s3", 3, 1.0, 0.0, 1.0, "")}
    sums = found.by_recency((1, "s3"), HEAD)
    assert sums is not None
    one = decided(found, cuts=cut, ne_budget=0.05)["s3"]
    assert one.tokens == sums.tokens[0] < sums.tokens.sum()
    assert one.ucb == lost(sums, one.attributes, 1).ucb


def test_dropped_protected_boosted_and_staying_cells_lose_nothing() -> None:
    found = world()

    def failing(rule: str) -> Callable[[Verdict], Verdict]:
        return lambda v: replace(v, checks=tuple(replace(c, passed=c.rule != rule) for c in v.checks))

    assert decided(found)
    assert decided(found, change=failing("protected")) == {}
    assert decided(found, change=failing("tokens")) == {}
    assert decided(found, change=lambda v: replace(v, verdict="drop")) == {}
    assert decided(found, change=lambda v: replace(v, verdict="boost")) == {}
    verdicts = kept_all(found)
    spent = Spent.by_drops(found, verdicts)
    own = dispensable(found, verdicts, CONFIG, spent=spent, cuts={}, never={(1, "s3")})
    assert own and "s3" not in {w.stream for w in own}


def test_the_cold_segment_loses_what_every_other_segment_loses_or_drops() -> None:
    one, acting = world(), world(seed=1, bent=True)

    def segments(*worlds: Statistics) -> Statistics:
        sums = {(g, *k[1:]): s for g, own in enumerate(worlds) for k, s in own.sums.items()}
        return Statistics(
            sums,
            (HEAD,),
            recency={(g, *k[1:]): s for g, own in enumerate(worlds) for k, s in own.recency.items()},
        )

    def cold(
        found: Statistics, change: Callable[[Verdict], Verdict] = lambda v: v, never: Collection[Cell] = ()
    ) -> tuple[str, ...]:
        verdicts = [change(v) for v in kept_all(found)]
        free = CONFIG.model_copy(update={"ne_budget": 0.4})
        spent = Spent.by_drops(found, verdicts)
        own = dispensable(found, verdicts, free, spent=spent, cuts={}, never=never)
        return next((w.attributes for w in own if (w.segment_id, w.stream) == (0, "s3")), ())

    assert cold(segments(one)) == cold(segments(one, one)) == ("dwell", "item", "recency")
    assert cold(segments(one, acting)) == ("item", "recency")  # segment 1 keeps its dwell
    assert cold(segments(one, one), never={(1, "s3")}) == ()  # a watch or a gate keeps it whole in segment 1
    third = segments(one, acting)
    assert cold(third, lambda v: replace(v, verdict="drop") if v.segment_id == 1 else v) == (
        "dwell",
        "item",
        "recency",
    )


def test_an_attribute_whose_channel_holds_nothing_stays() -> None:
    """Such a stream has dwell bins and items all the same, of which no channel tells."""
    found = gone(world(dwells=False))
    assert found["s3"] == ("item", "recency")


def test_every_head_has_to_agree() -> None:
    one, other = world(), world(seed=1, bent=True)
    heads = ("click", HEAD)
    sums = {
        (*k[:2], h, *k[3:]): s
        for h, own in zip(heads, (one, other), strict=True)
        for k, s in own.sums.items()
    }
    recency = {
        (*k[:2], h, *k[3:]): s
        for h, own in zip(heads, (one, other), strict=True)
        for k, s in own.recency.items()
    }
    both = gone(Statistics(sums, heads, recency=recency))
    assert "dwell" not in both["s3"] and "dwell" in gone(one)["s3"]


@pytest.mark.parametrize("name", ["dwell", "item", "recency"])
def test_the_loss_of_one_attribute_is_the_textbook_score_test(name: str) -> None:
    """Against a projection of the values themselves, user by user, in place of sums."""
    users, rng = 400, np.random.default_rng(3)
    n = 8
    user = np.repeat(np.arange(users), n)
    made = blocks(
        user, rng.normal(size=users * n), np.zeros(users * n, int), rng.integers(0, 4, users * n), users=users
    )
    y = (rng.random(users) < 0.3).astype(np.float64)
    found = statistics(made, y)
    sums = found.by_recency((1, "s0"), HEAD)
    assert sums is not None
    x = exposure_block(*made, n_streams=1)[:, 0]
    parts, _ = recency_block(*made, n_streams=1)
    base = np.full(users, y.mean())
    whole = np.column_stack([
        history_values(*made), logit(base), x[:, 2], x[:, 4], x[:, 3], parts[:, 0].reshape(users, -1)
    ])  # fmt: skip
    own = {"recency": [4], "item": [9, 12, 15, 18], "dwell": [6, 7, 10, 13, 16]}[name]
    rest = [i for i in range(whole.shape[1]) if i not in own]
    centred = whole - whole.mean(axis=0)
    given = centred[:, rest]
    left = centred[:, own] - given @ np.linalg.pinv(given, rcond=1e-9) @ centred[:, own]
    r, w = y - base, base * (1 - base)
    varies = (left**2).sum(axis=0) > 1e-6
    left = left[:, varies]
    s = left.T @ r
    information = left.T @ (w[:, None] * left)
    q = float(s @ np.linalg.solve(information, s)) if varies.any() else 0.0
    assert lost(sums, (name,)).quadratic.q == pytest.approx(q, rel=1e-6, abs=1e-6)
