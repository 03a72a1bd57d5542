"""Streams: which stream an event belongs to, its stable id, and the columns histories need.

A stream is `surface/event_type` unless a declaration says otherwise (docs/method.md A.2.5). Impression types are
no streams unless the config says so; conversion types are streams of the history, flagged, and never input of a
segmenter (docs/method.md A.1, A.4.1).
"""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import DWELL_BIN_EDGES_S, NO_DWELL_BIN
from dynamix.declarations import CONDITION_COLUMNS, EVENT_ATTRIBUTES, OPEN, base_stream
from dynamix.features.calendar import Period
from dynamix.features.events import stream_name, takes_part
from dynamix.features.grid import GRID
from dynamix.features.kinds import conversion_names
from dynamix.features.seen_kinds import as_seen

USABLE_DWELL = ("observed", "derived", "capped")
"""Dwell statuses that enter a statistic; `imputed`, `censored` and `missing` never do."""
Z_LIMIT = 3.0
_MAX_MISSING_SHARE = 0.5
_LONGEST_MS = 10**12
"""31 years: what a source may log beyond it is told no earlier, and sums of microseconds stay in range."""


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
    return events.where(takes_part(config)).withColumn("stream", declared_stream(config))


def has_filters(config: Config) -> bool:
    """True where a declaration gives events another stream than their `surface/event_type`."""
    declared = (config.declaration(stream).events for stream in config.streams)
    return any(events.kind is None and not events.is_plain for events in declared)


def declared_stream(config: Config) -> Column:
    """Name of an event's stream without session kind: the declaration whose filter it meets, else `surface/event_type`.

    A condition on an attribute that the event lacks is not met.
    """
    name, chosen = stream_name(), None
    for stream in sorted(config.streams):
        events = config.declaration(stream).events
        if events.kind is not None or events.is_plain:
            continue
        meets = F.col("surface").isin(*events.surfaces) & F.col("event_type").isin(*events.event_types)
        for attribute, values in events.conditions:
            column = F.col(attribute) if attribute in CONDITION_COLUMNS else _attribute(attribute)
            meets = meets & column.isin(*values)
        chosen = F.when(meets, F.lit(stream)) if chosen is None else chosen.when(meets, F.lit(stream))
    return name if chosen is None else chosen.otherwise(name)


def _attribute(name: str) -> Column:
    return F.try_element_at(F.col("attributes"), F.lit(name))


def stream_base(stream: Column) -> Column:
    """The stream without its session kind; the same as `base_stream` of declarations.py."""
    return F.regexp_replace(stream, "#[^/#]*$", "")


def assign_streams(
    events: DataFrame, *, config: Config, baseline: Period, known: DataFrame | None = None,
    sessions: DataFrame | None = None,
) -> DataFrame:  # fmt: skip
    """One row per stream: stream_id (smallint), stream, first_seen, is_conversion, has_dwell.

    New streams are numbered by first appearance, ties by name, after the largest id of `known` (the stored
    table); known streams keep their id even if they no longer occur, so no id is ever reused. `has_dwell` is
    false when more than half of the stream's events in the baseline window lack a usable dwell (all its
    events where it has none in that window). With `sessions` (user_id, session_id, session_kind), streams that
    are no conversions have a row for each kind and one for `#open` as well, with the flags of the stream without
    kind. Grain of `events`: one row per event; order is irrelevant.
    """
    found = _found(events, config=config, baseline=baseline)
    if sessions is not None:
        found = found.unionByName(_found_kinds(events, sessions, found, config))
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


def _found_kinds(events: DataFrame, sessions: DataFrame, found: DataFrame, config: Config) -> DataFrame:
    """Rows of `_found` for stream#kind and stream#open."""
    placed = stream_events(events, config=config).select("user_id", "session_id", "stream", "event_ts")
    kinds = sessions.where("session_kind IS NOT NULL").select("user_id", "session_id", "session_kind")
    each = F.explode(F.array_compact(F.array(F.lit(OPEN), F.col("session_kind"))))
    kinded = (
        placed.join(kinds, ["user_id", "session_id"], "left")
        .select("stream", "event_ts", each.alias("kind"))
        .groupBy("stream", "kind")
        .agg(F.min("event_ts").alias("first_seen"))
    )
    base = found.where(~F.col("is_conversion")).drop("first_seen")
    named = kinded.join(base, "stream").withColumn("stream", F.concat_ws("#", "stream", "kind"))
    return named.select("stream", "first_seen", "is_conversion", "has_dwell")


def _is_conversion(stream: Column, config: Config) -> Column:
    """For stored streams without events: read the type off the name."""
    base, names = stream_base(stream), conversion_names(config)
    return F.substring_index(base, "/", -1).isin(*names) | base.isin(*names)


