"""Bad raw data, one test per row of docs/faults.md D3 (9-25, 43, 44), on the product's own steps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
import raw_events
from event_frames import event_frame
from metamorphic import plain_rows
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    BinaryType,
    BooleanType,
    DataType,
    DoubleType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from dynamix.config import Config, load_config
from dynamix.contracts import EVENTS
from dynamix.features import oracle
from dynamix.features.conversions import attribution_counts
from dynamix.features.dwell import cap_dwell, derive_dwell
from dynamix.features.events import close_streams, split_raw
from dynamix.features.quality import gate
from dynamix.features.raw import contract_violations, unread_columns
from dynamix.features.sessions import assign_sessions, session_features
from dynamix.features.surfaces import surface_days

UNTIL = datetime(2026, 2, 1)
NOON, MINUTE = "2026-01-05 12:00:00", 60_000


event = raw_events.event


def _row(event_id: str, **more: Any) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "user_id": "u",
        "event_ts": NOON,
        "event_type": "view",
        "surface": "feed",
    } | more


RAW = [
    _row("twice"),
    _row("twice"),
    _row("again", ingest_ts="2026-01-05 12:00:09"),
    _row("again", ingest_ts="2026-01-05 12:00:05"),
    _row("other", ingest_ts="2026-01-05 12:00:01", item_id="i"),
    _row("other", ingest_ts="2026-01-05 12:00:02", item_id="j"),
    _row("tie", ingest_ts="2026-01-05 12:00:01", item_id="i"),
    _row("tie", ingest_ts="2026-01-05 12:00:01", item_id="j"),
    _row("no time", event_ts=None),
    _row("rubbish", event_ts="soon"),
    _row("bare", event_ts="1767614400"),
    _row("s read as ms", event_ts="1970-01-21 11:00:14.4"),
    _row("9999", event_ts="9999-01-01 00:00:00"),
    _row("no user", user_id=None),
    _row("blank user", user_id="  "),
    _row("no surface", surface=None),
    _row("skew in time", ingest_ts="2026-01-05 11:45:00"),
    _row("skew", ingest_ts="2026-01-05 11:44:59.999999"),
    _row("dwell below 0", dwell_ms="-1"),
    _row("dwell nan", dwell_ms="NaN"),
    _row("dwell infinite", dwell_ms="Infinity"),
    _row("dwell no number", dwell_ms="long"),
    _row("dwell", dwell_ms="32400000"),
    _row("torn", attributes='{"device": '),
    _row("empty item", item_id=""),
    _row("unicode", item_id="ключ 🗝"),
    _row("1 kB", item_id="x" * 1024),
    _row("over 1 kB", item_id="x" * 1025),
    _row("1 MB", item_id="x" * 10**6),
]


@dataclass(frozen=True)
class Judged:
    """Fates and kept rows by event_id, in the order of ingest."""

    fates: dict[str, list[tuple[str, str | None]]]
    hints: dict[str, str]
    good: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def judged(spark: SparkSession) -> Judged:
    names = list(dict.fromkeys(name for row in RAW for name in row))
    rows = [tuple(row.get(name) for name in names) for row in RAW]
    raw = spark.createDataFrame(rows, ", ".join(f"{name} string" for name in names))
    split = split_raw(raw, config=load_config(settings=["attributes=[device]"]), run_id="r", until=UNTIL)
    told = split.judged.orderBy("ingest_ts", "fate").collect()
    fates: dict[str, list[tuple[str, str | None]]] = {}
    for row in told:
        fates.setdefault(row["event_id"], []).append((row["fate"], row["reason"]))
    return Judged(
        fates,
        {row["event_id"]: row["hint"] for row in told if row["hint"]},
        {row["event_id"]: row for row in plain_rows(split.good)},
    )


def _out(judged: Judged, name: str) -> str | None:
    """Reason for which the only row of this id is in quarantine."""
    ((fate, reason),) = judged.fates[name]
    assert (fate == "quarantined") == (reason is not None) == (name not in judged.good)
    return reason


# ---------------------------------------------------------------- rows


@pytest.mark.spark
def test_fault_9_an_event_delivered_twice_stays_once_with_its_earliest_ingest(judged: Judged) -> None:
    for name in ("twice", "again"):
        assert sorted(fate for fate, _ in judged.fates[name]) == ["deduplicated", "kept"]
    assert judged.fates["again"][0][0] == "kept"
    assert judged.good["again"]["ingest_ts"] - judged.good["again"]["event_ts"] == 5_000_000


@pytest.mark.spark
def test_fault_10_of_one_id_with_two_payloads_the_earliest_ingest_stays(judged: Judged) -> None:
    conflict = ("quarantined", "CONFLICTING_DUPLICATE")
    assert judged.fates["other"] == [("kept", None), conflict]
    assert judged.good["other"]["item_id"] == "i"
    assert judged.fates["tie"] == [conflict, conflict]


@pytest.mark.spark
def test_fault_11_a_doubled_key_never_reaches_a_table(spark: SparkSession) -> None:
    rows = event_frame(spark, [{"t": 0}, {"t": 1}]).unionByName(event_frame(spark, [{"t": 5}]))
    report = gate(rows, EVENTS)
    assert (report.success, report.metrics["duplicates"]) == (False, 1)
    assert report.failures == ("violated by 1 rows: key (event_id) is unique",)


@pytest.mark.spark
def test_fault_14_a_time_that_is_none_or_of_another_unit(judged: Judged) -> None:
    assert [_out(judged, n) for n in ("no time", "rubbish", "bare")] == ["BAD_TIMESTAMP"] * 3
    assert [_out(judged, n) for n in ("s read as ms", "9999")] == ["TIMESTAMP_RANGE"] * 2
    assert "declare `time_unit:`" in judged.hints["bare"]
    assert "1,000 times too fine" in judged.hints["s read as ms"]


@pytest.mark.spark
def test_fault_15_a_missing_user_or_surface_makes_no_group(judged: Judged) -> None:
    assert [_out(judged, n) for n in ("no user", "blank user", "no surface")] == [
        "NULL_USER", "NULL_USER", "NULL_SURFACE",
    ]  # fmt: skip


@pytest.mark.spark
def test_fault_16_an_event_more_than_15_minutes_after_its_ingest(judged: Judged) -> None:
    assert _out(judged, "skew in time") is None
    assert _out(judged, "skew") == "FUTURE_EVENT"


@pytest.mark.spark
def test_fault_17_a_dwell_that_is_none_is_missing_and_an_absurd_one_capped(
    judged: Judged, spark: SparkSession
) -> None:
    for name in ("dwell below 0", "dwell nan", "dwell infinite", "dwell no number"):
        assert (judged.good[name]["dwell_ms"], judged.good[name]["bad_dwell"]) == (None, True)
    assert (judged.good["dwell"]["dwell_ms"], judged.good["dwell"]["bad_dwell"]) == (32_400_000, False)
    frame = raw_events.frame(
        spark, [event("u", 0, event_id="bad"), event("u", 9, event_id="open", dwell_ms=32_400_000)]
    )
    marked = assign_sessions(frame, config=Config()).withColumn("bad_dwell", F.col("event_id") == "bad")
    rows = cap_dwell(derive_dwell(marked, config=Config()), caps={"feed/view": 600_000}).collect()
    assert {row["event_id"]: (row["dwell_status"], row["dwell_ms"]) for row in rows} == {
        "bad": ("missing", None),
        "open": ("capped", 600_000),
    }


@pytest.mark.spark
def test_fault_18_conversions_without_before_twice_and_after_the_window(spark: SparkSession) -> None:
    hour = 3600
    shown = [{"event_type": "impression", "item_id": item, "t": 10 * hour} for item in "abcd"]
    sold = [("a", 11), ("a", 12), ("b", 9), ("c", 60), ("nothing", 11)]
    rows = shown + [{"event_type": "conversion", "item_id": item, "t": at * hour} for item, at in sold]
    counted = attribution_counts(
        event_frame(spark, rows), load_config(settings=["attribution.join_on=[[item_id]]"])
    )
    assert counted.collect()[0].asDict() == {
        "conversions": 5, "attributed": 1, "repeated": 1, "early": 1, "late": 1, "unmatched": 1,
    }  # fmt: skip


@pytest.mark.spark
def test_fault_25_a_payload_of_torn_json(judged: Judged) -> None:
    assert _out(judged, "torn") == "BAD_PAYLOAD"


@pytest.mark.spark
def test_fault_43_odd_ids_stay_text_and_long_ones_go(judged: Judged) -> None:
    assert judged.good["empty item"]["item_id"] is None
    assert judged.good["unicode"]["item_id"] == "ключ 🗝"
    assert (_out(judged, "1 kB"), _out(judged, "over 1 kB"), _out(judged, "1 MB")) == (
        None, "ID_TOO_LONG", "ID_TOO_LONG",
    )  # fmt: skip


def test_fault_43_an_id_that_arrives_as_a_fraction_is_a_damaged_id() -> None:
    found = contract_violations(_schema(user_id=DoubleType()), config=Config())
    assert found == ["column 'user_id' is double, events.user_id needs string"]


# ---------------------------------------------------------------- sessions


def _settled(spark: SparkSession, rows: list[dict[str, Any]], *settings: str) -> DataFrame:
    config = load_config(settings=settings)
    return derive_dwell(assign_sessions(raw_events.frame(spark, rows), config=config), config=config)


def _sessions(settled: DataFrame, *settings: str) -> list[dict[str, Any]]:
    rows = plain_rows(session_features(settled, config=load_config(settings=settings)))
    return sorted(rows, key=lambda row: (row["user_id"], row["session_start"]))


@pytest.mark.spark
def test_fault_12_a_late_event_that_bridges_two_sessions_leaves_one(spark: SparkSession) -> None:
    """Recomputed with it, the first session's id goes on and the second one's is gone, and so is its row."""
    before = [event("u", 0), event("u", 50 * MINUTE)]
    two = _sessions(_settled(spark, before))
    late = event("u", 25 * MINUTE, ingest=raw_events.START_MS + 3 * 86_400_000)
    (one,) = _sessions(_settled(spark, [*before, late]))
    assert [row["n_events"] for row in two] == [1, 1]
    assert (one["session_id"], one["n_events"]) == (two[0]["session_id"], 3)
    assert one["session_end"] == two[1]["session_end"]


@pytest.mark.spark
def test_fault_13_an_event_exactly_at_the_gap_is_of_the_session(spark: SparkSession) -> None:
    rows = [event("at", 0), event("at", 30 * MINUTE), event("over", 0), event("over", 30 * MINUTE + 1)]
    assert [row["user_id"] for row in _sessions(_settled(spark, rows))] == ["at", "over", "over"]


@pytest.mark.spark
def test_fault_19_another_session_zone_and_daylight_saving_change_no_row(spark: SparkSession) -> None:
    """In New York 2026-11-01 has 25 hours; days and sessions are those of UTC all the same."""
    start = 1_793_491_200_000 - raw_events.START_MS  # 2026-11-01 00:00 UTC
    rows = [event("u", start + 20 * MINUTE * i, event_type=("view", "click")[i % 2]) for i in range(75)]
    found = []
    for zone in ("UTC", "America/New_York"):
        before = str(spark.conf.get("spark.sql.session.timeZone"))
        spark.conf.set("spark.sql.session.timeZone", zone)
        try:
            settled = _settled(spark, rows)
            days = plain_rows(surface_days(settled, config=Config()))
            found.append((_sessions(settled), sorted(days, key=str)))
        finally:
            spark.conf.set("spark.sql.session.timeZone", before)
    assert found[0] == found[1]
    assert [row["n_events"] for row in found[0][0]] == [73, 2]  # max_length: 24 hours and not a day


@pytest.mark.spark
def test_fault_21_a_session_without_end_is_split_and_flagged(spark: SparkSession) -> None:
    rows = [event("u", 20 * MINUTE * i) for i in range(150)] + [event("v", 0)]
    told = [(r["user_id"], r["n_events"], r["capped_length"]) for r in _sessions(_settled(spark, rows))]
    assert told == [("u", 73, True), ("u", 72, True), ("u", 5, True), ("v", 1, False)]


# ---------------------------------------------------------------- columns and types


@pytest.mark.spark
def test_fault_22_an_unknown_stream_is_new_or_goes_to_unknown(spark: SparkSession) -> None:
    frame = raw_events.frame(spark, [event("u", 0), event("u", 1, surface="new")])

    def streams(*settings: str) -> list[tuple[str, bool]]:
        closed = close_streams(frame, config=load_config(settings=settings)).orderBy("event_ts").collect()
        return [(row["surface"], row["unknown_stream"]) for row in closed]

    assert streams() == [("feed", False), ("new", False)]
    known = "known_streams=[feed/view]"
    assert streams("contract=closed_unknown", known) == [("feed", False), ("unknown", True)]
    assert streams("contract=closed_fail", known) == [("feed", False), ("new", True)]


def _schema(**more: DataType) -> StructType:
    """The required columns with their types, others in addition or instead."""
    text = StringType()
    kinds = {"user_id": text, "event_ts": TimestampType(), "event_type": text, "surface": text} | more
    return StructType([StructField(name, kind) for name, kind in kinds.items()])


@pytest.mark.spark
def test_fault_23_a_new_column_is_noted_and_not_read(spark: SparkSession) -> None:
    frame = spark.createDataFrame([], _schema(loyalty=IntegerType()))
    assert contract_violations(frame.schema, config=Config()) == []
    assert unread_columns(frame, config=Config()) == ["loyalty"]


def test_fault_24_a_column_gone_or_of_another_type_is_named_with_both_types() -> None:
    schema = _schema(surface=BinaryType(), position=BooleanType())
    schema = StructType([field for field in schema.fields if field.name != "event_type"])
    assert contract_violations(schema, config=Config()) == [
        "column 'event_type' for events.event_type (string) is missing",
        "column 'surface' is binary, events.surface needs string",
        "column 'position' is boolean, events.position needs int",
    ]
    as_text = _schema(dwell_ms=StringType(), item_id=LongType())
    assert contract_violations(as_text, config=Config()) == []


# ---------------------------------------------------------------- ties


@pytest.mark.spark
def test_fault_44_ties_in_time_have_one_order_and_double_no_row(spark: SparkSession) -> None:
    """event_seq (none first), then ingest, then id; the dwell of each is told by the next in that order."""
    rows = [
        event("u", 0, event_id="d", event_seq=2),
        event("u", 0, event_id="c", event_seq=1, ingest=raw_events.START_MS + 9),
        event("u", 0, event_id="b", event_seq=1, ingest=raw_events.START_MS + 9),
        event("u", 0, event_id="a", event_seq=1, ingest=raw_events.START_MS + 10),
        event("u", 0, event_id="z", event_seq=None),
    ]
    wanted = ["z", "b", "c", "a", "d"]
    fine = [row | {"event_ts": row["ts"] * 1000, "ingest_ts": row["ingest"] * 1000} for row in rows]
    assert [row["event_id"] for row in oracle.in_order(fine)] == wanted
    told = {row["event_id"]: row["dwell_status"] for row in _settled(spark, rows).collect()}
    assert told == {name: "censored" if name == "d" else "derived" for name in wanted}
