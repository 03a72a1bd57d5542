"""Tables for people who look at a warehouse: each function takes a `Run` and gives a small Spark frame.

`dynamix.jobs.notebook.open_page` opens the run. Frames are lazy and ordered; days and windows end at the run date.
"""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from dynamix.contracts import EBF_SESSION, EBF_SURFACE, EVENTS_QUARANTINE
from dynamix.features.events import stream_name
from dynamix.jobs.context import Run
from dynamix.jobs.drift import current_users
from dynamix.jobs.evidence_data import fits, number, parse_evidence
from dynamix.jobs.features import seen_events
from dynamix.jobs.files import read_object
from dynamix.jobs.monitor import past_answers
from dynamix.jobs.monitor_rules import PARTS
from dynamix.jobs.receipt import cell_weights
from dynamix.jobs.report_data import ReportData
from dynamix.models.metrics import NeState
from dynamix.models.registry import ALIASES, RANKER, SEGMENTER, find

WINDOW_DAYS = 28
_LONGEST = 20


def event_counts(run: Run) -> DataFrame:
    """One row per surface and event type: events, users, first and last day, share with a usable dwell (0 to 1)."""
    known = F.avg(F.col("dwell_ms").isNotNull().cast("double"))
    return (
        seen_events(run)
        .groupBy(stream_name().alias("stream"))
        .agg(
            F.count(F.lit(1)).alias("events"),
            F.approx_count_distinct("user_id").alias("users_about"),
            F.min("event_date").alias("first_day"),
            F.max("event_date").alias("last_day"),
            F.round(known, 3).alias("with_dwell"),
        )
        .orderBy(F.desc("events"), "stream")
    )


def daily_events(run: Run) -> DataFrame:
    """Events per day and event type."""
    grouped = seen_events(run).groupBy(F.col("event_date").alias("day"), "event_type")
    return grouped.agg(F.count(F.lit(1)).alias("events")).orderBy("day", "event_type")


def dwell_statuses(run: Run) -> DataFrame:
    """Events per stream and dwell status, with their share of the stream (0 to 1)."""
    counted = seen_events(run).groupBy(stream_name().alias("stream"), "dwell_status")
    rows = counted.agg(F.count(F.lit(1)).alias("events"))
    whole = F.sum("events").over(Window.partitionBy("stream"))
    return rows.withColumn("share", F.round(F.col("events") / whole, 4)).orderBy("stream", F.desc("events"))


def quarantined(run: Run) -> DataFrame:
    """Refused raw rows by reason, with one example of each; no row where nothing was refused."""
    if not run.warehouse.exists(run.spark, EVENTS_QUARANTINE.name):
        return run.spark.createDataFrame([], "reason string, rows long, example string")
    table = run.warehouse.read(run.spark, EVENTS_QUARANTINE.name)
    grouped = table.groupBy("reason").agg(F.sum("copies").alias("rows"), F.min("raw").alias("example"))
    return grouped.orderBy(F.desc("rows"), "reason")


def session_sizes(run: Run) -> DataFrame:
    """Sessions by their number of events; the last row holds those of 20 and more."""
    size = F.least(F.col("n_events"), F.lit(_LONGEST)).alias("events")
    sessions = _sessions(run).groupBy(size)
    return sessions.agg(
        F.count(F.lit(1)).alias("sessions"),
        F.round(F.avg("duration_ms") / 60_000, 1).alias("minutes_mean"),
        F.round(F.avg((F.col("conversions") > 0).cast("double")), 4).alias("converting"),
    ).orderBy("events")


def daily_sessions(run: Run) -> DataFrame:
    """Sessions, their users and mean number of events per day of their start."""
    return (
        _sessions(run)
        .groupBy(F.col("session_date").alias("day"))
        .agg(
            F.count(F.lit(1)).alias("sessions"),
            F.countDistinct("user_id").alias("users"),
            F.round(F.avg("n_events"), 2).alias("events_mean"),
        )
        .orderBy("day")
    )


def surface_totals(run: Run) -> DataFrame:
    """The 28 days before the newest window's end, per surface: users, events, hours of dwell, conversions, censored."""
    surfaces = _windows(run).where("stream LIKE '%/*'")
    return (
        surfaces.groupBy(F.expr("substring(stream, 1, length(stream) - 2)").alias("surface"))
        .agg(
            F.countDistinct("user_id").alias("users"),
            F.sum("n").alias("events"),
            F.round(F.sum("dwell_sum") / 3_600_000, 1).alias("dwell_hours"),
            F.sum("conversions").alias("conversions"),
            F.round(F.sum("n_censored") / F.sum("n"), 3).alias("censored"),
        )
        .orderBy(F.desc("events"), "surface")
    )


def dwell_histogram(run: Run) -> DataFrame:
    """Usable dwells of the 28-day windows by bins of 1 in ln(1 + ms), per stream; `seconds_from` is the bin's start."""
    bins = _windows(run).where("stream NOT LIKE '%/*'").select("stream", F.explode("dwell_hist"))
    coarse = F.floor(F.col("key") / 4).cast("int").alias("bin")  # stored bins are a quarter wide
    grouped = bins.groupBy("stream", coarse).agg(F.sum("value").alias("dwells"))
    start = F.round((F.exp(F.col("bin")) - 1) / 1000, 2).alias("seconds_from")
    return grouped.select("stream", "bin", start, "dwells").orderBy("stream", "bin")


def segment_sizes(run: Run) -> DataFrame:
    """Users per current segment and tier of the newest segment version."""
    grouped = current_users(run).groupBy("segment_version", "segment_id", "segment_name", "tier")
    return grouped.agg(F.count(F.lit(1)).alias("users")).orderBy("segment_id", "tier")


