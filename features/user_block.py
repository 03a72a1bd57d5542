"""A block of events of users as sorted NumPy arrays with sessions and dwells settled: one read for all kernels.

Spark brings the rows of a user together; the order within the user is made here, by one sort of integers. Only
where events are equal in time do event_seq, ingest_ts and event_id enter (docs/faults.md 44).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynamix.features.engine_hot import HotUsers
from dynamix.features.fragments import Border, Rule, mark
from dynamix.features.numbers import Bools, Ints, distinct, tied_rows
from dynamix.features.timeline import codes

USABLE, CENSORED, BAD = 1, 2, 4
"""Bits of the column `flags`: settled dwells may be usable or censored, unsettled ones bad."""


@dataclass(frozen=True)
class Reading:
    """How rows become a block; `settled` rows carry session_id, start_us and final dwells."""

    rule: Rule
    given: bool
    derive: bool
    censor_last: bool
    conversion_types: tuple[str, ...]
    settled: bool


@dataclass(frozen=True)
class Names:
    """What resolves the codes of a block: Arrow arrays of names, and per stream (S,) what it is.

    A stream is a (surface, event_type) with the name that declarations give it; streams are in the order of their
    names. Two of them have one name where a declaration spans several, or where a surface or a type has a slash;
    `same` gives the first stream of that name.
    """

    users: Any
    streams: Any
    surfaces: Any
    sources: Any
    ids: Any
    surface_of: Ints
    same: Ints
    converts: Bools


@dataclass(frozen=True)
class Block:
    """N events, each array (N,); the events of a session lie side by side and in EVENT_ORDER."""

    names: Names
    user: Ints
    us: Ints
    stream: Ints
    begins: Bools
    first: Ints
    part: Ints
    source: Ints | None
    id: Ints
    dwell: Ints
    """Milliseconds, 0 where not known."""
    known: Bools
    usable: Bools
    censored: Bools
    converted: Bools


def read_block(table: Any, reading: Reading, hot: HotUsers | None = None) -> Block:
    """Sorted block of a table with the columns of `engine.by_user`; users outside `hot` must be whole."""
    table = table.combine_chunks()
    user, users = user_codes(table.column("user_id"))
    us = np.asarray(table.column("us"))
    source, sources = _sources(table)
    reach = hot.ranges(users, user, us) if hot is not None else None
    line = _lines(user, source if reading.given else reach)
    order = _order(line, us, table)
    stream, names = _streams(table, users, sources, reading)
    own = None if source is None else source[order]
    rows = _Rows(table, order, user[order], us[order], stream[order], own, names)
    if reading.settled:
        return _stored(rows)
    ordered = line[order]
    outside = None if hot is None else hot.borders(users, user[order], us[order], ordered)
    return _by_rule(rows, reading, ordered, outside)


@dataclass(frozen=True)
class _Rows:
    """A table and its rows in order."""

    table: Any
    order: Ints
    user: Ints
    us: Ints
    stream: Ints
    source: Ints | None
    names: Names


def _by_rule(rows: _Rows, reading: Reading, line: Ints, outside: Border | None) -> Block:
    """Sessions by the rule; dwells logged, derived from the session's next event, or censored (A.2.2)."""
    whole = rows.source >= 0 if reading.given and rows.source is not None else None
    marks = mark(line, rows.us, rule=reading.rule, whole=whole, outside=outside)
    dwell, logged = _filled(rows.table.column("dwell_ms"), rows.order)
    none = np.zeros(len(dwell), dtype=bool)
    bad = (np.asarray(rows.table.column("flags"))[rows.order] & BAD) != 0
    unlogged = ~logged & ~bad if reading.derive else none
    followed = unlogged & (marks.until_next >= 0)
    last = unlogged & ~followed
    known = logged | followed if reading.censor_last else logged | unlogged
    return Block(
        names=rows.names,
        user=rows.user,
        us=rows.us,
        stream=rows.stream,
        begins=marks.begins | _heads(line),  # a cut line's first event opens a part of a session
        first=marks.first,
        part=marks.part,
        source=rows.source,
        id=np.full(len(dwell), -1, dtype=np.int64),
        dwell=np.where(followed, marks.until_next // 1000, dwell),
        known=known,
        usable=known,
        censored=last if reading.censor_last else none,
        converted=rows.names.converts[rows.stream],
    )


def _stored(rows: _Rows) -> Block:
    """The sessions and dwells that the rows carry."""
    code, ids = codes(rows.table.column("session_id"))
    order, code = rows.order, code[rows.order]
    pick = np.arange(len(order))
    if np.count_nonzero(_heads(code)) != len(ids):  # given sessions may overlap
        pick = np.argsort(code, kind="stable")
        order, code = order[pick], code[pick]
    dwell, known = _filled(rows.table.column("dwell_ms"), order)
    flags = np.asarray(rows.table.column("flags"))[order]
    stream = rows.stream[pick]
    return Block(
        names=replace(rows.names, ids=ids),
        user=rows.user[pick],
        us=rows.us[pick],
        stream=stream,
        begins=_heads(code),
        first=_filled(rows.table.column("start_us"), order)[0],
        part=np.zeros(len(code), dtype=np.int64),
        source=None if rows.source is None else rows.source[pick],
        id=code,
        dwell=dwell,
        known=known,
        usable=(flags & USABLE) != 0,
        censored=(flags & CENSORED) != 0,
        converted=rows.names.converts[stream],
    )


def user_codes(column: Any) -> tuple[Ints, Any]:
    """(dense codes, distinct values) of a column whose equal values mostly lie side by side."""
    runs = pc.run_end_encode(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    runs = runs.combine_chunks() if isinstance(runs, pa.ChunkedArray) else runs
    if len(runs.values.unique()) != len(runs.values):
        return codes(column)
    lengths = np.diff(np.asarray(runs.run_ends), prepend=0)
    return np.repeat(np.arange(len(lengths)), lengths), runs.values


def _lines(user: Ints, within: Ints | None) -> Ints:
    """Line of each event, dense and user by user: the user's events, cut by given session or by range."""
    if within is None or not len(within):
        return user
    width = int(within.max()) + 2
    keys, line = distinct(user * width + within + 1, (int(user.max()) + 1) * width)
    return line if len(keys) > int(user.max()) + 1 else user


def _order(line: Ints, us: Ints, table: Any) -> Ints:
    """Rows by (line, event_ts, event_seq, ingest_ts, event_id), nulls first."""
    if not len(us):
        return line
    base = int(us.min())
    bits = (int(us.max()) - base).bit_length()
    if int(line.max()).bit_length() + bits <= 63:
        key = (line << bits) | (us - base)
        order = np.argsort(key)
        ordered = key[order]
        tied = ordered[1:] == ordered[:-1]
    else:
        order = np.lexsort((us, line))
        tied = (us[order][1:] == us[order][:-1]) & (line[order][1:] == line[order][:-1])
    if tied.any():
        _break_ties(order, tied, table)
    return order


def _break_ties(order: Ints, tied: Bools, table: Any) -> None:
    """Order the rows of one instant by what else an event has."""
    inside, group = tied_rows(tied)
    rows = order[inside]
    seq, has_seq = _filled(table.column("seq"), rows)
    ids = table.column("event_id").combine_chunks().take(pa.array(rows))
    rank = np.empty(len(rows), dtype=np.int64)
    rank[np.asarray(pc.sort_indices(ids)).astype(np.int64)] = np.arange(len(rows))
    order[inside] = rows[np.lexsort((rank, np.asarray(table.column("ingest"))[rows], seq, has_seq, group))]


def _streams(table: Any, users: Any, sources: Any, reading: Reading) -> tuple[Ints, Names]:
    """Stream of each row and the names: streams are coded by the order of their names, then of their surfaces."""
    surface, surfaces = codes(table.column("surface"))
    kind, kinds = codes(table.column("event_type"))
    pair = surface * len(kinds) + kind
    pairs = len(surfaces) * len(kinds)
    code, declared = _declared(table)
    label, size = code * pairs + pair, pairs * max(len(declared), 1)
    seen = np.flatnonzero(np.bincount(label, minlength=size))
    held = seen % pairs
    places, types = surfaces.take(pa.array(held // len(kinds))), kinds.take(pa.array(held % len(kinds)))
    plain = pc.binary_join_element_wise(places, types, "/")
    texts = declared.take(pa.array(seen // pairs)) if len(declared) else plain
    parts = pa.table({"name": texts, "surface": places, "type": types})
    sorting = pc.sort_indices(parts, [(name, "ascending") for name in parts.column_names])
    rank = np.asarray(sorting).astype(np.int64)
    place = np.zeros(size, dtype=np.int64)
    place[seen[rank]] = np.arange(len(rank))
    streams = texts.take(sorting)
    names = Names(
        users=users,
        streams=streams,
        surfaces=surfaces,
        sources=sources,
        ids=pa.array([], pa.string()),
        surface_of=(held // len(kinds))[rank],
        same=np.asarray(pc.index_in(streams, streams)).astype(np.int64),
        converts=np.asarray(pc.is_in(types.take(sorting), pa.array(reading.conversion_types, pa.string()))),
    )
    return place[label], names


def _declared(table: Any) -> tuple[Ints, Any]:
    """Codes and names of the streams that declarations give the rows; no names where surface and type say all."""
    if "stream" in table.column_names:
        return codes(table.column("stream"))
    return np.zeros(len(table), dtype=np.int64), pa.array([], pa.string())


def _sources(table: Any) -> tuple[Ints | None, Any]:
    if "source_session_id" not in table.column_names:
        return None, pa.array([], pa.string())
    return codes(table.column("source_session_id"))


def _heads(code: Ints) -> Bools:
    return np.concatenate([[True], code[1:] != code[:-1]]) if len(code) else np.zeros(0, dtype=bool)


def _filled(column: Any, order: Ints) -> tuple[Ints, Bools]:
    whole = column.combine_chunks()
    if not whole.null_count:
        return np.asarray(whole)[order], np.ones(len(order), dtype=bool)
    return np.asarray(pc.fill_null(whole, 0))[order], np.asarray(pc.is_valid(whole))[order]
