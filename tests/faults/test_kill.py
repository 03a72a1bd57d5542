"""A small part of the crash matrix: the real `dynamix run`, killed while it writes events (docs/faults.md 3)."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cycles import open_world
from faults.points import DURING
from faults.processes import killed_run, served
from pyspark.sql import SparkSession

from dynamix.contracts import EVENTS, EVENTS_QUARANTINE
from dynamix.features.tables import Warehouse
from dynamix.jobs.run import execute

pytestmark = [pytest.mark.spark, pytest.mark.slow]

FIRST = datetime(2026, 1, 5, 10)


def _source(spark: SparkSession, folder: Path) -> Path:
    """60 events of six users on ten days and a row without a user."""
    rows = [
        (f"e{i}", f"u{i % 6}" if i else "", str(FIRST + timedelta(days=i // 6, minutes=9 * (i % 6))), "view")
        for i in range(61)
    ]
    frame = spark.createDataFrame(rows, "event_id string, user_id string, event_ts string, event_type string")
    frame.selectExpr("*", "'feed' AS surface").coalesce(1).write.parquet(str(folder / "events"))
    (folder / "dynamix.yaml").write_text("{}\n", encoding="utf-8")
    return folder


def test_fault_03_a_killed_dynamix_run_leaves_what_an_undisturbed_one_leaves(
    spark: SparkSession, tmp_path: Path
) -> None:
    source = _source(spark, tmp_path / "source")
    place, calm = tmp_path / "killed", tmp_path / "calm"
    command = ["run", "--events", str(source), "--warehouse", str(place), "--quiet"]
    with served("killed.py") as server:
        status, said = killed_run(
            server, command, moment=DURING, point="ingest/events", folder=tmp_path / "case"
        )
    assert status == -9, said[-3000:]
    warehouse = Warehouse(place)
    assert len(warehouse.commits(EVENTS.name)) == 1  # created, and nothing in it
    assert list((place / EVENTS.name).rglob("*.parquet"))
    hashes = []
    for root in (place, calm):
        run = open_world(spark, source, root)
        result = execute(run, "ingest", skip=True, source=str(source))
        assert result.counters["rows_kept"] == 60 and not result.skipped
        hashes.append([run.warehouse.content_hash(spark, table) for table in (EVENTS, EVENTS_QUARANTINE)])
    assert hashes[0] == hashes[1]
