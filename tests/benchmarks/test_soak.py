"""The world of the soak and its verdict, without Spark; a short soak as a whole among the slow tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from benchmarks import soak
from benchmarks.soak_table import Day, growth, report
from benchmarks.soak_world import BOT, NEW_COLUMN, START, Delivery, Plan, Shares, deliveries
from dynamix.features.sources.output import TIMESTAMP, raw_events

PLAN = Plan(days=10, before=3)
CLEAN = Shares(clicks=0, late=0, again=0, other=0, torn=0)


def _events() -> pa.Table:
    """40 users, 13 days, every three hours a page view and every sixth row an impression."""
    rows = [
        (f"e{user}-{k}", f"u{user}", datetime(2026, 1, 5) + timedelta(hours=3 * k, seconds=user), k % 6 == 5)
        for user in range(40)
        for k in range(13 * 8)
    ]
    ids, users, times, shown = (list(column) for column in zip(*rows, strict=True))
    return raw_events(
        {
            "event_id": pa.array(ids),
            "user_id": pa.array(users),
            "event_ts": pa.array(times, pa.timestamp("us")).cast(TIMESTAMP),
            "event_type": pa.array(["impression" if flag else "view" for flag in shown]),
            "surface": pa.array(["feed"] * len(ids)),
            "item_id": pa.array([f"i{k % 7}" for k in range(len(ids))]),
        }
    )


def _rows(found: list[Delivery]) -> Iterator[tuple[Delivery, dict[str, Any]]]:
    for delivery in found:
        for row in delivery.rows.to_pylist():
            yield delivery, row


@pytest.fixture(scope="module", name="found")
def fixture_found() -> list[Delivery]:
    return deliveries(_events(), PLAN)


def test_a_row_comes_on_the_first_day_that_can_see_it_and_found_rows_two_days_late(
    found: list[Delivery],
) -> None:
    """Rows without any time come on some day; what a run of the day before could have seen was lost."""
    behind = Counter()
    for delivery, row in _rows(found):
        times = [row[name] for name in ("event_ts", "ingest_ts") if row[name] is not None]
        if times:
            seen = (max(times).date() - START).days - PLAN.before + 1
            behind[delivery.name, delivery.day - max(seen, 0)] += 1
    assert {key for key in behind if key[1]} == {("004-found.parquet", 2)}
    assert PLAN.lost_day == 2 and behind["004-found.parquet", 2] > 20
    assert [delivery.day for delivery in found] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10]


def test_every_kind_of_bad_row_is_there(found: list[Delivery]) -> None:
    rows = [row for _, row in _rows(found)]
    by_id: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_id.setdefault(row["event_id"], []).append(row)
    copies = [group for group in by_id.values() if len(group) > 1]
    conflicts = [group for group in copies if len({row["item_id"] for row in group}) > 1]
    at_once = [group for group in conflicts if len({row["ingest_ts"] for row in group}) == 1]
    late = [
        row for row in rows if row["event_ts"] and row["ingest_ts"] - row["event_ts"] > timedelta(hours=1)
    ]
    assert len(copies) > len(conflicts) > len(at_once) > 0
    assert max(row["ingest_ts"] - row["event_ts"] for row in late) > timedelta(days=3)
    torn = Counter((row["event_ts"] is None, row["ingest_ts"] is None, row["user_id"] == "") for row in rows)
    assert set(torn) == {
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (False, False, True),
    }
    assert Counter(row["event_type"] for row in rows)["click"] > 0


def test_the_bot_has_most_rows_of_its_days_and_the_new_column_stays(found: list[Delivery]) -> None:
    for delivery in found:
        users = Counter(delivery.rows["user_id"].to_pylist())
        on = delivery.day in PLAN.bot_days and "found" not in delivery.name
        assert (users[BOT] > 0.5 * delivery.rows.num_rows) == on, delivery.name
        assert (NEW_COLUMN in delivery.rows.column_names) == (delivery.day >= PLAN.new_column_day)


def test_equal_plans_give_equal_rows_and_other_seeds_others(found: list[Delivery]) -> None:
    again = deliveries(_events(), PLAN)
    assert all(one.rows.equals(other.rows) for one, other in zip(found, again, strict=True))
    other = deliveries(_events(), Plan(days=10, before=3, seed=1))
    assert not found[0].rows.equals(other[0].rows)


def test_without_trouble_every_event_comes_once_and_only_the_bot_beside_them() -> None:
    events = _events()
    rows = [row for _, row in _rows(deliveries(events, PLAN, CLEAN))]
    ids = Counter(row["event_id"] for row in rows if row["user_id"] != BOT)
    assert set(ids.values()) == {1} and set(ids) == set(events["event_id"].to_pylist())


def _day(number: int, seconds: float, **more: Any) -> Day:
    """A plain day that took so long, a quarter of it in `features`."""
    verbs = {"ingest": 0.75 * seconds, "features": 0.25 * seconds}
    reading = "rows first seen since 2026-01-05"
    day = Day(number, "2026-01-06", reading, verbs, cpu_s=2 * seconds, contents={"masks": "a", "scores": "b"})
    return replace(day, **more)


def test_growth_is_that_of_plain_days_alone() -> None:
    """Day n takes 10 + n seconds; a refit, a crash, a backfill and a cold day take an hour."""
    days = [_day(n, 10.0 + n) for n in range(22)]
    days[3] = _day(3, 3600, reading="the baseline of 2026-01-05 is due for its refit (calendar.refit_days)")
    days[9] = _day(9, 3600, warm=False)
    days[17] = _day(17, 3600)
    days[17].seconds["crash"] = 1.0
    days[20] = _day(20, 3600)
    days[20].seconds["backfill"] = 1.0
    found = growth(days)
    assert found is not None and found.days == 18
    assert (found.first_s, found.last_s) == (14.5, 28.0)  # days 1, 2, 4-7 and 15, 16, 18, 19, 21
    assert found.slope_s == pytest.approx(1.0)
    spent = growth(days, cpu=True)
    assert spent is not None and spent.slope_s == pytest.approx(2.0) and spent.ratio == found.ratio
    assert growth(days[:2]) is None


def _lives(folder: Path, first: list[Day], second: list[Day]) -> list[soak.Life]:
    return [
        soak.Life(name, folder, PLAN, days, ())
        for name, days in zip(soak.LIVES, (first, second), strict=True)
    ]


def test_what_differs_is_named_with_its_day(tmp_path: Path) -> None:
    first, second = ([_day(n, 9.0, apart={}, crash="during x") for n in range(3)] for _ in range(2))
    assert soak.differences(_lives(tmp_path, first, second)) == []
    said = soak.verdict(_lives(tmp_path, first, second[:2]), [])
    assert said.startswith("UNFINISHED, 3 and 2 of 11 days; EQUAL: events, ")
    assert said.endswith("masks, scores to a second life on days 0, 1; killed on days 0, 1, 2")
    first[1].apart = {"events": "1 rows only day by day"}
    second[2].contents = {"masks": "other"}
    found = soak.differences(_lives(tmp_path, first, second))
    assert [line.split(":")[0] for line in found] == ["day 1, events", "day 2, masks", "day 2, scores"]
    assert soak.verdict(_lives(tmp_path, first, second), found).endswith("; NOT EQUAL: 3 differences")


def test_lives_go_on_where_they_stopped_and_other_plans_are_refused(tmp_path: Path) -> None:
    lives = _lives(tmp_path, [_day(0, 1.0), _day(1, 2.0)], [])
    soak.store(tmp_path, PLAN, lives)
    assert [life.days for life in soak.load(tmp_path, PLAN)] == [life.days for life in lives]
    with pytest.raises(SystemExit, match="another plan"):
        soak.load(tmp_path, replace(PLAN, seed=1))


def test_the_report_has_a_row_a_day_and_says_what_happened() -> None:
    drift = ["drift: one", "drift: other"]
    first = [_day(0, 9.0), _day(1, 8.0, crash="during ingest/events", apart={}, warnings=["a bot?", *drift])]
    lines = "\n".join(
        report({"one": first, "other": [_day(0, 9.5), _day(1, 7.0)]}, quarantine={"NULL_USER": 3})
    )
    assert "| 1 | what is new | 0 | 6.0 / 5.2 | 2.0 / 1.8 | 16.0 / 14.0 |" in lines
    assert "killed during ingest/events, one build: equal" in lines
    assert "days 1: a bot? (1)" in lines and "days 1: drift (2)" in lines
    assert "in quarantine at the end: 3 NULL_USER" in lines
    assert "one: too few plain days" in lines


@pytest.mark.spark
@pytest.mark.slow
def test_a_short_soak_ends_equal(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bot from day 2 on, a new column and a lost day run again on day 3, a process killed on day 4."""
    plan = Plan(days=4, users=60)
    code = soak.main(tmp_path, plan)
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert (
        "to one build on days 2, 4;" in printed
        and "to a second life on days 3, 4; killed on days 4" in printed
    )
    days = soak.load(tmp_path, plan)[0].days
    assert "backfill" in days[3].seconds and days[4].crash == "during ingest/events"
    assert all(day.reading.startswith("rows first seen since") for day in days[1:])
    assert any("hot user 'bot'" in text for text in days[2].warnings)
    assert any("app_version" in text for text in days[3].warnings)
