"""What VACUUM must leave: hours from the log, and the maintenance notebook run on a small warehouse."""

from __future__ import annotations

import runpy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from delta.tables import DeltaTable
from pyspark.sql import SparkSession

from dynamix.contracts import STREAMS
from dynamix.errors import EnvironmentTrouble
from dynamix.features.tables import Warehouse
from dynamix.jobs import retention
from dynamix.jobs.frames import table_frame
from dynamix.jobs.retention import KEEP_HOURS, keep_hours
from dynamix.models.registry import Registry, Version

PROJECT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
COMMITS = {v: NOW - timedelta(hours=h) for v, h in {4: 1000, 5: 500, 6: 300, 7: 2}.items()}


@pytest.mark.parametrize(
    ("pinned", "hours"),
    [
        ([], 168),
        ([7], 168),  # the newest: a compaction now would be its first overwriting
        ([6], 168),  # overwritten 2 hours ago
        ([5], 301),  # overwritten by commit 6, 300 hours ago, and an hour to spare
        ([4], 501),
        ([4, 6], 501),
    ],
)
def test_files_stay_since_the_commit_that_overwrote_the_oldest_pin(pinned: list[int], hours: int) -> None:
    assert KEEP_HOURS == 168
    assert keep_hours(COMMITS, pinned, now=NOW) == hours


def test_without_a_floor_a_pin_still_has_an_hour_to_spare() -> None:
    assert [keep_hours(COMMITS, [v], now=NOW, least=0) for v in (7, 6)] == [1, 3]
    assert keep_hours(COMMITS, [], now=NOW, least=0) == 0


def test_a_part_of_an_hour_counts_whole() -> None:
    commits = {0: NOW - timedelta(hours=9), 1: NOW - timedelta(hours=5, seconds=1)}
    assert keep_hours(commits, [0], now=NOW, least=0) == 7


def test_a_pin_that_the_log_has_lost_is_said_and_nothing_is_removed() -> None:
    with pytest.raises(EnvironmentTrouble, match="pinned version 3 is not in the log, which holds 4 to 7"):
        keep_hours(COMMITS, [3, 7], now=NOW)


def test_pins_are_those_of_both_aliases_and_of_the_last_ingest(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {"champion": {"training_rows_version": "4"}, "challenger": {"training_rows_version": "9"}}
    place = (Warehouse("w"), Registry(Path("w")))
    monkeypatch.setattr(
        retention, "find", lambda registry, name, alias: Version(name, "1", (alias,), tags[alias])
    )
    monkeypatch.setattr(retention, "stored_mark", lambda warehouse: SimpleNamespace(quarantine=2))
    assert retention.pinned_versions(*place) == {"training_rows": {4, 9}, "events_quarantine": {2}}
    monkeypatch.setattr(retention, "find", lambda registry, name, alias: None)
    monkeypatch.setattr(retention, "stored_mark", lambda warehouse: None)
    assert retention.pinned_versions(*place) == {}


class Widgets:
    """Stand-in for `dbutils.widgets`: a given value wins over the default."""

    def __init__(self, **given: str) -> None:
        self.given = given

    def text(self, name: str, default: str, label: str) -> None:
        self.given.setdefault(name, default)

    def get(self, name: str) -> str:
        return self.given[name]


CHECK = "spark.databricks.delta.retentionDurationCheck.enabled"


@pytest.mark.spark
def test_the_notebook_vacuums_with_the_hours_of_the_pins(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a floor version 0, overwritten a moment ago, gets the begun hour and one to spare."""
    warehouse = Warehouse(tmp_path)
    row = {
        "stream_id": 0, "stream": "shop/view", "first_seen": datetime(2026, 1, 1, tzinfo=UTC),
        "is_conversion": False, "has_dwell": True,
    }  # fmt: skip
    warehouse.replace(spark, STREAMS, table_frame(spark, STREAMS, [row]))  # commit 0 creates, commit 1 writes
    vacuumed = []
    vacuum = DeltaTable.vacuum

    def noted(table: DeltaTable, hours: float) -> object:
        vacuumed.append(hours)
        return vacuum(table, hours)

    monkeypatch.setattr(DeltaTable, "vacuum", noted)
    monkeypatch.setattr(retention, "pinned_versions", lambda warehouse, registry: {"streams": {0}})
    page = PROJECT / "notebooks" / "databricks" / "maintenance.py"
    widgets = Widgets(warehouse=str(tmp_path), keep_hours="0")
    spark.conf.set(CHECK, "false")
    try:
        runpy.run_path(str(page), init_globals={"dbutils": SimpleNamespace(widgets=widgets)})
    finally:
        spark.conf.unset(CHECK)
    assert vacuumed == [2]
