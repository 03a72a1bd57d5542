"""Sessions of a user: which event belongs to which, and one row of sums per session (docs/method.md A.2).

A session ends with a silence strictly longer than `session.gap_s`, never at midnight (docs/faults.md 13, 21).
Impressions neither open, extend nor close one.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import EVENT_ORDER
from dynamix.features.engine import session_frame, session_id
from dynamix.features.events import takes_part


def assign_sessions(events: DataFrame, *, config: Config) -> DataFrame:
    """Add session_id and session_start (both NULL for impressions) to every event, and until_next_us.

    Grain in and out: one row per event; rows and other columns are untouched. Rule `gap`: silences strictly
    longer than gap_s part the user's sessions. Rule `given`: the user's events of one source_session_id
    are one session whatever its silences; events without one fall back to the gap rule among themselves.
    A session longer than max_length_s is cut at the first event after each multiple of it, counted from
    its first event. session_id hashes user, first event_ts, part (and the given id); session_start is
    the first event_ts of the part. until_next_us is the time to the session's next event, NULL at its last
    one. Ties in event_ts break by EVENT_ORDER, nulls first.
    """
    ordered = Window.partitionBy(*timeline_keys(config)).orderBy(*EVENT_ORDER)
    running = ordered.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    # Where nothing opens, the event before has the same first one: its part needs no window.
    begins = F.col("_opens") | (F.col("_part") != _part(F.col("_before") - F.col("_first"), config))
    # Without their session's next event both windows below would sort again for the dwell.
    next_us = F.when(~F.lead("_begins").over(ordered), F.lead("_us").over(ordered))
    staged = (
        # One shuffle and one sort: every window here has the same keys and order.
        events.repartition("user_id")
        .withColumns({"_in": takes_part(config), "_us": F.unix_micros("event_ts")})
        .withColumn("_before", F.lag("_us").over(ordered))
        .withColumn("_opens", opens_chain(config))
        .withColumn("_first", F.max(F.when(F.col("_opens"), F.col("_us"))).over(running))
        .withColumn("_part", _part(F.col("_us") - F.col("_first"), config))
        .withColumn("_begins", begins)
        .withColumns(
            {
                "_start": F.max(F.when(F.col("_begins"), F.col("event_ts"))).over(running),
                "until_next_us": next_us - F.col("_us"),
            }
        )
    )
    return staged.withColumns(
        {
            "session_id": F.when(F.col("_in"), session_id(config, first="_first", part="_part")),
            "session_start": F.when(F.col("_in"), F.col("_start")),
        }
    ).drop("_in", "_us", "_before", "_opens", "_first", "_part", "_begins", "_start")


def _part(since_us: Column, config: Config) -> Column:
    """Number of max_length pieces before: pieces are (k L, (k+1) L] after the first event."""
    length_us = F.lit(int(config.session.max_length_s * 1e6))
    return F.when(since_us == 0, F.lit(0)).otherwise(F.floor((since_us - 1) / length_us)).cast("bigint")


def session_features(events: DataFrame, *, config: Config) -> DataFrame:
    """One row per (user, session), columns of `ebf_session`; events without a session are left out.

    Needs event rows with session_id, dwell_ms and dwell_status. Sums are exact; maps have sorted keys.
    dwell_by_stream holds streams with a known dwell only: a censored dwell is unknown, not 0
    (docs/method.md E1), and so is an imputed one. gap_before_ms is the silence since the latest end of the
    user's earlier sessions, 0 where given sessions overlap. session_kind stays NULL until kinds are fitted.
    """
    return session_frame(events.where(F.col("session_id").isNotNull()), config=config)


def timeline_keys(config: Config) -> list[str]:
    """Columns that part events into timelines, each of its own sessions; `_in` is `takes_part`."""
    # Impressions get a timeline of their own, so they cannot touch a session.
    return ["user_id", "_in"] + (["source_session_id"] if config.session.rule == "given" else [])


def opens_chain(config: Config) -> Column:
    """True where an event opens a chain: `_us` is its time, `_before` that of the event before it in its timeline."""
    silence_us = F.col("_us") - F.col("_before")
    opens = F.coalesce(silence_us > F.lit(int(config.session.gap_s * 1e6)), F.lit(True))
    if config.session.rule == "gap":
        return opens
    return F.when(F.col("source_session_id").isNull(), opens).otherwise(F.col("_before").isNull())
