"""Every raw row has one fate: visible rows beside the reason expected for each."""

from __future__ import annotations

import hashlib
import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    BooleanType,
    DoubleType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from dynamix.config import Config, load_config
from dynamix.contracts import EVENTS_QUARANTINE
from dynamix.errors import ConfigError, InputError
from dynamix.features.events import RawSplit, close_streams, latest_ingest, split_raw
from dynamix.features.raw import contract_violations, read_raw, renames, undeclared_unit, unread_columns

UNTIL = datetime(2026, 2, 1)
NOON = "2026-01-05 12:00:00"


def _schema(**types: Any) -> StructType:
    return StructType([StructField(name, kind) for name, kind in types.items()])


def _good_schema(**more: Any) -> StructType:
    text = StringType()
    return _schema(
        **({"user_id": text, "event_ts": TimestampType(), "event_type": text, "surface": text} | more)
    )


def _frame(spark: SparkSession, rows: list[dict[str, Any]], **types: str) -> DataFrame:
    """Raw rows as text columns; `types` names the columns of another type."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    schema = ", ".join(f"{name} {types.get(name, 'string')}" for name in names)
    return spark.createDataFrame([tuple(row.get(name) for name in names) for row in rows], schema)


def _row(**more: Any) -> dict[str, Any]:
    return {"user_id": "u", "event_ts": NOON, "event_type": "view", "surface": "feed"} | more


def _split(raw: DataFrame, *settings: str) -> RawSplit:
    return split_raw(raw, config=load_config(settings=settings), run_id="r", until=UNTIL)


# ---------------------------------------------------------------- contract, names, units: no Spark


def test_all_violations_are_named_with_both_types() -> None:
    schema = _schema(uid=DoubleType(), event_ts=BooleanType(), surface=StringType(), position=BooleanType())
    renamed = _schema(
        user_id=DoubleType(), event_ts=BooleanType(), surface=StringType(), position=BooleanType()
    )
    assert len(schema.fields) == len(renamed.fields)
    found = contract_violations(renamed, config=load_config(settings=["columns.user_id=uid"]))
    assert found == [
        "column 'uid' is double, events.user_id needs string",
        "column 'event_ts' is boolean, events.event_ts needs timestamp",
        "column 'event_type' for events.event_type (string) is missing",
        "column 'position' is boolean, events.position needs int",
    ]


def test_whole_number_ids_and_numbers_in_text_pass() -> None:
    assert contract_violations(_good_schema(user_id=LongType(), dwell_ms=StringType()), config=Config()) == []


def test_an_attribute_that_is_nowhere_is_a_violation() -> None:
    config = load_config(settings=["attributes=[device]"])
    assert contract_violations(_good_schema(), config=config) == ["attribute column 'device' is missing"]
    assert contract_violations(_good_schema(attributes=StringType()), config=config) == []


def test_renaming_takes_one_source_for_two_names_and_shadows_the_source_own_name() -> None:
    config = load_config(settings=["columns.item_id=sku", "columns.ad_id=sku", "columns.surface=page"])
    assert renames(["sku", "page", "surface", "x"], config=config) == [
        ("item_id", "sku"),
        ("ad_id", "sku"),
        ("surface", "page"),
        ("x", "x"),
    ]
    with pytest.raises(ConfigError, match=r"columns\.user"):
        renames(["a"], config=load_config(settings=["columns.user=a"]))


@pytest.mark.parametrize(("value", "unit"), [(1.7e9, "s"), (1.7e12, "ms"), (1.7e15, "us")])
def test_undeclared_unit_is_guessed_from_the_size(value: float, unit: str) -> None:
    error = undeclared_unit("src", "t", "bigint", value)
    assert error.exit_code == 2
    assert f"looks like {unit};" in error.message


# ---------------------------------------------------------------- reading


@pytest.mark.spark
def test_the_events_child_is_read_and_names_are_mapped(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "a.csv").write_text(f'uid,t,kind,surface\n007,{NOON},view,"a ""b"""\n')
    config = load_config(settings=["columns.user_id=uid", "columns.event_ts=t", "columns.event_type=kind"])
    raw = read_raw(spark, str(tmp_path), config=config)
    assert [row.asDict() for row in raw.collect()] == [
        {"user_id": "007", "event_ts": NOON, "event_type": "view", "surface": 'a "b"'}
    ]


