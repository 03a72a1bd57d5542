"""Tables are a function of the rows delivered: late, in chunks of days or at once (docs/faults.md D2, 12, 20, 23)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from dynamix.config import Config
from dynamix.contracts import TABLES
from dynamix.errors import InputError
from dynamix.features.tables import Warehouse
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.features import features
from dynamix.jobs.ingest import ingest

pytestmark = pytest.mark.spark

Row = tuple[str, str, str, str, str, str | None, int]
Chunks = Sequence[tuple[date | None, date | None]]

AT_ONCE: Chunks = ((None, None),)
RUN_DATE = date(2026, 1, 10)
BUILT = ("events", "events_quarantine", "streams", "ebf_session", "ebf_surface", "user_stats")
TEXTS = ("event_id", "user_id", "event_ts", "ingest_ts", "event_type", "item_id")
SCHEMA = ", ".join([*(f"{name} string" for name in TEXTS), "loyalty int"])


@dataclass(frozen=True)
class Built:
    """Content hash of each table, the session ids of user u1, and what the last ingest said."""

    contents: dict[str, str]
    sessions: set[str]
    ingested: StepResult


def build(spark: SparkSession, folder: Path, deliveries: Sequence[tuple[Sequence[Row], Chunks]]) -> Built:
    """Tables after every delivery in turn: its rows join the source, `ingest` runs, `features` runs chunk by chunk.

    A delivery is (rows, chunks); a chunk is a half-open range of days, (None, None) all of them. Whatever the
    deliveries and chunks, the same rows must give the same tables: another way to build them goes in here.
    """
    run = Run(spark, Warehouse(folder / "W"), Config(), RUN_DATE, "r1", quiet=True)
    source, said = folder / "events", StepResult()
    for rows, chunks in deliveries:
        plain = spark.createDataFrame(list(rows), SCHEMA).selectExpr("*", "'feed' AS surface")
        plain.coalesce(1).write.mode("append").parquet(str(source))
        said = ingest(run, events=str(source))
        for since, until in chunks:
            features(run, since=since, until=until)
    own = run.warehouse.read(spark, "ebf_session").where("user_id = 'u1'").select("session_id").collect()
    return Built(
        {name: run.warehouse.content_hash(spark, TABLES[name]) for name in BUILT},
        {row["session_id"] for row in own},
        said,
    )


def _world() -> tuple[list[Row], list[Row]]:
    """(rows in time, late rows): 12 users on 6 days, one of them with a third of all events; u1 gets a late bridge."""
    rows: list[Row] = []
    for day in range(2, 8):
        for user in range(12):
            for minute in (0, 7, 20, 31) if user else range(0, 66, 3):
                at = f"2026-01-{day:02d} {user + 3:02d}:{minute % 60:02d}:00"
                kind = ("view", "view", "click", "impression", "conversion")[(day + minute) % 5]
                rows.append((f"{day}-{user}-{minute}", f"u{user}", at, at, kind, "i" if minute else None, 1))
    rows += [
        ("left", "u1", "2026-01-05 12:00:00", "2026-01-05 12:00:00", "view", None, 1),
        ("right", "u1", "2026-01-05 12:50:00", "2026-01-05 12:50:00", "view", None, 1),
    ]
    late: list[Row] = [
        ("bridge", "u1", "2026-01-05 12:25:00", "2026-01-08 00:00:00", "view", None, 1),
        ("left", "u1", "2026-01-05 12:00:00", "2026-01-09 00:00:00", "view", None, 1),  # delivered again
    ]
    return rows, late


@pytest.fixture(scope="module")
def at_once(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Built:
    rows, late = _world()
    return build(spark, tmp_path_factory.mktemp("once"), [(rows + late, AT_ONCE)])


@pytest.mark.slow
def test_late_rows_and_chunks_of_days_end_with_the_tables_of_one_build(
    spark: SparkSession, tmp_path: Path, at_once: Built
) -> None:
    """Fault 12 on tables: the bridge merges two stored sessions, whose rows and ids are gone."""
    rows, late = _world()
    chunks = ((None, date(2026, 1, 5)), (date(2026, 1, 5), None))
    before = build(spark, tmp_path, [(rows, AT_ONCE)])
    after = build(spark, tmp_path, [(late, chunks)])
    assert after.contents == at_once.contents
    assert after.sessions == at_once.sessions
    assert len(before.sessions - after.sessions) == 1  # of the second session; the first one's goes on
    assert before.contents["ebf_session"] != after.contents["ebf_session"]
    assert after.ingested.counters["rows_deduplicated"] == 1


def test_fault_20_one_user_with_a_third_of_the_events_is_named(at_once: Built) -> None:
    assert [w for w in at_once.ingested.warnings if w.startswith("hot user")] == [
        "hot user 'u0' has 33% of the events; a bot?"
    ]


def test_fault_23_a_new_column_is_noted_and_one_too_many_is_refused(
    spark: SparkSession, tmp_path: Path, at_once: Built
) -> None:
    assert "columns nothing reads: loyalty" in at_once.ingested.warnings[0]
    frame = spark.createDataFrame([(1,)], "loyalty int")
    with pytest.raises(InputError, match=r"has unknown \['loyalty'\]"):
        Warehouse(tmp_path / "W").replace(spark, TABLES["events"], frame)
