"""Filled-in constants: planted ones are found, smooth and rounded dwells never; flags reach no statistic."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from event_frames import event_frame
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.features.dwell import cap_dwell
from dynamix.features.imputed import (
    LAST,
    MIN_COUNT,
    find_imputed,
    flag_imputed,
    frequent_last_dwells,
    imputed_values,
)
from dynamix.features.sessions import session_features
from dynamix.features.streams import has_usable_dwell
from dynamix.features.tables import Warehouse
from dynamix.jobs.baseline import stored_mark
from dynamix.jobs.context import Run
from dynamix.jobs.ingest import ingest

SHARE = 0.05


def found(dwells: Any, *, share: float = SHARE) -> list[int]:
    values, counts = np.unique(np.asarray(dwells, np.int64), return_counts=True)
    return imputed_values(values, counts, total=int(counts.sum()), share=share).tolist()  # type: ignore[no-any-return]


def lognormal(n: int, seed: int, *, median_ms: float = 9000, sd: float = 1.2, unit_ms: int = 1) -> Any:
    draws = np.random.default_rng(seed).lognormal(math.log(median_ms), sd, n)
    return np.rint(draws / unit_ms).astype(np.int64) * unit_ms


def test_a_constant_on_three_of_ten_last_events_is_found_exactly() -> None:
    for seed in range(20):
        smooth = lognormal(1400, seed)
        assert found([*smooth, *[30_000] * 600]) == [30_000]


def test_two_constants_are_found_beside_a_smooth_rest() -> None:
    assert found([*lognormal(1000, 1), *[30_000] * 600, *[60_000] * 400]) == [30_000, 60_000]


@pytest.mark.parametrize(
    ("median_ms", "unit_ms"), [(9000, 1), (40, 1), (9000, 1000), (2000, 1000), (20_000, 15_000)]
)
def test_a_smooth_lognormal_is_never_flagged_whatever_it_is_rounded_to(
    median_ms: float, unit_ms: int
) -> None:
    sizes = [100, 1000, 20_000]
    for seed in range(200):
        assert found(lognormal(sizes[seed % 3], seed, median_ms=median_ms, unit_ms=unit_ms)) == []


@pytest.mark.parametrize("planted", [0, 40, 95])
def test_a_genuine_spike_below_the_share_is_left_alone(planted: int) -> None:
    assert found([*lognormal(2000 - planted, 3), *[15_000] * planted]) == []


def test_a_share_that_is_only_just_above_the_limit_needs_more_rows_to_be_shown() -> None:
    few, many = 1_000, 1_000_000
    for total, wanted in ((few, []), (many, [7])):
        values, counts = [7, 8], [round(0.055 * total), 1]
        assert imputed_values(values, counts, total=total, share=SHARE).tolist() == wanted


def test_a_value_that_is_as_frequent_inside_sessions_is_genuine() -> None:
    values, counts = [0, 900], [600, 3]
    for inner, wanted in ((0.0, [0]), (0.1, [0]), (0.2, []), (0.3, [])):
        seen = imputed_values(values, counts, total=2000, share=SHARE, inner=[inner, 0.0])
        assert seen.tolist() == wanted, inner  # 30 % of last events against twice the share inside


def test_fewer_than_thirty_prove_nothing() -> None:
    assert found([5] * (MIN_COUNT - 1)) == []
    assert found([5] * MIN_COUNT) == [5]


def test_the_bound_is_above_the_exact_binomial_tail() -> None:
    """At the smallest count that is flagged the exact tail lies below the stated chance."""
    total, p = 400, SHARE
    least = next(c for c in range(1, total) if imputed_values([1], [c], total=total, share=p).size)
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        + k * math.log(p) + (total - k) * math.log(1 - p)
        for k in range(least, total + 1)
    ]  # fmt: skip
    assert sum(map(math.exp, logs)) < 1e-6 * SHARE / 10


def test_rare_values_may_be_left_out() -> None:
    dwells = np.concatenate([lognormal(5000, 9, median_ms=60), np.full(2500, 333)])
    values, counts = np.unique(dwells, return_counts=True)
    often = counts >= SHARE / 10 * len(dwells)
    whole = imputed_values(values, counts, total=len(dwells), share=SHARE)
    assert whole.tolist() == [333]
    assert imputed_values(values[often], counts[often], total=len(dwells), share=SHARE).tolist() == [333]


def test_streams_are_judged_apart_and_the_warning_names_stream_value_and_share() -> None:
    rows = [
        ("feed/view", 30_000, 600, 2000, 0.01),
        ("feed/view", 12, 40, 2000, 0.0),
        ("shop/view", 30_000, 60, 2000, 0.0),
        ("web/view", 0, 600, 2000, 0.29),  # as frequent inside sessions: a genuine bounce
    ]
    (one,) = find_imputed(rows, share=SHARE)
    assert (one.stream, one.dwell_ms) == ("feed/view", 30_000)
    for part in ("feed/view", "30000 ms", "30.0%", "2000"):
        assert part in one.sentence()


@pytest.mark.spark
def test_only_logged_dwells_of_last_events_are_counted(spark: SparkSession) -> None:
    rows = [
        *[{"t": i, "dwell_ms": 7, "session_id": f"s{i}"} for i in range(42)],
        {"t": 50, "dwell_ms": 8, "session_id": "a"},
        {"t": 51, "dwell_ms": 9, "dwell_status": "derived", "session_id": "b"},
        {"t": 52, "dwell_status": "censored", "session_id": "c"},
        {"t": 53, "dwell_ms": 7, "surface": "feed", "session_id": "d"},
        {"t": 54, "dwell_ms": 7},  # an impression: in no session
        *[{"t": 60 + i, "dwell_ms": 100 + i, "session_id": "e"} for i in range(6)],
    ]
    last = ~F.col("event_id").isin("e0", "e1") & (F.coalesce("dwell_ms", F.lit(0)) < 100)
    frame = event_frame(spark, rows).withColumn(LAST, last)
    # 8 ms is rarer than a tenth of the share; two of the eight dwells inside sessions are 7 ms
    got = {tuple(r) for r in frequent_last_dwells(frame, share=0.5).collect()}
    assert got == {("shop/view", 7, 40, 41, 0.25), ("feed/view", 7, 1, 1, 0.0)}


@pytest.mark.spark
def test_a_flagged_value_stays_and_enters_no_statistic(spark: SparkSession) -> None:
    rows = [
        {"t": 0, "dwell_ms": 30_000, "session_id": "s"},
        {"t": 1, "dwell_ms": 30_001, "session_id": "s"},
        {"t": 2, "dwell_ms": 30_000, "dwell_status": "derived", "session_id": "s"},
        {"t": 3, "dwell_ms": 30_000, "surface": "feed", "session_id": "s"},
        {"t": 4, "dwell_status": "missing", "session_id": "s"},
    ]
    frame = event_frame(spark, rows).withColumn(
        "session_start", F.lit("2024-01-01 00:00:00Z").cast("timestamp")
    )
    flagged = cap_dwell(flag_imputed(frame, constants={"shop/view": [30_000]}), caps={"*": 20_000})
    seen = {
        r["event_id"]: (r["dwell_status"], r["dwell_ms"], r["usable"])
        for r in flagged.withColumn("usable", has_usable_dwell()).collect()
    }
    assert seen == {
        "e0": ("imputed", 30_000, False),
        "e1": ("capped", 20_000, True),
        "e2": ("capped", 20_000, True),
        "e3": ("capped", 20_000, True),
        "e4": ("missing", None, False),
    }
    (session,) = session_features(flagged, config=Config()).collect()
    assert session["dwell_by_stream"] == {"shop/view": 40_000, "feed/view": 20_000}


@pytest.mark.spark
def test_ingest_flags_warns_and_freezes_the_constant(spark: SparkSession, tmp_path: Path) -> None:
    """40 users, a session of three events a day for 8 days; every third session ends with a logged 12345."""
    draw = np.random.default_rng(4)
    zero = 19_723 * 86_400  # 2024-01-01
    rows = []
    for s in range(320):
        user, day = s % 40, s // 40
        for i in range(3):
            filled = i == 2 and s % 3 == 0
            dwell = 12_345 if filled else int(draw.integers(1000, 60_000))
            rows.append((f"u{user}", zero + 86_400 * day + 60 * i, dwell))
    frame = spark.createDataFrame(rows, "user_id string, event_ts bigint, dwell_ms bigint")
    frame = frame.withColumns({"surface": F.lit("feed"), "event_type": F.lit("view")})
    frame.coalesce(1).write.parquet(str(tmp_path / "events"))
    place = Warehouse(tmp_path / "W")
    run = Run(spark, place, Config(time_unit="s"), date(2024, 1, 9), "r1", quiet=True)
    result = ingest(run, events=str(tmp_path / "events"))
    assert result.counters["dwell_imputed"] == sum(row[2] == 12_345 for row in rows) == 107
    (warning,) = [text for text in result.warnings if "imputed" in text]
    baseline = sum(s % 3 == 0 for s in range(160))  # the first half of a short span
    assert "feed/view" in warning and "12345 ms" in warning and f"{baseline / 160:.1%} of 160" in warning
    mark = stored_mark(place)
    assert mark is not None and mark.baseline.imputed_ms == {"feed/view": [12_345]}
    statuses = {r["dwell_status"] for r in place.read(spark, "events").where("dwell_ms = 12345").collect()}
    assert statuses == {"imputed"}
