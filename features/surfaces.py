"""Surface EBFs: what a user did per stream and day, and windows that are sums of those days.

Every number is a sum, a maximum or a count in fixed bins, so days compose by addition and any chunking
of the input gives the same rows (docs/method.md A.2.4, docs/faults.md D2). The sums are those of
features/surface_sums.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import EBF_SURFACE
from dynamix.features.calendar import days_since_1970
from dynamix.features.engine import SURFACE_SCHEMA, surface_frame
from dynamix.features.surface_sums import fold, stored_rows, surface_table, windows
from dynamix.features.timeline import whole_users
from dynamix.features.window_plan import WindowPlan, window_plan


def surface_days(events: DataFrame, *, config: Config) -> DataFrame:
    """Day rows of `ebf_surface`: one per user, stream (and `surface/*`, the surface's total) and UTC day.

    `window_end` is the day after, `window_days` 1, `decayed_n` equals n. Dwell figures take usable dwells
    only; `dwell_hist` counts them in bins floor(4·ln(1+ms)). `dwell_share` is dwell_sum over that of all the
    user's streams in the window, NULL where that is 0. Impressions are left out unless organic.
    """
    return surface_frame(events, config=config)


def surface_windows(days: DataFrame, run_date: date, *, config: Config | None = None) -> DataFrame:
    """Rows of 7 and 28 days and of all days (`window_days` 0) ending at the run date, from day rows.

    A stream that declares windows in `config` has those instead. `decayed_n` = Σ n_day · 2^(−age/7), age in days
    from the day's end to the run date, 7 or the declared half-life; `dwell_share` as for a day; all else are plain
    sums. Day rows that end after the run date are ignored; a user without a day in a window has no row.
    """
    end = days_since_1970(run_date)
    plan = WindowPlan() if config is None else window_plan(config)
    known = days.where((F.col("window_days") == 1) & (F.col("window_end") <= F.lit(run_date)))

    def run(batches: Iterator[Any]) -> Iterator[Any]:
        for table in whole_users(batches, by="key"):
            rows, users, names = stored_rows(table.combine_chunks())
            for window in windows(fold(rows, len(names)), end, names, plan):
                yield from surface_table(window, users, names).to_batches(max_chunksize=50_000)

    needed = [name for name in EBF_SURFACE.names if name not in ("window_days", "dwell_share")]
    keyed = known.select(F.xxhash64("user_id").alias("key"), *needed)
    # one long: radix sort
    return keyed.repartition("key").sortWithinPartitions("key").mapInArrow(run, SURFACE_SCHEMA)


def surface_rows(events: DataFrame, run_date: date, *, config: Config) -> DataFrame:
    """`surface_days` and the `surface_windows` of them, from one pass over the events."""
    return surface_frame(events, config=config, run_date=run_date)
