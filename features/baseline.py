"""Population and personal dwell baselines: mu and sigma per stream, the shrunken habit per user.

The habit comes from an earlier window that is disjoint from every window it is subtracted in; centring
in the same window plants a negative relevance (docs/method.md A.2.3, E2).
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.features.calendar import Calendar, Period
from dynamix.features.streams import assign_streams, log_dwell, on_grid, stream_base, stream_events


def fit_streams(
    events: DataFrame, *, config: Config, calendar: Calendar, known: DataFrame | None = None,
    sessions: DataFrame | None = None,
) -> DataFrame:  # fmt: skip
    """The `streams` table: ids (see `assign_streams`) with mu and sigma of the calendar's baseline window.

    mu is the mean and sigma the sample standard deviation of ln(1+dwell_ms) over usable dwells; NULL where
    the window holds none (sigma: fewer than two). Sums are exact, so the order of events is irrelevant.
    A stream with a session kind has those of the stream without.
    """
    ids = assign_streams(
        events, config=config, baseline=calendar.baseline, known=known, sessions=sessions
    ).withColumn("_base", stream_base(F.col("stream")))
    fitted = dwell_moments(events, config=config, period=calendar.baseline).withColumnRenamed(
        "stream", "_base"
    )
    return (
        ids.join(F.broadcast(fitted), "_base", "left")
        .drop("_base")
        .withColumn("baseline_version", F.lit(calendar.baseline_version))
    )


def add_streams(
    changed: DataFrame, stored: DataFrame, *, config: Config, calendar: Calendar,
    sessions: DataFrame | None = None,
) -> DataFrame:  # fmt: skip
    """The stored `streams` with those that only `changed` events have; mu, sigma and has_dwell stay frozen.

    A new stream has no dwell in the frozen window, so its mu and sigma are NULL until the next refit; one with a
    session kind has those of the stream without.
    """
    found = assign_streams(
        changed, config=config, baseline=calendar.baseline, known=stored, sessions=sessions
    )
    seen = found.select("stream", F.col("first_seen").alias("_seen"))
    kept = stored.join(seen, "stream", "left").withColumn("first_seen", F.least("first_seen", "_seen"))
    base = stored.select(F.col("stream").alias("_base"), "mu", "sigma", F.col("has_dwell").alias("_base_has"))
    fresh = (
        found.join(stored, "stream", "left_anti")
        .withColumn("_base", stream_base(F.col("stream")))
        .join(F.broadcast(base), "_base", "left")
        .withColumn("has_dwell", F.coalesce("_base_has", "has_dwell"))
        .withColumn("baseline_version", F.lit(calendar.baseline_version))
        .drop("_base", "_base_has")
    )
    return kept.drop("_seen").unionByName(fresh)


def dwell_moments(events: DataFrame, *, config: Config, period: Period) -> DataFrame:
    """mu and sigma (ln ms) of each stream with a usable dwell in the period: stream, mu, sigma."""
    n, total, square = F.col("n"), F.col("total"), F.col("square")
    variance = F.greatest(square - total * total / n, F.lit(0.0)) / F.when(n > 1, n - 1)
    return (
        _dwells(events, config=config, period=period)
        .groupBy("stream")
        .agg(F.count("x").alias("n"), _sum(F.col("x")).alias("total"), _sum(F.col("x") ** 2).alias("square"))
        .select("stream", (total / n).alias("mu"), F.sqrt(F.when(n > 1, variance)).alias("sigma"))
    )


def user_stats(events: DataFrame, streams: DataFrame, *, config: Config, calendar: Calendar) -> DataFrame:
    """The `user_stats` table: one row per user with any event, habit from the habit window alone.

    habit = n/(n+kappa) · mean of (ln(1+dwell_ms) − mu_f) over the user's n usable dwells in the habit window,
    kappa = within variance / between variance by ANOVA moments (0 between: habit 0). Without a habit
    window, or without dwells in it, n = 0 and habit = 0. `first_ts` and `last_ts` span all given rows.
    Source: docs/method.md A.2.3.
    """
    users = events.groupBy("user_id").agg(
        F.min("event_ts").alias("first_ts"), F.max("event_ts").alias("last_ts")
    )
    users = users.withColumn("baseline_version", F.lit(calendar.baseline_version))
    if calendar.habit is None:
        return users.withColumn("n", F.lit(0).cast("bigint")).withColumn("habit", F.lit(0.0))
    habits = shrunken_habits(_residuals(events, streams, config=config, period=calendar.habit))
    joined = users.join(habits, "user_id", "left")
    return joined.withColumn("n", F.coalesce("n", F.lit(0).cast("bigint"))).withColumn(
        "habit", F.coalesce("habit", F.lit(0.0))
    )


def add_users(changed: DataFrame, stored: DataFrame) -> DataFrame:
    """The stored `user_stats` with first and last event of `changed`; its users that are new have habit 0.

    For events outside the habit window; within it habits have to be fitted anew.
    """
    spans = changed.groupBy("user_id").agg(
        F.min("event_ts").alias("_first"), F.max("event_ts").alias("_last")
    )
    version = stored.agg(F.first("baseline_version").alias("_version"))
    return (
        stored.join(spans, "user_id", "full_outer")
        .crossJoin(F.broadcast(version))
        .select(
            "user_id",
            F.col("_version").alias("baseline_version"),
            F.coalesce("n", F.lit(0).cast("bigint")).alias("n"),
            F.coalesce("habit", F.lit(0.0)).alias("habit"),
            F.least("first_ts", "_first").alias("first_ts"),
            F.greatest("last_ts", "_last").alias("last_ts"),
        )
    )


def shrunken_habits(residuals: DataFrame) -> DataFrame:
    """user_id, n, habit from rows (user_id, r), r = ln(1+dwell_ms) − mu_f; users with rows only.

    One-way random effects with unequal group sizes: within W = SS_within/(N−k), between
    B = max(0, (SS_between/(k−1) − W)/n0), n0 = (N − Σn²/N)/(k−1), kappa = W/B.
    """
    per_user = residuals.groupBy("user_id").agg(
        F.count("r").alias("n"), _sum(F.col("r")).alias("total"), _sum(F.col("r") ** 2).alias("square")
    )
    n, total = F.col("n"), F.col("total")
    pooled = per_user.agg(
        F.sum("n").alias("N"),
        F.count("n").alias("k"),
        F.sum(n * n).alias("nn"),
        _sum(total).alias("T"),
        _sum(F.col("square")).alias("Q"),
        _sum(total * total / n).alias("U"),
    )
    within = F.greatest(F.col("Q") - F.col("U"), F.lit(0.0)) / F.when(
        F.col("N") > F.col("k"), F.col("N") - F.col("k")
    )
    groups = F.when(F.col("k") > 1, F.col("k") - 1)
    mean_square = (F.col("U") - F.col("T") * F.col("T") / F.col("N")) / groups
    size = (F.col("N") - F.col("nn") / F.col("N")) / groups
    variances = pooled.select(
        within.alias("within"), F.greatest((mean_square - within) / size, F.lit(0.0)).alias("between")
    )
    # n/(n+W/B) = nB/(nB+W): no division by zero where nothing lies between users
    weight = n * F.col("between") / (n * F.col("between") + F.col("within"))
    known = F.col("between").isNotNull() & F.col("within").isNotNull() & (F.col("between") > 0)
    return per_user.crossJoin(F.broadcast(variances)).select(
        "user_id", "n", F.when(known, weight * total / n).otherwise(0.0).alias("habit")
    )


def _dwells(events: DataFrame, *, config: Config, period: Period) -> DataFrame:
    inside = stream_events(events, config=config).where(period.sql("event_ts"))
    return inside.select("user_id", "stream", log_dwell().alias("x")).where("x IS NOT NULL")


def _residuals(events: DataFrame, streams: DataFrame, *, config: Config, period: Period) -> DataFrame:
    centre = streams.where("has_dwell AND mu IS NOT NULL").select("stream", "mu")
    dwells = _dwells(events, config=config, period=period).join(F.broadcast(centre), "stream")
    return dwells.select("user_id", (F.col("x") - F.col("mu")).alias("r"))


def _sum(value: Column) -> Column:
    return F.sum(on_grid(value))
