"""Sums of sessions that merge, and the rows of `ebf_session` they end in: NumPy only (docs/method.md A.2.4).

A block of sorted events gives one `Sessions`; where a user is cut over blocks, those of its blocks are
concatenated and folded. Every column of the table is a sum, an extreme or a count, or follows from the
neighbouring sessions of the user, so the rows do not depend on the cuts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dynamix.contracts import EBF_SESSION
from dynamix.features.calendar import DAY_US
from dynamix.features.grid import GRID
from dynamix.features.numbers import Bools, Ints, add_up, distinct, first_of_runs, latest_so_far, tied_rows
from dynamix.features.user_block import Block, Names

_NEVER = np.iinfo(np.int64).max
SUMS = ("n_events", "dwell_sum_ms", "n_censored", "conversions", "n_transitions")
KEYS = ("user", "first", "part", "source", "id")


@dataclass(frozen=True)
class Sessions:
    """R sessions, or parts of them, and the C cells (session, stream) they have."""

    keys: Ints
    """(R, 5) as in KEYS: codes of user, source's id and stored id (−1: none), chain's first event µs, piece."""
    span: Ints
    """(R, 3): first event, last event, first conversion (_NEVER: none), µs."""
    sums: Ints
    """(R, 5) as in SUMS."""
    ends: Ints
    """(R, 2): surface of the first and of the last event."""
    cells: Ints
    """(C, 5): row, stream, events, sum of known dwells, events with a known dwell; rows rise."""


def session_sums(block: Block) -> Sessions:
    """Sums of the sessions of a block's events; a session's events lie side by side."""
    if not len(block.us):
        return Sessions(*(np.zeros((0, width), dtype=np.int64) for width in (5, 3, 5, 2, 5)))
    starts = np.flatnonzero(block.begins)
    last = np.append(starts[1:], len(block.us)) - 1
    row = np.cumsum(block.begins) - 1
    surface = block.names.surface_of[block.stream]
    moved = np.concatenate([[False], surface[1:] != surface[:-1]]) & ~block.begins
    counts = [
        np.bincount(row[flags], minlength=len(starts)) for flags in (block.censored, block.converted, moved)
    ]
    user, first, part, stored = (x[starts] for x in (block.user, block.first, block.part, block.id))
    converted = np.full(len(starts), _NEVER)
    np.minimum.at(converted, row[block.converted], block.us[block.converted])
    return Sessions(
        keys=np.stack([user, first, part, _source(block, starts, row), stored], 1),
        span=np.stack([block.us[starts], block.us[last], converted], 1),
        sums=np.stack([last - starts + 1, np.add.reduceat(block.dwell, starts), *counts], 1),
        ends=np.stack([surface[starts], surface[last]], 1),
        cells=_cells(row, block),
    )


def _cells(row: Ints, block: Block) -> Ints:
    width = len(block.names.streams)
    keys, place = distinct(row * width + block.stream, (int(row[-1]) + 1) * width)
    counts = np.bincount(place, minlength=len(keys))
    known = np.bincount(place[block.known], minlength=len(keys))
    return np.stack([keys // width, keys % width, counts, add_up(place, block.dwell, len(keys)), known], 1)


def _source(block: Block, starts: Ints, row: Ints) -> Ints:
    """Code of each session's first source id that is not NULL."""
    if block.source is None:
        return np.full(len(starts), -1, dtype=np.int64)
    found = np.full(len(starts), -1, dtype=np.int64)
    given = np.flatnonzero(block.source >= 0)[::-1]
    found[row[given]] = block.source[given]  # the last assignment is the earliest event
    return found


