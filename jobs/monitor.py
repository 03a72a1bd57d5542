"""`dynamix monitor`: is a refit due? Reads the tables, lets `jobs/monitor_rules.py` decide, keeps the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.contracts import COLD_SEGMENT, EVENTS, MASKS, SCORES, SEGMENTS
from dynamix.features.calendar import instant_sql, midnight
from dynamix.features.conversions import label_impressions
from dynamix.features.drift import Finding, Profile, compare, profile, profile_rows
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.drift import current_segments
from dynamix.jobs.features import seen_events
from dynamix.jobs.files import read_object
from dynamix.jobs.monitor_rules import PARTS, Decision, MaskInUse, Moved, Observed, Scored, judge
from dynamix.models.metrics import NeState

FILE = "monitor.json"
_CLIP = 1e-12


def monitor(run: Run) -> StepResult:
    """Whether a refit is due, in `facts["refit_due"]`, with every check; the tables stay as they are.

    Mask age; PSI of dwell per stream and segment between the days of the mask and the newest ones after it;
    calibration and NE per label and segment of the newest scored day with known labels; share of each segment's users
    who changed it. What is not there (no mask, no scores, no label) is named and not judged. Writes `monitor.json` and
    `monitor.txt` into the run's folder. GuardError where there are no events.
    """
    observed = observe(run)
    decision = judge(observed, run.config.monitor)
    result = StepResult(warnings=[f"look: {sentence}" for sentence in decision.look])
    told = _told(run, observed, decision)
    lines = decision.lines()
    (run.folder / FILE).write_text(json.dumps(told, indent=1), encoding="utf-8")
    (run.folder / "monitor.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result.facts = {
        "refit_due": bool(decision.due),
        "answer": decision.answer(),
        "checks": told["checks"],
        "not_judged": list(decision.notes),
        "text": "\n".join(lines),
    }
    result.metrics = {"checks": float(len(decision.checks)), "checks_due": float(len(decision.due))}
    for check in decision.checks:  # the worst of each kind stands first
        result.metrics.setdefault(f"worst_{check.kind}", check.value)
    return result


def _told(run: Run, observed: Observed, decision: Decision) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "run_date": str(run.run_date),
        "mask_version": observed.mask.version if observed.mask else None,
        "refit_due": bool(decision.due),
        "answer": decision.answer(),
        "checks": [asdict(check) for check in decision.checks],
        "not_judged": list(decision.notes),
        "look": list(decision.look),
        "scored": [
            {
                "label": one.label,
                "segment_id": one.segment_id,
                "trained_ne": one.trained_ne,
                **asdict(one.state),
            }
            for one in observed.scored
        ],
        "moved": [asdict(one) for one in observed.moved],
    }


def past_answers(private: Path) -> list[dict[str, Any]]:
    """What earlier calls of `monitor` found in this warehouse, oldest run date first; damaged files are passed over."""
    read = (read_object(path) for path in private.glob(f"runs/*/{FILE}"))
    found = [told for told in read if told is not None]
    return sorted(found, key=lambda told: (told["run_date"], told["run_id"]))


def observe(run: Run) -> Observed:
    """What the tables say as of the run date. About ten Spark jobs, no more rows to the driver than cells."""
    notes: list[str] = []
    mask = mask_in_use(run)
    if mask is None:
        notes.append("mask age and PSI: no mask is published or proposed, run `dynamix mask`")
    return Observed(
        run.run_date,
        mask,
        drift=_drift(run, mask, notes) if mask else (),
        scored=_scored(run, notes),
        moved=_moved(run, notes),
        notes=tuple(notes),
    )


def mask_in_use(run: Run) -> MaskInUse | None:
    """The newest published mask version of the run date, else the newest proposed one; None without any."""
    if not run.warehouse.exists(run.spark, MASKS.name):
        return None
    masks = run.warehouse.read(run.spark, MASKS.name).where(F.col("run_date") <= F.lit(run.run_date))
    masks = masks.where(F.col("status").isin("published", "proposed"))
    rank = F.struct(F.col("status") == "published", "run_date", "seq", "mask_version")
    found = masks.agg(F.max_by(F.struct("mask_version", "status", "run_date"), rank).alias("m")).collect()
    newest = found[0]["m"]
    if newest is None:
        return None
    return MaskInUse(str(newest["mask_version"]), str(newest["status"]), newest["run_date"])


def _drift(run: Run, mask: MaskInUse, notes: list[str]) -> tuple[Finding, ...]:
    """Days that the mask was made from against the newest days after it (docs/method.md C.6)."""
    config = run.config
    start = max(mask.run_date, run.run_date - timedelta(days=config.monitor.days))
    now = _profile(run, start, run.run_date)
    if not now.events:
        notes.append(f"PSI: no event from {start} on, the mask of {mask.run_date} has seen all there is")
        return ()
    before = _profile(run, mask.run_date - timedelta(days=config.calendar.days), mask.run_date)
    if min(before.events, now.events) < config.drift.min_rows:
        notes.append(
            f"PSI: {before.events} events in the days of the mask and {now.events} from {start} on, fewer than "
            f"{config.drift.min_rows} on a side are not compared"
        )
    return tuple(compare(before, now, config.drift))


def _profile(run: Run, start: date, end: date) -> Profile:
    day = F.col("event_date")
    events = seen_events(run).where((day >= F.lit(start)) & (day < F.lit(end)))
    columns = [column.name for column in EVENTS.columns if column.nullable]
    rows = profile_rows(events, current_segments(run), columns=columns)
    return profile(row.asDict() for row in rows.collect())


# --- scores ----------------------------------------------------------------------------------------


def _scored(run: Run, notes: list[str]) -> tuple[Scored, ...]:
    """Sums of the newest days of scores with a known label, per label and segment; the model that scored last."""
    if not run.warehouse.exists(run.spark, SCORES.name):
        notes.append("calibration and NE: no table scores yet, run `dynamix score`")
        return ()
    scores = run.warehouse.read(run.spark, SCORES.name)
    version = scores.agg(F.max_by("model_version", "scored_at").alias("v")).collect()[0]["v"]
    known = with_labels(run, scores.where(F.col("model_version") == F.lit(version)))
    newest = known.agg(F.max("event_date").alias("d")).collect()[0]["d"]
    if newest is None:
        notes.append(f"calibration and NE: no label of a score is known at {run.run_date}")
        return ()
    first = newest - timedelta(days=run.config.monitor.score_days - 1)
    notes.append(f"scores of model version {version}, impressions of {first} to {newest}, labels as known")
    if (run.run_date - newest).days > run.config.monitor.days:
        notes.append(f"the newest scored day with labels is {(run.run_date - newest).days} days old")
    sums = segment_sums(known.where(F.col("event_date") >= F.lit(first))).collect()
    trained = trained_ne(run.warehouse.private, str(version))
    return tuple(
        Scored(
            str(row["label"]),
            int(row["segment_id"]),
            NeState(**{part: float(row[part]) for part in PARTS}),
            np.array([[float(row[f"{min(a, b)}{max(a, b)}"]) for b in range(4)] for a in range(4)]),
            trained.get((str(row["label"]), int(row["segment_id"]))),
        )
        for row in sums
    )


def with_labels(run: Run, scores: DataFrame) -> DataFrame:
    """Scores with `y` (0 or 1) and `event_date` where the label is known and mature at the run date; others go.

    Labels are those of the events, so every scored impression of the warehouse has one in time, of whatever part it is.
    Grain in and out: one row per impression, label and model version.
    """
    rows = label_impressions(seen_events(run), config=run.config)
    rows = rows.where(F.col("label_mature_ts") <= F.expr(instant_sql(midnight(run.run_date))))
    rows = rows.select(
        F.col("event_id").alias("impression_id"), "event_date", "label_click", "label_conversion"
    )
    y = F.when(F.col("label") == "click", F.col("label_click")).otherwise(F.col("label_conversion"))
    known = scores.join(rows, "impression_id").withColumn("y", y)
    return known.where(F.col("y").isNotNull()).drop("label_click", "label_conversion")


def segment_sums(known: DataFrame) -> DataFrame:
    """PARTS per label and segment, and the sums of products of the users' sums in columns `00`, `01` … `33`.

    `known` has one row per impression and label with `user_id, segment_id, score, y`; one shuffle by user.
    """
    q = F.least(F.greatest(F.col("score"), F.lit(_CLIP)), F.lit(1 - _CLIP))
    parts: dict[str, Column] = {
        "loss": -(F.col("y") * F.log(q) + (1 - F.col("y")) * F.log(1 - q)),
        "n": F.lit(1.0),
        "positives": F.col("y"),
        "predicted": F.col("score"),
    }
    users = known.groupBy("label", "segment_id", "user_id").agg(
        *[F.sum(parts[part]).alias(part) for part in PARTS]
    )
    products = [
        F.sum(F.col(PARTS[a]) * F.col(PARTS[b])).alias(f"{a}{b}") for a in range(4) for b in range(a, 4)
    ]
    totals = [F.sum(part).alias(part) for part in PARTS]
    return users.groupBy("label", "segment_id").agg(*totals, *products).orderBy("label", "segment_id")


def trained_ne(private: Path, model_version: str) -> dict[tuple[str, int], float]:
    """Validation NE per label and segment of the arm that became this model version, from its run's evidence.

    Empty where no evidence names the version; damaged files are passed over.
    """
    for path in sorted(private.glob("runs/*/evidence.json"), reverse=True):
        told = read_object(path)
        if told is None:
            continue
        if str(_inner(told, "model").get("version")) != model_version:
            continue
        arm: Mapping[str, Any] = next(
            (a for a in told.get("arms", []) if a.get("arm") == told.get("winner")), {}
        )
        return {
            (label, int(segment)): float(value)
            for label, found in _inner(arm, "heads").items()
            for segment, value in _inner(found, "per_segment").items()
            if isinstance(value, int | float) and np.isfinite(value) and value > 0
        }
    return {}


def _inner(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = tree.get(key)
    return found if isinstance(found, Mapping) else {}


# --- segments --------------------------------------------------------------------------------------


def _moved(run: Run, notes: list[str]) -> tuple[Moved, ...]:
    if not run.warehouse.exists(run.spark, SEGMENTS.name):
        notes.append("churn: no segments yet, run `dynamix segment`")
        return ()
    pairs = moves(run).collect()
    if not pairs:
        notes.append("churn: no user is in a warm segment at both ends")
    users: dict[int, int] = {}
    moved: dict[int, int] = {}
    for row in pairs:
        before, n = int(row["before"]), int(row["users"])
        users[before] = users.get(before, 0) + n
        if int(row["now"]) != before:
            moved[before] = moved.get(before, 0) + n
    return tuple(Moved(segment, users[segment], moved.get(segment, 0)) for segment in sorted(users))


def moves(run: Run) -> DataFrame:
    """Users by segment `monitor.days` before the run date (`before`) and at the run date (`now`), both warm.

    Of the newest segment version up to the run date, so a change is one of the user's events and not of the names.
    """
    segments = run.warehouse.read(run.spark, SEGMENTS.name)
    segments = segments.where(F.col("segment_version") < F.lit(f"s{run.run_date:%Y%m%d}."))
    newest = segments.agg(F.max("segment_version").alias("segment_version"))
    rows = segments.join(F.broadcast(newest), "segment_version")

    def at(day: date) -> Column:
        t = F.expr(instant_sql(midnight(day)))
        held = (F.col("valid_from") <= t) & (F.col("valid_to").isNull() | (F.col("valid_to") > t))
        return F.max(F.when(held, F.col("segment_id")))

    before = at(run.run_date - timedelta(days=run.config.monitor.days)).alias("before")
    users = rows.groupBy("user_id").agg(before, at(run.run_date).alias("now"))
    warm = (F.col("before") != COLD_SEGMENT) & (F.col("now") != COLD_SEGMENT)
    pairs = users.where(warm).groupBy("before", "now").agg(F.count(F.lit(1)).alias("users"))
    return pairs.orderBy("before", "now")
