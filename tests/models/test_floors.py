"""Floors of the mask gate: a harmed group is found behind an improvement of all, and chance alone refuses seldom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import norm

from dynamix.config import TrainConfig
from dynamix.models.contest import Arm, Contest, Part, judge_mask, mask_status
from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.evidence import EVERY, Scored, Verdict, gate_mask
from dynamix.models.floors import Group, floors, groups_of, holm

BUDGET = 0.001


def world(sizes: list[int], *, rate: float = 0.2, seed: int = 0) -> tuple[Scored, dict[Group, np.ndarray]]:
    """One row a user with a drawn label and its true p; the users of each size form a segment."""
    rng = np.random.default_rng(seed)
    segment = np.repeat(np.arange(len(sizes)), sizes)
    p = np.clip(rng.beta(2, 2 / rate - 2, len(segment)), 0.01, 0.99)
    y = (rng.random(len(p)) < p).astype(float)
    base = Scored(p[None], y, np.arange(1, len(p) + 1), None)
    return base, {(g, EVERY): segment == g for g in range(len(sizes))}


def gate(new: Scored, base: Scored, groups: dict[Group, np.ndarray], replicates: int = 120) -> Verdict:
    """The gate with the floors of these groups."""
    found = floors(new, base, groups, ne_budget=BUDGET, replicates=replicates)
    return gate_mask(new, base, ne_budget=BUDGET, replicates=replicates, floors=found)


def blurred(base: Scored, at: np.ndarray, share: float) -> Scored:
    """Predictions of these rows moved towards their mean: the total stays, what they tell goes."""
    p = base.p.copy()
    p[:, at] += share * (p[:, at].mean() - p[:, at])
    return replace(base, p=p)


def test_holm_rejects_what_the_adjusted_p_values_reject() -> None:
    """Oracle: Holm's adjusted p-values, max over j ≤ k of (m − j) p_(j), in plain Python."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        z = rng.normal(1.0, 1.5, int(rng.integers(1, 8)))
        adjusted, most = {}, 0.0
        for j, i in enumerate(np.argsort(-z)):
            most = max(most, (len(z) - j) * norm.sf(z[i]))
            adjusted[i] = most
        quantiles = holm(list(z))
        assert [bool(z[i] > quantiles[i]) for i in range(len(z))] == [
            adjusted[i] < 0.05 for i in range(len(z))
        ]
    assert holm([]) == [] and holm([0.0]) == [pytest.approx(1.645, abs=1e-3)]


def test_a_small_segment_that_is_harmed_is_found_behind_an_improvement_of_all() -> None:
    base, groups = world([40_000, 3_000, 3_000])
    flat = blurred(base, groups[0, EVERY], 0.3)  # keep-all is the worse of the two in the large segment
    masked = blurred(base, groups[2, EVERY], 0.9)
    without = gate_mask(masked, flat, ne_budget=BUDGET, replicates=120)
    assert without.passed and without.delta.high < 0  # all together gain: the gate of all users sees no harm
    verdict = gate(masked, flat, groups)
    assert (verdict.passed, verdict.status) == (False, "retired")
    (failed,) = [c for c in verdict.checks if not c.passed]
    assert (failed.rule, failed.segment_id, failed.tier) == ("floor", 2, EVERY)
    assert failed.value > failed.allowed and "floor of segment 2 +" in verdict.reason  # type: ignore[operator]
    assert "floors hold in 2 of 3 groups" in verdict.reason
    assert gate(flat, flat, groups).passed


def test_a_segment_within_three_budgets_or_with_too_few_positives_refuses_nothing() -> None:
    base, groups = world([60_000, 60_000, 60])
    slight = blurred(base, groups[1, EVERY], 0.12)
    loose = floors(slight, base, groups, ne_budget=0.002, replicates=120)
    tight = floors(slight, base, groups, ne_budget=0.00001, replicates=120)
    assert loose[1].delta is not None and loose[1].delta.low > 0 and loose[1].delta.upper95 < 0.6
    assert (
        loose[1].limit_pct == pytest.approx(0.6) and loose[1].check().passed
    )  # a shown loss of less than 3 budgets
    assert not tight[1].check().passed
    few = loose[2]
    assert few.positives < 20 and few.delta is None and few.check().passed
    assert few.check().limit == f"not measurable: {few.positives:.0f} positives, 20 are the least"
    assert "not measurable: segment 2" in gate(base, base, groups).reason


def test_chance_refuses_at_most_one_in_twenty_masks_of_many_segments() -> None:
    """Arms that differ by noise of mean zero, 8 segments; 5 % and 3 standard errors of 80 draws. One by one: 34 %."""
    refused = 0
    for seed in range(80):
        base, groups = world([200] * 8, seed=seed)
        noise = 0.3 * np.random.default_rng(1000 + seed).normal(size=(2, base.p.shape[1]))
        logit = np.log(base.p / (1 - base.p))
        one, two = (replace(base, p=1 / (1 + np.exp(-(logit + n)))) for n in noise)
        refused += any(
            not f.check().passed for f in floors(one, two, groups, ne_budget=BUDGET, replicates=50)
        )
    assert refused / 80 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 80)


def masked_contest(rows: JaggedRows, harmed: np.ndarray) -> Contest:
    """Arms that predict the labels well, the masked one only where a row is not harmed."""
    y = np.nan_to_num(rows.labels["conversion"].astype(float))
    whole = 0.3 + 0.4 * y
    less = np.where(harmed, y.mean() * 0.4 + 0.3, whole)
    arms = {
        name: Arm(name, name, rows, (), Part(rows, {"conversion": p[None]}))
        for name, p in (("keep-all", whole), ("masked", less))
    }
    return Contest(arms, {}, "conversion", ("conversion",))


def test_the_contest_holds_every_segment_and_tier_to_its_floor(table: Callable[..., pa.Table]) -> None:
    rows = rows_from_table(table([1] * 3000), heads=("conversion",), item_buckets=50)
    groups = groups_of(rows, np.isfinite(rows.labels["conversion"]))
    assert set(groups) == {(0, EVERY), (1, EVERY), (2, EVERY), (None, "active"), (None, "passive")}
    assert np.array_equal(groups[None, "active"], rows.tier == 1)
    one = replace(rows, segment=np.ones_like(rows.segment), tier=np.zeros_like(rows.tier))
    assert groups_of(one, np.ones(len(one), bool)) == {}  # what holds all rows is no group
    for harmed, said in (
        (rows.segment == 2, "floor of segment 2 "),
        (rows.tier == 1, "floor of active users "),
    ):
        contest = masked_contest(rows, harmed)
        verdicts = judge_mask(contest, ne_budget=0.05, config=TrainConfig(bootstrap=60))
        assert mask_status(contest, verdicts) == "retired" and said in verdicts["conversion"].reason
