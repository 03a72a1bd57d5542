"""Stable stream ids and the event columns that histories are made of."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any

import pytest
from event_frames import START, event_frame
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import DWELL_BIN_EDGES_S
from dynamix.features.calendar import Period
from dynamix.features.streams import assign_streams, event_columns, stream_events

pytestmark = pytest.mark.spark
FAR = Period(START.replace(year=2023), START.replace(year=2025))


def ids(frame: Any) -> dict[str, int]:
    return {r.stream: r.stream_id for r in frame.collect()}


def test_ids_follow_first_appearance_then_name_and_survive_later_runs(spark: SparkSession) -> None:
    first = event_frame(
        spark,
        [
            {"t": 9, "surface": "b"},
            {"t": 5, "surface": "z"},
            {"t": 9, "surface": "a"},
            {"t": 0, "event_type": "impression"},
        ],
    )
    table = assign_streams(first, config=Config(), baseline=FAR)
    assert ids(table) == {"z/view": 0, "a/view": 1, "b/view": 2}
    # an earlier newcomer does not push the others, a vanished stream keeps its id
    later = event_frame(
        spark, [{"t": 1, "surface": "new"}, {"t": 2, "surface": "c"}, {"t": 9, "surface": "a"}]
    )
    again = assign_streams(later, config=Config(), baseline=FAR, known=table)
    assert ids(again) == {"z/view": 0, "a/view": 1, "b/view": 2, "new/view": 3, "c/view": 4}


def test_flags_say_what_is_a_conversion_and_what_has_dwell(spark: SparkSession) -> None:
    rows = [
        {"t": 1, "surface": "half", "dwell_ms": 5},
        {"t": 2, "surface": "half", "dwell_status": "censored"},
        {"t": 1, "surface": "less", "dwell_ms": 5},
        {"t": 2, "surface": "less", "dwell_status": "censored"},
        {"t": 3, "surface": "less"},
        {"t": 4, "surface": "filled", "dwell_ms": 7, "dwell_status": "imputed"},
        {"t": 9, "event_type": "conversion"},
    ]
    found = assign_streams(event_frame(spark, rows), config=Config(), baseline=FAR).collect()
    assert {r.stream: r.has_dwell for r in found} == {
        "half/view": True, "less/view": False, "filled/view": False, "shop/conversion": False,
    }  # fmt: skip
    assert [r.stream for r in found if r.is_conversion] == ["shop/conversion"]


def test_organic_impressions_become_a_stream(spark: SparkSession) -> None:
    events = event_frame(spark, [{"t": 1, "event_type": "impression"}])
    assert stream_events(events, config=Config()).count() == 0
    assert (
        stream_events(events, config=Config(organic_impressions=True)).first()["stream"] == "shop/impression"
    )


def test_z_is_centred_scaled_and_clipped_and_null_where_nothing_is_known(spark: SparkSession) -> None:
    dwells = [0, 999, 1000, 1001, 2000, 60_000, 899_999, 900_000, 900_001, 10**9]
    rows: list[dict[str, Any]] = [{"t": i, "dwell_ms": d} for i, d in enumerate(dwells)]
    rows += [
        {"t": 50, "dwell_ms": 5, "dwell_status": "imputed"},
        {"t": 51, "dwell_status": "censored"},
        {"t": 52, "dwell_ms": 5, "surface": "flat"},
        {"t": 53, "dwell_ms": 5, "surface": "none"},
    ]
    streams = spark.createDataFrame(
        [
            (0, "shop/view", 7.0, 2.0, True),
            (1, "flat/view", 7.0, 0.0, True),
            (2, "none/view", 7.0, 1.0, False),
        ],
        "stream_id smallint, stream string, mu double, sigma double, has_dwell boolean",
    )
    habits = spark.createDataFrame([("u", 0.5)], "user_id string, habit double")
    found = (
        event_columns(event_frame(spark, rows), streams, habits, Config())
        .orderBy(F.col("event_ts"))
        .collect()
    )
    edges_ms = [1000 * edge for edge in DWELL_BIN_EDGES_S]
    for row, dwell in zip(found, dwells, strict=False):
        assert row.z == pytest.approx(max(-3.0, min(3.0, (math.log1p(dwell) - 7.5) / 2)), abs=1e-12)
        assert row.dwell_bin == bisect_left(edges_ms, dwell)
    assert [r.z for r in found[10:]] == [None] * 4
    assert [r.dwell_bin for r in found[10:]] == [12, 12, 1, 1]
    assert [r.censored for r in found[10:]] == [False, True, False, False]