def fold(parts: Sessions, *, given: bool) -> Sessions:
    """Merge the parts of one session; `parts` may come in any order, those of a session never overlap in time.

    `given`: sessions follow the source's ids, so the id is part of the key; else a part of a session may lack it.
    """
    if not len(parts.keys):
        return parts
    whole = parts.keys if given else parts.keys[:, [0, 1, 2, 4]]
    order = np.lexsort((parts.span[:, 1], parts.span[:, 0], *whole.T[::-1]))
    ordered = whole[order]
    new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    starts = np.flatnonzero(new)
    last = np.append(starts[1:], len(order)) - 1
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.cumsum(new) - 1
    span, sums, ends = (
        parts.span[order],
        np.add.reduceat(parts.sums[order], starts, axis=0),
        parts.ends[order],
    )
    met = np.concatenate([[False], ends[1:, 0] != ends[:-1, 1]]) & ~new
    sums[:, SUMS.index("n_transitions")] += np.add.reduceat(met, starts, dtype=np.int64)
    low, high = np.minimum.reduceat(span, starts, axis=0), np.maximum.reduceat(span[:, 1], starts)
    keys = parts.keys[order][starts]
    keys[:, KEYS.index("source")] = _first_source(parts.keys[order][:, KEYS.index("source")], new)
    return Sessions(
        keys=keys,
        span=np.stack([low[:, 0], high, low[:, 2]], 1),
        sums=sums,
        ends=np.stack([ends[starts, 0], ends[last, 1]], 1),
        cells=_fold_cells(parts.cells, place),
    )


