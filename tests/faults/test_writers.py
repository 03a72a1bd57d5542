"""Several writers, lost answers, kills and broken disks: what stays in a table (docs/faults.md 1-8, 17, 26-29).

Real Delta on disk. Writers meet where it hurts: one stands between its files and its commit while a second process,
with a Spark of its own, commits.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from delta.tables import DeltaTable
from disks import fill, mounted
from faults.points import observed
from faults.processes import Served, served
from faults.things import THING, stored, things, write
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dynamix.errors import EnvironmentTrouble, GuardError, InputError
from dynamix.features import tables
from dynamix.features.tables import Warehouse
from dynamix.jobs.retention import keep_hours
from dynamix.jobs.troubles import known_trouble, said_plainly

pytestmark = pytest.mark.spark

Meeting = Callable[[], object]
NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def other() -> Iterator[Served]:
    with served("things.py") as process:
        yield process


@contextmanager
def met_once(spark: SparkSession, meeting: Meeting) -> Iterator[list[int]]:
    """Before the first commit of the block, its files written, `meeting` happens; the list counts the attempts."""
    attempts: list[int] = []

    def begin() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            meeting()

    with observed(spark, begin):
        yield attempts


# ---------------------------------------------------------------- one writer


def test_fault_01_an_older_day_written_after_a_newer_one_is_there(
    spark: SparkSession, tmp_path: Path
) -> None:
    """The naive scheme, the day as the version of one transaction id, loses it and says nothing."""
    warehouse = Warehouse(tmp_path / "W")
    write(spark, warehouse, [("2026-01-02", 2, 1.0)], day="2026-01-02")
    write(spark, warehouse, [("2026-01-01", 1, 1.0)], day="2026-01-01")
    assert stored(spark, warehouse) == [("2026-01-01", 1), ("2026-01-02", 2)]
    naive = str(tmp_path / "naive")
    for day, number in (("2026-01-02", 2), ("2026-01-01", 1)):
        writer = things(spark, (day, number, 1.0)).write.format("delta").mode("append")
        writer.option("txnAppId", "job").option("txnVersion", day.replace("-", "")).save(naive)
    assert [row["id"] for row in spark.read.format("delta").load(naive).collect()] == [2]


def _lose_the_answer() -> None:
    raise RuntimeError("the answer to the commit is lost")


def test_fault_02_a_commit_whose_answer_was_lost_is_made_once_more_in_its_own_place(
    spark: SparkSession, tmp_path: Path
) -> None:
    """The protection taken away, an append in place of the overwrite of a range, leaves the rows twice."""
    warehouse, rows = Warehouse(tmp_path / "W"), [("a", 1, 1.0), ("a", 2, 1.0)]
    warehouse.create(spark, THING)
    with observed(spark, lambda: None, _lose_the_answer), pytest.raises(Exception, match="answer"):
        write(spark, warehouse, rows, day="a")
    assert stored(spark, warehouse) == [("a", 1), ("a", 2)]  # it had landed
    write(spark, warehouse, rows, day="a")
    assert stored(spark, warehouse) == [("a", 1), ("a", 2)]
    things(spark, *rows).write.format("delta").mode("append").save(warehouse.path(THING.name))
    assert stored(spark, warehouse) != [("a", 1), ("a", 2)]


def test_fault_03_killed_while_files_are_written(spark: SparkSession, tmp_path: Path) -> None:
    """The version stays, the rerun succeeds, the files that nobody committed go with VACUUM and not before."""
    warehouse = Warehouse(tmp_path / "W")
    version = write(spark, warehouse, [("a", 1, 1.0), ("b", 1, 1.0)])
    before = set((tmp_path / "W").rglob("*.parquet"))
    with served("things.py") as dying:
        dying.send(root=str(warehouse.root), rows=[["a", 2, 1.0], ["a", 3, 1.0]], day="a", dies=True)
        assert dying.wait() == -signal.SIGKILL
    orphans = set((tmp_path / "W").rglob("*.parquet")) - before
    assert orphans and warehouse.version(spark, THING.name) == version
    assert stored(spark, warehouse) == [("a", 1), ("b", 1)]
    write(spark, warehouse, [("a", 2, 1.0), ("a", 3, 1.0)], day="a")
    assert stored(spark, warehouse) == [("a", 2), ("a", 3), ("b", 1)]
    assert all(path.exists() for path in orphans)
    _vacuum(spark, warehouse, hours=0)
    assert not any(path.exists() for path in orphans)
    assert stored(spark, warehouse) == [("a", 2), ("a", 3), ("b", 1)]


def test_fault_05_nothing_replaces_no_range(spark: SparkSession, tmp_path: Path) -> None:
    """The protection taken away, as `--allow-empty` does, the range is wiped."""
    warehouse = Warehouse(tmp_path / "W")
    version = write(spark, warehouse, [("a", 1, 1.0), ("b", 2, 1.0)])
    nothing = things(spark, ("a", 1, 1.0)).limit(0)
    with pytest.raises(InputError, match="refusing to replace day = 'a' by nothing") as refused:
        warehouse.replace(spark, THING, nothing, where="day = 'a'")
    assert refused.value.exit_code == 3
    assert (warehouse.version(spark, THING.name), stored(spark, warehouse)) == (version, [("a", 1), ("b", 2)])
    warehouse.replace(spark, THING, nothing, where="day = 'a'", allow_empty=True)
    assert stored(spark, warehouse) == [("b", 2)]


def test_fault_17_a_row_that_breaks_a_check_is_named_and_nothing_is_written(
    spark: SparkSession, tmp_path: Path
) -> None:
    warehouse = Warehouse(tmp_path / "W")
    version = write(spark, warehouse, [("a", 1, 1.0)])
    with pytest.raises(GuardError, match=r"'streams': a row breaks the check size_check.*size >= 0"):
        write(spark, warehouse, [("a", 1, -1.0)])
    assert warehouse.version(spark, THING.name) == version


# ---------------------------------------------------------------- two processes


def test_fault_06_of_two_writers_of_one_day_the_second_tries_again(
    spark: SparkSession, tmp_path: Path, other: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever commits last has the day, whole; with one try instead of five the conflict comes out."""
    warehouse = Warehouse(tmp_path / "W")
    write(spark, warehouse, [("a", 0, 1.0), ("b", 0, 1.0)])

    order = {"root": str(warehouse.root), "rows": [["a", 7, 1.0], ["a", 8, 1.0]], "day": "a"}
    with met_once(spark, lambda: other.ask(**order)) as attempts:
        write(spark, warehouse, [("a", 1, 1.0)], day="a")
    assert len(attempts) == 2
    assert stored(spark, warehouse) == [("a", 1), ("b", 0)]
    monkeypatch.setattr(tables, "_TRIES", 1)
    with met_once(spark, lambda: other.ask(**order)), pytest.raises(Exception, match=r"(?i)concurrent"):
        write(spark, warehouse, [("a", 2, 1.0)], day="a")
    assert stored(spark, warehouse) == [("a", 7), ("a", 8), ("b", 0)]


