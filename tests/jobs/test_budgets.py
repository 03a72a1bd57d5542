"""Verdicts under other budgets: the same rule, the configured ones as they are, and a file that is whole or not there."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from made_sums import PLENTY, statistics

from dynamix.config import MaskConfig
from dynamix.jobs.budgets import FACTORS, FILE, at_budgets, load_budgets, store_budgets
from dynamix.jobs.report_data import AtBudget
from dynamix.segmentation.life import Restoration
from dynamix.segmentation.masks import Protection, judge

CONFIG = MaskConfig()


def found(restored: dict[tuple[int, str], Restoration] | None = None) -> list[AtBudget]:
    plan = {(1, "strong"): {"n": PLENTY, "effects": {"dwell": 0.6}, "tokens": 1.0}}
    plan |= {(1, f"null{i}"): {"n": PLENTY / 20, "tokens": 2.0} for i in range(3)}
    sums = statistics(plan)
    protection = Protection()
    own = judge(sums, CONFIG, protection=protection)
    return at_budgets(sums, CONFIG, own, protection=protection, stays=restored or {})


def test_a_larger_budget_drops_at_least_as_much_and_the_own_one_is_the_mask() -> None:
    each = found()
    assert [one.ne_budget for one in each] == pytest.approx([CONFIG.ne_budget * f for f in FACTORS])
    assert [one.own for one in each] == [f == 1.0 for f in FACTORS]
    shares = [one.dropped_tokens for one in each]
    assert shares == sorted(shares) and shares[0] < shares[-1] == pytest.approx(
        0.9 / 3.9
    )  # three cells of a tenth
    assert {one.verdicts[1, "strong"] for one in each} == {"keep"}


def test_what_a_watch_brought_back_stays_under_every_budget() -> None:
    day = date(2024, 2, 12)
    back = {(1, "null0"): Restoration(day, "all users", 0.01, 0.001, day)}
    without, kept = found()[-1], found(back)[-1]
    assert (without.verdicts[1, "null0"], kept.verdicts[1, "null0"]) == ("drop", "keep")
    assert kept.dropped_tokens == pytest.approx(0.6 / 3.9)


def test_the_file_is_of_one_mask_version_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    each = found()
    store_budgets(tmp_path, "m1", each)
    assert load_budgets(tmp_path, "m1") == tuple(each)
    assert load_budgets(tmp_path, "m2") == () == load_budgets(tmp_path / "nowhere", "m1")
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    (tmp_path / FILE).write_text('{"mask_version": "m1"', encoding="utf-8")
    assert load_budgets(tmp_path, "m1") == ()
