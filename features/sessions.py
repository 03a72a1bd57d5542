"""Sessions of a user: which event belongs to which, and one row of sums per session (docs/method.md A.2).

A session ends with a silence strictly longer than `session.gap_s`, never at midnight (docs/faults.md 13, 21).
Impressions neither open, extend nor close one.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window, WindowSpec
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import EBF_SESSION, EVENT_ORDER
from dynamix.features.events import stream_name, takes_part

_GRAIN = 2.0**20
"""Double addends are rounded to multiples of 2^-20, so that sums do not depend on order."""


def assign_sessions(events: DataFrame, *, config: Config) -> DataFrame:
    """Add session_id and session_start (both NULL for impressions) to every event.

    Grain in and out: one row per event; rows and other columns are untouched. Rule `gap`: silences strictly
    longer than gap_s part the user's sessions. Rule `given`: the user's events of one source_session_id
    are one session whatever its silences; events without one fall back to the gap rule among themselves.
    A session longer than max_length_s is cut at the first event after each multiple of it, counted from
    its first event. session_id hashes user, first event_ts, part (and the given id); session_start is
    the first event_ts of the part. Ties in event_ts break by EVENT_ORDER, nulls first.
    """
    ordered = _timeline(config)
    silence_us = F.col("_us") - F.lag("_us").over(ordered)
    opens = F.coalesce(silence_us > F.lit(int(config.session.gap_s * 1e6)), F.lit(True))
    if config.session.rule == "given":
        opens = F.when(F.col("source_session_id").isNull(), opens).otherwise(silence_us.isNull())
    running = ordered.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    first_us = F.max(F.when(F.col("_opens"), F.col("_us"))).over(running)
    # An event at exactly max_length still belongs: parts are (k L, (k+1) L] after the first event.
    length_us = F.lit(int(config.session.max_length_s * 1e6))
    since_us = F.col("_us") - F.col("_first")
    part = F.when(since_us == 0, F.lit(0)).otherwise(F.floor((since_us - 1) / length_us))
    own = (F.col("_first") == F.lag("_first").over(ordered)) & (
        F.col("_part") == F.lag("_part").over(ordered)
    )
    begins = F.when(~F.coalesce(own, F.lit(False)), F.col("event_ts"))
    staged = (
        # One shuffle: every window here and in the dwell's derivation has the user among its keys.
        events.repartition("user_id")
        .withColumns({"_in": takes_part(config), "_us": F.unix_micros("event_ts")})
        .withColumn("_opens", opens)
        .withColumn("_first", first_us)
        .withColumn("_part", part.cast("bigint"))
        .withColumn("_start", F.max(begins).over(running))
    )
    return staged.withColumns(
        {
            "session_id": F.when(F.col("_in"), _session_id(config)),
            "session_start": F.when(F.col("_in"), F.col("_start")),
        }
    ).drop("_in", "_us", "_opens", "_first", "_part", "_start")


def session_features(events: DataFrame, *, config: Config) -> DataFrame:
    """One row per (user, session), columns of `ebf_session`; events without a session are left out.

    Needs event rows with session_id, dwell_ms and dwell_status. Sums are exact; maps have sorted keys.
    dwell_by_stream holds streams with a known dwell only: a censored dwell is unknown, not 0
    (docs/method.md E1). gap_before_ms is the silence since the latest end of the user's earlier sessions,
    0 where given sessions overlap. session_kind stays NULL until kinds are fitted.
    """
    in_session = events.where(F.col("session_id").isNotNull())
    by_stream = _stream_sums(in_session, config)
    return _add_neighbours(_session_sums(by_stream), config).select(*EBF_SESSION.names)


def _timeline(config: Config) -> WindowSpec:
    # Impressions get a timeline of their own, so they cannot touch a session.
    keys = ["user_id", "_in"] + (["source_session_id"] if config.session.rule == "given" else [])
    return Window.partitionBy(*keys).orderBy(*EVENT_ORDER)


def _session_id(config: Config) -> Column:
    # The user stands last and the separator is no digit: no two tuples give one text.
    parts = [F.col("_first").cast("string"), F.col("_part").cast("string")]
    if config.session.rule == "given":
        given = F.coalesce("source_session_id", F.lit(""))
        parts += [F.length(given).cast("string"), given]
    return F.substring(F.sha2(F.concat_ws("|", *parts, "user_id"), 256), 1, 32)


def _stream_sums(events: DataFrame, config: Config) -> DataFrame:
    """One row per (user, session, stream) of additive sums."""
    within = Window.partitionBy("user_id", "session_id").orderBy(*EVENT_ORDER)
    converted = (
        F.col("event_type").isin(*config.conversion_types) if config.conversion_types else F.lit(False)
    )
    marked = events.withColumns(
        {
            "stream": stream_name(),
            "_moved": F.coalesce(F.col("surface") != F.lag("surface").over(within), F.lit(False)),
            "_given": F.first("source_session_id", ignorenulls=True).over(
                within.rowsBetween(Window.unboundedPreceding, Window.unboundedFollowing)
            ),
        }
    )
    return marked.groupBy("user_id", "session_id", "stream").agg(
        F.first("surface").alias("surface"),  # one per stream
        F.min("session_start").alias("start"),
        F.min("_given").alias("given"),
        F.max("event_ts").alias("end"),
        F.count(F.lit(1)).alias("n"),
        F.sum("dwell_ms").alias("dwell"),
        F.sum((F.col("dwell_status") == "censored").cast("bigint")).alias("censored"),
        F.sum(converted.cast("bigint")).alias("converted"),
        F.min(F.when(converted, F.col("event_ts"))).alias("first_converted"),
        F.sum(F.col("_moved").cast("bigint")).alias("moves"),
    )


def _session_sums(by_stream: DataFrame) -> DataFrame:
    """One row per (user, session) from its stream rows."""
    known = F.when(F.col("dwell").isNotNull(), F.struct("stream", "dwell"))
    sums = by_stream.groupBy("user_id", "session_id").agg(
        F.min("start").alias("session_start"),
        F.max("end").alias("session_end"),
        F.sum("n").alias("n_events"),
        F.map_from_entries(F.array_sort(F.collect_list(F.struct("stream", "n")))).alias("n_by_stream"),
        F.map_from_entries(F.array_sort(F.collect_list(known))).alias("dwell_by_stream"),
        F.coalesce(F.sum("dwell"), F.lit(0)).alias("dwell_sum_ms"),
        F.sum("censored").alias("n_censored"),
        F.sum("converted").alias("conversions"),
        F.min("first_converted").alias("_converted"),
        F.collect_list(F.struct("surface", "n")).alias("_surfaces"),
        F.sum("moves").alias("n_transitions"),
        F.min("given").alias("source_session_id"),
    )
    start = F.col("session_start")
    return sums.withColumns(
        {
            "duration_ms": _millis_between(start, F.col("session_end")),
            "first_conversion_ms": _millis_between(start, F.col("_converted")),
            "surface_entropy": _entropy(F.col("_surfaces"), F.col("n_events")),
            "session_kind": F.lit(None).cast("string"),
            "session_date": F.date_from_unix_date(F.floor(F.unix_seconds(start) / 86_400).cast("int")),
        }
    )


def _add_neighbours(sessions: DataFrame, config: Config) -> DataFrame:
    """Add gap_before_ms and capped_length, which depend on the user's other sessions."""
    timeline = Window.partitionBy("user_id").orderBy("session_start", "session_id")
    earlier = timeline.rowsBetween(Window.unboundedPreceding, -1)
    silence_ms = _millis_between(F.max("session_end").over(earlier), F.col("session_start"))
    # `greatest` skips NULL, so the first session needs its own case.
    gap = F.when(silence_ms.isNotNull(), F.greatest(silence_ms, F.lit(0).cast("bigint")))
    return sessions.withColumns({"gap_before_ms": gap, "capped_length": _was_cut(config)})