def _fold_cells(cells: Ints, place: Ints) -> Ints:
    width = int(cells[:, 1].max()) + 1
    key = place[cells[:, 0]] * width + cells[:, 1]
    order = np.argsort(key, kind="stable")
    starts = first_of_runs(key[order])
    keys = key[order][starts]
    return np.concatenate(
        [np.stack([keys // width, keys % width], 1), np.add.reduceat(cells[order][:, 2:], starts, axis=0)],
        axis=1,
    )


def _first_source(source: Ints, new: Bools) -> Ints:
    row = np.cumsum(new) - 1
    found = np.full(int(row[-1]) + 1, -1, dtype=np.int64)
    given = np.flatnonzero(source >= 0)[::-1]
    found[row[given]] = source[given]
    return found


def session_table(sessions: Sessions, names: Names, *, gap_us: int, given: bool) -> Any:
    """Columns of `ebf_session` and `_first`, `_part` (whose hash is the id where `session_id` is NULL).

    Whole users only: gaps and cuts look at neighbours. `given`: sessions follow the source's ids.
    """
    sessions = _in_order(sessions, names, given)
    user, first, part, source, stored = sessions.keys.T
    start, end, converted = sessions.span.T
    sums = dict(zip(SUMS, sessions.sums.T, strict=True))
    rows = len(user)
    gap_ms, has_gap = _gaps(user, start, end)
    columns = {
        "user_id": names.users.take(pa.array(user)),
        "session_id": _optional(names.ids, stored),
        "session_start": _moments(start),
        "session_end": _moments(end),
        **{name: pa.array(values) for name, values in sums.items()},
        "duration_ms": pa.array((end - start) // 1000),
        "n_by_stream": _map(sessions.cells, 2, names, rows),
        "dwell_by_stream": _map(sessions.cells[sessions.cells[:, 4] > 0], 3, names, rows),
        "first_conversion_ms": pa.array((converted - start) // 1000, mask=converted == _NEVER),
        "surface_entropy": pa.array(_entropy(sessions.cells, names, sums["n_events"])),
        "gap_before_ms": pa.array(gap_ms, mask=~has_gap),
        "capped_length": pa.array(_was_cut(user, source, start, end, gap_us, given)),
        "source_session_id": _optional(names.sources, source),
        "session_kind": pa.nulls(rows, pa.string()),
        "session_date": pa.array((start // DAY_US).astype(np.int32)).cast(pa.date32()),
    }
    table = pa.table({name: columns[name] for name in EBF_SESSION.names})
    return table.append_column("_first", pa.array(first)).append_column("_part", pa.array(part))


def _in_order(sessions: Sessions, names: Names, given: bool) -> Sessions:
    """By user, start and session_id, so that a user's neighbours are neighbours in time."""
    user, start = sessions.keys[:, 0], sessions.span[:, 0]
    rising = (user[1:] > user[:-1]) | ((user[1:] == user[:-1]) & (start[1:] > start[:-1]))
    if rising.all():
        return sessions
    order = np.lexsort((start, user))
    tied = (user[order][1:] == user[order][:-1]) & (start[order][1:] == start[order][:-1])
    if tied.any():  # given sessions alone can start together
        inside, group = tied_rows(tied)
        texts = [_session_id(sessions.keys[row], names, given) for row in order[inside]]
        rank = np.argsort(np.argsort(texts, kind="stable"), kind="stable")
        order[inside] = order[inside][np.lexsort((rank, group))]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    cells = sessions.cells.copy()
    cells[:, 0] = place[cells[:, 0]]
    cells = cells[np.lexsort((cells[:, 1], cells[:, 0]))]
    return replace(
        sessions,
        keys=sessions.keys[order],
        span=sessions.span[order],
        sums=sessions.sums[order],
        ends=sessions.ends[order],
        cells=cells,
    )


def _session_id(key: Ints, names: Names, given: bool) -> str:
    """The id of one row of keys: the stored one, else as `engine.session_id` makes it."""
    user, first, part, source, stored = key.tolist()
    if stored >= 0:
        return str(names.ids[stored])
    texts = [str(first), str(part)]
    if given:
        name = str(names.sources[source]) if source >= 0 else ""
        texts += [str(len(name)), name]
    return hashlib.sha256("|".join([*texts, str(names.users[user])]).encode()).hexdigest()[:32]


def _map(cells: Ints, column: int, names: Names, rows: int) -> Any:
    """Map stream → number of each session; streams are coded in the order of their names."""
    row, stream, values = cells[:, 0], names.same[cells[:, 1]], np.ascontiguousarray(cells[:, column])
    again = np.concatenate([[False], (row[1:] == row[:-1]) & (stream[1:] == stream[:-1])])[: len(row)]
    if again.any():  # two streams of one name
        starts = np.flatnonzero(~again)
        row, stream, values = row[starts], stream[starts], np.add.reduceat(values, starts)
    offsets = np.searchsorted(row, np.arange(rows + 1)).astype(np.int32)
    return pa.MapArray.from_arrays(pa.array(offsets), names.streams.take(pa.array(stream)), pa.array(values))


def _entropy(cells: Ints, names: Names, n: Ints) -> npt.NDArray[np.float64]:
    """-sum p ln p in nats over the surfaces of each session, addends on the grid."""
    if not len(cells):
        return np.zeros(len(n))
    width = int(names.surface_of.max()) + 1
    keys, place = distinct(cells[:, 0] * width + names.surface_of[cells[:, 1]], len(n) * width)
    owner = keys // width
    share = add_up(place, cells[:, 2], len(keys)) / n[owner]
    addend = np.floor(-share * np.log(share) * GRID + 0.5) / GRID
    return np.asarray(np.bincount(owner, weights=addend, minlength=len(n)), dtype=np.float64)


def _gaps(user: Ints, start: Ints, end: Ints) -> tuple[Ints, Bools]:
    """Milliseconds since the latest end of the user's earlier sessions, at least 0, and where there are any."""
    if not len(user):
        return user, np.zeros(0, dtype=bool)
    latest = latest_so_far(user, end)
    has = np.concatenate([[False], user[1:] == user[:-1]])
    before = np.concatenate([[start[0]], latest[:-1]])
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


def _optional(values: Any, code: Ints) -> Any:
    return values.take(pa.array(code, mask=code < 0))


def _moments(us: Ints) -> Any:
    return pa.array(us).cast(pa.timestamp("us", tz="UTC"))
