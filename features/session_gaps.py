"""What a session's row says of its neighbours: the silence before it, and whether it is part of a cut one.

The whole-table kernel of features/session_rows.py knows all neighbours; a repair of some days does not, so it
takes both columns from here, out of a timeline of starts and ends alone.
"""

from __future__ import annotations

from datetime import date

from pyspark.sql import Column, DataFrame, Window, WindowSpec
from pyspark.sql import functions as F

from dynamix.config import Config

_TIMELINE = ("user_id", "session_id", "session_start", "session_end", "source_session_id", "session_date")
_FOUND = ("gap_before_ms", "capped_length")


def timeline(fresh: DataFrame, stored: DataFrame, *, days: list[date], config: Config) -> DataFrame:
    """Starts and ends of the sessions that can be neighbours of `fresh`, the rows of `ebf_session` of `days`.

    `stored` is the table as it lies; its rows of `days` give way to `fresh`. Of sessions well before all of them
    only the latest end a user has is taken (session_id NULL). Adds `old_gap` and `old_capped`, NULL in `fresh`.
    """
    rest = stored.where(~F.col("session_date").isin(days))
    if config.session.rule == "given":
        return _marked(rest).unionByName(_marked(fresh, new=True))
    # a neighbour within the gap, or cut from the same chain, starts at most this long before
    reach_s = config.session.gap_s + config.session.max_length_s
    border = F.date_sub(F.lit(min(days)), int(reach_s // 86_400) + 1)
    ends = (
        rest.where(F.col("session_date") < border).groupBy("user_id").agg(F.max("session_end").alias("end"))
    )
    older = ends.select(
        "user_id",
        F.lit(None).cast("string").alias("session_id"),
        F.col("end").alias("session_start"),
        F.col("end").alias("session_end"),
        F.lit(None).cast("string").alias("source_session_id"),
        F.lit(None).cast("date").alias("session_date"),
        F.lit(None).cast("bigint").alias("old_gap"),
        F.lit(None).cast("boolean").alias("old_capped"),
    )
    near = _marked(rest.where(F.col("session_date") >= border))
    return near.unionByName(_marked(fresh, new=True)).unionByName(older)


def settle_neighbours(sessions: DataFrame, *, config: Config) -> DataFrame:
    """Rows of a `timeline` with gap_before_ms and capped_length by the rules of `ebf_session` (method A.2)."""
    ordered = Window.partitionBy("user_id").orderBy("session_start", "session_id")
    before = F.max("session_end").over(ordered.rowsBetween(Window.unboundedPreceding, -1))
    silence_us = F.unix_micros("session_start") - F.unix_micros(before)
    found = sessions.withColumn(
        "gap_before_ms", F.greatest(F.floor(silence_us / F.lit(1000)), F.lit(0)).cast("bigint")
    )
    # greatest skips NULLs
    found = found.withColumn("gap_before_ms", F.when(before.isNotNull(), F.col("gap_before_ms")))
    if config.session.rule == "gap":
        found = found.withColumn("capped_length", _near(Window.partitionBy("user_id"), config))
    else:
        alike = Window.partitionBy("user_id", "source_session_id")
        shared = F.count(F.lit(1)).over(alike) > 1
        plain = F.col("source_session_id").isNull()
        found = found.withColumn("capped_length", F.when(plain, _near(alike, config)).otherwise(shared))
    return found.where("session_id IS NOT NULL")


def changed_days(settled: DataFrame, days: list[date]) -> DataFrame:
    """session_date of stored rows outside `days` whose neighbours have changed."""
    other = ~F.col("session_date").isin(days)
    same = F.col("gap_before_ms").eqNullSafe(F.col("old_gap")) & (
        F.col("capped_length") == F.col("old_capped")
    )
    return settled.where(other & ~same).select("session_date").distinct()


def with_neighbours(rows: DataFrame, settled: DataFrame) -> DataFrame:
    """Rows of `ebf_session` with the two columns of `settled`; grain and other columns are kept."""
    found = settled.select("user_id", "session_id", *_FOUND)
    return rows.drop(*_FOUND).join(found, ["user_id", "session_id"])


def _marked(sessions: DataFrame, *, new: bool = False) -> DataFrame:
    gap, capped = (F.lit(None).cast("bigint"), F.lit(None).cast("boolean")) if new else map(F.col, _FOUND)
    return sessions.select(*_TIMELINE, gap.alias("old_gap"), capped.alias("old_capped"))


def _near(alike: WindowSpec, config: Config) -> Column:
    """True where the session before or after begins within the gap: one chain, cut by max_length."""
    ordered = alike.orderBy("session_start", "session_id")
    gap_us = F.lit(int(config.session.gap_s * 1e6))
    before = F.unix_micros("session_start") - F.unix_micros(F.lag("session_end").over(ordered)) <= gap_us
    after = F.unix_micros(F.lead("session_start").over(ordered)) - F.unix_micros("session_end") <= gap_us
    return F.coalesce(before, F.lit(False)) | F.coalesce(after, F.lit(False))
