"""Both tables from one shuffle: the same rows as the separate paths, with hot users cut or whole, in any time zone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import raw_events
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from dynamix.config import load_config
from dynamix.contracts import EBF_SESSION, EBF_SURFACE
from dynamix.features.dwell import derive_dwell
from dynamix.features.engine import ebf_tables
from dynamix.features.engine_hot import hot_users
from dynamix.features.fragments import Rule
from dynamix.features.sessions import assign_sessions, session_features
from dynamix.features.surfaces import surface_rows
from dynamix.features.user_block import Reading, read_block, user_codes

RUN_DATE = date(2026, 1, 3)


def _rows(frame: DataFrame, key: tuple[str, ...]) -> list[Any]:
    return frame.orderBy(*key).collect()


def _bot() -> list[dict[str, Any]]:
    """A user who never rests: an event a minute for two days, so that pieces of a day are cut."""
    draw = random.Random(5)
    return [
        raw_events.event(
            "bot", i * raw_events.MINUTE + draw.choice([0, 0, 1]),
            event_type=draw.choice(["view", "click", "conversion", "impression"]),
            surface=draw.choice(["feed", "shop"]), event_id=f"b{draw.randrange(10**6):06d}-{i}",
        )
        for i in range(2880)
    ]  # fmt: skip


@pytest.fixture
def zone(spark: SparkSession) -> Iterator[None]:
    """A session time zone with daylight saving."""
    before = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", "Europe/Berlin")
    yield
    spark.conf.set("spark.sql.session.timeZone", before)


@pytest.mark.spark
@pytest.mark.parametrize("rule", ["gap", "given"])
def test_both_tables_equal_those_of_the_separate_paths(spark: SparkSession, zone: None, rule: str) -> None:
    """By the rule, from settled events, and with a user cut over tasks."""
    config = load_config(settings=[f"session.rule={rule}"])
    events = raw_events.frame(spark, raw_events.many_users(25, seed=11) + _bot()).cache()
    settled = derive_dwell(assign_sessions(events, config=config), config=config).cache()
    wanted = _rows(session_features(settled, config=config), EBF_SESSION.key)
    wanted_surfaces = _rows(surface_rows(settled, RUN_DATE, config=config), EBF_SURFACE.key)
    hot = hot_users(events, config=config, above=500)
    assert (hot is None) == (rule == "given")
    if hot is not None:
        assert hot.names == ("bot",) and len(hot.place) > 3
    for frame, cut in ((events, hot), (settled, hot), (events, None)):
        tables = ebf_tables(frame, config=config, run_date=RUN_DATE, hot=cut)
        assert tuple(tables.sessions.columns) == EBF_SESSION.names
        assert _rows(tables.sessions, EBF_SESSION.key) == wanted
        assert _rows(tables.surfaces, EBF_SURFACE.key) == wanted_surfaces


@pytest.mark.spark
def test_nobody_is_hot_among_few_events(spark: SparkSession) -> None:
    events = raw_events.frame(spark, raw_events.many_users(3, seed=1))
    assert hot_users(events, config=load_config()) is None


READING = Reading(
    Rule(1000, 10**9), given=False, derive=True, censor_last=True, conversion_types=(), settled=False
)


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.integers(0, 2),
            st.sampled_from([None, -1, 0, 1]),
            st.integers(0, 1),
        ),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([0, 1 << 61]),
)
def test_a_block_is_in_the_total_order_of_events(
    rows: list[tuple[str, int, int | None, int]], far: int
) -> None:
    """(event_ts, event_seq, ingest_ts, event_id), nulls first; `far` makes the sort's short cut impossible."""
    rows.sort(key=lambda row: row[0])
    times = [us + (far if i == len(rows) - 1 else 0) for i, (_, us, _, _) in enumerate(rows)]
    draw = random.Random(len(rows))
    ids = [f"{draw.randrange(50):02d}x{i}" for i in range(len(rows))]
    table = pa.table(
        {
            "user_id": [row[0] for row in rows],
            "us": pa.array(times, pa.int64()),
            "seq": pa.array([row[2] for row in rows], pa.int64()),
            "ingest": pa.array([row[3] for row in rows], pa.int64()),
            "event_id": ids,
            "surface": ids,
            "event_type": ["view"] * len(rows),
            "dwell_ms": pa.nulls(len(rows), pa.int64()),
            "flags": pa.array([0] * len(rows), pa.int8()),
        }
    )
    block = read_block(table, READING)
    found = [block.names.streams[int(code)].as_py().removesuffix("/view") for code in block.stream]

    def order(i: int) -> tuple[Any, ...]:
        user, _, seq, ingest = rows[i]
        return (user, times[i], seq is not None, seq or 0, ingest, ids[i])

    assert found == [ids[i] for i in sorted(range(len(rows)), key=order)]


def test_users_that_do_not_lie_side_by_side_are_told_apart() -> None:
    column = pa.array(["a", "a", "b", "a", "b"])
    codes, names = user_codes(column)
    assert names.take(pa.array(codes)).equals(column) and len(names) == 2
    assert np.array_equal(user_codes(pa.array(["b", "b", "a"]))[0], [0, 0, 1])
