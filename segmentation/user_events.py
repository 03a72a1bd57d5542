"""Events per user as the segmenters without counts read them: a Spark frame, and its batches as flat arrays.

The same events as in segmentation/counts.py: conversion and sensitive streams never enter (docs/method.md A.4.1, E23).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.features.calendar import Calendar, since_1970
from dynamix.features.streams import scaled_events
from dynamix.segmentation.blocks import INPUT, NEXT, entries_of
from dynamix.segmentation.counts import known_day, seen_span, segmenter_streams, window_part
from dynamix.segmentation.jagged import FlatEvents, Jagged, jagged
from dynamix.segmentation.prefixes import DatedEvents


def user_events(
    events: DataFrame, streams: DataFrame, user_stats: DataFrame, *, config: Config, calendar: Calendar
) -> DataFrame:
    """user_id, entries array<struct<us,day,part,stream,dwell_bin,z>>, one row per user with a usable event.

    Usable, `day` and `part` as in `user_counts`; `us` are microseconds since the calendar's first day, z is NULL
    without a usable dwell. Entries are in no order. `user_stats` of one baseline version.
    """
    start_us = since_1970(calendar.first)
    own = segmenter_streams(streams, config=config)
    entry = F.struct(
        (F.unix_micros("event_ts") - F.lit(start_us)).alias("us"),
        known_day(calendar, config=config).alias("day"),
        window_part(calendar).alias("part"),
        F.col("stream_id").cast("int").alias("stream"),
        F.col("dwell_bin").cast("int").alias("dwell_bin"),
        F.col("z").alias("z"),
    )
    scaled = scaled_events(events.where(seen_span(calendar)), own, user_stats, config)
    return scaled.groupBy("user_id").agg(F.collect_list(entry).alias("entries"))


def fit_users(frame: DataFrame, *, at_most: int) -> DataFrame:
    """Rows of `user_events` of the users to fit on, with the events of input and next window alone.

    Of the users who have any, the `at_most` of the least hash of the id; no other split of users shares the hash.
    """
    inside = F.filter("entries", lambda e: e["part"].isin(INPUT, NEXT))
    some = frame.withColumn("entries", inside).where(F.size("entries") > 0)
    return some.orderBy(F.xxhash64(F.lit("fit"), F.col("user_id")), "user_id").limit(at_most)


def dated_events(batch: Any) -> DatedEvents:
    """A record batch of `user_events` as flat arrays."""
    users, owner, field = entries_of(batch)
    stream, dwell_bin, part, day = (
        field(name).astype(np.int64) for name in ("stream", "dwell_bin", "part", "day")
    )
    seconds = field("us").astype(np.int64) / 1e6
    return DatedEvents(
        users, FlatEvents(owner, seconds, stream, dwell_bin, field("z").astype(np.float64), part), day
    )


def window_events(rows: Any, *, n_streams: int, gap_s: float) -> Jagged:
    """Jagged events of the two windows from the collected rows (pyarrow.Table) of `fit_users`, users sorted by id."""
    rows = rows.sort_by("user_id").combine_chunks()
    found = dated_events(rows.to_batches()[0])
    return jagged(found.flat, users=found.users, n_streams=n_streams, gap_s=gap_s)
