"""Dwell statuses against the oracle; the last event is unknown, never zero."""

from __future__ import annotations

import random
from typing import Any

import millis_oracle as oracle
import pytest
import raw_events
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dynamix.config import Config, load_config
from dynamix.features.dwell import ALL_STREAMS, cap_dwell, derive_dwell, dwell_caps
from dynamix.features.sessions import assign_sessions

event, MINUTE = raw_events.event, raw_events.MINUTE
pytestmark = pytest.mark.spark


def _settle(spark: SparkSession, events: list[dict[str, Any]], *settings: str) -> DataFrame:
    config = load_config(settings=settings)
    return derive_dwell(assign_sessions(raw_events.frame(spark, events), config=config), config=config)


def _by_id(settled: DataFrame) -> dict[str, tuple[str, int | None]]:
    rows = settled.select("event_id", "dwell_status", "dwell_ms").collect()
    return {row["event_id"]: (row["dwell_status"], row["dwell_ms"]) for row in rows}


@pytest.mark.parametrize("rule", ["gap", "given"])
def test_dwell_equals_the_brute_force_one(spark: SparkSession, rule: str) -> None:
    events = raw_events.many_users(40, seed=3)
    found = oracle.sessions(events, gap_ms=30 * MINUTE, max_ms=1440 * MINUTE, given=rule == "given")
    got = _by_id(_settle(spark, events, f"session.rule={rule}"))
    wanted = oracle.dwells(found)
    for e in events:
        if e["event_type"] == oracle.IMPRESSION:
            logged = e["dwell_ms"]
            wanted[e["event_id"]] = ("missing", None) if logged is None else ("observed", logged)
    assert got == wanted


def test_last_event_is_censored(spark: SparkSession) -> None:
    events = [event("u", 0, event_id="a"), event("u", 9_000, event_id="b"), event("v", 0, event_id="c")]
    assert _by_id(_settle(spark, events)) == {
        "a": ("derived", 9_000),
        "b": ("censored", None),
        "c": ("censored", None),
    }
    planted = _by_id(_settle(spark, events, "dwell.censor_last=false"))
    assert planted["b"] == planted["c"] == ("derived", 0)


def test_gaps_mean_nothing_where_derive_is_false(spark: SparkSession) -> None:
    events = [
        event("u", 0, event_id="a"),
        event("u", 9, event_id="b", dwell_ms=5),
        event("u", 20, event_id="c"),
    ]
    got = _by_id(_settle(spark, events, "dwell.derive=false"))
    assert got == {"a": ("missing", None), "b": ("observed", 5), "c": ("missing", None)}


def test_a_bad_logged_dwell_is_missing_and_not_derived(spark: SparkSession) -> None:
    frame = raw_events.frame(spark, [event("u", 0, event_id="a"), event("u", 9_000, event_id="b")])
    marked = assign_sessions(frame, config=Config()).withColumn("bad_dwell", F.col("event_id") == "a")
    settled = derive_dwell(marked, config=Config())
    assert _by_id(settled) == {"a": ("missing", None), "b": ("censored", None)}
    assert "bad_dwell" not in settled.columns


def test_caps_equal_the_quantile_of_the_binned_values(spark: SparkSession) -> None:
    draw = random.Random(1)
    values = {"view": [int(draw.lognormvariate(9, 2)) for _ in range(400)], "click": [0, 0, 0, 50_000_000]}
    events = [
        event("u", i, event_id=f"{kind}{i}", event_type=kind, dwell_ms=value)
        for kind, own in values.items()
        for i, value in enumerate(own)
    ] + [event("u", 0, event_id="none", event_type="other")]
    rows = dwell_caps(raw_events.frame(spark, events), 0.95).collect()
    got = {row["stream"]: row["cap_ms"] for row in rows}
    pooled = values["view"] + values["click"]
    assert got == {
        "feed/view": oracle.cap(values["view"], 0.95),
        "feed/click": oracle.cap(values["click"], 0.95),
        ALL_STREAMS: oracle.cap(pooled, 0.95),
    }


def test_a_dwell_above_the_cap_is_capped_and_one_at_it_is_not(spark: SparkSession) -> None:
    settled = _settle(
        spark,
        [
            event("a", 0, event_id="above", dwell_ms=101),
            event("b", 0, event_id="at", dwell_ms=100),
            event("c", 0, event_id="new", dwell_ms=70, event_type="click"),
            event("d", 0, event_id="last"),
        ],
    )
    capped = cap_dwell(settled, caps={"feed/view": 100, ALL_STREAMS: 60})
    assert _by_id(capped) == {
        "above": ("capped", 100),
        "at": ("observed", 100),
        "new": ("capped", 60),
        "last": ("censored", None),
    }
