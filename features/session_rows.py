"""Rows of `ebf_session` from the sorted events of whole users: the NumPy side of features/sessions.py.

One sort of small integers a block takes the place of an aggregation per column (docs/method.md A.2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dynamix.contracts import EBF_SESSION
from dynamix.features.grid import GRID
from dynamix.features.timeline import codes

_DAY_US = 86_400_000_000

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def session_rows(table: Any, *, gap_us: int, given: bool) -> Any:
    """One row per (user, session) in the columns of `ebf_session`, from events in EVENT_ORDER per user.

    Columns of `table`: user_id, session_id, source_session_id, surface, stream, us, start_us (both µs since
    1970), dwell_ms, censored, converted; only the first three nullable ones among them are
    source_session_id and dwell_ms. `given`: sessions follow the source's ids. Rows come out by user,
    session_start and session_id. Whole users only: gaps and cuts look at neighbours.
    """
    table = table.combine_chunks()
    user, users = codes(table.column("user_id"))
    code, ids = codes(table.column("session_id"))
    session, head, order, starts = _groups(user, code, ids, np.asarray(table.column("start_us")))
    us = np.asarray(table.column("us"))[order]
    start, end = np.asarray(table.column("start_us"))[head], np.maximum.reduceat(us, starts)
    n = np.diff(np.append(starts, len(order)))
    source = _first_known(table.column("source_session_id"), session, order)
    converted = np.asarray(table.column("converted"))[order]
    first = np.minimum.reduceat(np.where(converted, us, np.iinfo(np.int64).max), starts)
    surface, _ = codes(table.column("surface"))
    dwell, known = _filled(table.column("dwell_ms"))
    stream_map, dwell_map = _maps(table.column("stream"), session, dwell, known, len(n))
    gap_ms, has_gap = _gaps(user[head], start, end)
    columns = {
        "user_id": users.take(pa.array(user[head])),
        "session_id": ids.take(pa.array(code[head])),
        "session_start": _moments(start),
        "session_end": _moments(end),
        "n_events": pa.array(n),
        "duration_ms": pa.array((end - start) // 1000),
        "n_by_stream": stream_map,
        "dwell_by_stream": dwell_map,
        "dwell_sum_ms": pa.array(np.add.reduceat(dwell[order], starts)),
        "n_censored": pa.array(
            np.add.reduceat(np.asarray(table.column("censored"))[order], starts, dtype=np.int64)
        ),
        "conversions": pa.array(np.add.reduceat(converted, starts, dtype=np.int64)),
        "first_conversion_ms": pa.array((first - start) // 1000, mask=first == np.iinfo(np.int64).max),
        "surface_entropy": pa.array(_entropy(session, surface, n)),
        "n_transitions": pa.array(_moves(surface[order], starts)),
        "gap_before_ms": pa.array(gap_ms, mask=~has_gap),
        "capped_length": pa.array(_was_cut(user[head], codes(source)[0], start, end, gap_us, given)),
        "source_session_id": source,
        "session_kind": pa.nulls(len(n), pa.string()),
        "session_date": pa.array((start // _DAY_US).astype(np.int32)).cast(pa.date32()),
    }
    return pa.table({name: columns[name] for name in EBF_SESSION.names})


def _groups(user: Ints, code: Ints, ids: Any, start_us: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """(session of each event, first event of each session, events by session, where each begins there).

    Sessions are numbered by user, start and id; events of a session keep their order.
    """
    rank = np.empty(len(ids), dtype=np.int64)
    rank[np.asarray(pc.sort_indices(ids)).astype(np.int64)] = np.arange(len(ids))
    keys, head, own = np.unique(user * len(ids) + rank[code], return_index=True, return_inverse=True)
    place = np.empty(len(keys), dtype=np.int64)
    sorting = np.lexsort((keys, start_us[head], user[head]))
    place[sorting] = np.arange(len(keys))
    session = place[own]
    order = np.argsort(session, kind="stable")
    starts = np.searchsorted(session[order], np.arange(len(keys)))
    return session, head[sorting], order, starts


def _first_known(column: Any, session: Ints, order: Ints) -> Any:
    """Each session's first value that is not NULL, NULL where it has none."""
    n_sessions = int(session.max()) + 1 if len(session) else 0
    known = order[np.asarray(pc.is_valid(column.combine_chunks()))[order]]
    owner, first = np.unique(session[known], return_index=True)
    row = np.full(n_sessions, -1, dtype=np.int64)
    row[owner] = known[first]
    return column.combine_chunks().take(pa.array(row, mask=row < 0))


