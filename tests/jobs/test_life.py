"""The watch in a warehouse: which rows it reads, which mask is in force, and what outlives the run that saw it."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from dynamix.config import Config, load_config
from dynamix.contracts import MASK_AUDIT, MASKS
from dynamix.errors import GuardError
from dynamix.features.quotas import HOLDOUT_PER_MILLE
from dynamix.features.tables import Warehouse
from dynamix.jobs.arm_rows import set_status
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.frames import table_frame
from dynamix.jobs.life import in_force, obsolete, still_restored, watch_published, watch_rows, write_watch
from dynamix.models.hashing import spark_xxhash64
from dynamix.segmentation.cells import Statistics
from dynamix.segmentation.life import EXPIRED, HARMFUL, HOLD_OUT, IN_FORCE, UNDER_THE_MASK, Shown, Watch

pytestmark = pytest.mark.spark
DAY = date(2026, 3, 2)
WEEK = timedelta(days=7)


def run_on(spark: SparkSession, root: Path, day: date, **settings: Any) -> Run:
    config = load_config(settings=[f"{key}={value}" for key, value in settings.items()])
    return Run(spark, Warehouse(root), config, day, "20260302T000000Z-abcdef", quiet=True)


def mask_row(
    version: str, day: date, segment: int, stream: str, status: str, *, keep: bool
) -> dict[str, Any]:
    return {
        "mask_version": version, "seq": 1, "segment_version": "s1", "segment_id": segment, "segment_name": "one",
        "tier": "*", "stream": stream, "keep": keep, "quota": 50 if keep else 0, "boost": 0.0, "positives": 7,
        "tokens": 2.0, "verdict": "keep" if keep else "drop", "reason": "because", "status": status, "run_date": day,
        "run_id": "r",
    }  # fmt: skip


def test_the_watch_reads_the_newest_two_windows_whose_labels_are_final(spark: SparkSession) -> None:
    held_out = next(
        f"u{i}" for i in range(5000) if spark_xxhash64("holdout", f"u{i}") % 1000 < HOLDOUT_PER_MILLE
    )
    rows = [
        ("early", "u0", datetime(2026, 2, 14, 23, 59, 59)),
        ("first", "u0", datetime(2026, 2, 15)),
        ("last", held_out, datetime(2026, 2, 28, 23, 59, 59)),
        ("immature", "u0", datetime(2026, 3, 1)),
    ]
    frame = spark.createDataFrame(rows, "id string, user_id string, event_ts timestamp")
    config = Config(attribution={"click_window": "1d", "view_window": "1d"})
    found = {r["id"]: r["half"] for r in watch_rows(frame, DAY, config).collect()}
    assert found == {"first": UNDER_THE_MASK, "last": HOLD_OUT}


def test_from_watch_to_retirement(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A published mask, the week after: what the watch says is kept in the audit, and `train` can act on it."""
    root = tmp_path / "w"
    first = run_on(spark, root, DAY)
    asked: list[frozenset[tuple[int, str]]] = []
    statistics = Statistics({}, ("conversion",))
    shown = Shown("conversion", "hold-out", ((1, "a/x"),), 99.0, 0.0125, 0.0025, 1e-9, 0.0125)

    def says(state: str, cost: float) -> None:
        def said(_: Statistics, dropped: frozenset[tuple[int, str]], **options: Any) -> Watch:
            asked.append(dropped)
            assert options["age_days"] == 7
            return Watch(state, "as told", cost, {(1, "a/x"): shown})

        monkeypatch.setattr("dynamix.jobs.life.watch", said)

    assert in_force(first) is None and obsolete(first) is None and still_restored(first) == {}
    assert watch_published(first, lambda _: statistics).today is None
    cells = [(1, "a/x", False), (1, "b/y", True), (2, "a/x", False)]
    grid = [mask_row("m20260302-a", DAY, g, f, "published", keep=keep) for g, f, keep in cells]
    grid += [mask_row("m20260301-b", DAY - timedelta(days=1), 1, "a/x", "retired", keep=False)]
    grid += [mask_row("m20260309-c", DAY + WEEK, 1, "a/x", "proposed", keep=True)]
    first.warehouse.replace(spark, MASKS, table_frame(spark, MASKS, grid))

    assert in_force(first) is None  # published on this very date: nothing to watch yet
    later = run_on(spark, root, DAY + WEEK)
    says(HARMFUL, 0.0125)
    watched = watch_published(later, lambda _: statistics)
    assert asked == [frozenset({(1, "a/x"), (2, "a/x")})]
    ((segment, stream, check),) = watched.fresh(later.run_date)
    assert (segment, stream, check.rule, check.value) == (1, "a/x", "restored by hold-out", 0.0125)

    audit = [{
        "mask_version": "m20260309-c", "segment_id": segment, "tier": "*", "stream": stream, "rule": check.rule,
        "value": check.value, "limit": check.limit, "passed": check.passed,
    }]  # fmt: skip
    later.warehouse.replace(spark, MASK_AUDIT, table_frame(spark, MASK_AUDIT, audit))
    result = StepResult()
    write_watch(later, watched, result)
    assert result.facts["watch"] == "m20260302-a as told" and "mask_audit" in result.tables
    assert obsolete(later) == ("m20260302-a", "harmful: what it drops costs 1.250% NE, budget 0.100%")

    # the same date once more gives the same sentence, whether the watch is repeated or remembered
    assert still_restored(later) == dict(watched.restored)
    assert set(still_restored(run_on(spark, root, DAY + 6 * WEEK))) == {(1, "a/x")}
    assert still_restored(run_on(spark, root, DAY + 7 * WEEK)) == {}  # 42 days after the watch
    assert still_restored(first) == {}  # a run of an earlier date knows nothing of it

    says(IN_FORCE, 0.0)
    write_watch(later, watch_published(later, lambda _: statistics), StepResult())
    assert obsolete(later) is None  # the note before is replaced
    assert obsolete(run_on(spark, root, DAY + 4 * WEEK)) == (
        "m20260302-a", "expired: 28 days old, retired from 28 on",
    )  # fmt: skip
    assert obsolete(run_on(spark, root, DAY + 4 * WEEK, **{"mask.ttl_days": 29})) is None
    set_status(later, "m20260302-a", "retired")
    assert in_force(later) is None and obsolete(later) is None


def test_nothing_mature_to_watch_by_leaves_the_age(spark: SparkSession, tmp_path: Path) -> None:
    run = run_on(spark, tmp_path / "w", DAY)
    grid = [mask_row("m20260302-a", DAY, 1, "a/x", "published", keep=False)]
    run.warehouse.replace(spark, MASKS, table_frame(spark, MASKS, grid))

    def nothing(_: object) -> Statistics:
        raise GuardError("no impression")

    states = []
    for weeks in (1, 4):
        today = watch_published(run_on(spark, tmp_path / "w", DAY + weeks * WEEK), nothing).today
        states.append(today.state if today else "")
    assert states == [IN_FORCE, EXPIRED]
