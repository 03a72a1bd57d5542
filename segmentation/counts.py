"""Event counts per user, day and cell: the only input of the segmenters.

A cell is stream id × dwell bin (`stream_id · 13 + bin`), or the stream alone where the config says so.
Conversion and sensitive streams never enter (docs/method.md A.4.1, E23); impressions are no streams.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import N_DWELL_BINS
from dynamix.features.calendar import Calendar, instant_sql, midnight
from dynamix.features.streams import dwell_bin, stream_events
from dynamix.segmentation.blocks import INPUT, NEXT, OTHER


def user_counts(events: DataFrame, streams: DataFrame, *, config: Config, calendar: Calendar) -> DataFrame:
    """user_id, entries array<struct<day,part,cell,n>> (sorted), one row per user with a usable event.

    Usable is every event of a known stream, neither conversion nor sensitive, between the calendar's first day and the
    run date; an unknown dwell has a bin of its own. `day` counts UTC days from the calendar's first day, by
    the instant at which the event was known (the later of event and ingest time; event time alone where
    `history.as_known_at` is `run_date`). `part` follows the event's own time.
    """
    ids = segmenter_streams(streams, config=config).select("stream", "stream_id")
    cell = F.col("stream_id").cast("int")
    if config.segmentation.dwell_bins:
        cell = cell * N_DWELL_BINS + F.col("dwell_bin").cast("int")
    usable = (
        stream_events(events.where(seen_span(calendar)), config=config)
        .withColumn("dwell_bin", dwell_bin())
        .join(F.broadcast(ids), "stream")
        .select(
            "user_id",
            known_day(calendar, config=config).alias("day"),
            window_part(calendar).alias("part"),
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


def segmenter_streams(streams: DataFrame, *, config: Config) -> DataFrame:
    """Rows of `streams` that a segmenter may see: neither conversion nor sensitive."""
    return streams.where(~F.col("is_conversion") & ~_sensitive(config))


def seen_span(calendar: Calendar) -> str:
    """Spark SQL condition: between the calendar's first day and the run date."""
    start, end = calendar.first, midnight(calendar.run_date)
    return f"event_ts >= {instant_sql(start)} AND event_ts < {instant_sql(end)}"


def known_day(calendar: Calendar, *, config: Config) -> Column:
    """Number of the UTC day on which an event was known, 0 = the calendar's first; see `user_counts`."""
    known = (
        F.greatest("event_ts", "ingest_ts")
        if config.history.as_known_at == "impression"
        else F.col("event_ts")
    )
    return F.datediff(known, F.expr(instant_sql(calendar.first)))


def window_part(calendar: Calendar) -> Column:
    """INPUT, NEXT or OTHER by the event's own time."""
    return (
        F.when(F.expr(calendar.segment_input.sql("event_ts")), INPUT)
        .when(F.expr(calendar.next_window.sql("event_ts")), NEXT)
        .otherwise(OTHER)
    )


def _sensitive(config: Config) -> Column:
    """True for streams that the config marks so, or whose stream without session kind it does."""
    marked = [stream for stream, own in config.streams.items() if own.sensitive]
    kindless = F.regexp_replace("stream", "(/[^#]*)#[^/#]*$", "$1")
    return F.col("stream").isin(marked) | kindless.isin(marked) if marked else F.lit(False)


def day_start(calendar: Calendar, day: int) -> datetime:
    """00:00 of the day with this number."""
    return calendar.first + timedelta(days=day)