def _maps(column: Any, session: Ints, dwell: Ints, known: Bools, n_sessions: int) -> tuple[Any, Any]:
    """(events per stream, sum of known dwells per stream) of each session, keys in order."""
    code, names = codes(column)
    sorting = np.asarray(pc.sort_indices(names)).astype(np.int64)
    rank = np.empty(len(names), dtype=np.int64)
    rank[sorting] = np.arange(len(names))
    key = session * len(names) + rank[code]
    names = names.take(pa.array(sorting))
    found = []
    for part, values in ((key, np.ones(len(key), dtype=np.int64)), (key[known], dwell[known])):
        cells, sums = _sums(part, values)
        offsets = np.searchsorted(cells // len(names), np.arange(n_sessions + 1)).astype(np.int32)
        keys = names.take(pa.array(cells % len(names)))
        found.append(pa.MapArray.from_arrays(pa.array(offsets), keys, pa.array(sums)))
    return found[0], found[1]


def _entropy(session: Ints, surface: Ints, n: Ints) -> npt.NDArray[np.float64]:
    """-sum p ln p in nats over the surfaces of each session."""
    width = int(surface.max()) + 1
    cells, counts = np.unique(session * width + surface, return_counts=True)
    owner = cells // width
    share = counts / n[owner]
    addend = np.floor(-share * np.log(share) * GRID + 0.5) / GRID
    return np.asarray(np.bincount(owner, weights=addend, minlength=len(n)), dtype=np.float64)


def _moves(surface: Ints, starts: Ints) -> Ints:
    """Changes of surface between neighbouring events of a session."""
    changed = np.concatenate([[False], surface[1:] != surface[:-1]])
    changed[starts] = False
    return np.add.reduceat(changed, starts, dtype=np.int64)


def _gaps(user: Ints, start: Ints, end: Ints) -> tuple[Ints, Bools]:
    """Milliseconds since the latest end of the user's earlier sessions, at least 0, and where there are any."""
    ends, rank = np.unique(end, return_inverse=True)
    latest = np.maximum.accumulate(user * len(ends) + rank)  # users come in rising order
    has = np.concatenate([[False], user[1:] == user[:-1]])
    before = ends[np.concatenate([[0], latest[:-1] % len(ends)])]
    return np.maximum((start - before) // 1000, 0), has


def _was_cut(user: Ints, source: Ints, start: Ints, end: Ints, gap_us: int, given: bool) -> Bools:
    """True where a neighbour is nearer than the gap allows, or shares the given id: one session, cut."""
    if not given:
        return _near(user, start, end, gap_us)
    cut = np.zeros(len(user), dtype=bool)
    plain = source < 0  # without an id: the gap rule among themselves
    cut[plain] = _near(user[plain], start[plain], end[plain], gap_us)
    key = user * (int(source.max(initial=0)) + 1) + source
    _, owner, size = np.unique(key[~plain], return_inverse=True, return_counts=True)
    cut[~plain] = size[owner] > 1
    return cut


def _near(user: Ints, start: Ints, end: Ints, gap_us: int) -> Bools:
    near = (user[1:] == user[:-1]) & (start[1:] - end[:-1] <= gap_us)
    found: Bools = np.concatenate([[False], near]) | np.concatenate([near, [False]])
    return found[: len(user)]  # no session at all has no neighbours either


def _sums(key: Ints, values: Ints) -> tuple[Ints, Ints]:
    """(distinct keys in order, sum of the values of each)."""
    if not len(key):
        return key, values
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[starts], np.add.reduceat(values[order], starts)


def _filled(column: Any) -> tuple[Ints, Bools]:
    whole = column.combine_chunks()
    return np.asarray(pc.fill_null(whole, 0)), np.asarray(pc.is_valid(whole))


def _moments(us: Ints) -> Any:
    return pa.array(us).cast(pa.timestamp("us", tz="UTC"))
