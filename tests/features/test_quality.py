"""The gate: a violation, a missing column and an empty frame are failures, each said in a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dynamix.contracts import EVENTS, Column, Table
from dynamix.features.quality import gate, rules, validate

TABLE = Table(
    "things",
    key=("a", "b"),
    columns=(
        Column("a", "string", nullable=False),
        Column("b", "int"),
        Column("kind", "string", nullable=False, allowed=("x", "y")),
        Column("ms", "bigint", check="ms IS NULL OR ms >= 0"),
    ),
)
CLEAN: Mapping[str, int] = {
    "rows": 3, "duplicates": 0, "null:a": 0, "null:kind": 0, "other:kind": 0, "check:ms": 0,
}  # fmt: skip


def test_the_suite_is_the_contract() -> None:
    assert [rule.name for rule in rules(TABLE)] == list(CLEAN)
    assert [rule.name for rule in rules(TABLE, extra=("late",))] == [*CLEAN, "extra:late"]


def test_clean_metrics_pass_and_leave_a_report() -> None:
    report = validate(CLEAN, rules(TABLE), name="things")
    assert (report.success, report.failures) == (True, ())
    assert len(report.results["results"]) == len(CLEAN)


@pytest.mark.parametrize("name", CLEAN)
def test_every_violated_rule_fails_alone(name: str) -> None:
    report = validate({**CLEAN, name: 0 if name == "rows" else 2}, rules(TABLE), name="things")
    assert not report.success
    assert len(report.failures) == 1
    assert ("at least one row" in report.failures[0]) if name == "rows" else ("2 rows" in report.failures[0])


def test_an_expectation_that_errors_is_a_failure() -> None:
    metrics = {name: n for name, n in CLEAN.items() if name != "null:kind"}
    report = validate(metrics, rules(TABLE), name="things")
    assert not report.success
    assert report.failures == ("not checkable, the column is missing: kind is never NULL",)


@pytest.mark.spark
def test_violations_are_counted_in_the_frame(spark: SparkSession) -> None:
    rows = [("u", 1, "x", 5), ("u", 1, "x", None), ("v", None, "z", -1), (None, 2, None, 0)]
    frame = spark.createDataFrame(rows, "a string, b int, kind string, ms bigint")
    report = gate(frame, TABLE, extra={"ms is small": F.col("ms") > 4})
    assert report.metrics == {
        "rows": 4, "duplicates": 1, "null:a": 1, "null:kind": 1, "other:kind": 1, "check:ms": 1,
        "extra:ms is small": 1,
    }  # fmt: skip
    assert not report.success and len(report.failures) == 6
    lacking = gate(frame.drop("kind"), TABLE)
    assert sum("not checkable" in failure for failure in lacking.failures) == 2
    empty = gate(frame.limit(0), TABLE)
    assert empty.failures == ("violated: things has at least one row",)


def test_results_and_data_docs_are_stored_and_fetch_nothing(tmp_path: Path) -> None:
    report = validate({**CLEAN, "null:a": 2}, rules(TABLE), name="things")
    told, page = report.store(tmp_path / "quality", "things")
    results = json.loads(told.read_text(encoding="utf-8"))
    assert results["success"] is False
    assert results["statistics"]["unsuccessful_expectations"] == 1
    shown = page.read_text(encoding="utf-8")
    assert "null:a" in shown and "Failed" in shown
    assert re.findall(r"<(?:script|link|img|source)[^>]*(?:src|srcset|href)=.?https?:", shown) == []


@pytest.mark.spark
def test_the_gate_takes_at_most_two_jobs(spark: SparkSession) -> None:
    frame = spark.range(1000).select(
        F.col("id").cast("string").alias("event_id"),
        *[F.lit("x").cast(c.sql_type).alias(c.name) for c in EVENTS.columns[1:] if c.sql_type == "string"],
        F.timestamp_seconds(F.col("id")).alias("event_ts"),
        F.timestamp_seconds(F.col("id")).alias("ingest_ts"),
        F.current_date().alias("event_date"),
        F.lit(1).cast("bigint").alias("dwell_ms"),
    )
    many = {
        f"rule {number}": F.col("dwell_ms") > number for number in range(70)
    }  # more than one word of bits
    context = spark.sparkContext
    context.setJobGroup("gate", "the data gate")
    try:
        report = gate(frame, EVENTS, extra=many)
    finally:
        jobs = context.statusTracker().getJobIdsForGroup("gate")
        context.setJobGroup("", "")
    assert 1 <= len(jobs) <= 2
    assert (report.metrics["rows"], report.metrics["duplicates"]) == (1000, 0)
    assert report.metrics["other:dwell_status"] == 1000
    assert [report.metrics[f"extra:rule {number}"] for number in (0, 1, 69)] == [1000, 0, 0]
