"""Stable stream ids and the event columns that histories are made of."""

from __future__ import annotations

import math
from bisect import bisect_left
from datetime import datetime
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from event_frames import START, event_frame
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dynamix.config import Config, HistoryConfig, SessionConfig, load_config
from dynamix.contracts import DWELL_BIN_EDGES_S
from dynamix.declarations import StreamOptions
from dynamix.errors import ConfigError
from dynamix.features.baseline import fit_streams
from dynamix.features.calendar import Period, build_calendar
from dynamix.features.history import map_histories
from dynamix.features.streams import (
    assign_streams,
    event_columns,
    hidden_attributes,
    stream_events,
    stream_lengths,
)

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


def test_an_event_goes_to_the_stream_whose_filter_it_meets_else_to_its_own(spark: SparkSession) -> None:
    config = load_config(
        settings=[
            "attributes=[plan]",
            "streams={feed/engaged: {where: {surface: [feed, web], event_type: [like, share]}}, "
            "shop/gold: {where: {event_type: view, attributes: {plan: [gold, 3], category: c}}}, feed/view: {length: 2}}",
        ]
    )
    cases = [
        ({"surface": "feed", "event_type": "like"}, "feed/engaged"),
        ({"surface": "web", "event_type": "share"}, "feed/engaged"),
        ({"surface": "web", "event_type": "view"}, "web/view"),
        ({"surface": "feed", "event_type": "engaged"}, "feed/engaged"),  # its own name
        ({"attributes": {"plan": "gold"}, "category": "c"}, "shop/gold"),
        ({"attributes": {"plan": "3"}, "category": "c"}, "shop/gold"),
        ({"attributes": {"plan": "gold"}}, "shop/view"),  # no category: the condition is not met
        ({"attributes": None, "category": "c"}, "shop/view"),
        ({"surface": "feed"}, "feed/view"),
    ]
    events = event_frame(spark, [{"t": i, **case} for i, (case, _) in enumerate(cases)])
    rows = stream_events(events, config=config).collect()
    assert {r["event_id"]: r["stream"] for r in rows} == {f"e{i}": name for i, (_, name) in enumerate(cases)}


def test_what_a_stream_does_not_carry_is_empty_and_a_kind_may_carry_more(spark: SparkSession) -> None:
    config = Config(
        streams={"shop/view": StreamOptions(attributes=("recency",)), "feed/view": StreamOptions(length=3)}
    )
    more = {"dwell_ms": 5000, "item_id": "i", "category": "c"}
    rows = [{"t": 1, **more}, {"t": 2, "dwell_status": "censored"}, {"t": 3, "surface": "feed", **more}]
    streams = spark.createDataFrame(
        [(0, "shop/view", 7.0, 2.0, True), (1, "feed/view", 7.0, 2.0, True)],
        "stream_id smallint, stream string, mu double, sigma double, has_dwell boolean",
    )
    habits = spark.createDataFrame([], "user_id string, habit double")
    found = event_columns(event_frame(spark, rows), streams, habits, config).orderBy("event_ts").collect()
    shown = [(r.item_id, r.category, r.z is None, r.dwell_bin, r.censored) for r in found]
    assert shown == [(None, None, True, 12, False)] * 2 + [("i", "c", False, 4, False)]
    ids = {"shop/view": 0, "feed/view": 1, "feed/view#buy": 2, "web/view": 3}
    assert stream_lengths(ids, config) == {1: 3, 2: 3}
    assert hidden_attributes(ids, config) == {0: {"item", "category", "dwell"}}


GAP = 1800


def seen_by(t: float, own: dict[str, Any], session: list[dict[str, Any]], kind: str | None) -> str:
    """Stream of an event as an impression at `t` sees it, by the rule in words."""
    plain = f"shop/{own['event_type']}"
    if own["event_type"] == "conversion":
        return plain
    closed = max(e["t"] for e in session) + GAP < t and all(e.get("ingest", e["t"]) <= t for e in session)
    if not closed:
        return f"{plain}#open"
    return plain if kind is None else f"{plain}#{kind}"


def test_a_history_sees_open_sessions_as_open_and_closed_ones_by_their_kind(spark: SparkSession) -> None:
    config = Config(session=SessionConfig(kinds="on"), history=HistoryConfig(embargo=0))
    sessions: dict[str, tuple[str | None, list[dict[str, Any]]]] = {
        "s1": ("buy", [{"t": 0}, {"t": 50, "event_type": "click"}, {"t": 100, "event_type": "conversion"}]),
        "s2": ("browse", [{"t": 5000}, {"t": 5100, "ingest": 9000}]),  # its last event arrives late
        "s3": (None, [{"t": 9500}]),
    }
    for name, (_, own) in sessions.items():
        for e in own:
            e |= {"session_id": name, "event_type": e.get("event_type", "view")}
    events = [e for _, own in sessions.values() for e in own]
    asked = [100.5, 100 + GAP, 100 + GAP + 0.5, 5100 + GAP + 1, 8999, 9000, 9000.5, 9500 + GAP, 9501 + GAP]
    table = spark.createDataFrame(
        [("u", name, kind) for name, (kind, _) in sessions.items()],
        "user_id string, session_id string, session_kind string",
    )
    frame = event_frame(spark, events)
    streams = fit_streams(
        frame,
        config=config,
        calendar=build_calendar(START.date().replace(day=2), first_event=START),
        sessions=table,
    )
    ids_of = {r["stream"]: r["stream_id"] for r in streams.collect()}
    kinded = {f"shop/{t}{kind}" for t in ("view", "click") for kind in ("", "#open", "#buy")}
    assert set(ids_of) == kinded | {"shop/view#browse", "shop/conversion"}

    def seen(block: Any, asked: Any, offsets: Any, index: Any) -> Any:
        listed = [[int(block.stream[e]) for e in index[a:b]] for a, b in pairwise(offsets)]
        return pa.table({"us": asked.ts_us, "streams": pa.array(listed, pa.list_(pa.int32()))})

    habits = spark.createDataFrame([], "user_id string, habit double")
    columns = event_columns(frame, streams, habits, config, sessions=table)
    impressions = event_frame(spark, [{"t": t, "event_type": "impression"} for t in asked])
    found = map_histories(
        columns, impressions, history=config.history, kernel=seen, schema="us bigint, streams array<int>"
    ).collect()
    names = {i: name for name, i in ids_of.items()}
    zero = round((START - datetime(1970, 1, 1)).total_seconds() * 1e6)
    got = {(r["us"] - zero) / 1e6: [names[i] for i in r["streams"]] for r in found}
    wanted = {
        t: [
            seen_by(t, e, own, kind)
            for kind, own in sessions.values()
            for e in own
            if e["t"] < t and e.get("ingest", e["t"]) <= t
        ]
        for t in asked
    }
    assert got == wanted
    assert {name.partition("#")[2] for listed in wanted.values() for name in listed} == {
        "",
        "open",
        "buy",
        "browse",
    }


def test_histories_with_kinds_need_the_session_table(spark: SparkSession) -> None:
    streams = spark.createDataFrame(
        [], "stream_id smallint, stream string, mu double, sigma double, has_dwell boolean"
    )
    habits = spark.createDataFrame([], "user_id string, habit double")
    with pytest.raises(ConfigError, match="run `dynamix features`"):
        event_columns(
            event_frame(spark, [{"t": 1}]), streams, habits, Config(session=SessionConfig(kinds="on"))
        )
