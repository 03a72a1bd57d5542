"""Surface EBFs: what a user did per stream and day, and windows that are sums of those days.

Every number is a sum, a maximum or a count in fixed bins, so days compose by addition and any chunking
of the input gives the same rows (docs/method.md A.2.4, docs/faults.md D2).
"""

from __future__ import annotations

from datetime import date

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import EBF_SURFACE
from dynamix.features.streams import has_usable_dwell, log_dwell, on_grid, stream_events

HALF_LIFE_DAYS = 7.0
WINDOWS = (7, 28, 0)
"""Window lengths in days for the run date; 0 = all days, with the count decayed."""
_BINS_PER_E = 4
_SUMS = ("n", "dwell_sum", "z_sum", "z_sq_sum", "n_dwell", "n_censored", "decayed_n", "conversions")


def surface_days(events: DataFrame, *, config: Config) -> DataFrame:
    """Day rows of `ebf_surface`: one per user, stream (and `surface/*`, the surface's total) and UTC day.

    `window_end` is the day after, `window_days` 1, `decayed_n` equals n. Dwell figures take usable dwells
    only; `dwell_hist` counts them in bins floor(4·ln(1+ms)). Impressions are left out unless organic.
    """
    x = log_dwell()
    day = F.to_date("event_ts")
    by_type = (
        stream_events(events, config=config)
        .repartition("user_id")  # serves all three aggregations below
        .groupBy("user_id", "surface", "stream", F.date_add(day, 1).alias("window_end"), _bin(x).alias("bin"))
        .agg(
            F.count("*").alias("n"),
            F.coalesce(F.sum(F.when(has_usable_dwell(), F.col("dwell_ms"))), F.lit(0)).alias("dwell_sum"),
            F.coalesce(F.sum(on_grid(x)), F.lit(0.0)).alias("z_sum"),
            F.coalesce(F.sum(on_grid(x * x)), F.lit(0.0)).alias("z_sq_sum"),
            F.count(x).alias("n_dwell"),
            F.count_if(F.col("dwell_status") == "censored").alias("n_censored"),
            F.max("event_ts").alias("last_ts"),
            F.count_if(F.col("event_type").isin(*config.conversion_types)).alias("conversions"),
        )
    )
    total = F.concat(F.col("surface"), F.lit("/*"))
    both = by_type.withColumn("stream", F.explode(F.array("stream", total)))
    both = both.withColumn("window_days", F.lit(1)).withColumn("decayed_n", F.col("n").cast("double"))
    return _fold(both.withColumn("bin_n", F.col("n_dwell")))


def surface_windows(days: DataFrame, run_date: date) -> DataFrame:
    """Rows of 7 and 28 days and of all days (`window_days` 0) ending at the run date, from day rows.

    `decayed_n` = Σ n_day · 2^(−age/7), age in days from the day's end to the run date; all else are plain
    sums. Day rows that end after the run date are ignored; a user without a day in a window has no row.
    """
    end = F.lit(run_date)
    age = F.datediff(end, F.col("window_end"))
    inside = [F.when((F.lit(w) == 0) | (age < w), F.lit(w)) for w in WINDOWS]
    decayed = on_grid(F.col("n") * F.pow(F.lit(2.0), -age / HALF_LIFE_DAYS))
    spread = (
        days.where((F.col("window_days") == 1) & (F.col("window_end") <= end))
        .repartition("user_id")
        .withColumn("decayed_n", decayed)
        .withColumn("window_days", F.explode(F.array_compact(F.array(*inside))))
        .withColumn("window_end", end)
        .select("*", F.posexplode_outer(F.map_entries("dwell_hist")).alias("pos", "entry"))
    )
    # a day row was repeated once per bin of its histogram: its sums count at the first one only
    first = F.coalesce(F.col("pos"), F.lit(0)) == 0
    for name in _SUMS:
        spread = spread.withColumn(name, F.when(first, F.col(name)).otherwise(0))
    return _fold(spread.withColumn("bin", F.col("entry.key")).withColumn("bin_n", F.col("entry.value")))


def _fold(rows: DataFrame) -> DataFrame:
    """Rows with sums and one bin each, added up to the key of `ebf_surface`; bins become the map."""
    key = [F.col(name) for name in EBF_SURFACE.key]
    added = [F.sum(name).alias(name) for name in _SUMS]
    latest = F.max("last_ts").alias("last_ts")
    binned = rows.groupBy(*key, "bin").agg(*added, latest, F.sum("bin_n").alias("bin_n"))
    entry = F.when(F.col("bin").isNotNull(), F.struct("bin", "bin_n"))
    histogram = F.map_from_entries(F.array_sort(F.collect_list(entry))).alias("dwell_hist")
    folded = binned.groupBy(*key).agg(*added, latest, histogram)
    return folded.select(*EBF_SURFACE.names)


def _bin(x: Column) -> Column:
    return F.floor(x * _BINS_PER_E).cast("int")
