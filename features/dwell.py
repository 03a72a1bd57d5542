"""Dwell of an event: logged, derived from the next event, censored or missing, and capped (docs/method.md A.2).

The last event of a session without a logged dwell is censored: its dwell is unknown, never 0
(docs/method.md E1). Units are whole milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.features.events import stream_name

BINS_PER_E = 4
"""Bins of a quarter in ln(1 + ms): counts add up exactly, so quantiles do not depend on order."""
ALL_STREAMS = "*"
"""Key of the cap that serves a stream without one of its own."""


def derive_dwell(events: DataFrame, *, config: Config, caps: Mapping[str, int] | None = None) -> DataFrame:
    """Settle dwell_ms and dwell_status of every event; `bad_dwell`, where present, is used up.

    Grain in and out: one row per event with the columns of `assign_sessions` (session_id NULL: takes part
    in nothing; until_next_us is used up) and the logged dwell_ms. A logged dwell is `observed`; else the
    time to the session's next event is `derived`; the last event is `censored` with NULL; impressions, bad
    logged values, and everything unlogged where `dwell.derive` is false are `missing` with NULL. Equal times
    give a derived 0: a measured zero.
    `caps` as in `cap_dwell`.
    """
    bad = F.col("bad_dwell") if "bad_dwell" in events.columns else F.lit(False)
    logged, derivable = F.col("dwell_ms").isNotNull(), F.col("session_id").isNotNull() & ~bad
    last_ms = F.lit(None if config.dwell.censor_last else 0).cast("bigint")
    last_status = "censored" if config.dwell.censor_last else "derived"
    status = F.when(logged, "observed")
    value = F.when(logged, F.col("dwell_ms"))
    if config.dwell.derive:
        followed = derivable & F.col("until_next_us").isNotNull()
        status = status.when(followed, "derived").when(derivable, last_status)
        value = value.when(followed, F.floor(F.col("until_next_us") / 1000).cast("bigint")).when(
            derivable, last_ms
        )
    settled = events.withColumns({"dwell_status": status.otherwise("missing"), "dwell_ms": value})
    return cap_dwell(settled.drop("until_next_us", "bad_dwell"), caps=caps)


def cap_dwell(events: DataFrame, *, caps: Mapping[str, int] | None) -> DataFrame:
    """Replace dwells above their stream's cap by it, status `capped`; no caps: unchanged.

    A stream without a cap takes that of `*` (all streams), and none where that is absent too. An imputed value
    stays as it is. Capping twice is capping once.
    """
    if not caps:
        return events
    cap = _lookup(caps)
    above = F.coalesce((F.col("dwell_ms") > cap) & (F.col("dwell_status") != "imputed"), F.lit(False))
    return events.withColumns(
        {
            "dwell_ms": F.when(above, cap).otherwise(F.col("dwell_ms")),
            "dwell_status": F.when(above, F.lit("capped")).otherwise(F.col("dwell_status")),
        }
    )


def dwell_caps(events: DataFrame, quantile: float) -> DataFrame:
    """(stream, cap_ms): upper edge of the dwell bin that holds the quantile, per stream and for `*`.

    Fixed bins of a quarter in ln(1 + ms), so the caps are exact for every split and order of the rows;
    they lie above the true quantile by at most a factor e^(1/4). Events without a dwell do not count;
    a stream without any has no row. The edge is rounded down to whole milliseconds, as dwells are whole.
    """
    known = events.where(F.col("dwell_ms").isNotNull())
    counted = known.groupBy(stream_name().alias("stream"), dwell_bin(F.col("dwell_ms")).alias("bin")).agg(
        F.count(F.lit(1)).alias("n")
    )
    each = F.explode(F.array("stream", F.lit(ALL_STREAMS)))
    bins = counted.withColumn("stream", each).groupBy("stream", "bin").agg(F.sum("n").alias("n"))
    below = F.sum("n").over(Window.partitionBy("stream").orderBy("bin"))
    total = F.sum("n").over(Window.partitionBy("stream"))
    reached = bins.withColumns({"_below": below, "_total": total}).where(
        F.col("_below") >= F.lit(quantile) * F.col("_total")
    )
    edge = F.floor(F.exp((F.min("bin") + 1) / F.lit(float(BINS_PER_E))) - 1).cast("bigint")
    return reached.groupBy("stream").agg(edge.alias("cap_ms"))


def dwell_bin(dwell_ms: Column) -> Column:
    """Histogram bin floor(4 ln(1 + ms)); NULL stays NULL."""
    return F.floor(F.lit(float(BINS_PER_E)) * F.log1p(dwell_ms)).cast("int")


def _lookup(caps: Mapping[str, int]) -> Column:
    entries = [part for name in sorted(caps) for part in (F.lit(name), F.lit(caps[name]).cast("bigint"))]
    return F.coalesce(
        F.try_element_at(F.create_map(*entries), stream_name()), F.lit(caps.get(ALL_STREAMS)).cast("bigint")
    )