@pytest.mark.spark
def test_sources_that_cannot_be_read_are_input_errors(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.parquet").write_text("no parquet")
    cases = {
        "nowhere.at.all": "neither a path nor a table",
        "empty": "no rows",
        "torn.parquet": "cannot be read",
    }
    for name, message in cases.items():
        source = name if name.startswith("nowhere") else str(tmp_path / name)
        with pytest.raises(InputError, match=message):
            read_raw(spark, source, config=Config())


@pytest.mark.spark
def test_a_number_as_time_needs_a_unit(spark: SparkSession, tmp_path: Path) -> None:
    raw = _frame(spark, [_row(event_ts=1_767_614_400)], event_ts="bigint")
    raw.write.parquet(str(tmp_path / "p"))
    with pytest.raises(ConfigError, match="looks like s;"):
        read_raw(spark, str(tmp_path / "p"), config=Config())
    config = load_config(settings=["time_unit=s"])
    assert latest_ingest(read_raw(spark, str(tmp_path / "p"), config=config), config=config) == date(
        2026, 1, 6
    )


# ---------------------------------------------------------------- fates


@pytest.mark.spark
def test_each_bad_row_has_its_reason(spark: SparkSession) -> None:
    cases = {
        "good": (_row(), None),
        "zone": (_row(event_ts="2026-01-05T12:00:00+03:00"), None),
        "user": (_row(user_id=None), "NULL_USER"),
        "blank user": (_row(user_id=" "), "NULL_USER"),
        "surface": (_row(surface=""), "NULL_SURFACE"),
        "type": (_row(event_type=None), "NULL_TYPE"),
        "no time": (_row(event_ts=None), "BAD_TIMESTAMP"),
        "rubbish": (_row(event_ts="yesterday"), "BAD_TIMESTAMP"),
        "clock only": (_row(event_ts="10:00"), "BAD_TIMESTAMP"),
        "bare": (_row(event_ts="1767614400"), "BAD_TIMESTAMP"),
        "1970": (_row(event_ts="1970-01-21 11:00:14.4"), "TIMESTAMP_RANGE"),
        "9999": (_row(event_ts="9999-01-01 00:00:00"), "TIMESTAMP_RANGE"),
        "bad ingest": (_row(ingest_ts="x"), "BAD_TIMESTAMP"),
        "in time": (_row(ingest_ts="2026-01-05 11:45:00"), None),
        "future": (_row(ingest_ts="2026-01-05 11:44:59"), "FUTURE_EVENT"),
        "long": (_row(item_id="é" * 513), "ID_TOO_LONG"),
        "not long": (_row(item_id="é" * 512), None),
        "torn": (_row(attributes='{"device": '), "BAD_PAYLOAD"),
        "list": (_row(attributes="[1]"), "BAD_PAYLOAD"),
        "position": (_row(position="first"), "BAD_PAYLOAD"),
        "half": (_row(position="1.5"), "BAD_PAYLOAD"),
    }
    rows = [row | {"event_id": name} for name, (row, _) in cases.items()]
    split = _split(_frame(spark, rows), "attributes=[device]")
    judged = split.judged.select("event_id", "reason", "fate", "hint", "raw").collect()
    assert {row["event_id"]: row["reason"] for row in judged} == {
        n: reason for n, (_, reason) in cases.items()
    }
    for row in judged:
        assert (row["fate"] == "kept") == (row["reason"] is None) == (row["raw"] is None)
    hints = {row["event_id"]: row["hint"] for row in judged}
    assert "bare number" in hints["bare"]
    assert "1,000 times too fine" in hints["1970"]
    assert {row["reason"] for row in split.quarantine.collect()} == {r for _, r in cases.values() if r}


@pytest.mark.spark
@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_numeric_times_of_a_declared_unit(spark: SparkSession, unit: str) -> None:
    factor = {"s": 1, "ms": 1_000, "us": 1_000_000}[unit]
    rows = [
        _row(event_ts=1_767_614_400 * factor),
        _row(event_ts=1_767_614_400 * factor * 1000),
        _row(event_ts=2**63 - 1),
        _row(event_ts=0),
        _row(event_ts=None),
    ]
    split = _split(_frame(spark, rows, event_ts="bigint"), f"time_unit={unit}")
    assert [r["t"] for r in split.good.select(F.unix_seconds("event_ts").alias("t")).collect()] == [
        1_767_614_400
    ]
    reasons = sorted(row["reason"] for row in split.quarantine.collect())
    assert reasons == ["BAD_TIMESTAMP", "TIMESTAMP_RANGE", "TIMESTAMP_RANGE", "TIMESTAMP_RANGE"]


@pytest.mark.spark
def test_copies_of_an_event(spark: SparkSession) -> None:
    early, late, later = "2026-01-05 12:00:01", "2026-01-05 12:00:02", "2026-01-05 12:00:03"
    rows = [
        _row(event_id="same", ingest_ts=late, item_id="i"),
        _row(event_id="same", ingest_ts=early, item_id="i"),
        _row(event_id="same", ingest_ts=early, item_id="i"),
        _row(event_id="conflict", ingest_ts=late, item_id="j"),
        _row(event_id="conflict", ingest_ts=early, item_id="i"),
        _row(event_id="conflict", ingest_ts=later, item_id="i"),
        _row(event_id="null differs", ingest_ts=early, item_id="i"),
        _row(event_id="null differs", ingest_ts=late, item_id=None),
        _row(event_id="tie", ingest_ts=early, item_id="i"),
        _row(event_id="tie", ingest_ts=early, item_id="j"),
        _row(event_id="tie", ingest_ts=late, item_id="j"),
        _row(event_id="tie", ingest_ts=early, item_id="i"),
    ]
    split = _split(_frame(spark, rows))
    counted = split.judged.groupBy("event_id", "fate").count().collect()
    assert {(row["event_id"], row["fate"]): row["count"] for row in counted} == {
        ("same", "kept"): 1,
        ("same", "deduplicated"): 2,
        ("conflict", "kept"): 1,
        ("conflict", "deduplicated"): 1,
        ("conflict", "quarantined"): 1,
        ("null differs", "kept"): 1,
        ("null differs", "quarantined"): 1,
        ("tie", "quarantined"): 4,
    }
    kept = split.good.select("event_id", "item_id", F.date_format("ingest_ts", "ss").alias("s")).collect()
    assert sorted(map(tuple, kept)) == [
        ("conflict", "i", "01"),
        ("null differs", "i", "01"),
        ("same", "i", "01"),
    ]
    assert tuple(split.quarantine.columns) == EVENTS_QUARANTINE.names
    out = split.quarantine.collect()
    assert len({(row["row_hash"], row["reason"]) for row in out}) == len(out) == 5
    assert sum(row["copies"] for row in out) == 6
    assert {json.loads(row["raw"])["event_id"] for row in out} == {"conflict", "null differs", "tie"}


@pytest.mark.spark
def test_a_column_that_the_source_has_from_some_day_on_changes_no_quarantined_row(
    spark: SparkSession,
) -> None:
    rows = [_row(surface=""), _row(event_ts="yesterday"), _row()]
    frame = _frame(spark, rows)
    later = frame.withColumn("app_version", F.lit(None).cast("string"))
    before, after = (
        {tuple(r) for r in _split(f).quarantine.drop("run_id").collect()} for f in (frame, later)
    )
    assert len(before) == 2 and before == after
    (told,) = _split(frame.where("surface = ''").withColumn("app_version", F.lit("7"))).quarantine.collect()
    assert json.loads(told["raw"])["app_version"] == "7"


@pytest.mark.spark
def test_derived_event_id_is_the_hash_of_the_row_without_its_ingest(spark: SparkSession) -> None:
    rows = [
        _row(ingest_ts="2026-01-05 12:00:01", extra="a", tags={"z": "1", "b": "2"}),
        _row(ingest_ts="2026-01-05 12:00:02", extra="a", tags={"b": "2", "z": "1"}),
        _row(ingest_ts="2026-01-05 12:00:02", extra=None, tags=None),
    ]
    split = _split(_frame(spark, rows, tags="map<string,string>"))

    def expected(row: dict[str, Any]) -> str:
        plain = {name: row[name] for name in sorted(row) if name != "ingest_ts"}
        if plain["tags"]:
            plain["tags"] = dict(sorted(plain["tags"].items()))
        return hashlib.sha256(json.dumps(plain, separators=(",", ":")).encode()).hexdigest()[:32]

    assert {row["event_id"] for row in split.good.collect()} == {expected(rows[0]), expected(rows[2])}
    assert split.judged.where("fate = 'deduplicated'").count() == 1


@pytest.mark.spark
def test_events_one_microsecond_apart_stay_two(spark: SparkSession) -> None:
    rows = [_row(event_ts="2026-01-05 12:00:00.000001"), _row(event_ts="2026-01-05 12:00:00.000002")]
    raw = _frame(spark, rows).withColumn("event_ts", F.to_timestamp("event_ts"))
    assert _split(raw).good.count() == 2


@pytest.mark.spark
def test_bad_dwell_keeps_its_event(spark: SparkSession) -> None:
    cases = {"ok": (12.6, 13, False), "nan": (float("nan"), None, True), "negative": (-1.0, None, True),
             "infinite": (float("inf"), None, True), "none": (None, None, False), "zero": (0.0, 0, False)}  # fmt: skip
    rows = [_row(event_id=name, dwell_ms=value) for name, (value, _, _) in cases.items()]
    good = _split(_frame(spark, rows, dwell_ms="double")).good.collect()
    assert {row["event_id"]: (row["dwell_ms"], row["bad_dwell"]) for row in good} == {
        name: (ms, bad) for name, (_, ms, bad) in cases.items()
    }


@pytest.mark.spark
def test_rows_after_the_run_date_are_not_seen(spark: SparkSession) -> None:
    rows = [
        _row(event_ts="2026-01-31 23:59:59.999999", event_id="last"),
        _row(event_ts="2026-02-01 00:00:00", event_id="next"),
        _row(ingest_ts="2026-02-01 00:00:00", event_id="late"),
        _row(user_id=None, event_ts="2026-02-01 00:00:00", event_id="bad and next"),
        _row(event_ts="x", ingest_ts="2026-01-05 00:00:00", event_id="unreadable"),
        _row(event_ts="x", ingest_ts="2026-02-05 00:00:00", event_id="unreadable and late"),
    ]
    split = _split(_frame(spark, rows))
    assert split.seen.count() == 2
    assert {(r["event_id"], r["fate"]) for r in split.judged.collect()} == {
        ("last", "kept"),
        ("unreadable", "quarantined"),
    }
    assert latest_ingest(_frame(spark, rows), config=Config()) == date(2026, 2, 6)


@pytest.mark.spark
def test_row_order_and_partitions_do_not_matter(spark: SparkSession) -> None:
    rows = [
        _row(
            event_id=f"e{i % 7}",
            item_id=str(i % 3),
            ingest_ts=f"2026-01-05 12:00:0{i % 4}",
            user_id=f"u{i % 7}",
        )
        for i in range(60)
    ]
    one, many = (_split(_frame(spark, order).repartition(n)) for order, n in ((rows, 1), (rows[::-1], 5)))
    for left, right in ((one.good, many.good), (one.quarantine, many.quarantine)):
        text = [sorted(str(row) for row in frame.collect()) for frame in (left, right)]
        assert text[0] == text[1]


@pytest.mark.spark
def test_attributes_come_from_columns_maps_and_json(spark: SparkSession) -> None:
    rows = [_row(event_id="a", attributes='{"device": "phone", "n": 3, "x": 1}', city="Bonn")]
    settings = "attributes=[device, n, city, absent]"
    good = _split(_frame(spark, rows), settings).good.collect()
    assert good[0]["attributes"] == {"device": "phone", "n": "3", "city": "Bonn"}
    raw = _frame(spark, [_row(attributes={"device": "tv"})], attributes="map<string,string>")
    assert _split(raw, settings).good.collect()[0]["attributes"] == {"device": "tv"}
    noted = unread_columns(
        _frame(spark, [_row(city="x", new=1)], new="int"), config=load_config(settings=[settings])
    )
    assert noted == ["new"]


@pytest.mark.spark
def test_a_closed_contract_moves_new_streams_to_unknown(spark: SparkSession) -> None:
    rows = [
        _row(event_id="a"),
        _row(event_id="b", surface="new"),
        _row(event_id="c", event_type="impression"),
    ]
    settings = ("contract=closed_unknown", "known_streams=[feed/view]")
    closed = close_streams(_split(_frame(spark, rows)).good, config=load_config(settings=settings)).collect()
    assert {r["event_id"]: (r["surface"], r["event_type"], r["unknown_stream"]) for r in closed} == {
        "a": ("feed", "view", False),
        "b": ("unknown", "unknown", True),
        "c": ("feed", "impression", False),
    }
