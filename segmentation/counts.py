"""Event counts per user, day and cell: the only input of the segmenters.

A cell is stream id × dwell bin (`stream_id · 13 + bin`), or the stream alone where the config says so.
Conversion and sensitive streams never enter (docs/method.md A.4.1, E23); impressions are no streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from scipy import sparse

from dynamix.config import Config
from dynamix.contracts import N_DWELL_BINS
from dynamix.features.calendar import Calendar, instant_sql, midnight
from dynamix.features.streams import dwell_bin, stream_events

Ints = npt.NDArray[np.int64]
INPUT, NEXT, OTHER = 0, 1, 2
"""Part of a count: the segmenter's input window, the window it has to predict, any other day."""


@dataclass(frozen=True)
class CountBlock:
    """Counts of U users in coordinate form: entry m adds n[m] events of `cell[m]` on `day[m]` to `row[m]`."""

    users: Any
    """pyarrow string array (U,)"""
    row: Ints
    day: Ints
    part: Ints
    cell: Ints
    n: Ints

    def matrix(self, width: int, *parts: int) -> sparse.csr_matrix:
        """Counts (U, width) summed over the days of the named parts (all parts when none is named)."""
        take = np.isin(self.part, parts) if parts else np.ones(len(self.row), bool)
        shape = (len(self.users), width)
        entries = (self.n[take].astype(np.float64), (self.row[take], self.cell[take]))
        return sparse.csr_matrix(entries, shape=shape)


def cell_width(n_streams: int, *, dwell_bins: bool) -> int:
    """Number of cells of `n_streams` streams."""
    return n_streams * (N_DWELL_BINS if dwell_bins else 1)


def user_counts(events: DataFrame, streams: DataFrame, *, config: Config, calendar: Calendar) -> DataFrame:
    """user_id, entries array<struct<day,part,cell,n>> (sorted), one row per user with a usable event.

    Usable is every event of a known stream, neither conversion nor sensitive, between the calendar's first day and the
    run date; an unknown dwell has a bin of its own. `day` counts UTC days from the calendar's first day, by
    the instant at which the event was known (the later of event and ingest time; event time alone where
    `history.as_known_at` is `run_date`). `part` follows the event's own time.
    """
    known = (
        F.greatest("event_ts", "ingest_ts")
        if config.history.as_known_at == "impression"
        else F.col("event_ts")
    )
    ids = streams.where(~F.col("is_conversion") & ~_sensitive(config)).select("stream", "stream_id")
    start, end = calendar.first, midnight(calendar.run_date)
    cell = F.col("stream_id").cast("int")
    if config.segmentation.dwell_bins:
        cell = cell * N_DWELL_BINS + F.col("dwell_bin").cast("int")
    part = (
        F.when(F.expr(calendar.segment_input.sql("event_ts")), INPUT)
        .when(F.expr(calendar.next_window.sql("event_ts")), NEXT)
        .otherwise(OTHER)
    )
    spans = f"event_ts >= {instant_sql(start)} AND event_ts < {instant_sql(end)}"
    usable = (
        stream_events(events.where(spans), config=config)
        .withColumn("dwell_bin", dwell_bin())
        .join(F.broadcast(ids), "stream")
        .select(
            "user_id",
            F.datediff(known, F.expr(instant_sql(start))).alias("day"),
            part.alias("part"),
            cell.alias("cell"),
        )
    )
    per_cell = (
        usable.repartition("user_id")
        .groupBy("user_id", "day", "part", "cell")
        .agg(F.count(F.lit(1)).cast("int").alias("n"))
    )
    entry = F.struct("day", "part", "cell", "n")
    return per_cell.groupBy("user_id").agg(F.sort_array(F.collect_list(entry)).alias("entries"))


def _sensitive(config: Config) -> Column:
    """True for streams that the config marks so, or whose stream without session kind it does."""
    marked = [stream for stream, own in config.streams.items() if own.sensitive]
    kindless = F.regexp_replace("stream", "(/[^#]*)#[^/#]*$", "$1")
    return F.col("stream").isin(marked) | kindless.isin(marked) if marked else F.lit(False)


def count_block(batch: Any) -> CountBlock:
    """A record batch of `user_counts` as coordinate arrays."""
    lists = batch.column(batch.schema.get_field_index("entries"))
    entries = lists.flatten()
    row = np.repeat(np.arange(len(lists), dtype=np.int64), np.diff(lists.offsets.to_numpy()))

    def field(name: str) -> Ints:
        return np.asarray(entries.field(name).to_numpy(zero_copy_only=False)).astype(np.int64)

    users = batch.column(batch.schema.get_field_index("user_id")).cast(pa.string())
    return CountBlock(users, row, field("day"), field("part"), field("cell"), field("n"))


def day_start(calendar: Calendar, day: int) -> datetime:
    """00:00 of the day with this number."""
    return calendar.first + timedelta(days=day)