def test_fault_07_two_writers_of_different_days_both_succeed_at_once(
    spark: SparkSession, tmp_path: Path, other: Served
) -> None:
    warehouse = Warehouse(tmp_path / "W")
    write(spark, warehouse, [("a", 0, 1.0), ("b", 0, 1.0)])
    order = {"root": str(warehouse.root), "rows": [["b", 7, 1.0]], "day": "b"}
    with met_once(spark, lambda: other.ask(**order)) as attempts:
        write(spark, warehouse, [("a", 1, 1.0)], day="a")
    assert len(attempts) == 1
    assert stored(spark, warehouse) == [("a", 1), ("b", 7)]


def test_fault_08_two_first_writers_make_one_table(
    spark: SparkSession, tmp_path: Path, other: Served
) -> None:
    warehouse = Warehouse(tmp_path / "W")
    order = {"root": str(warehouse.root), "rows": [["b", 7, 1.0]], "day": "b"}
    with met_once(spark, lambda: other.ask(**order)):
        write(spark, warehouse, [("a", 1, 1.0)], day="a")
    assert stored(spark, warehouse) == [("a", 1), ("b", 7)]
    lines = [line for commit in warehouse.commits(THING.name) for line in commit.read_text().splitlines()]
    assert sum(line.startswith('{"metaData"') for line in lines) == 1


# ---------------------------------------------------------------- files that are gone or damaged, versions, maintenance


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_fault_26_a_file_behind_the_log_that_is_gone_or_damaged_is_named_with_its_table(
    spark: SparkSession, tmp_path: Path, damage: str
) -> None:
    warehouse = Warehouse(tmp_path / "W")
    write(spark, warehouse, [("a", 1, 1.0), ("b", 2, 1.0)])
    (file,) = (tmp_path / "W" / THING.name / "day=a").glob("*.parquet")
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"PAR1" + bytes(200))
    with (
        pytest.raises(
            EnvironmentTrouble, match=rf"table 'streams': .*{file.name} is {damage}.*RESTORE"
        ) as said,
        said_plainly(warehouse),
    ):
        target = warehouse.read(spark, THING.name).withColumn("size", F.col("size") + 1)
        warehouse.replace(spark, THING, target, empty=False)
    assert said.value.exit_code == 5
    assert len(warehouse.commits(THING.name)) == 2  # no partial output
    raw = tmp_path / "source" / "x.parquet"
    told = known_trouble(
        f"[FAILED_READ_FILE.NO_HINT] Encountered error while reading file file://{raw}.", warehouse
    )
    assert isinstance(told, InputError)


