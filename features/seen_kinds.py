"""Events as an impression sees their session: open until it has closed, then of its kind (docs/method.md A.2.6).

A kind is known once the session is over. So an event belongs to `stream#open` for impressions before that instant
and to `stream#kind` for later ones.
"""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.declarations import OPEN
from dynamix.errors import ConfigError


def as_seen(events: DataFrame, streams: DataFrame, sessions: DataFrame | None, config: Config) -> DataFrame:
    """Each event twice: as `stream#open` until its session closed (`until_us`), as `stream#kind` after it (`after_us`).

    An impression at t sees exactly one of the two: the second iff session end + gap < t and, where histories are
    as known at the impression, every event of the session had been ingested by then (a late event may change the
    kind). Conversions, events without a session and sessions without a kind keep the plain stream: once, or after
    the close. Grain in: one row per event with stream and stream_id of the plain stream; rows whose kinded stream
    has no id in `streams` are left out. ConfigError without `sessions`.
    """
    if sessions is None:
        raise ConfigError(
            "session.kinds is on: histories need table 'ebf_session'; run `dynamix features` first"
        )
    gap_us = F.lit(round(config.session.gap_s * 1e6))
    closing = F.unix_micros(F.max("event_ts")) + gap_us
    if config.history.as_known_at == "impression":
        # the limit is open on the left, so an ingest at the very instant counts as known
        closing = F.greatest(closing, F.unix_micros(F.max("ingest_ts")) - 1)
    plain = F.col("session_id").isNull() | F.col("event_type").isin(*config.conversion_types)
    inside = events.where(~plain)
    # conversions carry no kind, yet hold their session open like any other event
    own = events.groupBy("user_id", "session_id").agg(closing.alias("closed_us"))
    kinds = sessions.select("user_id", "session_id", "session_kind")
    placed = inside.join(own.join(kinds, ["user_id", "session_id"], "left"), ["user_id", "session_id"])
    kind = F.when(F.col("session_kind").isNotNull(), F.concat_ws("#", "stream", "session_kind"))
    none = F.lit(None).cast("bigint")
    opened = placed.withColumns(
        {"stream": F.concat_ws("#", "stream", F.lit(OPEN)), "after_us": none, "until_us": F.col("closed_us")}
    )
    closed = placed.withColumns(
        {"stream": F.coalesce(kind, F.col("stream")), "after_us": F.col("closed_us"), "until_us": none}
    )
    always = events.where(plain).withColumns({"after_us": none, "until_us": none})
    both = opened.unionByName(closed).drop("closed_us", "session_kind")
    ids = streams.select("stream", "stream_id")
    return both.unionByName(always).drop("stream_id").join(F.broadcast(ids), "stream")
