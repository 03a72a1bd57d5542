"""Who opted out is in no statistic: tables equal a build without them, and no job reads events past the filter."""

from __future__ import annotations

import ast
from datetime import date
from pathlib import Path

import pytest
from event_frames import event_frame
from pyspark.sql import SparkSession, Window
from pyspark.sql import functions as F

from dynamix.config import load_config
from dynamix.contracts import EBF_SESSION, EBF_SURFACE, EVENTS, OPT_OUT, STREAMS, USER_STATS
from dynamix.errors import InputError
from dynamix.features.tables import Warehouse
from dynamix.jobs.context import Run
from dynamix.jobs.features import features, seen_events
from dynamix.jobs.opt_out import settle_opt_out, without_opted_out

JOBS = Path(__file__).resolve().parents[2] / "jobs"
OUT = ("u1", "u4")


def open_run(spark: SparkSession, root: Path, *settings: str) -> Run:
    return Run(spark, Warehouse(root), load_config(settings=settings), date(2024, 1, 15), "r1", quiet=True)


def write_events(run: Run, users: tuple[str, ...]) -> None:
    """Three sessions of three events on each of 14 days for each user, the ids the same in any choice of users."""
    rows = [
        {"t": 86_400.0 * day + 7_200 * session + 60 * n + 7 * int(user[1:]), "user_id": user,
         "event_id": f"{user}-{day}-{session}-{n}", "session_id": f"{user}-{day}-{session}", "surface": f"s{n}",
         "dwell_ms": 1_000 * (n + 1) * int(user[1:])}
        for user in users for day in range(14) for session in range(3) for n in range(3)
    ]  # fmt: skip
    start = F.min("event_ts").over(Window.partitionBy("session_id"))
    frame = event_frame(run.spark, rows).withColumn("session_start", start)
    run.warehouse.replace(run.spark, EVENTS, frame)


@pytest.mark.slow  # two builds of four tables
@pytest.mark.spark
def test_feature_tables_equal_a_build_without_the_users(spark: SparkSession, tmp_path: Path) -> None:
    users = tuple(f"u{n}" for n in range(1, 7))
    (tmp_path / "out.txt").write_text("\n".join(OUT))
    some = open_run(spark, tmp_path / "some", f"privacy.opt_out={tmp_path / 'out.txt'}")
    rest = open_run(spark, tmp_path / "rest")
    write_events(some, users)
    write_events(rest, tuple(user for user in users if user not in OUT))
    settle_opt_out(some)
    seen = [
        {row["event_id"] for row in seen_events(run).select("event_id").collect()} for run in (some, rest)
    ]
    assert seen[0] == seen[1] and len(seen[1]) == 4 * 14 * 9
    features(some)
    features(rest)
    for table in (STREAMS, USER_STATS, EBF_SESSION, EBF_SURFACE):
        hashes = {run.warehouse.content_hash(spark, table) for run in (some, rest)}
        assert len(hashes) == 1, table.name
    settled = some.warehouse.version(spark, OPT_OUT.name)
    settle_opt_out(some)
    assert some.warehouse.version(spark, OPT_OUT.name) == settled
    (tmp_path / "out.txt").write_text("u4\nu5\n")
    before = {row["user_id"]: row["since"] for row in some.warehouse.read(spark, OPT_OUT.name).collect()}
    settle_opt_out(some)
    after = {row["user_id"]: row["since"] for row in some.warehouse.read(spark, OPT_OUT.name).collect()}
    assert set(before) == set(OUT) and set(after) == {"u4", "u5"} and after["u4"] == before["u4"]


@pytest.mark.spark
def test_without_the_table_a_frame_is_left_as_it_is(spark: SparkSession, tmp_path: Path) -> None:
    run = open_run(spark, tmp_path)
    frame = spark.range(3)
    assert without_opted_out(run, frame) is frame
    settle_opt_out(run)
    assert not run.warehouse.exists(spark, OPT_OUT.name)


def test_a_missing_list_is_said(tmp_path: Path) -> None:
    run = Run(
        None, Warehouse(tmp_path), load_config(settings=["privacy.opt_out=none.txt"]), date(2024, 1, 1), "r"
    )  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"privacy\.opt_out none\.txt"):
        settle_opt_out(run)


PAST_THE_FILTER = {
    "baseline.stored_mark": "the note of a commit, no row",
    "features.feature_inputs": "a version",
    "features.dirty_days": "days that changed",
    "features.seen_events": "the filter itself",
    "ingest._ingest_all": "drops the folder for --rebuild",
    "ingest._ingest_new": "drift, which filters",
    "ingest._pass_gate": "the name of a report",
    "ingest._write": "the writer",
    "increment.known_copies": "deduplication",
    "increment.chains_of": "sessions of the user's own events",
    "increment.partitions_with": "rows that are written back",
    "verbs.latest_run_date": "the newest day",
    "audit_checks.caps": "looks for dwells above the cap",
    "audit_checks._logged": "balance of all rows",
    "audit._all_users": "filters what it draws from",
    "plan._feature_days": "whether the table is there",
    "recount.recounted_mark": "balance of all rows",
    "forget.forget": "the name in a message",
    "forget._settle_counts": "whether the table is there",
}
"""Functions that name the events table and are no statistic, with what they do there."""


def test_no_other_function_reads_events_past_the_filter() -> None:
    found = set()
    for path in sorted(JOBS.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and names_events(node):
                found.add(f"{path.stem}.{node.name}")
    assert found == set(PAST_THE_FILTER)


def names_events(function: ast.FunctionDef) -> bool:
    """True where `EVENTS.name` stands, or a call `read(spark, "events")`."""
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "EVENTS.name":
            return True
        reads = isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".read")
        if reads and any(ast.unparse(argument) == "'events'" for argument in node.args):
            return True
    return False
