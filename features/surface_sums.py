"""Sums of `ebf_surface` that merge: day rows of a block of events, windows as sums of day rows. NumPy only.

Every number is a sum, a maximum or a count in fixed bins, so rows compose by addition whatever the cuts
(docs/method.md A.2.4, docs/faults.md D2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dynamix.contracts import EBF_SURFACE
from dynamix.features.calendar import DAY_US
from dynamix.features.dwell import BINS_PER_E
from dynamix.features.grid import on_grid
from dynamix.features.numbers import Bools, Ints, add_up, distinct, first_of_runs
from dynamix.features.timeline import codes
from dynamix.features.user_block import Block
from dynamix.features.window_plan import WindowPlan

_SUMS = ("n", "dwell_sum", "n_dwell", "n_censored", "conversions")
_REALS = ("z_sum", "z_sq_sum", "decayed_n")
_MAX_BINS = 256  # ln of the largest dwell, 9e15 ms, ends in bin 146

Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """N rows of `ebf_surface` of whole users.

    The histogram is a list of (row, bin, count), rows rising; a row may have several entries of one bin until
    folded.
    """

    user: Ints
    stream: Ints
    end: Ints
    """Day after the last one, days since 1970."""
    sums: Ints
    """(N, 5) in the order of _SUMS."""
    reals: Reals
    """(N, 3) in the order of _REALS: multiples of 2^-20, so that sums do not depend on their order."""
    last_us: Ints
    hist_row: Ints
    hist_bin: Ints
    hist_n: Ints


@dataclass(frozen=True)
class Window:
    """Folded rows of every stream in a window of `days` (0: all), and which of them (N,) the streams ask for."""

    days: int
    rows: Rows
    asked: Bools | None = None
    """None: all."""


def day_rows(block: Block) -> tuple[Rows, Any]:
    """(day rows of a block's events, names of their streams: those of events, then `surface/*`)."""
    names = pa.concat_arrays(
        [block.names.streams, pc.binary_join_element_wise(block.names.surfaces, "*", "/")]
    )
    place = np.asarray(pc.index_in(names, names)).astype(np.int64)
    if not len(block.us):
        none = np.zeros(0, dtype=np.int64)
        return Rows(
            none, none, none, np.zeros((0, 5), np.int64), np.zeros((0, 3)), none, none, none, none
        ), names
    streams = len(block.names.streams)
    day = block.us // DAY_US
    low, days = int(day.min()), int(day.max()) - int(day.min()) + 1
    held, of_day = distinct(block.user * days + (day - low), (int(block.user.max()) + 1) * days)
    cells, cell = distinct(of_day * streams + block.stream, len(held) * streams)
    known = np.flatnonzero(block.usable)
    log = np.log1p(block.dwell[known])
    bins = np.floor(log * BINS_PER_E).astype(np.int64)
    own = _stream_sums(block, cell, len(cells), known, log)
    width = len(block.names.surfaces)
    totals, total = distinct(
        (cells // streams) * width + block.names.surface_of[cells % streams], len(held) * width
    )
    end = held % days + low + 1
    parts = []
    for keys, size, sums, group, first in (
        (cells, streams, own, cell, 0),
        (totals, width, _total_sums(own, total, len(totals)), total[cell], streams),
    ):
        owner = keys // size
        stream = place[first + keys % size]
        parts.append(Rows(held[owner] // days, stream, end[owner], *sums, *_histogram(group[known], bins)))
    rows = _side_by_side(parts)
    one_name_each = bool((place == np.arange(len(place))).all())
    return (rows if one_name_each else fold(rows, len(place))), names


def _stream_sums(block: Block, cell: Ints, size: int, known: Ints, log: Reals) -> tuple[Ints, Reals, Ints]:
    """(sums, reals, last instant) of each cell; `log` holds ln(1 + ms) of the events `known`."""
    inside = cell[known]
    counts = [
        np.bincount(cell, minlength=size),
        add_up(inside, block.dwell[known], size),
        np.bincount(inside, minlength=size),
        np.bincount(cell[block.censored], minlength=size),
        np.bincount(cell[block.converted], minlength=size),
    ]
    reals = [np.bincount(inside, weights=on_grid(x), minlength=size) for x in (log, log * log)]
    last = np.full(size, np.iinfo(np.int64).min)
    np.maximum.at(last, cell, block.us)
    return np.stack(counts, 1), np.stack([*reals, counts[0].astype(np.float64)], 1), last


def _total_sums(own: tuple[Ints, Reals, Ints], total: Ints, size: int) -> tuple[Ints, Reals, Ints]:
    """The same of each surface from those of its streams; `total` is the row that each cell goes to."""
    sums, reals, last = own
    latest = np.full(size, np.iinfo(np.int64).min)
    np.maximum.at(latest, total, last)
    added = [add_up(total, sums[:, i], size) for i in range(sums.shape[1])]
    return (
        np.stack(added, 1),
        np.stack([np.bincount(total, weights=x, minlength=size) for x in reals.T], 1),
        latest,
    )


def _histogram(row: Ints, bins: Ints) -> tuple[Ints, Ints, Ints]:
    """(row, bin, count) of events with a known dwell, rows rising."""
    entry = np.sort(row * _MAX_BINS + bins)
    starts = first_of_runs(entry) if len(entry) else entry
    found = entry[starts]
    return found // _MAX_BINS, found % _MAX_BINS, np.diff(np.append(starts, len(entry)))


def _side_by_side(parts: list[Rows]) -> Rows:
    """The rows of all parts one after the other."""
    shift = np.cumsum([0, *(len(part.user) for part in parts[:-1])])
    fields = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in Rows.__dataclass_fields__
    }
    fields["hist_row"] = np.concatenate([p.hist_row + s for p, s in zip(parts, shift, strict=True)])
    return Rows(**fields)


def fold(rows: Rows, n_names: int) -> Rows:
    """Add up the rows of one (user, stream, end), and the histogram entries of one bin; rows by user, end, stream."""
    if not len(rows.user):
        return rows
    first = int(rows.end.min())
    span = int(rows.end.max()) - first + 1
    key = (rows.user * span + (rows.end - first)) * n_names + rows.stream
    order = np.argsort(key)
    ordered = key[order]
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    starts = np.flatnonzero(new)
    group = np.empty(len(key), dtype=np.int64)
    group[order] = np.cumsum(new) - 1
    cells, counts = _fold_bins(group[rows.hist_row] * _MAX_BINS + rows.hist_bin, rows.hist_n)
    head = order[starts]
    whole = len(starts) == len(order)
    return Rows(
        user=rows.user[head],
        stream=rows.stream[head],
        end=rows.end[head],
        sums=rows.sums[head] if whole else np.add.reduceat(rows.sums[order], starts, axis=0),
        reals=rows.reals[head] if whole else np.add.reduceat(rows.reals[order], starts, axis=0),
        last_us=rows.last_us[head] if whole else np.maximum.reduceat(rows.last_us[order], starts),
        hist_row=cells // _MAX_BINS,
        hist_bin=cells % _MAX_BINS,
        hist_n=counts,
    )


def _fold_bins(entry: Ints, n: Ints) -> tuple[Ints, Ints]:
    """(distinct entries in order, their counts)."""
    if not len(entry):
        return entry, n
    order = np.argsort(entry)
    starts = first_of_runs(entry[order])
    return entry[order][starts], np.add.reduceat(n[order], starts)


def windows(days: Rows, run_end: int, names: Any, plan: WindowPlan) -> list[Window]:
    """The windows that end at `run_end`, days since 1970: the count of each decays by its stream's half-life."""
    age = run_end - days.end
    listed = names.to_pylist()
    half_life = plan.half_lives(listed)
    found = []
    for length in plan.lengths:
        inside = (age >= 0) & ((age < length) | (length == 0))
        part = _take(days, inside)
        reals = part.reals.copy()
        decay = np.exp2(-age[inside] / half_life[part.stream])
        reals[:, 2] = on_grid(part.sums[:, 0].astype(np.float64) * decay)
        whole = fold(replace(part, reals=reals, end=np.full(len(reals), run_end)), len(listed))
        found.append(Window(length, whole, plan.asks(length, listed)[whole.stream]))
    return found


def _take(rows: Rows, keep: Bools) -> Rows:
    place = np.cumsum(keep) - 1
    entries = keep[rows.hist_row]
    return Rows(
        user=rows.user[keep],
        stream=rows.stream[keep],
        end=rows.end[keep],
        sums=rows.sums[keep],
        reals=rows.reals[keep],
        last_us=rows.last_us[keep],
        hist_row=place[rows.hist_row[entries]],
        hist_bin=rows.hist_bin[entries],
        hist_n=rows.hist_n[entries],
    )


def surface_table(window: Window, users: Any, names: Any) -> Any:
    """The rows of whole users that are asked for as a table in the columns of `ebf_surface`."""
    rows = window.rows
    offsets = np.searchsorted(rows.hist_row, np.arange(len(rows.user) + 1)).astype(np.int32)
    share, known = _shares(rows, names)
    columns = {
        "user_id": users.take(pa.array(rows.user)),
        "stream": names.take(pa.array(rows.stream)),
        "window_end": pa.array(rows.end.astype(np.int32)).cast(pa.date32()),
        "window_days": pa.array(np.full(len(rows.user), window.days, dtype=np.int32)),
        **{name: pa.array(np.ascontiguousarray(rows.sums[:, i])) for i, name in enumerate(_SUMS)},
        **{name: pa.array(np.ascontiguousarray(rows.reals[:, i])) for i, name in enumerate(_REALS)},
        "last_ts": pa.array(rows.last_us).cast(pa.timestamp("us", tz="UTC")),
        "dwell_share": pa.array(share, mask=~known),
        "dwell_hist": pa.MapArray.from_arrays(
            pa.array(offsets), pa.array(rows.hist_bin.astype(np.int32)), pa.array(rows.hist_n)
        ),
    }
    table = pa.table({name: columns[name] for name in EBF_SURFACE.names})
    # shares are of all streams, asked for or not, so the others leave last
    return table if window.asked is None or window.asked.all() else table.filter(pa.array(window.asked))


def _shares(rows: Rows, names: Any) -> tuple[Reals, Bools]:
    """dwell_sum over that of all streams of the user and window (`surface/*` left out), and where it is known."""
    if not len(rows.user):
        return np.zeros(0), np.zeros(0, dtype=bool)
    dwell = rows.sums[:, _SUMS.index("dwell_sum")]
    total = np.asarray(pc.ends_with(names, "/*"))[rows.stream]
    days = int(rows.end.max()) - int(rows.end.min()) + 1
    key = rows.user * days + rows.end - int(rows.end.min())
    groups, place = distinct(key, (int(rows.user.max()) + 1) * days)
    whole = add_up(place[~total], dwell[~total], len(groups))[place]
    return dwell / np.maximum(whole, 1), whole > 0


def stored_rows(table: Any) -> tuple[Rows, Any, Any]:
    """(rows, users, names) of a table in the columns of `ebf_surface`: the inverse of `surface_table`."""
    user, users = codes(table.column("user_id"))
    stream, names = codes(table.column("stream"))
    histogram = table.column("dwell_hist").combine_chunks()
    lengths = np.diff(np.asarray(histogram.offsets))
    moments = table.column("last_ts").cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    rows = Rows(
        user=user,
        stream=stream,
        end=np.asarray(table.column("window_end").cast(pa.int32())).astype(np.int64),
        sums=np.stack([np.asarray(table.column(name)) for name in _SUMS], 1),
        reals=np.stack([np.asarray(table.column(name)) for name in _REALS], 1),
        last_us=np.asarray(moments),
        hist_row=np.repeat(np.arange(len(user)), lengths),
        hist_bin=np.asarray(histogram.keys).astype(np.int64),
        hist_n=np.asarray(histogram.items),
    )
    return rows, users, names
