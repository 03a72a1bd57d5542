"""Checks of `audit` over all rows: balance of counts, caps, leakage into histories and labels, the habits' shrinkage."""

from __future__ import annotations

import math
from collections.abc import Callable

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.contracts import RUN_LOG
from dynamix.errors import GuardError
from dynamix.features.calendar import Calendar, Period, since_1970
from dynamix.features.dwell import ALL_STREAMS
from dynamix.features.events import stream_name
from dynamix.features.streams import declared_stream
from dynamix.jobs.baseline import stored_mark
from dynamix.jobs.context import Run
from dynamix.jobs.features import seen_events

_COUNTED = ("rows_read", "rows_kept", "rows_deduplicated", "rows_quarantined")


def balance(run: Run) -> list[str]:
    """One sentence per equation that holds. GuardError with both sides at the first that does not.

    rows read = kept + deduplicated + quarantined (newest `ingest` of the run log); rows of `events` = kept, copies
    in `events_quarantine` = quarantined, both over all increments since the last whole build; events in sessions
    = sum of n_events over `ebf_session`; events of streams = sum of n over the day rows of `ebf_surface`.
    """
    return [_equation(*sides) for sides in (*_logged(run), *_summed(run))]


def caps(run: Run) -> list[str]:
    """All capped dwells are the cap that was frozen for their stream, and none lies above; GuardError where not."""
    mark = stored_mark(run.warehouse)
    if mark is None:
        return []
    frozen = mark.baseline.caps_ms
    capped = F.when(F.col("dwell_status") == "capped", F.col("dwell_ms"))
    genuine = F.when(F.col("dwell_status") != "imputed", F.col("dwell_ms"))
    found = run.warehouse.read(run.spark, "events").groupBy(stream_name().alias("stream"))
    limits = [F.min(capped).alias("low"), F.max(capped).alias("high"), F.max(genuine).alias("most")]
    for row in found.agg(*limits).collect():
        cap = frozen.get(row["stream"], frozen.get(ALL_STREAMS))
        other = {row["low"], row["high"]} - {cap, None}
        if other or (cap is not None and row["most"] is not None and row["most"] > cap):
            raise GuardError(
                f"audit: table 'events', stream {row['stream']!r}: capped dwells are {row['low']} to {row['high']} ms, "
                f"the longest dwell {row['most']} ms, the frozen cap {cap} ms; run `dynamix ingest` anew"
            )
    return [f"caps: {len(frozen)} frozen, no capped dwell differs from them and none lies above"]


def _equation(left: str, have: int, right: str, want: int) -> str:
    if have != want:
        raise GuardError(
            f"audit: rows do not balance: {left} is {have}, {right} is {want}; run the steps that write them anew"
        )
    return f"balance: {left} = {right} = {have}"


def _logged(run: Run) -> list[tuple[str, int, str, int]]:
    if not run.warehouse.exists(run.spark, RUN_LOG.name):
        return []
    log = run.warehouse.read(run.spark, RUN_LOG.name).where("step = 'ingest' AND status = 'done'")
    newest = log.orderBy(F.col("logged_at").desc()).select(*_COUNTED).limit(1).collect()
    if not newest:
        return []
    read, kept, doubled, out = (int(newest[0][name]) for name in _COUNTED)
    stored = run.warehouse.read(run.spark, "events").count()
    copies = (
        run.warehouse.read(run.spark, "events_quarantine").agg(F.sum("copies").alias("n")).collect()[0]["n"]
    )
    parts = f"{kept} kept + {doubled} deduplicated + {out} quarantined"
    mark = stored_mark(run.warehouse)
    all_kept, all_out = (mark.kept, mark.quarantined) if mark else (kept, out)
    return [
        ("rows read", read, parts, kept + doubled + out),
        ("rows of events", stored, "rows kept", all_kept),
        ("copies in events_quarantine", int(copies or 0), "rows quarantined", all_out),
    ]


def _summed(run: Run) -> list[tuple[str, int, str, int]]:
    config = run.config
    impression = F.col("event_type").isin(*config.impression_types) & F.lit(not config.organic_impressions)
    counts = seen_events(run).agg(
        F.count("session_id").alias("in_sessions"), F.count_if(~impression).alias("of_streams")
    )
    seen = counts.collect()[0]
    found = []
    if run.warehouse.exists(run.spark, "ebf_session"):
        sums = _total(run.warehouse.read(run.spark, "ebf_session"), "n_events")
        found.append(("sum of n_events over ebf_session", sums, "events in sessions", seen["in_sessions"]))
    if run.warehouse.exists(run.spark, "ebf_surface"):
        days = run.warehouse.read(run.spark, "ebf_surface").where("window_days = 1 AND stream NOT LIKE '%/*'")
        found.append(
            (
                "sum of n over day rows of ebf_surface",
                _total(days, "n"),
                "events of streams",
                seen["of_streams"],
            )
        )
    return found


