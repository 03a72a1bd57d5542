"""An increment that dies between its two tables, and the run after it (docs/faults.md 3, 10)."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from dynamix.config import load_config
from dynamix.contracts import EVENTS, Table
from dynamix.features.tables import Warehouse
from dynamix.jobs.context import Run
from dynamix.jobs.ingest import ingest

pytestmark = pytest.mark.spark

FIRST_DAY = [("a", "2026-01-05 10:00:00", "i1"), ("b", "2026-01-05 10:01:00", "i1")]
SECOND_DAY = [
    ("two", "2026-01-06 10:00:00", "i1"),
    ("two", "2026-01-06 11:00:00", "i2"),  # another payload, later: the first one stays
    ("b", "2026-01-06 12:00:00", "i2"),
    ("c", "2026-01-06 10:05:00", "i1"),
]


def _ingest(spark: SparkSession, folder: Path, day: date, rows: list[tuple[str, str, str]]) -> None:
    frame = spark.createDataFrame(rows, "event_id string, ingest_ts string, item_id string")
    made = ("'u' AS user_id", "'view' AS event_type", "'feed' AS surface")
    # two rows of an event have its time
    timed = frame.selectExpr(
        "*", *made, "CASE event_id WHEN 'two' THEN '2026-01-06 10:00:00' WHEN 'b' THEN '2026-01-05 10:01:00' "
        "ELSE ingest_ts END AS event_ts",
    )  # fmt: skip
    source = str(folder / "events")
    timed.coalesce(1).write.mode("overwrite").parquet(source)
    run = Run(
        spark, Warehouse(folder / "W"), load_config(settings=["max_quarantined=0.6"]), day, "r", quiet=True
    )
    ingest(run, events=source)


def _found(spark: SparkSession, folder: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """((event_id, item_id) of events, event_id of quarantine)."""
    place = Warehouse(folder / "W")
    events = place.read(spark, "events").select("event_id", "item_id").collect()
    torn = place.read(spark, "events_quarantine").select("event_id").collect()
    return sorted((row[0], row[1]) for row in events), sorted(row[0] for row in torn)


def test_fault_03_the_quarantine_of_a_run_that_died_condemns_no_event(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quarantine that it left holds a copy of `two`; read as an earlier verdict it would condemn the event."""
    _ingest(spark, tmp_path, date(2026, 1, 6), FIRST_DAY)
    real = Warehouse.replace

    def replace(self: Warehouse, spark: SparkSession, table: Table, *given: Any, **more: Any) -> int:
        if table is EVENTS:
            raise KeyboardInterrupt
        return real(self, spark, table, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Warehouse, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            _ingest(spark, tmp_path, date(2026, 1, 7), FIRST_DAY + SECOND_DAY)
    assert _found(spark, tmp_path) == ([("a", "i1"), ("b", "i1")], ["b", "two"])
    _ingest(spark, tmp_path, date(2026, 1, 7), FIRST_DAY + SECOND_DAY)
    events = [("a", "i1"), ("b", "i1"), ("c", "i1"), ("two", "i1")]
    assert _found(spark, tmp_path) == (events, ["b", "two"])
