"""`plan`: what a `run` would do now, step by step, and why. Writes nothing (the dry run)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

from pyspark.sql import functions as F

from dynamix.contracts import RUN_LOG
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.run_log import Step, content_id, fingerprint, is_done


def plan(run: Run, *, events: str | None = None) -> StepResult:
    """One line a step: `run` or `skip` with the reason; with `events`, the days that differ."""
    from dynamix.jobs.run import STEPS

    result = StepResult()
    lines, dirty = [], False
    for step in STEPS.values():
        source = events if step.verb == "ingest" else None
        reason = _reason(run, step, source, upstream_runs=dirty)
        dirty = dirty or bool(reason)
        lines.append(
            f"{step.verb:9} {'run ' if reason else 'skip'}  {reason or 'inputs, config and code unchanged'}"
        )
        if not reason:
            result.skipped.append(step.verb)
    if events is not None:
        lines += _days(run, events)
    result.facts["text"] = "\n".join(lines)
    return result


def _reason(run: Run, step: Step, source: str | None, *, upstream_runs: bool) -> str:
    absent = [name for name in step.writes if not run.warehouse.exists(run.spark, name)]
    if absent:
        return f"not written yet: {', '.join(absent)}"
    if upstream_runs:
        return "an earlier step runs"
    if step.verb == "ingest" and source is None:
        return ""
    if is_done(run, step, fingerprint(run, step, source=source)):
        return ""
    changed = _changed_inputs(run, step)
    return f"changed: {', '.join(changed)}" if changed else "source, run date, config or code changed"


def _changed_inputs(run: Run, step: Step) -> list[str]:
    if not run.warehouse.exists(run.spark, RUN_LOG.name):
        return []
    log = run.warehouse.read(run.spark, RUN_LOG.name)
    rows = (
        log.where((F.col("step") == step.verb) & (F.col("status") == "done"))
        .orderBy(F.col("logged_at").desc())
        .select("input_versions")
        .limit(1)
        .collect()
    )
    stored: Mapping[str, str] = dict(rows[0]["input_versions"]) if rows else {}
    now = {name: content_id(run.spark, run.warehouse, name) for name in step.reads}
    return [
        f"{name} {stored.get(name, 'new')} → {value}"
        for name, value in now.items()
        if stored.get(name) != value
    ]


def _days(run: Run, events: str) -> list[str]:
    from dynamix.features.raw import read_raw

    raw = read_raw(run.spark, events, config=run.config)
    days = raw.groupBy(F.to_date("event_ts").alias("day")).agg(F.count("*").alias("n"))
    incoming: dict[date, int] = {row["day"]: row["n"] for row in days.collect() if row["day"] is not None}
    stored: dict[date, int] = {}
    if run.warehouse.exists(run.spark, "events"):
        table = run.warehouse.read(run.spark, "events").groupBy("event_date").agg(F.count("*").alias("n"))
        stored = {row["event_date"]: row["n"] for row in table.collect()}
    differ = sorted(day for day in set(incoming) | set(stored) if incoming.get(day) != stored.get(day))
    lines = [f"days in the source: {len(incoming)}, of which {len(differ)} differ from the events table"]
    lines += [
        f"  {day}: source {incoming.get(day, 0)} rows, table {stored.get(day, 0)}" for day in differ[:10]
    ]
    return lines + ([f"  … and {len(differ) - 10} more"] if len(differ) > 10 else [])
