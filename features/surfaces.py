"""Surface EBFs: what a user did per stream and day, and windows that are sums of those days.

Every number is a sum, a maximum or a count in fixed bins, so days compose by addition and any chunking
of the input gives the same rows (docs/method.md A.2.4, docs/faults.md D2). Spark brings the rows of a
user together, NumPy adds them up: one sort a block instead of an aggregation per column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import EBF_SURFACE
from dynamix.features.dwell import BINS_PER_E
from dynamix.features.grid import on_grid
from dynamix.features.instants import DAY_US
from dynamix.features.streams import has_usable_dwell, log_dwell, stream_events
from dynamix.features.timeline import codes, whole_users

HALF_LIFE_DAYS = 7.0
WINDOWS = (7, 28, 0)
"""Window lengths in days for the run date; 0 = all days, with the count decayed."""
_SUMS = ("n", "dwell_sum", "n_dwell", "n_censored", "conversions")
_REALS = ("z_sum", "z_sq_sum", "decayed_n")
_MAX_BINS = 256  # ln of the largest dwell, 9e15 ms, ends in bin 146
_SCHEMA = ", ".join(f"{column.name} {column.sql_type}" for column in EBF_SURFACE.columns)
_EPOCH = date(1970, 1, 1)

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """N rows of `ebf_surface` of whole users; `names` and `users` resolve the codes.

    The histogram is a list of (row, bin, count); a row may have several entries of one bin until folded.
    """

    user: Ints
    stream: Ints
    end: Ints
    """Day after the last one, days since 1970."""
    sums: Ints
    """(N, 5) in the order of _SUMS."""
    reals: npt.NDArray[np.float64]
    """(N, 3) in the order of _REALS: multiples of 2^-20, so that sums do not depend on their order."""
    last_us: Ints
    hist_row: Ints
    hist_bin: Ints
    hist_n: Ints


def surface_days(events: DataFrame, *, config: Config) -> DataFrame:
    """Day rows of `ebf_surface`: one per user, stream (and `surface/*`, the surface's total) and UTC day.

    `window_end` is the day after, `window_days` 1, `decayed_n` equals n. Dwell figures take usable dwells
    only; `dwell_hist` counts them in bins floor(4·ln(1+ms)). Impressions are left out unless organic.
    """
    return _by_user(_narrow(events, config), lambda table: _days(table)[0])


def surface_windows(days: DataFrame, run_date: date) -> DataFrame:
    """Rows of 7 and 28 days and of all days (`window_days` 0) ending at the run date, from day rows.

    `decayed_n` = Σ n_day · 2^(−age/7), age in days from the day's end to the run date; all else are plain
    sums. Day rows that end after the run date are ignored; a user without a day in a window has no row.
    """
    end = (run_date - _EPOCH).days
    known = days.where((F.col("window_days") == 1) & (F.col("window_end") <= F.lit(run_date)))

    def kernel(table: Any) -> Any:
        rows, users, names = _stored(table)
        return _windows(rows, end, users, names)

    return _by_user(known.select(*EBF_SURFACE.names), kernel)


def surface_rows(events: DataFrame, run_date: date, *, config: Config) -> DataFrame:
    """`surface_days` and the `surface_windows` of them, from one pass over the events."""
    end = (run_date - _EPOCH).days

    def kernel(table: Any) -> Any:
        found, rows, users, names = _days(table)
        return pa.concat_tables([found, _windows(rows, end, users, names)])

    return _by_user(_narrow(events, config), kernel)


def _narrow(events: DataFrame, config: Config) -> DataFrame:
    converted = (
        F.col("event_type").isin(*config.conversion_types) if config.conversion_types else F.lit(False)
    )
    return stream_events(events, config=config).select(
        "user_id",
        "surface",
        "stream",
        F.floor(F.unix_micros("event_ts") / F.lit(DAY_US)).cast("bigint").alias("day"),
        F.unix_micros("event_ts").alias("us"),
        F.when(has_usable_dwell(), F.col("dwell_ms")).alias("dwell"),
        log_dwell().alias("x"),
        (F.col("dwell_status") == "censored").alias("censored"),
        converted.alias("converted"),
    )


def _by_user(rows: DataFrame, kernel: Callable[[Any], Any]) -> DataFrame:
    def run(batches: Iterator[Any]) -> Iterator[Any]:
        for table in whole_users(batches):
            yield from kernel(table.combine_chunks()).to_batches(max_chunksize=50_000)

    return rows.repartition("user_id").sortWithinPartitions("user_id").mapInArrow(run, _SCHEMA)


# ---------------------------------------------------------------- kernels


def _days(table: Any) -> tuple[Any, Rows, Any, Any]:
    """(day rows as a table, the same as arrays, users, stream names) of the events of whole users."""
    user, users = codes(table.column("user_id"))
    stream, streams = codes(table.column("stream"))
    surface, surfaces = codes(table.column("surface"))
    names, place = codes(pa.concat_arrays([streams, pc.binary_join_element_wise(surfaces, "*", "/")]))[::-1]
    dwell, x = table.column("dwell").combine_chunks(), table.column("x").combine_chunks()
    known: npt.NDArray[np.bool_] = np.asarray(pc.is_valid(x))
    log = np.asarray(pc.fill_null(x, 0.0))
    one = np.ones(len(user), dtype=np.int64)
    flags = [np.asarray(table.column(name)).astype(np.int64) for name in ("censored", "converted")]
    bins = np.floor(log * BINS_PER_E).astype(np.int64)
    events = Rows(
        user=np.concatenate([user, user]),
        stream=np.concatenate([place[stream], place[len(streams) + surface]]),
        end=np.tile(np.asarray(table.column("day")) + 1, 2),
        sums=np.tile(
            np.stack([one, np.asarray(pc.fill_null(dwell, 0)), known.astype(np.int64), *flags], 1), (2, 1)
        ),
        reals=np.tile(np.stack([on_grid(log), on_grid(log * log), one.astype(np.float64)], 1), (2, 1)),
        last_us=np.tile(np.asarray(table.column("us")), 2),
        hist_row=np.flatnonzero(np.tile(known, 2)),
        hist_bin=np.tile(bins[known], 2),
        hist_n=np.ones(2 * int(known.sum()), dtype=np.int64),
    )
    folded = _fold(events, len(names))
    return _table(folded, 1, users, names), folded, users, names


def _windows(days: Rows, run_end: int, users: Any, names: Any) -> Any:
    """Window rows that end at `run_end` (days since 1970), all lengths in one table."""
    age = run_end - days.end
    found = []
    for length in WINDOWS:
        inside = (age >= 0) & ((age < length) | (length == 0))
        part = _take(days, inside)
        reals = part.reals.copy()
        reals[:, 2] = on_grid(part.sums[:, 0].astype(np.float64) * np.exp2(-age[inside] / HALF_LIFE_DAYS))
        whole = replace(part, reals=reals, end=np.full(len(reals), run_end))
        found.append(_table(_fold(whole, len(names)), length, users, names))
    return pa.concat_tables(found)


def _fold(rows: Rows, n_names: int) -> Rows:
    """Add up the rows of one (user, stream, end), and the histogram entries of one bin."""
    if not len(rows.user):
        return rows
    first = int(rows.end.min())
    span = int(rows.end.max()) - first + 1
    key = (rows.user * n_names + rows.stream) * span + (rows.end - first)
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    starts = np.flatnonzero(new)
    group = np.empty(len(key), dtype=np.int64)
    group[order] = np.cumsum(new) - 1
    entry = group[rows.hist_row] * _MAX_BINS + rows.hist_bin
    cells, place = np.unique(entry, return_inverse=True)
    counts = np.bincount(place, weights=rows.hist_n, minlength=len(cells)).astype(np.int64)
    head = order[starts]
    return Rows(
        user=rows.user[head],
        stream=rows.stream[head],
        end=rows.end[head],
        sums=np.add.reduceat(rows.sums[order], starts, axis=0),
        reals=np.add.reduceat(rows.reals[order], starts, axis=0),
        last_us=np.maximum.reduceat(rows.last_us[order], starts),
        hist_row=cells // _MAX_BINS,
        hist_bin=cells % _MAX_BINS,
        hist_n=counts,
    )


def _take(rows: Rows, keep: npt.NDArray[np.bool_]) -> Rows:
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


def _table(rows: Rows, window_days: int, users: Any, names: Any) -> Any:
    """Folded rows as a table in the columns of the contract."""
    offsets = np.searchsorted(rows.hist_row, np.arange(len(rows.user) + 1)).astype(np.int32)
    columns = {
        "user_id": users.take(pa.array(rows.user)),
        "stream": names.take(pa.array(rows.stream)),
        "window_end": pa.array(rows.end.astype(np.int32)).cast(pa.date32()),
        "window_days": pa.array(np.full(len(rows.user), window_days, dtype=np.int32)),
        **{name: pa.array(rows.sums[:, i]) for i, name in enumerate(_SUMS)},
        **{name: pa.array(rows.reals[:, i]) for i, name in enumerate(_REALS)},
        "last_ts": pa.array(rows.last_us).cast(pa.timestamp("us", tz="UTC")),
        "dwell_hist": pa.MapArray.from_arrays(
            pa.array(offsets), pa.array(rows.hist_bin.astype(np.int32)), pa.array(rows.hist_n)
        ),
    }
    return pa.table({name: columns[name] for name in EBF_SURFACE.names})


def _stored(table: Any) -> tuple[Rows, Any, Any]:
    """Day rows read back from the table: the inverse of `_table`."""
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