def stream_lengths(ids: Mapping[str, int], config: Config) -> dict[int, int]:
    """Stream id -> newest events kept, for the streams whose length is not `history.per_stream`."""
    lengths = {ids[name]: config.declaration(name).length for name in _affected(ids, config)}
    return {i: length for i, length in lengths.items() if length != config.history.per_stream}


def hidden_attributes(ids: Mapping[str, int], config: Config) -> dict[int, frozenset[str]]:
    """Stream id -> which of item, category, dwell, recency its kept events do not carry, where there are any."""
    hidden = {
        ids[name]: frozenset(EVENT_ATTRIBUTES) - set(config.declaration(name).attributes)
        for name in _affected(ids, config)
    }
    return {i: names for i, names in hidden.items() if names}


def _affected(ids: Mapping[str, int], config: Config) -> list[str]:
    """Streams with an entry in the config, of their own or of the stream without kind."""
    return sorted(name for name in ids if name in config.streams or base_stream(name) in config.streams)


def scaled_events(events: DataFrame, streams: DataFrame, user_stats: DataFrame, config: Config) -> DataFrame:
    """Events of the streams in `streams` with stream_id, z, dwell_bin, censored and told_us, as in `event_columns`.

    Without session kinds, and with the attributes that a declared stream does not carry. Grain is kept.
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
        .withColumn("told_us", _told_us(config))
        .drop("mu", "sigma", "has_dwell", "habit")
    )


def event_columns(
    events: DataFrame, streams: DataFrame, user_stats: DataFrame, config: Config, *,
    sessions: DataFrame | None = None,
) -> DataFrame:  # fmt: skip
    """Events of known streams with stream_id, z, dwell_bin, censored and told_us: what histories are made of.

    z = clip((ln(1+dwell_ms) − mu_f − habit_u) / sigma_f, ±3); NULL if the dwell is not usable, the stream has
    no dwell channel, or mu or sigma is unknown or zero (nothing to scale by). A user without a row in
    `user_stats` has habit 0. From told_us (µs) on it is known what z, bin and censoring say. `streams` and
    `user_stats` hold one row per stream and per user: one `baseline_version` only. Grain is kept unless
    `session.kinds` is on: then `sessions` (ebf_session) is needed, and an event stands twice, as
    features/seen_kinds.py says. Attributes that a declared stream does not carry are NULL here (dwell: z NULL,
    bin 12, not censored). Source: docs/method.md A.2.3, A.2.5.
    """
    scaled = scaled_events(events, streams, user_stats, config)
    if config.with_kinds:
        scaled = as_seen(scaled, streams, sessions, config)
    return _without_hidden(scaled, config)


def _told_us(config: Config) -> Column:
    """When a dwell is told: at its end, or once the gap has passed where no next event need have come by then."""
    beyond_us = F.lit(
        round(config.session.gap_s * 1e6) + 1
    )  # an event at the gap itself still belongs to the session
    # cut at its cap, a derived dwell no longer says when the next event came
    cut = (F.col("dwell_status") == "capped") & F.col("dwell_logged_ms").isNull()
    waits = (F.col("dwell_status") == "censored") | cut
    # whole milliseconds are rounded down, and the next event itself must lie before the impression
    lasted_us = (F.least(F.coalesce("dwell_logged_ms", "dwell_ms"), F.lit(_LONGEST_MS)) + 1) * 1000
    return F.unix_micros("event_ts") + F.when(waits, beyond_us).otherwise(lasted_us)


def _without_hidden(events: DataFrame, config: Config) -> DataFrame:
    """Attributes that the event's stream does not carry emptied; recency is emptied where histories are stored."""
    empty = {
        "item": {"item_id": F.lit(None).cast("string")},
        "category": {"category": F.lit(None).cast("string")},
        "dwell": {
            "z": F.lit(None).cast("double"),
            "dwell_bin": F.lit(NO_DWELL_BIN).cast("tinyint"),
            "censored": F.lit(False),
        },
    }
    for attribute, columns in empty.items():
        hidden = _hides(attribute, config)
        if hidden is not None:
            named = {n: F.when(hidden, value).otherwise(F.col(n)) for n, value in columns.items()}
            events = events.withColumns(named)
    return events


def _hides(attribute: str, config: Config) -> Column | None:
    """True for events of streams that do not carry the attribute; None where every stream does."""
    hides = {name: attribute not in config.declaration(name).attributes for name in config.streams}
    if not any(hides.values()):
        return None
    stream = F.col("stream")
    own = [name for name in sorted(hides) if hides[name]]
    shown = [name for name in sorted(hides) if not hides[name]]
    return stream.isin(*own) | (stream_base(stream).isin(*own) & ~stream.isin(*shown))
