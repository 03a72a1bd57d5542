"""Each test on rows stands on one piece of the product: with that piece taken away its assertion fails.

For the rows of docs/faults.md 10, 12, 13, 19, 44; those on tables, aliases and steps lie with their tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any

import pytest
import raw_events
from event_frames import event_frame
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import EVENTS
from dynamix.features.dwell import derive_dwell
from dynamix.features.events import split_raw
from dynamix.features.increment import neighbours, touched_chains
from dynamix.features.sessions import assign_sessions
from dynamix.features.training import with_segments
from dynamix.jobs.ingest import _settle

pytestmark = pytest.mark.spark

MINUTE_S = 60


# ---------------------------------------------------------------- 10: one id, two payloads


def _fates(spark: SparkSession) -> list[tuple[str, str]]:
    rows = [
        ("e", "u", "2026-01-05 12:00:00", f"2026-01-05 12:00:0{i}", "view", "feed", f"i{i}") for i in (1, 2)
    ]
    names = ("event_id", "user_id", "event_ts", "ingest_ts", "event_type", "surface", "item_id")
    raw = spark.createDataFrame(rows, ", ".join(f"{name} string" for name in names))
    judged = split_raw(raw, config=Config(), run_id="r", until=datetime(2026, 2, 1)).judged
    return [(row["item_id"], row["fate"]) for row in judged.orderBy("ingest_ts").collect()]


def test_fault_10_without_the_comparison_of_payloads_a_contradiction_passes_for_a_copy(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [("i1", "kept"), ("i2", "quarantined")]
    assert _fates(spark) == wanted
    monkeypatch.setattr("dynamix.features.copies._payload", lambda: F.lit(0).cast("bigint"))
    assert _fates(spark) != wanted


# ---------------------------------------------------------------- 12: a late bridge


def _after_the_bridge(spark: SparkSession, *, near: bool) -> dict[str, str]:
    """event_id -> session_id once a late event has come between two stored sessions of one event each."""
    times = {"left": 0, "right": 50 * MINUTE_S, "bridge": 25 * MINUTE_S}
    frame = event_frame(spark, [{"event_id": name, "t": t} for name, t in times.items()])
    stored = _settled(frame.where("event_id <> 'bridge'"))
    canonical = frame.drop("dwell_status", "dwell_logged_ms", "session_id", "session_start")
    new = canonical.where("event_id = 'bridge'").withColumn("unknown_stream", F.lit(False))
    around = neighbours(new, stored, config=Config(), days=1)
    chains = touched_chains(new, around if near else around.limit(0), config=Config())
    again = _settled(chains).select(*EVENTS.names)
    rest = stored.join(again, "event_id", "left_anti").select(*EVENTS.names)
    return {row["event_id"]: row["session_id"] for row in rest.unionByName(again).collect()}


def _settled(events: DataFrame) -> DataFrame:
    return _settle(events.drop("session_id", "session_start", "dwell_status", "dwell_logged_ms"), Config())


def test_fault_12_without_the_stored_neighbours_of_a_late_event_both_sessions_stay(
    spark: SparkSession,
) -> None:
    assert len(set(_after_the_bridge(spark, near=True).values())) == 1
    assert len(set(_after_the_bridge(spark, near=False).values())) > 1


# ---------------------------------------------------------------- 13: exactly at the gap


def _sessions_of_a_gap(spark: SparkSession) -> int:
    """Sessions of two events that lie exactly the gap apart."""
    rows = [raw_events.event("u", 0), raw_events.event("u", 30 * raw_events.MINUTE)]
    found = assign_sessions(raw_events.frame(spark, rows), config=Config())
    return found.select("session_id").distinct().count()


def _opens_at_the_gap(config: Config) -> Column:
    return F.coalesce(F.col("_us") - F.col("_before") >= F.lit(int(config.session.gap_s * 1e6)), F.lit(True))


def test_fault_13_with_a_gap_that_opens_at_its_own_length_there_are_two_sessions(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _sessions_of_a_gap(spark) == 1
    monkeypatch.setattr("dynamix.features.sessions.opens_chain", _opens_at_the_gap)
    assert _sessions_of_a_gap(spark) != 1


# ---------------------------------------------------------------- 19: another zone


@contextmanager
def zone(spark: SparkSession, name: str) -> Iterator[None]:
    before = str(spark.conf.get("spark.sql.session.timeZone"))
    spark.conf.set("spark.sql.session.timeZone", name)
    try:
        yield
    finally:
        spark.conf.set("spark.sql.session.timeZone", before)


def _day_of_an_early_event(spark: SparkSession) -> date:
    """The day of an event at two in the night, UTC, in a session that lives in New York."""
    names = ("event_id", "user_id", "event_ts", "event_type", "surface")
    row = ("e", "u", "2026-01-05T02:00:00Z", "view", "feed")
    with zone(spark, "America/New_York"):
        raw = spark.createDataFrame([row], ", ".join(f"{name} string" for name in names))
        good = split_raw(raw, config=Config(), run_id="r", until=datetime(2026, 2, 1)).good
        found: date = good.collect()[0]["event_date"]
    return found


def test_fault_19_with_days_of_the_sessions_zone_an_early_event_is_of_the_day_before(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _day_of_an_early_event(spark) == date(2026, 1, 5)
    naive = "to_date(timestamp_micros(CAST({us} AS BIGINT)))"
    monkeypatch.setattr("dynamix.features.events.day_sql", lambda us: naive.format(us=f"({us})"))
    assert _day_of_an_early_event(spark) != date(2026, 1, 5)


def test_fault_19_the_segment_of_a_row_is_that_of_midnight_utc(spark: SparkSession) -> None:
    """The user moves from segment 1 to 2 at 00:00 UTC, two hours before the impression."""
    us = [int(datetime.fromisoformat(f"2026-01-0{day}T{hour}:00+00:00").timestamp() * 1e6) for day, hour in
          ((1, "00"), (5, "00"), (5, "02"))]  # fmt: skip
    segments = spark.createDataFrame(
        [("u", 1, us[0], us[1]), ("u", 2, us[1], None)], "user_id string, segment_id int, a bigint, b bigint"
    ).selectExpr(
        "*",
        "'s' AS segment_version",
        "'active' AS tier",
        "timestamp_micros(a) AS valid_from",
        "timestamp_micros(b) AS valid_to",
    )
    asked = spark.createDataFrame([("u", us[2])], "user_id string, us bigint").selectExpr(
        "user_id", "timestamp_micros(us) AS event_ts"
    )
    for name in ("UTC", "America/New_York"):
        with zone(spark, name):
            assert [row["segment_id"] for row in with_segments(asked, segments).collect()] == [2], name


# ---------------------------------------------------------------- 44: ties


def _statuses_of_ties(spark: SparkSession) -> dict[str, str]:
    """event_id -> dwell_status of three events of one instant, delivered in the reverse of their order."""
    rows: list[dict[str, Any]] = [
        raw_events.event("u", 0, event_id=name, event_seq=seq) for name, seq in (("c", 3), ("b", 2), ("a", 1))
    ]
    frame = raw_events.frame(spark, rows).coalesce(1)
    settled = derive_dwell(assign_sessions(frame, config=Config()), config=Config())
    return {row["event_id"]: row["dwell_status"] for row in settled.collect()}


def test_fault_44_without_the_total_order_the_order_of_delivery_decides(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"a": "derived", "b": "derived", "c": "censored"}
    assert _statuses_of_ties(spark) == wanted
    monkeypatch.setattr("dynamix.features.sessions.EVENT_ORDER", ("event_ts",))
    assert _statuses_of_ties(spark) != wanted
