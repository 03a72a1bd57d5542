"""The drift report of `ingest`: the first write is the baseline, later days are held against it."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from event_frames import event_frame
from pyspark.sql import SparkSession

from dynamix.config import load_config
from dynamix.features.tables import Warehouse
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.drift import BASELINE, report_drift

pytestmark = pytest.mark.spark
DAY = 86_400


def _days(first: int, days: int, *, dwell_ms: int = 5_000) -> list[dict[str, Any]]:
    """200 events a day of 20 users, half of them with a dwell near `dwell_ms`."""
    return [
        {
            "event_id": f"{first + day}-{i}",
            "user_id": f"u{i % 20}",
            "t": (first + day) * DAY + 300 * i,
            "dwell_ms": dwell_ms + 400 * (i % 13) if i % 2 else None,
            "surface": "feed" if i % 3 else "shop",
        }
        for day in range(days)
        for i in range(200)
    ]


def _report(spark: SparkSession, run: Run, rows: list[dict[str, Any]], definition: str = "d1") -> StepResult:
    result = StepResult()
    report_drift(run, event_frame(spark, rows), result, definition=definition)
    return result


def test_later_days_are_held_against_the_first_write(spark: SparkSession, tmp_path: Path) -> None:
    config = load_config(settings=["drift.min_rows=50"])

    def run(day: int, name: str) -> Run:
        return Run(spark, Warehouse(tmp_path / "W"), config, date(2024, 1, day), name, quiet=True)

    old = _days(0, 4)
    first = _report(spark, run(5, "r1"), old)
    assert first.warnings == [] and "baseline" in first.facts["drift"]
    kept = json.loads((tmp_path / "W" / "_dynamix" / BASELINE).read_text())
    assert (kept["definition"], kept["until"], kept["profile"]["events"]) == ("d1", "2024-01-05", 800)

    again = _report(spark, run(5, "r2"), old)
    assert "nothing to compare" in again.facts["drift"]

    same = _report(spark, run(8, "r3"), old + _days(4, 3))
    assert same.warnings == [] and same.metrics == {"drifted": 0.0}

    slow = _report(spark, run(8, "r4"), old + _days(4, 3, dwell_ms=60_000))
    assert {w.split(":")[1] for w in slow.warnings} == {
        " psi of dwell of stream feed/view",
        " psi of dwell of stream shop/view",
        " psi of dwell of segment 0",
    }
    folder = run(8, "r4").folder
    told = json.loads((folder / "drift.json").read_text())
    assert told["now"]["events"] == 600
    assert sum(one["drifted"] for one in told["findings"]) == 3
    assert (folder / "drift.txt").read_text().count("DRIFT") == 3
    assert json.loads((tmp_path / "W" / "_dynamix" / BASELINE).read_text()) == kept

    other = _report(spark, run(8, "r5"), _days(0, 4), "d2")
    assert "baseline" in other.facts["drift"]  # another definition starts anew