def _was_cut(config: Config) -> Column:
    """True where a neighbour is nearer than the gap allows, or shares the given id: one session, cut."""
    keys = ["user_id"]
    if config.session.rule == "given":
        keys.append("source_session_id")
    timeline = Window.partitionBy(*keys).orderBy("session_start", "session_id")
    gap_us = F.lit(int(config.session.gap_s * 1e6))
    start, end = F.unix_micros("session_start"), F.unix_micros("session_end")
    near = F.coalesce(start - F.lag(end).over(timeline) <= gap_us, F.lit(False)) | F.coalesce(
        F.lead(start).over(timeline) - end <= gap_us, F.lit(False)
    )
    if config.session.rule == "gap":
        return near
    alone = F.count(F.lit(1)).over(Window.partitionBy(*keys)) == 1
    return F.when(F.col("source_session_id").isNull(), near).otherwise(~alone)


def _millis_between(start: Column, end: Column) -> Column:
    return F.floor((F.unix_micros(end) - F.unix_micros(start)) / 1000).cast("bigint")


def _entropy(counts: Column, total: Column) -> Column:
    """-sum p ln p in nats over surfaces; `counts` may hold a surface once per stream."""
    surfaces = F.array_distinct(F.transform(counts, lambda entry: entry["surface"]))

    def addend(surface: Column) -> Column:
        own = F.filter(counts, lambda entry: entry["surface"] == surface)
        n = F.aggregate(own, F.lit(0).cast("bigint"), lambda total_n, entry: total_n + entry["n"])
        share = n / total
        return F.round(-share * F.ln(share) * _GRAIN) / _GRAIN

    return F.aggregate(F.transform(surfaces, addend), F.lit(0.0), lambda total_h, h: total_h + h)
