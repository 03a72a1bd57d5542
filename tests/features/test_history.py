"""Kept histories against a plain-Python oracle: every rule of the point-in-time window, pair by pair."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamix.config import HistoryConfig
from dynamix.features import history as module
from dynamix.features.history import EventBlock, ImpressionBlock, kept_history, map_histories
from dynamix.features.quotas import BaseQuota
from dynamix.features.timeline import each_parcel, whole_users

Event = tuple[int, int, int, int, int]  # user, ts, ingest, request, stream
Asked = tuple[int, int, int]  # user, ts, request


def event_block(rows: list[Event], *, items: list[int] | None = None) -> EventBlock:
    rows = sorted(rows, key=lambda r: r[:2])
    cols = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    item = np.array(items if items is not None else [-1] * len(rows), dtype=np.int64)
    n = len(rows)
    return EventBlock(
        user=cols[0], ts_us=cols[1], ingest_us=cols[2], request=cols[3], stream=cols[4].astype(np.int16),
        item=item, category=np.full(n, -1), z=np.full(n, np.nan), dwell_bin=np.full(n, 12, np.int8),
        censored=np.zeros(n, bool), item_name=pa.nulls(n, pa.string()),
        category_name=pa.nulls(n, pa.string()),
    )  # fmt: skip


def impression_block(rows: list[Asked]) -> ImpressionBlock:
    cols = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    minus = np.full(len(rows), -1)
    return ImpressionBlock(cols[0], cols[1], cols[2], minus, minus, pa.table({"row": list(range(len(rows)))}))


def oracle(
    events: EventBlock, asked: list[Asked], *, per_stream: int, total: int, embargo: int, run: int | None
) -> list[list[int]]:
    histories = []
    for user, ts, request in asked:
        kept: list[int] = []
        used: dict[int, int] = {}
        for e in reversed(range(len(events.ts_us))):
            same = request != -1 and events.request[e] == request
            known = events.ingest_us[e] <= (ts if run is None else run)
            if events.user[e] != user or events.ts_us[e] >= ts - embargo or same or not known:
                continue
            stream = int(events.stream[e])
            if used.get(stream, 0) < per_stream:
                used[stream] = used.get(stream, 0) + 1
                kept.append(e)
        histories.append(sorted(kept[:total]))
    return histories


def as_lists(result: tuple[Any, Any]) -> list[list[int]]:
    offsets, index = result
    return [index[a:b].tolist() for a, b in pairwise(offsets)]


small = st.integers(0, 12)
event_rows = st.lists(
    st.tuples(st.integers(0, 2), small, st.integers(0, 15), st.integers(-1, 2), st.integers(0, 3)),
    max_size=40,
)
asked_rows = st.lists(st.tuples(st.integers(0, 3), small, st.integers(-1, 2)), max_size=8)


@settings(max_examples=300, deadline=None)
@given(
    event_rows, asked_rows, st.integers(1, 4), st.integers(1, 8), st.integers(0, 3),
    st.none() | st.integers(0, 15), st.sampled_from([1, 7, 4_000_000]),
)  # fmt: skip
def test_equals_the_plain_python_oracle(
    rows: list[Event],
    asked: list[Asked],
    per_stream: int,
    total: int,
    embargo: int,
    run: int | None,
    budget: int,
) -> None:
    events = event_block(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIR_BUDGET", budget)
        found = kept_history(
            events,
            impression_block(asked),
            per_stream=per_stream,
            total=total,
            embargo_us=embargo,
            run_date_us=run,
        )
    assert found[0].dtype == np.int64 and len(found[0]) == len(asked) + 1
    assert as_lists(found) == oracle(
        events, asked, per_stream=per_stream, total=total, embargo=embargo, run=run
    )


def longer_oracle(
    events: EventBlock, asked: list[Asked], *, per_stream: int, total: int, boost_to: int
) -> list[list[int]]:
    """From the newest event on: the base fills `per_stream` and `total`, and only a full one goes on to `boost_to`."""
    histories = []
    for user, ts, request in asked:
        kept: list[int] = []
        used: Counter[int] = Counter()
        base = 0
        for e in reversed(range(len(events.ts_us))):
            same = request != -1 and events.request[e] == request
            if events.user[e] != user or events.ts_us[e] >= ts or same or events.ingest_us[e] > ts:
                continue
            stream = int(events.stream[e])
            if used[stream] < per_stream:
                if base == total:
                    continue
                base += 1
            elif used[stream] >= boost_to:
                continue
            used[stream] += 1
            kept.append(e)
        histories.append(kept[::-1])
    return histories


@settings(max_examples=300, deadline=None)
@given(
    event_rows, asked_rows, st.integers(1, 3), st.integers(1, 8), st.integers(1, 6),
    st.sampled_from([1, 7, 4_000_000]),
)  # fmt: skip
def test_a_boost_lengthens_full_streams_beside_the_total_and_leaves_the_base_as_it_is(
    rows: list[Event], asked: list[Asked], per_stream: int, total: int, more: int, budget: int
) -> None:
    events, seen = event_block(rows), impression_block(asked)
    rule: dict[str, Any] = {"per_stream": per_stream, "total": total, "embargo_us": 0, "run_date_us": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIR_BUDGET", budget)
        found = kept_history(events, seen, **rule, boost_to=per_stream + more)
    expected = longer_oracle(events, asked, per_stream=per_stream, total=total, boost_to=per_stream + more)
    assert as_lists(found) == expected
    base = BaseQuota(per_stream).part(*found, events.stream)
    assert as_lists(base) == as_lists(kept_history(events, seen, **rule))


def test_a_declared_length_is_no_base_of_a_boost() -> None:
    events = event_block([(0, t, t, -1, t % 2) for t in range(20)])
    found = kept_history(
        events, impression_block([(0, 100, -1)]), per_stream=2, total=50, embargo_us=0, run_date_us=None,
        lengths={1: 3}, boost_to=5,
    )  # fmt: skip
    assert events.stream[found[1]].tolist().count(0) == 5
    assert events.stream[found[1]].tolist().count(1) == 3


@pytest.mark.parametrize(
    ("event", "kept"),
    [
        ((0, 39, 39, -1, 0), True),
        ((0, 40, 40, -1, 0), False),  # exactly t - embargo
        ((0, 10, 100, -1, 0), True),  # known at the very instant
        ((0, 10, 101, -1, 0), False),  # known too late
        ((0, 10, 10, 7, 0), False),  # same request
        ((0, 10, 10, 8, 0), True),
        ((1, 10, 10, -1, 0), False),  # another user
    ],
)
def test_each_border_of_visibility(event: Event, kept: bool) -> None:
    found = kept_history(
        event_block([event]),
        impression_block([(0, 100, 7)]),
        per_stream=5,
        total=5,
        embargo_us=60,
        run_date_us=None,
    )
    assert as_lists(found) == [[0] if kept else []]


def test_events_after_the_impression_change_nothing() -> None:
    rows: list[Event] = [(0, t, t, -1, t % 3) for t in range(50)]
    asked = impression_block([(0, 30, -1)])
    options: dict[str, Any] = {"per_stream": 3, "total": 7, "embargo_us": 5, "run_date_us": None}
    before = as_lists(kept_history(event_block([r for r in rows if r[1] < 25]), asked, **options))
    assert as_lists(kept_history(event_block(rows), asked, **options)) == before


def test_one_long_user_of_one_stream_keeps_the_newest_despite_long_filtered_stretches() -> None:
    n = 20_000
    rows: list[Event] = [(0, t, t if t < 100 else 10**9, -1, 0) for t in range(n)]  # all but 100 arrive late
    asked: list[Asked] = [(0, n + i, -1) for i in range(20)]
    found = kept_history(
        event_block(rows), impression_block(asked), per_stream=50, total=200, embargo_us=0, run_date_us=None
    )
    assert as_lists(found) == [list(range(50, 100))] * 20


def test_no_events_and_no_impressions_are_legal() -> None:
    options: dict[str, Any] = {"per_stream": 3, "total": 7, "embargo_us": 5, "run_date_us": None}
    assert as_lists(kept_history(event_block([]), impression_block([(0, 1, -1)]), **options)) == [[]]
    assert as_lists(kept_history(event_block([(0, 1, 1, -1, 0)]), impression_block([]), **options)) == []


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 7), st.integers(1, 10))
def test_tables_of_whole_users_split_no_user_and_lose_no_row(
    sizes: list[int], batch: int, target: int
) -> None:
    users = [f"u{i:02}" for i, size in enumerate(sizes) for _ in range(size)]
    whole = pa.table({"user_id": pa.array(users, pa.string()), "row": list(range(len(users)))})
    tables = list(whole_users(iter(whole.to_batches(max_chunksize=batch)), target=target))
    assert [row for table in tables for row in table["row"].to_pylist()] == list(range(len(users)))
    homes = [set(table["user_id"].to_pylist()) for table in tables]
    assert sum(len(home) for home in homes) == len(set(users))


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 7))
def test_every_parcel_is_one_table_with_all_of_its_rows(sizes: list[int], batch: int) -> None:
    parcels = [i for i, size in enumerate(sizes) for _ in range(size)]
    whole = pa.table({"parcel": pa.array(parcels, pa.int64()), "row": list(range(len(parcels)))})
    tables = list(each_parcel(iter(whole.to_batches(max_chunksize=batch))))
    assert [row for table in tables for row in table["row"].to_pylist()] == list(range(len(parcels)))
    assert [set(table["parcel"].to_pylist()) for table in tables] == [{i} for i in range(len(sizes))]


def users_of_block(events: EventBlock, asked: ImpressionBlock, offsets: Any, index: Any) -> Any:
    return pa.table({"users": [asked.frame["user_id"].to_pylist()]})


@pytest.mark.spark
def test_blocks_are_the_same_whatever_the_partitions(spark: Any) -> None:
    asked = spark.range(60).selectExpr(
        "concat('u', id % 20) user_id", "timestamp_seconds(id) event_ts", "string(id) event_id",
        "string(null) request_id", "string(null) item_id",
    )  # fmt: skip
    events = asked.limit(0).selectExpr(
        "*", "event_ts ingest_ts", "bigint(0) event_seq", "string(null) category", "smallint(0) stream_id",
        "double(0) z", "tinyint(0) dwell_bin", "false censored",
    )  # fmt: skip
    found, before = [], spark.conf.get("spark.sql.shuffle.partitions")
    try:
        for partitions in (1, 3, 7):
            spark.conf.set("spark.sql.shuffle.partitions", partitions)
            rows = map_histories(
                events, asked, history=HistoryConfig(embargo=0), kernel=users_of_block,
                schema="users array<string>", parcels=4,
            ).collect()  # fmt: skip
            found.append(sorted(row["users"] for row in rows))
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)
    assert len(found[0]) == 4
    assert sorted(user for block in found[0] for user in block) == sorted(f"u{i % 20}" for i in range(60))
    assert found[1:] == found[:1] * 2


def block_sizes(events: EventBlock, asked: ImpressionBlock, offsets: Any, index: Any) -> Any:
    names = [[events.item_name[int(e)].as_py() for e in index[a:b]] for a, b in pairwise(offsets)]
    match = [
        int((events.item[index[a:b]] == item).sum()) if item >= 0 else 0
        for a, b, item in zip(offsets[:-1], offsets[1:], asked.item, strict=True)
    ]
    return pa.table({"event_id": asked.frame["event_id"], "items": names, "match": match})


@pytest.mark.spark
def test_the_spark_wrapper_gives_each_impression_its_own_history(spark: Any) -> None:
    events = spark.sql(
        """select u user_id, timestamp_seconds(t) event_ts, timestamp_seconds(k) ingest_ts,
           cast(q as bigint) event_seq, e event_id, r request_id, i item_id, cast(null as string) category,
           cast(s as smallint) stream_id,
           cast(0.5 as double) z, cast(3 as tinyint) dwell_bin, false censored
           from values ('a', 10, 10, 2, 'e1', null, 'x', 0), ('a', 10, 10, 1, 'e2', null, 'y', 0),
           ('a', 10, 10, null, 'e3', 'r', 'z', 1), ('a', 20, 99, 1, 'e4', null, 'late', 0),
           ('b', 5, 5, 1, 'e5', null, 'x', 1) as v(u, t, k, q, e, r, i, s)"""
    )
    asked = spark.sql(
        """select u user_id, timestamp_seconds(t) event_ts, e event_id, r request_id, i item_id,
           array(1) extra
           from values ('a', 30, 'i1', 'r', 'x'), ('a', 120, 'i2', null, 'late'),
           ('c', 9, 'i3', null, null)
           as v(u, t, e, r, i)"""
    )
    rows = map_histories(
        events, asked, history=HistoryConfig(embargo=0), kernel=block_sizes,
        schema="event_id string, items array<string>, match bigint",
    ).collect()  # fmt: skip
    assert {row.event_id: (row["items"], row.match) for row in rows} == {
        "i1": (["y", "x"], 1),  # nulls of event_seq first; own request excluded; the late event not yet known
        "i2": (["z", "y", "x", "late"], 1),
        "i3": ([], 0),
    }


def test_per_stream_limit_counts_only_visible_events() -> None:
    rows: list[Event] = [(0, 1, 1, -1, 0), (0, 2, 2, 9, 0), (0, 3, 3, 9, 0), (0, 4, 4, -1, 1)]
    events = event_block(rows)
    found = kept_history(
        events, impression_block([(0, 9, 9)]), per_stream=1, total=9, embargo_us=0, run_date_us=None
    )
    assert as_lists(found) == [[0, 3]]


@settings(max_examples=200, deadline=None)
@given(
    event_rows, asked_rows, st.dictionaries(st.integers(0, 4), st.integers(1, 6), max_size=3), st.data(),
    st.sampled_from([1, 7, 4_000_000]),
)  # fmt: skip
def test_declared_lengths_and_spans_of_visibility_equal_a_loop(
    rows: list[Event], asked: list[Asked], lengths: dict[int, int], data: st.DataObject, budget: int
) -> None:
    """Each stream has a length of its own; an event is there for impressions with after < t <= until only."""
    ends = st.lists(st.integers(-1, 13), min_size=len(rows), max_size=len(rows))
    after, until = np.array(data.draw(ends), np.int64), np.array(data.draw(ends), np.int64)
    events = replace(event_block(rows), after_us=after, until_us=until)
    wanted = []
    for user, ts, request in asked:
        kept: list[int] = []
        used: Counter[int] = Counter()
        for e in reversed(range(len(rows))):
            stream = int(events.stream[e])
            mine = events.user[e] == user and events.ts_us[e] < ts and events.ingest_us[e] <= ts
            other = request == -1 or events.request[e] != request
            if mine and other and after[e] < ts <= until[e] and used[stream] < lengths.get(stream, 2):
                used[stream] += 1
                kept.append(e)
        wanted.append(sorted(kept[:6]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIR_BUDGET", budget)
        found = kept_history(
            events,
            impression_block(asked),
            per_stream=2,
            total=6,
            embargo_us=0,
            run_date_us=None,
            lengths=lengths,
        )
    assert as_lists(found) == wanted
