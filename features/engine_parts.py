"""Blocks of rows as bytes (Arrow IPC), and the parts of cut users as tables that merge to whole ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynamix.features.numbers import Ints
from dynamix.features.session_rows import KEYS, SUMS, Sessions, fold
from dynamix.features.surface_sums import Rows, stored_rows
from dynamix.features.surface_sums import fold as fold_days
from dynamix.features.timeline import codes
from dynamix.features.user_block import Names

_SPAN = ("start", "end", "converted")
_ENDS = ("surface_in", "surface_out")
_CELLS = ("cell_n", "cell_dwell", "cell_known")


def to_block(table: Any) -> Any:
    """A table as one Arrow IPC stream, in a binary array of one value; nothing is copied again."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, stream.size], dtype=np.int32))
    return pa.Array.from_buffers(pa.binary(), 1, [None, offsets, stream])


def from_block(block: Any) -> Any:
    """The table of `to_block`, from one of its values: read in place."""
    return pa.ipc.open_stream(block.as_buffer()).read_all()


def part_table(sessions: Sessions, names: Names) -> Any:
    """Parts of sessions with their names written out: grain is the part, lists hold its cells."""
    offsets = pa.array(
        np.searchsorted(sessions.cells[:, 0], np.arange(len(sessions.keys) + 1)).astype(np.int32)
    )

    def cells(values: Any) -> Any:
        return pa.ListArray.from_arrays(offsets, values)

    keys = dict(zip(KEYS, sessions.keys.T, strict=True))
    stream = sessions.cells[:, 1]
    columns = {
        "user": names.users.take(pa.array(keys["user"])),
        "first": pa.array(keys["first"]),
        "part": pa.array(keys["part"]),
        "source": names.sources.take(pa.array(keys["source"], mask=keys["source"] < 0)),
        "id": names.ids.take(pa.array(keys["id"], mask=keys["id"] < 0)),
        **{name: _whole(x) for name, x in zip(_SPAN, sessions.span.T, strict=True)},
        **{name: _whole(x) for name, x in zip(SUMS, sessions.sums.T, strict=True)},
        **{name: names.surfaces.take(_whole(x)) for name, x in zip(_ENDS, sessions.ends.T, strict=True)},
        "cell_stream": cells(names.streams.take(pa.array(stream))),
        "cell_surface": cells(names.surfaces.take(pa.array(names.surface_of[stream]))),
        **{name: cells(_whole(x)) for name, x in zip(_CELLS, sessions.cells[:, 2:].T, strict=True)},
    }
    return pa.table(columns)


def join_parts(tables: Iterable[Any], *, given: bool) -> tuple[Sessions, Names]:
    """Whole sessions from the parts of all blocks, in any order, and the names of their codes."""
    table = pa.concat_tables(list(tables)).combine_chunks()
    named = {name: codes(table.column(name)) for name in ("user", "source", "id")}
    lists = {name: table.column(name).combine_chunks() for name in ("cell_stream", "cell_surface", *_CELLS)}
    surfaces = pa.concat_arrays(
        [*(table.column(name).combine_chunks() for name in _ENDS), lists["cell_surface"].flatten()]
    )
    surface, surface_names = codes(surfaces)
    rows = len(table)
    stream, streams, surface_of = _pairs(
        lists["cell_stream"].flatten(), surface[2 * rows :], len(surface_names)
    )
    owner = np.repeat(np.arange(rows), np.asarray(pc.list_value_length(lists["cell_stream"])))
    number = {name: np.asarray(table.column(name)) for name in ("first", "part", *_SPAN, *SUMS)}
    keys = {**{name: code for name, (code, _) in named.items()}, **{n: number[n] for n in ("first", "part")}}
    sessions = Sessions(
        keys=np.stack([keys[name] for name in KEYS], 1),
        span=np.stack([number[name] for name in _SPAN], 1),
        sums=np.stack([number[name] for name in SUMS], 1),
        ends=np.stack([surface[:rows], surface[rows : 2 * rows]], 1),
        cells=np.stack([owner, stream, *(np.asarray(lists[name].flatten()) for name in _CELLS)], 1),
    )
    names = Names(
        users=named["user"][1],
        streams=streams,
        surfaces=surface_names,
        sources=named["source"][1],
        ids=named["id"][1],
        surface_of=surface_of,
        same=np.asarray(pc.index_in(streams, streams)).astype(np.int64),
        converts=np.zeros(len(streams), dtype=bool),
    )
    return fold(sessions, given=given), names


def join_days(tables: Iterable[Any]) -> tuple[Rows, Any, Any]:
    """(day rows, users, names) of whole users from day rows of their parts, in any order."""
    rows, users, names = stored_rows(pa.concat_tables(list(tables)).combine_chunks())
    return fold_days(rows, len(names)), users, names


def _pairs(texts: Any, surface: Ints, surfaces: int) -> tuple[Ints, Any, Ints]:
    """(stream of each cell, names in order, surface of each): a stream is a name with its surface."""
    found = texts.unique()
    found = found.take(pc.sort_indices(found))
    rank = np.asarray(pc.index_in(texts, found)).astype(np.int64)
    keys, stream = np.unique(rank * surfaces + surface, return_inverse=True)
    return stream, found.take(pa.array(keys // surfaces)), keys % surfaces


def _whole(values: Ints) -> Any:
    return pa.array(np.ascontiguousarray(values))
