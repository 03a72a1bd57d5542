"""Surface EBFs: day rows and windows against sums in plain Python; any chunking gives the same rows."""

from __future__ import annotations

import math
import random
from collections import Counter
from datetime import date, timedelta
from typing import Any

import pytest
from event_frames import START, event_frame
from pyspark.sql import SparkSession

from dynamix.config import Config
from dynamix.declarations import StreamOptions
from dynamix.features.surfaces import surface_days, surface_rows, surface_windows

pytestmark = pytest.mark.spark
DAY = 86400
FIRST = START.date()


def grid(x: float) -> float:
    return round(x * 2**20) / 2**20


def random_events(seed: int, days: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    statuses = ["observed", "derived", "capped", "censored", "imputed", "missing"]
    rows = []
    for _ in range(200):
        status = rng.choice(statuses)
        known = status in ("observed", "derived", "capped", "imputed")
        rows.append(
            {
                "user_id": rng.choice("abc"),
                "surface": rng.choice(["shop", "feed"]),
                "event_type": rng.choice(["view", "open", "conversion", "impression"]),
                "t": rng.randrange(days * DAY),
                "dwell_ms": rng.choice([0, rng.randrange(10**5)]) if known else None,
                "dwell_status": status,
            }
        )
    return rows


def expected(rows: list[dict[str, Any]], *, end: int, length: int | None) -> dict[Any, dict[str, Any]]:
    """Rows of the days [end − length, end) per (user, stream), straight from the events."""
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        day = row["t"] // DAY
        if row["event_type"] == "impression" or day >= end or (length is not None and day < end - length):
            continue
        usable = row["dwell_ms"] is not None and row["dwell_status"] != "imputed"
        x = math.log1p(row["dwell_ms"]) if usable else 0.0
        for stream in (f"{row['surface']}/{row['event_type']}", f"{row['surface']}/*"):
            cell = found.setdefault(
                (row["user_id"], stream), {"hist": Counter(), "sums": Counter(), "last": -1}
            )
            cell["last"] = max(cell["last"], row["t"])
            cell["sums"].update(
                n=1,
                dwell_sum=row["dwell_ms"] if usable else 0,
                z_sum=grid(x),  # type: ignore[arg-type]
                z_sq_sum=grid(x * x),  # type: ignore[arg-type]
                n_dwell=int(usable),
                n_censored=int(row["dwell_status"] == "censored"),
                conversions=int(row["event_type"] == "conversion"),
            )
            if usable:
                cell["hist"][math.floor(4 * x)] += 1
    spent: Counter[str] = Counter()
    for (user, stream), cell in found.items():
        spent[user] += 0 if stream.endswith("/*") else cell["sums"]["dwell_sum"]
    for (user, _), cell in found.items():
        cell["share"] = cell["sums"]["dwell_sum"] / spent[user] if spent[user] else None
    return found


def check(found: list[Any], wanted: dict[Any, dict[str, Any]]) -> None:
    assert {(r.user_id, r.stream) for r in found} == set(wanted) and len(found) == len(wanted)
    for row in found:
        cell = wanted[row.user_id, row.stream]
        assert {name: row[name] for name in cell["sums"]} == dict(cell["sums"])
        assert row.dwell_hist == dict(cell["hist"])
        assert row.last == cell["last"]
        assert row.dwell_share == cell["share"]


def test_a_user_without_dwell_has_no_share(spark: SparkSession) -> None:
    rows = [
        {"t": 0, "dwell_ms": 0},
        {"t": 1},
        {"t": DAY, "dwell_ms": 5},
        {"t": DAY, "user_id": "v", "dwell_ms": 7},
    ]
    days = surface_days(event_frame(spark, rows), config=Config())
    found = {(r.user_id, r.window_end.day, r.stream): r.dwell_share for r in days.collect()}
    assert found == {
        **{("u", 2, name): None for name in ("shop/view", "shop/*")},
        **{(user, 3, name): 1.0 for user in "uv" for name in ("shop/view", "shop/*")},
    }


def collected(frame: Any, where: str) -> list[Any]:
    shifted = f"unix_seconds(last_ts) - unix_seconds(timestamp'{START}Z')"
    return list(frame.where(where).selectExpr("*", f"{shifted} AS last").collect())


def test_day_rows_equal_sums_over_the_events_of_the_day(spark: SparkSession) -> None:
    rows = random_events(1, days=3)
    days = surface_days(event_frame(spark, rows), config=Config()).cache()
    for day in range(3):
        found = collected(days, f"window_end = date'{FIRST + timedelta(days=day + 1)}'")
        check(found, expected(rows, end=day + 1, length=1))
        assert all(r.window_days == 1 and r.decayed_n == r.n for r in found)
    # the order and the split of the input are irrelevant to the last bit
    halves = [event_frame(spark, part) for part in (rows[100:][::-1], rows[:100])]
    again = surface_days(halves[0].unionByName(halves[1]).repartition(3), config=Config())
    order = ["user_id", "stream", "window_end"]
    assert again.orderBy(order).collect() == days.orderBy(order).collect()


def test_windows_are_sums_of_day_rows_with_a_half_life_of_seven_days(spark: SparkSession) -> None:
    rows = random_events(2, days=40)
    days = surface_days(event_frame(spark, rows), config=Config())
    run_date = FIRST + timedelta(days=39)  # the last day is not over yet
    windows = surface_windows(days, run_date).cache()
    for name, length in ((7, 7), (28, 28), (0, None)):
        check(collected(windows, f"window_days = {name}"), expected(rows, end=39, length=length))
    for row in windows.where("window_days = 0").collect():
        total = sum(
            2 ** -((38 - r["t"] // DAY) / 7)
            for r in rows
            if r["user_id"] == row.user_id
            and r["event_type"] != "impression"
            and r["t"] < 39 * DAY
            and row.stream in (f"{r['surface']}/*", f"{r['surface']}/{r['event_type']}")
        )
        assert row.decayed_n == pytest.approx(total, abs=1e-4)
    assert {r.window_end for r in windows.select("window_end").distinct().collect()} == {run_date}
    assert isinstance(run_date, date)


def test_declared_windows_and_half_lives_hold_for_their_stream_only(spark: SparkSession) -> None:
    rows = random_events(5, days=40)
    declared = {"shop/view": StreamOptions(windows=(3, 0), half_life_days=2)}
    config = Config(streams=declared)
    run_date = FIRST + timedelta(days=40)
    found = surface_rows(event_frame(spark, rows), run_date, config=config).cache()
    again = surface_windows(found, run_date, config=config)
    for length in (3, 7, 28, 0):
        wanted = expected(rows, end=40, length=length or None)
        own = {
            key: cell
            for key, cell in wanted.items()
            if (key[1] == "shop/view") == (length in (3, 0)) or length == 0
        }
        for frame in (found, again):
            check(collected(frame, f"window_days = {length}"), own)
    for row in found.where("window_days = 0").collect():
        half = 2 if row.stream == "shop/view" else 7
        total = sum(
            2 ** -((39 - r["t"] // DAY) / half)
            for r in rows
            if r["user_id"] == row.user_id
            and r["event_type"] != "impression"
            and row.stream in (f"{r['surface']}/*", f"{r['surface']}/{r['event_type']}")
        )
        assert row.decayed_n == pytest.approx(total, abs=1e-4)
