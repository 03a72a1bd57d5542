"""`ingest` as a whole: balance, refusals that write nothing, reruns that change nothing."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dynamix.config import Config, load_config
from dynamix.contracts import EVENTS, EVENTS_QUARANTINE
from dynamix.errors import ConfigError, GuardError, InputError
from dynamix.features.quality import QualityReport
from dynamix.features.tables import Warehouse
from dynamix.jobs.context import Run
from dynamix.jobs.ingest import ingest

pytestmark = pytest.mark.spark


def _run(spark: SparkSession, folder: Path, config: Config | None = None) -> Run:
    return Run(spark, Warehouse(folder / "W"), config or Config(), date(2026, 1, 20), "r1", quiet=True)


def _source(spark: SparkSession, folder: Path, *, bad: int = 1) -> str:
    """40 events of four users on ten days, two copies, `bad` rows without a user, one row of the run date."""
    rows = [
        (f"e{i}", f"u{i % 4}", f"2026-01-{2 + i // 4:02d} 10:{i % 4}0:00", "view", -1.0 if i == 3 else None)
        for i in range(40)
    ]
    rows += [*rows[:2], ("next", "u1", "2026-01-20 00:00:00", "view", None)]
    rows += [(f"bad{i}", "", "2026-01-03 00:00:00", "view", None) for i in range(bad)]
    frame = spark.createDataFrame(
        rows, "event_id string, user_id string, event_ts string, event_type string, dwell_ms double"
    )
    target = str(folder / "events")
    frame.withColumn("surface", F.lit("feed")).coalesce(1).write.parquet(target)
    return target


def test_rows_balance_and_a_rerun_has_the_same_content(spark: SparkSession, tmp_path: Path) -> None:
    run, source = _run(spark, tmp_path), _source(spark, tmp_path)
    result = ingest(run, events=source)
    counted = {name: result.counters[name] for name in result.counters if name.startswith("rows_")}
    assert counted == {"rows_read": 43, "rows_kept": 40, "rows_deduplicated": 2, "rows_quarantined": 1}
    assert result.counters["bad_dwell"] == 1
    assert run.warehouse.read(spark, "events").count() == 40
    assert run.warehouse.read(spark, "events_quarantine").collect()[0]["reason"] == "NULL_USER"
    before = [run.warehouse.content_hash(spark, table) for table in (EVENTS, EVENTS_QUARANTINE)]
    ingest(run, events=source)
    assert [run.warehouse.content_hash(spark, table) for table in (EVENTS, EVENTS_QUARANTINE)] == before


def test_refusals_write_nothing(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source(spark, tmp_path, bad=5)
    with pytest.raises(InputError, match=r"NULL_USER 5"):
        ingest(_run(spark, tmp_path), events=source)
    early = Run(spark, Warehouse(tmp_path / "W"), Config(), date(2025, 1, 1), "r1", quiet=True)
    with pytest.raises(InputError, match="no rows"):
        ingest(early, events=source)
    failed = QualityReport(False, ("violated by 1 rows: key (event_id) is unique",), {})
    monkeypatch.setattr("dynamix.jobs.ingest.gate", lambda *_, **__: failed)
    with pytest.raises(GuardError, match="key"):
        ingest(_run(spark, tmp_path, load_config(settings=["max_quarantined=0.5"])), events=source)
    assert not Warehouse(tmp_path / "W").exists(spark, "events")
    assert not Warehouse(tmp_path / "W").exists(spark, "events_quarantine")


def test_another_definition_needs_rebuild(spark: SparkSession, tmp_path: Path) -> None:
    source = _source(spark, tmp_path)
    ingest(_run(spark, tmp_path), events=source)
    other = _run(spark, tmp_path, load_config(settings=["session.gap_s=60"]))
    with pytest.raises(ConfigError, match="was written by definition"):
        ingest(other, events=source)
    assert ingest(other, events=source, rebuild=True).counters["rows_kept"] == 40
