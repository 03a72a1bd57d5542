"""What VACUUM must leave: hours from the log, and `dynamix maintain` on a small warehouse."""

from __future__ import annotations

import json
import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyspark.sql import SparkSession

from dynamix.config import Config
from dynamix.contracts import RUN_LOG, STREAMS
from dynamix.errors import ConfigError, EnvironmentTrouble
from dynamix.features.table_files import data_files
from dynamix.features.tables import Warehouse
from dynamix.jobs import maintain as module
from dynamix.jobs import retention
from dynamix.jobs.cli import main
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.frames import table_frame
from dynamix.jobs.maintain import maintain
from dynamix.jobs.retention import KEEP_HOURS, keep_hours, retention_sql
from dynamix.models.registry import Registry, Version

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


def _maintain(spark: SparkSession, warehouse: Warehouse, *, least: int) -> StepResult:
    return maintain(Run(spark, warehouse, Config(), NOW.date(), "r1", quiet=True), least=least)


def _aged(source: Path, target: Path, *, hours: int) -> None:
    """A copy of the warehouse in which everything was written and removed so many hours ago."""
    then = time.time() - hours * 3600
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.crc"))
    for commit in target.glob("*/_delta_log/*.json"):
        actions = [json.loads(line) for line in commit.read_text(encoding="utf-8").splitlines()]
        for action in actions:
            if "remove" in action:
                action["remove"]["deletionTimestamp"] = int(then * 1000)
        commit.write_text("".join(f"{json.dumps(action)}\n" for action in actions), encoding="utf-8")
    for path in (path for path in target.rglob("*") if path.is_file()):
        os.utime(path, (then, then))


@pytest.fixture
def overwritten(spark: SparkSession, tmp_path: Path) -> Warehouse:
    """Table `streams`, 300 hours old: commit 0 creates it, 1 writes a row, 2 overwrites it."""
    warehouse = Warehouse(tmp_path / "new")
    for name in ("shop/view", "shop/buy"):
        row = {
            "stream_id": 0, "stream": name, "first_seen": datetime(2026, 1, 1, tzinfo=UTC),
            "is_conversion": False, "has_dwell": True,
        }  # fmt: skip
        warehouse.replace(spark, STREAMS, table_frame(spark, STREAMS, [row]))
    _aged(tmp_path / "new", tmp_path / "W", hours=300)
    return Warehouse(tmp_path / "W")


def _rows(spark: SparkSession, warehouse: Warehouse, version: int | None) -> list[str]:
    """Streams of a version (None: the newest), whose files must be there."""
    warehouse.files(spark, STREAMS.name, version=version, where="true")
    return [row["stream"] for row in warehouse.read(spark, STREAMS.name, version=version).collect()]


@pytest.mark.spark
def test_fault_28_a_retention_shorter_than_deltas_is_refused_and_pins_lengthen_it(
    spark: SparkSession, overwritten: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protection taken away, no pin, the same maintenance loses version 1, which the next reader is told."""
    monkeypatch.setattr(module, "pinned_versions", lambda warehouse, registry: {"streams": {1}})
    files = data_files(Path(overwritten.path(STREAMS.name)))
    with pytest.raises(ConfigError, match="keep_hours 2 is shorter than Delta's own retention") as refused:
        _maintain(spark, overwritten, least=2)
    assert (refused.value.exit_code, data_files(Path(overwritten.path(STREAMS.name)))) == (2, files)
    kept = _maintain(spark, overwritten, least=KEEP_HOURS).facts["kept"]  # 300 hours ago is more
    assert kept == {"streams": {"hours": 302, "pinned": [1]}}
    assert _rows(spark, overwritten, 1) == ["shop/view"]
    monkeypatch.setattr(module, "pinned_versions", lambda warehouse, registry: {})
    _maintain(spark, overwritten, least=KEEP_HOURS)
    with pytest.raises(EnvironmentTrouble, match="'streams' version 1"):
        _rows(spark, overwritten, 1)
    assert _rows(spark, overwritten, None) == ["shop/buy"]


def test_the_log_stays_as_long_as_the_files() -> None:
    assert "'interval 168 hours', 'delta.logRetentionDuration' = 'interval 720 hours'" in retention_sql(
        "W/t", 168
    )
    assert "'interval 900 hours', 'delta.logRetentionDuration' = 'interval 900 hours'" in retention_sql(
        "W/t", 900
    )
    with pytest.raises(ConfigError, match="keep_hours 167"):
        retention_sql("W/t", 167)


@pytest.mark.spark
def test_the_command_says_what_it_kept_and_leaves_a_row_in_the_run_log(
    spark: SparkSession, overwritten: Warehouse, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["maintain", "--warehouse", str(overwritten.root), "--json", "--quiet"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["facts"]["kept"] == {"streams": {"hours": KEEP_HOURS, "pinned": []}}
    (row,) = overwritten.read(spark, RUN_LOG.name).collect()
    assert (row["step"], row["status"], row["run_id"]) == ("maintain", "done", outcome["run_id"])
    assert main(["maintain", "--warehouse", str(overwritten.root), "--keep-hours", "1"]) == 2
    assert overwritten.read(spark, RUN_LOG.name).count() == 1