def _total(frame: DataFrame, column: str) -> int:
    return int(frame.agg(F.sum(column).alias("n")).collect()[0]["n"] or 0)


def leakage(run: Run, calendar: Calendar) -> list[str]:
    """Nothing of the future in any stored version of `training_rows`; one aggregate, GuardError with a row of each leak.

    Every history event is older than the embargo, every impression stands once in a version, every row lies in
    the period of its part and its label matures by the period's end.
    """
    if not run.warehouse.exists(run.spark, "training_rows"):
        return []
    rows = run.warehouse.read(run.spark, "training_rows")
    embargo = F.lit(run.config.history.embargo_s).cast("float")
    # ages are single precision and strictly above the embargo, so one that rounds to it is still older
    young = F.exists("hist_age_s", lambda age: (age < embargo) | (age <= 0))
    rules: dict[str, Column] = {
        f"history event at or after the impression less the embargo of {run.config.history.embargo_s:g} s": young,
        "impression outside the period of its part": ~_by_part(calendar, lambda p: F.expr(p.sql("event_ts"))),
        "label that matures after the end of its part": ~_by_part(
            calendar, lambda p: F.unix_micros("label_mature_ts") <= F.lit(since_1970(p.end))
        ),
    }
    what = F.struct(
        "mask_version", "impression_id", "user_id", "part", "event_ts", "label_mature_ts", "hist_age_s"
    )
    found = rows.agg(
        F.count(F.lit(1)).alias("rows"),
        F.count_distinct("mask_version", "impression_id").alias("distinct"),
        *[F.count_if(bad).alias(f"n{i}") for i, bad in enumerate(rules.values())],
        *[F.min(F.when(bad, F.to_json(what))).alias(f"row{i}") for i, bad in enumerate(rules.values())],
    ).collect()[0]
    for i, text in enumerate(rules):
        if found[f"n{i}"]:
            raise GuardError(
                f"audit found a leak in table 'training_rows': {found[f'n{i}']} rows with a {text}, e.g.\n"
                f"  {found[f'row{i}']}\nrun `dynamix train` anew"
            )
    _equation("rows of training_rows", found["rows"], "impressions times versions", found["distinct"])
    return [f"leakage: {found['rows']} rows of training_rows, no {text}" for text in rules]


def _by_part(calendar: Calendar, rule: Callable[[Period], Column]) -> Column:
    held = F.lit(False)
    for name, period in calendar.parts.items():
        held = F.when(F.col("part") == name, rule(period)).otherwise(held)
    return held


def habit_shrinkage(run: Run, habit: Period) -> float:
    """kappa of the habit window over all users, by means and variances per user; infinite where habits are all 0.

    The same moments as `shrinkage` of features/oracle_tables.py, which needs every single dwell.
    """
    streams = run.warehouse.read(run.spark, "streams").where("has_dwell AND mu IS NOT NULL")
    events = seen_events(run).where(habit.sql("event_ts")).where("dwell_ms IS NOT NULL")
    usable = events.where(F.col("dwell_status").isin("observed", "derived", "capped"))
    if run.config.impression_types and not run.config.organic_impressions:
        usable = usable.where(~F.col("event_type").isin(*run.config.impression_types))
    named = usable.withColumn("stream", declared_stream(run.config))
    r = F.log1p("dwell_ms") - F.col("mu")
    per_user = (
        named.join(F.broadcast(streams.select("stream", "mu")), "stream")
        .groupBy("user_id")
        .agg(F.count(F.lit(1)).alias("n"), F.avg(r).alias("mean"), F.var_pop(r).alias("variance"))
    )
    n, mean = F.col("n"), F.col("mean")
    sums = per_user.agg(
        F.sum(n).alias("count"), F.count(F.lit(1)).alias("users"), F.sum(n * n).alias("squares"),
        F.sum(n * mean).alias("total"), F.sum(n * mean * mean).alias("means"),
        F.sum(n * F.col("variance")).alias("inside"),
    ).collect()[0]  # fmt: skip
    count, users = sums["count"] or 0, sums["users"]
    if users < 2 or count == users:
        return math.inf
    within = sums["inside"] / (count - users)
    size = (count - sums["squares"] / count) / (users - 1)
    between = ((sums["means"] - sums["total"] ** 2 / count) / (users - 1) - within) / size
    return float(within / between) if between > 0 else math.inf
