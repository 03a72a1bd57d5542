"""Sessions against a brute-force oracle, and the edges that decide where one ends."""

from __future__ import annotations

from typing import Any

import millis_oracle as oracle
import pytest
import raw_events
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dynamix.config import Config, load_config
from dynamix.contracts import EBF_SESSION
from dynamix.features.dwell import derive_dwell
from dynamix.features.sessions import assign_sessions, session_features

event, MINUTE, START = raw_events.event, raw_events.MINUTE, raw_events.START_MS
pytestmark = pytest.mark.spark


def _groups(assigned: DataFrame) -> set[tuple[int, frozenset[str]]]:
    rows = (
        assigned.where("session_id is not null")
        .groupBy("session_id")
        .agg(F.collect_set("event_id").alias("ids"), F.min(F.unix_millis("session_start")).alias("start"))
        .collect()
    )
    return {(row["start"], frozenset(row["ids"])) for row in rows}


def _expected(found: list[list[dict[str, Any]]]) -> set[tuple[int, frozenset[str]]]:
    return {(s[0]["ts"], frozenset(e["event_id"] for e in s)) for s in found}


@pytest.mark.parametrize("rule", ["gap", "given"])
@pytest.mark.parametrize("max_minutes", [1440, 45])
def test_sessions_equal_the_brute_force_ones(spark: SparkSession, rule: str, max_minutes: int) -> None:
    settings = [f"session.rule={rule}", f"session.max_length_s={max_minutes}m"]
    config = load_config(settings=settings)
    events = raw_events.many_users(40, seed=max_minutes)
    assigned = assign_sessions(raw_events.frame(spark, events), config=config)
    found = oracle.sessions(events, gap_ms=30 * MINUTE, max_ms=max_minutes * MINUTE, given=rule == "given")
    assert _groups(assigned) == _expected(found)


def test_edges_of_a_session(spark: SparkSession) -> None:
    cases = {
        "at the gap": ([0, 30 * MINUTE], 1),
        "over the gap": ([0, 30 * MINUTE + 1], 2),
        "over midnight": ([-5 * MINUTE, 5 * MINUTE], 1),
        "impression in between": ([0, (20 * MINUTE, "impression"), 40 * MINUTE], 2),
        "exactly a day": ([20 * MINUTE * i for i in range(73)], 1),
        "a day and a bit": ([20 * MINUTE * i for i in range(74)], 2),
    }
    events = []
    for user, (times, _) in cases.items():
        for at in times:
            ms, kind = at if isinstance(at, tuple) else (at, "view")
            events.append(event(user, ms, event_type=kind))
    assigned = assign_sessions(raw_events.frame(spark, events), config=Config())
    counted = assigned.groupBy("user_id").agg(F.count_distinct("session_id").alias("n")).collect()
    assert {row["user_id"]: row["n"] for row in counted} == {user: n for user, (_, n) in cases.items()}
    outside = assigned.where("session_id is null").select("event_type", "session_start").collect()
    assert [tuple(row) for row in outside] == [("impression", None)]


def test_organic_impressions_take_part(spark: SparkSession) -> None:
    events = [event("u", 0), event("u", 20 * MINUTE, event_type="impression"), event("u", 40 * MINUTE)]
    config = load_config(settings=["organic_impressions=true"])
    assigned = assign_sessions(raw_events.frame(spark, events), config=config)
    assert assigned.select("session_id").distinct().count() == 1


def test_given_sessions_of_one_start_stay_apart(spark: SparkSession) -> None:
    events = [event("u", 0, source_session_id=s, event_id=s) for s in ("A", "B")]
    assigned = assign_sessions(
        raw_events.frame(spark, events), config=load_config(settings=["session.rule=given"])
    )
    assert assigned.select("session_id").distinct().count() == 2


def test_session_rows_equal_the_sums_of_the_oracle(spark: SparkSession) -> None:
    config = load_config(settings=["session.max_length_s=45m"])
    events = raw_events.many_users(40, seed=7)
    settled = derive_dwell(assign_sessions(raw_events.frame(spark, events), config=config), config=config)
    table = session_features(settled, config=config)
    assert tuple(table.columns) == EBF_SESSION.names
    found = oracle.sessions(events, gap_ms=30 * MINUTE, max_ms=45 * MINUTE)
    dwell = oracle.dwells(found)
    expected = {(s[0]["user_id"], s[0]["ts"]): oracle.summary(s, dwell) for s in found}
    times = {name: F.unix_millis(name) for name in ("session_start", "session_end")}
    rows = table.withColumns({**times, "keys": F.map_keys("n_by_stream")}).collect()
    assert len(rows) == len(expected)
    for row in rows:
        wanted = expected[row["user_id"], row["session_start"]]
        assert row["surface_entropy"] == pytest.approx(wanted.pop("surface_entropy"), abs=3 * 2.0**-21)
        assert {name: row[name] for name in wanted} == wanted
        assert row["source_session_id"] in {"A", "B", None}
        assert row["keys"] == sorted(row["keys"])


def test_gap_before_and_cut_sessions(spark: SparkSession) -> None:
    events = [event("u", at * MINUTE) for at in (0, 25, 50, 200, 201)] + [event("v", 0)]
    config = load_config(settings=["session.max_length_s=30m"])
    settled = derive_dwell(assign_sessions(raw_events.frame(spark, events), config=config), config=config)
    rows = session_features(settled, config=config).orderBy("user_id", "session_start").collect()
    assert [(r["user_id"], r["n_events"], r["gap_before_ms"], r["capped_length"]) for r in rows] == [
        ("u", 2, None, True),
        ("u", 1, 25 * MINUTE, True),
        ("u", 2, 150 * MINUTE, False),
        ("v", 1, None, False),
    ]