def test_fault_27_a_version_that_was_vacuumed_is_refused_before_anything_reads_it(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protection taken away, the look at the files, the pin is handed out and fails inside a task."""
    warehouse = Warehouse(tmp_path / "W")
    pinned = write(spark, warehouse, [("a", 1, 1.0)])
    write(spark, warehouse, [("a", 2, 1.0)])
    _vacuum(spark, warehouse, hours=0)
    with pytest.raises(EnvironmentTrouble, match=f"'streams' version {pinned} is gone: 1 of 1 files") as said:
        warehouse.files(spark, THING.name, version=pinned, where="day = 'a'")
    assert said.value.exit_code == 5
    monkeypatch.setattr(tables.Path, "exists", lambda path: True)
    assert len(warehouse.files(spark, THING.name, version=pinned, where="day = 'a'")) == 1
    monkeypatch.undo()
    with pytest.raises(Exception, match="FILE_NOT_EXIST"):
        warehouse.read(spark, THING.name, version=pinned).collect()


def test_fault_28_readers_of_a_version_keep_it(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "W")
    version = write(spark, warehouse, [("a", 1, 1.0), ("b", 1, 1.0)])
    reading = warehouse.read(spark, THING.name, version=version)
    things(spark, ("a", 2, 1.0)).write.format("delta").mode("append").save(warehouse.path(THING.name))
    table = DeltaTable.forPath(spark, warehouse.path(THING.name))
    table.optimize().executeCompaction()
    write(spark, warehouse, [("b", 9, 1.0)], day="b")
    table.vacuum(keep_hours({}, [], now=NOW))
    assert sorted((r["day"], r["id"]) for r in reading.collect()) == [("a", 1), ("b", 1)]
    assert stored(spark, warehouse) == [("a", 1), ("a", 2), ("b", 9)]


# ---------------------------------------------------------------- disks and workers


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    with mounted(tmp_path / "small", megabytes=2) as place:
        yield place


def test_fault_29_a_full_disk_is_said_the_table_stays_and_the_rerun_works(
    spark: SparkSession, small_disk: Path
) -> None:
    warehouse = Warehouse(small_disk / "W")
    version = write(spark, warehouse, [("a", 1, 1.0)])
    filler = fill(small_disk, leave=30_000)
    many = spark.range(100_000).select(
        F.lit("a").alias("day"), F.col("id").cast("int"), F.rand(1).alias("size")
    )
    with pytest.raises(
        EnvironmentTrouble, match="disk full while writing table 'streams'; the table is unchanged"
    ):
        warehouse.replace(spark, THING, many, where="day = 'a'")
    filler.unlink()
    assert (warehouse.version(spark, THING.name), stored(spark, warehouse)) == (version, [("a", 1)])
    warehouse.replace(spark, THING, many.limit(500), where="day = 'a'")
    assert len(stored(spark, warehouse)) == 500


def test_fault_29_a_killed_worker_ends_the_write_and_the_rerun_works(
    spark: SparkSession, tmp_path: Path
) -> None:
    warehouse, mark = Warehouse(tmp_path / "W"), tmp_path / "died"
    version = write(spark, warehouse, [("a", 1, 1.0)])

    def work(batches: Iterator[object]) -> Iterator[object]:
        import os as system  # in the worker

        if not mark.exists():
            mark.touch()
            system.kill(system.getpid(), 9)
        yield from batches

    frame = things(spark, ("a", 2, 1.0)).mapInArrow(work, "day string, id int, size double")  # type: ignore[arg-type]
    with pytest.raises(EnvironmentTrouble, match="a worker died in stage"), said_plainly(warehouse):
        warehouse.replace(spark, THING, frame, empty=False)
    assert (warehouse.version(spark, THING.name), stored(spark, warehouse)) == (version, [("a", 1)])
    warehouse.replace(spark, THING, frame, empty=False)
    assert stored(spark, warehouse) == [("a", 2)]


def _vacuum(spark: SparkSession, warehouse: Warehouse, *, hours: float) -> None:
    """Remove what no version of the last hours needs, below Delta's own limit."""
    check = "spark.databricks.delta.retentionDurationCheck.enabled"
    spark.conf.set(check, "false")
    try:
        DeltaTable.forPath(spark, warehouse.path(THING.name)).vacuum(hours)
    finally:
        spark.conf.unset(check)
