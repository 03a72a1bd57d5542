"""From a warehouse to the page: newest version only, both halves only, planted truth by users."""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from dynamix.config import Config
from dynamix.contracts import CELL_STATS, MASKS, SEGMENTS, Table
from dynamix.features.tables import Warehouse
from dynamix.jobs.context import Run
from dynamix.jobs.report import report
from dynamix.jobs.report_load import gather

pytestmark = pytest.mark.spark
DAY = date(2024, 2, 12)


def open_run(spark: SparkSession, root: Path) -> Run:
    return Run(spark, Warehouse(root), Config(), DAY, "20240212T000000Z-abcdef", quiet=True)


def put(run: Run, table: Table, rows: list[dict[str, Any]]) -> None:
    frame = run.spark.createDataFrame([tuple(r.get(n) for n in table.names) for r in rows], table.ddl())
    run.warehouse.replace(run.spark, table, frame)


def leave(path: Path, told: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told), encoding="utf-8")


def mask_row(version: str, seq: int, stream: str, verdict: str, status: str = "proposed") -> dict[str, Any]:
    return {
        "mask_version": version, "seq": seq, "segment_version": "s1", "segment_id": 1, "segment_name": "one",
        "tier": "*", "stream": stream, "keep": verdict != "drop", "quota": 0 if verdict == "drop" else 50,
        "boost": 0.0, "relevance": 0.01, "positives": 7, "tokens": 2.0, "verdict": verdict, "reason": "because",
        "status": status, "run_date": DAY, "run_id": "r",
    }  # fmt: skip


def stat_row(half: int, beta: float, end: date = DAY) -> dict[str, Any]:
    return {
        "segment_version": "s1", "segment_id": 1, "tier": "*", "stream": "a/x", "label": "conversion",
        "channel": ("dwell", "count", "match")[half + 1], "window_end": end, "given": "none", "half": half,
        "impressions": 100, "positives": 7, "tokens": 2.0, "beta": beta, "se": 0.1, "dof": 1, "sums": [1.0],
    }  # fmt: skip


def user_row(user: str, segment: int, valid_to: datetime | None = None) -> dict[str, Any]:
    return {
        "user_id": user, "segment_version": "s1", "valid_from": datetime(2024, 1, 1), "segment_id": segment,
        "segment_name": "one" if segment else "cold", "tier": "active", "posterior": {1: 1.0}, "n_events": 20,
        "valid_to": valid_to,
    }  # fmt: skip


def test_an_empty_warehouse_ends_in_a_page_that_says_so(spark: SparkSession, tmp_path: Path) -> None:
    result = report(open_run(spark, tmp_path / "w"))
    page = tmp_path / "w" / "_dynamix" / "report.html"
    assert "Nothing to show yet" in page.read_text(encoding="utf-8")
    assert result.facts["report"] == str(page) and "No mask version yet" in result.facts["text"]
    assert result.verdicts == {}


def test_a_page_of_the_same_tables_stays_and_gives_its_facts_back(
    spark: SparkSession, tmp_path: Path
) -> None:
    run = open_run(spark, tmp_path / "w")
    put(run, MASKS, [mask_row("m20240212-a", 0, "a/x", "drop")])
    first = report(run)
    page = tmp_path / "w" / "_dynamix" / "report.html"
    page.write_text("stays", encoding="utf-8")
    again = report(run, unless_current=True)
    assert (again.facts, again.verdicts) == (first.facts, first.verdicts) and again.verdicts
    assert page.read_text(encoding="utf-8") == "stays"
    put(run, MASKS, [mask_row("m20240212-b", 1, "a/x", "keep")])
    changed = report(run, unless_current=True)
    assert changed.verdicts != first.verdicts and page.read_text(encoding="utf-8") != "stays"
    page.unlink()
    report(run, unless_current=True)
    assert page.is_file()


def test_the_newest_version_its_statistics_and_its_truth_reach_the_page(
    spark: SparkSession, tmp_path: Path
) -> None:
    run = open_run(spark, tmp_path / "w")
    old = [mask_row("m20240212-old", 0, "a/x", "drop"), mask_row("m20240212-old", 0, "b/y", "drop")]
    new = [mask_row("m20240212-new", 1, "a/x", "keep"), mask_row("m20240212-new", 1, "b/y", "drop")]
    control = [mask_row("m20240212-ctl", 2, "a/x", "drop", "control")]
    put(run, MASKS, old + new + control)
    put(
        run,
        CELL_STATS,
        [stat_row(-1, 0.3), stat_row(0, 9.0), stat_row(1, 9.0), stat_row(-1, 9.0, date(2024, 2, 1))],
    )
    past = datetime(2024, 1, 2)
    put(run, SEGMENTS, [user_row("u1", 1), user_row("u2", 1), user_row("u3", 0), user_row("u4", 1, past)])
    world = tmp_path / "world"
    spark.createDataFrame([("u1", 5), ("u2", 5), ("u3", 6)], "user_id string, segment int").write.parquet(
        str(world / "truth_users")
    )
    spark.createDataFrame(
        [(5, "b/y", "null"), (6, "b/y", "strong")], "segment int, stream string, kind string"
    ).write.parquet(str(world / "truth_cells"))

    runs = run.warehouse.private / "runs"
    leave(runs / "r" / "budgets.json", {"mask_version": "m20240212-new", "budgets": [
        {"ne_budget": 0.01, "own": True, "dropped_tokens": 0.5, "verdicts": [[1, "b/y", "drop"]]}
    ]})  # fmt: skip
    leave(
        runs / "20240101T000000Z-a" / "evidence.json", {"arms": [{"arm": "masked", "mask_version": "m-old"}]}
    )
    leave(
        runs / "20240101T000000Z-a" / "monitor.json",
        {"run_date": "2024-02-11", "run_id": "a", "answer": "No."},
    )

    data = gather(run, truth=world / "truth_impressions")
    assert data.mask_version == "m20240212-new"
    assert [at.verdicts for at in data.budgets] == [{(1, "b/y"): "drop"}]
    assert "compared mask m-old, not m20240212-new" in data.notice
    assert data.watch is not None and data.watch.answer == "No." and data.drift is None and data.story is None
    assert [(c.stream, c.verdict) for c in data.cells] == [("a/x", "keep"), ("b/y", "drop")]
    assert [(c.channel, c.beta) for c in data.channels] == [("dwell", 0.3)]
    assert {s.segment_id: s.total for s in data.segments} == {0: 1, 1: 2}
    assert data.truth == {(1, "b/y"): "null"}

    result = report(run, out=tmp_path / "page.html", truth=world)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text == (run.folder / "report.html").read_text(encoding="utf-8")
    assert "m20240212-new" in text and "null" in text and result.verdicts["drop"] == 1
