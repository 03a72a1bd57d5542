"""Streams: the declaration of every event-based feature, its stable id, and the columns histories need.

A stream is `surface/event_type`. Impression types are no streams unless the config says so; conversion
types are streams of the history, flagged, and never input of a segmenter (docs/method.md A.1, A.4.1).
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import DWELL_BIN_EDGES_S, NO_DWELL_BIN
from dynamix.features.calendar import Period
from dynamix.features.events import stream_name, takes_part
from dynamix.features.grid import GRID

USABLE_DWELL = ("observed", "derived", "capped")
"""Dwell statuses that enter a statistic; `imputed`, `censored` and `missing` never do."""
Z_LIMIT = 3.0
_MAX_MISSING_SHARE = 0.5


def on_grid(value: Column) -> Column:
    """`value` rounded to a multiple of 2^-20, so that double sums below 8e9 do not depend on their order."""
    return F.rint(value * GRID) / GRID


def has_usable_dwell() -> Column:
    """True iff the event's dwell is known and may enter a statistic; never NULL."""
    return F.col("dwell_ms").isNotNull() & F.col("dwell_status").isin(*USABLE_DWELL)


def log_dwell() -> Column:
    """ln(1 + dwell_ms), NULL where the dwell is not usable."""
    return F.when(has_usable_dwell(), F.log1p("dwell_ms"))


def dwell_bin() -> Column:
    """Fixed dwell bin 0..11 by upper ends in seconds (inclusive); 12 where the dwell is not usable."""
    above = sum(
        (F.when(F.col("dwell_ms") > edge * 1000, 1).otherwise(0) for edge in DWELL_BIN_EDGES_S), F.lit(0)
    )
    return F.when(has_usable_dwell(), above).otherwise(NO_DWELL_BIN).cast("tinyint")


def stream_events(events: DataFrame, *, config: Config) -> DataFrame:
    """Events that belong to a stream, with its name in `stream`; impressions only if they are organic."""
    return events.where(takes_part(config)).withColumn("stream", stream_name())


def assign_streams(
    events: DataFrame, *, config: Config, baseline: Period, known: DataFrame | None = None
) -> DataFrame:
    """One row per stream: stream_id (smallint), stream, first_seen, is_conversion, has_dwell.

    New streams are numbered by first appearance, ties by name, after the largest id of `known` (the stored
    table); known streams keep their id even if they no longer occur, so no id is ever reused. `has_dwell` is
    false when more than half of the stream's events in the baseline window lack a usable dwell (all its
    events where it has none in that window). Grain of `events`: one row per event; order is irrelevant.
    """
    found = _found(events, config=config, baseline=baseline)
    if known is None:
        stored = found.select("stream", F.lit(None).cast("int").alias("id"), "first_seen").limit(0)
    else:
        stored = known.select("stream", F.col("stream_id").cast("int").alias("id"), "first_seen")
    stored = stored.withColumnRenamed("first_seen", "stored_first")
    joined = found.join(stored, "stream", "full_outer").withColumn(
        "first_seen", F.least("first_seen", "stored_first")
    )
    # a handful of rows: one partition is meant
    fresh_first = Window.orderBy(F.col("id").isNotNull(), "first_seen", "stream")
    everything = Window.partitionBy()
    offset = F.coalesce(F.max("id").over(everything), F.lit(-1))
    numbered = joined.withColumn("id", F.coalesce("id", offset + F.row_number().over(fresh_first)))
    return numbered.select(
        F.col("id").cast("smallint").alias("stream_id"),
        "stream",
        "first_seen",
        F.coalesce("is_conversion", _is_conversion(F.col("stream"), config)).alias("is_conversion"),
        F.coalesce("has_dwell", F.lit(False)).alias("has_dwell"),
    )


def _found(events: DataFrame, *, config: Config, baseline: Period) -> DataFrame:
    inside = F.expr(baseline.sql("event_ts"))
    usable = has_usable_dwell().cast("double")
    share = F.coalesce(F.avg(F.when(inside, usable)), F.avg(usable))
    return (
        stream_events(events, config=config)
        .groupBy("stream")
        .agg(
            F.min("event_ts").alias("first_seen"),
            F.bool_or(F.col("event_type").isin(*config.conversion_types)).alias("is_conversion"),
            (share >= 1 - _MAX_MISSING_SHARE).alias("has_dwell"),
        )
    )


def _is_conversion(stream: Column, config: Config) -> Column:
    """For stored streams without events: read the type off the name."""
    return F.substring_index(stream, "/", -1).isin(*config.conversion_types)


def event_columns(events: DataFrame, streams: DataFrame, user_stats: DataFrame, config: Config) -> DataFrame:
    """Events of known streams with stream_id, z, dwell_bin and censored: what histories are made of.

    z = clip((ln(1+dwell_ms) − mu_f − habit_u) / sigma_f, ±3); NULL if the dwell is not usable, the stream has
    no dwell channel, or mu or sigma is unknown or zero (nothing to scale by). A user without a row in
    `user_stats` has habit 0. `streams` and `user_stats` hold one row per stream and per user: one
    `baseline_version` only. Grain is kept. Source: docs/method.md A.2.3.
    """
    scale = streams.select("stream_id", "stream", "mu", "sigma", "has_dwell")
    habits = user_stats.select("user_id", "habit")
    residual = log_dwell() - F.col("mu") - F.coalesce("habit", F.lit(0.0))
    z = F.greatest(F.lit(-Z_LIMIT), F.least(F.lit(Z_LIMIT), residual / F.col("sigma")))
    # greatest and least skip NULLs, so the condition and not the arithmetic has to keep z NULL
    defined = has_usable_dwell() & F.col("has_dwell") & F.col("mu").isNotNull() & (F.col("sigma") > 0)
    return (
        stream_events(events, config=config)
        .join(F.broadcast(scale), "stream")
        .join(habits, "user_id", "left")
        .withColumn("z", F.when(defined, z))
        .withColumn("dwell_bin", dwell_bin())
        .withColumn("censored", F.col("dwell_status") == "censored")
        .drop("mu", "sigma", "has_dwell", "habit")
    )
