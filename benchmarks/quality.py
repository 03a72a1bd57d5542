"""The quality gate of `events` beside its first form: Spark jobs and seconds, `python -m benchmarks quality`.

The first form is taken from the history of this repository (features/quality.py at _BEFORE), so a clone with its
history is needed. Both judge the same cached rows and must count the same violations.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dynamix.contracts import EVENTS
from dynamix.features import quality
from dynamix.jobs.session import get_spark

_BEFORE = "0a7fa19"
_TEXTS = (
    "item_id", "category", "ad_id", "advertiser_id", "campaign_id", "conversion_type", "source_session_id",
    "request_id",
)  # fmt: skip


def sound_events(spark: SparkSession, rows: int) -> DataFrame:
    """Rows of `events` without a violation, made from their number."""
    i = F.col("id")
    at = F.timestamp_seconds(1.7e9 + i)
    kind = F.element_at(F.array(F.lit("view"), F.lit("click")), (i % 2 + 1).cast("int"))
    made = {
        "event_id": F.concat(F.lit("e"), i), "user_id": F.concat(F.lit("u"), i % 20_000), "event_type": kind,
        "event_ts": at, "ingest_ts": at, "event_date": F.to_date(at), "surface": F.concat(F.lit("s"), i % 5),
        "dwell_status": F.lit("observed"), "dwell_ms": i % 90_000,
        "session_id": F.concat(F.lit("x"), i % 100_000), "session_start": at,
        **{name: F.when(i % 7 == 0, F.lit("v")) for name in _TEXTS},
    }  # fmt: skip
    frame = spark.range(0, rows, 1, 8)
    columns = [made.get(c.name, F.lit(None)).cast(c.sql_type).alias(c.name) for c in EVENTS.columns]
    return frame.select(*columns)


def first_form() -> ModuleType:
    """features/quality.py as it was at _BEFORE. SystemExit where the history is not there."""
    root = Path(__file__).parent.parent
    shown = subprocess.run(
        ["git", "-C", str(root), "show", f"{_BEFORE}:features/quality.py"], capture_output=True, text=True
    )
    if shown.returncode:
        raise SystemExit(
            f"commit {_BEFORE} is not in this clone: {shown.stderr.strip()}; fetch the whole history"
        )
    module = ModuleType("first_quality")
    sys.modules[module.__name__] = module  # its dataclasses look themselves up there
    exec(compile(shown.stdout, f"{_BEFORE}:features/quality.py", "exec"), module.__dict__)
    return module


def main(*, rows: int, rounds: int) -> None:
    """Print jobs and seconds of both forms; the rounds take turns. SystemExit where their counts differ."""
    spark = get_spark("gate-bench")
    frame = sound_events(spark, rows).persist()
    frame.count()
    extra = {
        "unknown dwells are NULL": F.col("dwell_status").isin("censored", "missing")
        != F.col("dwell_ms").isNull(),
        "no session starts after its event": F.col("session_start") > F.col("event_ts"),
    }
    before = first_form()
    forms: Mapping[str, Callable[[], Any]] = {
        f"first form ({_BEFORE})": lambda: before.gate(frame, EVENTS, extra=extra),
        "today": lambda: quality.gate(frame, EVENTS, extra=extra),
    }
    taken: dict[str, list[tuple[int, float]]] = {name: [] for name in forms}
    counted: dict[str, Any] = {}
    for number in range(rounds + 1):  # the first warms up
        for name, run in forms.items():
            group = f"{name} {number}"
            spark.sparkContext.setJobGroup(group, group)
            began = time.perf_counter()
            report = run()
            seconds = time.perf_counter() - began
            jobs = len(spark.sparkContext.statusTracker().getJobIdsForGroup(group))
            counted[name] = (report.success, dict(report.metrics))
            if number:
                taken[name].append((jobs, seconds))
    if len({str(found) for found in counted.values()}) > 1:
        raise SystemExit(f"both forms count differently: {counted}")
    print("| gate | Spark jobs | s (min, median, max) |\n|---|---|---|")
    for name, found in taken.items():
        seconds = sorted(s for _, s in found)
        print(
            f"| {name} | {found[0][0]} | {seconds[0]:.2f}, {statistics.median(seconds):.2f}, {seconds[-1]:.2f} |"
        )