def segment_streams(run: Run) -> DataFrame:
    """Share of each segment's events per stream over 28 days, and its ratio (lift) to the share among all users."""
    segments = current_users(run).select("user_id", "segment_id", "segment_name")
    rows = _windows(run).where("stream NOT LIKE '%/*'").join(segments, "user_id")
    counted = rows.groupBy("segment_id", "segment_name", "stream").agg(F.sum("n").alias("events"))
    share = F.col("events") / F.sum("events").over(Window.partitionBy("segment_id"))
    everybody = F.sum("events").over(Window.partitionBy("stream")) / F.sum("events").over(
        Window.partitionBy()
    )
    found = counted.select("*", share.alias("share"), (share / everybody).alias("lift"))
    rounded = found.withColumns({"share": F.round("share", 4), "lift": F.round("lift", 2)})
    return rounded.orderBy("segment_id", F.desc("lift"), "stream")


def mask_costs(run: Run, data: ReportData) -> DataFrame:
    """Per segment of the shown mask version: cells by verdict, mean events per impression, and the share that goes.

    A boosted cell counts as kept. Only whole cells count as gone; what quotas cut is in the ranker's tokens.
    """
    weights = cell_weights(data)
    rows = []
    for segment in sorted({c.segment_id for c in data.cells}):
        mine = [c for c in data.cells if c.segment_id == segment]
        tokens = sum(c.tokens for c in mine)
        gone = sum(c.tokens for c in mine if not c.keep)
        share = sum({(c.segment_id, c.tier): weights[c.segment_id, c.tier] for c in mine}.values())
        found = ["keep" if c.verdict == "boost" else c.verdict for c in mine]
        verdicts = [found.count(verdict) for verdict in ("keep", "drop", "undecided")]
        rows.append(
            (segment, mine[0].segment_name, share, *verdicts, tokens, gone / tokens if tokens else None)
        )
    return run.spark.createDataFrame(
        rows,
        "segment_id int, segment_name string, weight double, keep int, drop int, undecided int, tokens double, "
        "removed double",
    )


def trainings(run: Run) -> DataFrame:
    """One row per training and arm from the evidence files, newest first: NE with interval, calibration, AUC, tokens.

    Damaged files are passed over.
    """
    rows = []
    for path in sorted((run.warehouse.private / "runs").glob("*/evidence.json"), reverse=True):
        told = read_object(path)
        if told is None:
            continue
        found = parse_evidence(told)
        for arm in found.arms:
            name = f"{arm.name} (registered as {found.model})" if arm.name == told.get("winner") else arm.name
            rows.append((path.parent.name, name, arm.ne, arm.ne_low, arm.ne_high, arm.calibration, arm.auc,
                         arm.tokens, found.decision))  # fmt: skip
    return run.spark.createDataFrame(
        rows,
        "run_id string, arm string, ne double, ne_low double, ne_high double, calibration double, auc double, "
        "tokens double, decision string",
    )


def aliases(run: Run) -> DataFrame:
    """Registered models by alias, with the mask and segment version they are pinned to."""
    registry = run.registry()
    rows = []
    for model in (RANKER, SEGMENTER):
        for alias in ALIASES:
            found = find(registry, model, alias)
            if found is not None:
                pins = (found.tags.get(tag) for tag in ("mask_version", "segment_version", "run_date"))
                rows.append((model, alias, found.version, *pins))
    return run.spark.createDataFrame(
        rows,
        "model string, alias string, version string, mask_version string, segment_version string, run_date string",
    )


def judged(data: ReportData) -> bool:
    """True iff a training has compared the shown mask version with keep-all."""
    return data.evidence is not None and fits(data.evidence, data.mask_version)


def past_checks(run: Run) -> DataFrame:
    """Every kept answer of `monitor`: its worst check of each kind as a share of the limit; above 1 a refit was due."""
    worst: dict[tuple[str, str, str], float] = {}
    for told in past_answers(run.warehouse.private):
        for check in told["checks"]:
            key = (told["run_date"], told["run_id"], check["kind"])
            worst[key] = max(worst.get(key, 0.0), check["value"] / check["limit"])
    rows = [(*key, share) for key, share in worst.items()]
    return run.spark.createDataFrame(rows, "run_date string, run_id string, kind string, of_limit double")


def scored_segments(run: Run) -> DataFrame:
    """Calibration and NE per label and segment of the scores that the newest answer of `monitor` looked at.

    NULL where only one class is there.
    """
    answers = past_answers(run.warehouse.private)
    rows = []
    for one in answers[-1]["scored"] if answers else []:
        state = NeState(**{part: one[part] for part in PARTS})
        where = f"{one['label']} {one['segment_id']}"
        rows.append(
            (
                where,
                int(state.n),
                int(state.positives),
                number(state.calibration),
                number(state.ne),
                one["trained_ne"],
            )
        )
    return run.spark.createDataFrame(
        rows,
        "label_and_segment string, rows long, positives long, calibration double, ne double, ne_at_training double",
    )


def _sessions(run: Run) -> DataFrame:
    sessions = run.warehouse.read(run.spark, EBF_SESSION.name)
    return sessions.where(F.col("session_date") < F.lit(run.run_date))


def _windows(run: Run) -> DataFrame:
    """The 28-day rows of `ebf_surface` with the newest end."""
    windows = run.warehouse.read(run.spark, EBF_SURFACE.name).where(F.col("window_days") == WINDOW_DAYS)
    newest = F.broadcast(windows.agg(F.max("window_end").alias("window_end")))
    return windows.join(newest, "window_end")
