"""Drift of what `ingest` writes against the table's first write: a file in the run's folder, warnings in the result."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.contracts import EVENTS, SEGMENTS
from dynamix.features.drift import Profile, compare, profile, profile_rows
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.files import write_whole
from dynamix.jobs.opt_out import without_opted_out

BASELINE = "baseline-events.json"


def report_drift(run: Run, events: DataFrame, result: StepResult, *, definition: str) -> None:
    """Profile the written events; the first write of a definition is the baseline, later days are held against it.

    `W/_dynamix/baseline-events.json` keeps the profile, the definition's hash and `until`, the run date of that
    write: of a later write only days from `until` on are compared, so that a table which grows is not compared
    with itself. Segments enter the baseline at the first write that finds a segmentation. Writes `drift.json` and
    `drift.txt` into the run's folder. Two Spark jobs.
    """
    events = without_opted_out(run, events)
    path = run.warehouse.private / BASELINE
    stored = _stored(path, definition)
    later = events.where(F.col("event_date") >= F.lit(stored["until"]).cast("date")) if stored else events
    columns = [column.name for column in EVENTS.columns if column.nullable]
    now = profile(
        row.asDict() for row in profile_rows(later, current_segments(run), columns=columns).collect()
    )
    if stored is None:
        _store(path, {"definition": definition, "until": str(run.run_date), "run_id": run.run_id}, now)
        result.facts["drift"] = f"these {now.events} events are the baseline"
        return
    first = Profile.from_json(stored["profile"])
    if not now.events:
        result.facts["drift"] = f"no event of a day from {stored['until']} on: nothing to compare"
        return
    if set(first.segments) <= {"0"} and set(now.segments) - {"0"}:
        first = replace(first, segments=now.segments)
        _store(path, {name: stored[name] for name in ("definition", "until", "run_id")}, first)
    found = compare(first, now, run.config.drift)
    drifted = [one.sentence for one in found if one.drifted]
    told = {"baseline": stored, "now": now.to_json(), "findings": [asdict(one) for one in found]}
    (run.folder / "drift.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    lines = [f"{'DRIFT' if one.drifted else 'ok   '} {one.sentence}" for one in found]
    (run.folder / "drift.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result.facts["drift"] = (
        f"{len(drifted)} of {len(found)} comparisons drifted, see drift.txt in the run's folder"
    )
    result.metrics["drifted"] = float(len(drifted))
    result.warnings += [f"drift: {sentence}" for sentence in drifted]


def current_users(run: Run) -> DataFrame:
    """Open rows of `segments` in its newest version: every user's current segment and tier, one row each."""
    segments = run.warehouse.read(run.spark, SEGMENTS.name)
    newest = F.broadcast(segments.agg(F.max("segment_version").alias("segment_version")))
    return segments.where("valid_to IS NULL").join(newest, "segment_version")


def current_segments(run: Run) -> DataFrame | None:
    """Current segment of every user (`user_id, segment_id`), None before a first segmentation."""
    if not run.warehouse.exists(run.spark, SEGMENTS.name):
        return None
    return current_users(run).select("user_id", "segment_id")


def _stored(path: Path, definition: str) -> dict[str, Any] | None:
    """The kept baseline, None where there is none or another definition's."""
    if not path.exists():
        return None
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return told if told["definition"] == definition else None


def _store(path: Path, head: dict[str, Any], first: Profile) -> None:
    """All or nothing: a run that is killed meanwhile leaves the old file."""
    write_whole(path, json.dumps(head | {"profile": first.to_json()}, indent=1))
