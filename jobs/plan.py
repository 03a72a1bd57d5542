"""`plan`: what a `run` would do now, step by step, and why. Writes nothing (the dry run)."""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import functions as F

from dynamix.contracts import EVENTS, RUN_LOG
from dynamix.errors import GuardError
from dynamix.features.calendar import midnight
from dynamix.features.instants import day_sql, seen_since, valid_times
from dynamix.jobs.baseline import stored_mark
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.features import FEATURE_TABLES, dirty_days, feature_inputs
from dynamix.jobs.increment import choose_reading
from dynamix.jobs.raw_rows import open_raw
from dynamix.jobs.run_log import Step, content_id, fingerprint, is_done


def plan(run: Run, *, events: str | None = None) -> StepResult:
    """One line a step: `run` or `skip` with the reason; then the days to rebuild, with `events` those of the source."""
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
        lines += _raw_days(run, events)
    lines += _feature_days(run)
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


def _raw_days(run: Run, events: str) -> list[str]:
    """What ingest would read, and the new rows by day of event: those of earlier days came late."""
    raw = open_raw(run, events).rows
    mark = stored_mark(run.warehouse)
    try:
        reading = choose_reading(run, raw, mark, rebuild=False)
    except GuardError as refused:
        return [f"ingest would refuse: {refused.message}"]
    if reading.nothing:
        return [f"source: {reading.reason}"]
    if reading.since is None:
        return [f"source: all of it, because {reading.reason}"]
    new = seen_since(raw, unit=run.config.time_unit, since=midnight(reading.since))
    times = valid_times(new, unit=run.config.time_unit)
    day = f"{day_sql(times['event_ts'])} AS day"
    counted = {row["day"]: row["count"] for row in new.selectExpr(day).groupBy("day").count().collect()}
    lines = [f"source: {reading.reason}; days of events that they touch (and their sessions' neighbours):"]
    for when in sorted(d for d in counted if d is not None and d < run.run_date):
        late = " late" if when < reading.since else ""
        lines.append(f"  {when}: {counted[when]}{late} rows")
    if counted.get(None):
        lines.append(f"  {counted[None]} rows without a readable time")
    return lines


def _feature_days(run: Run) -> list[str]:
    """Per feature table the days that `features` would rebuild now, and why."""
    if not run.warehouse.exists(run.spark, EVENTS.name):
        return []
    inputs = feature_inputs(run)
    lines = ["features, by the change data of table 'events':"]
    for table in FEATURE_TABLES:
        days = dirty_days(run, table, inputs)
        if days is None:
            lines.append(f"  {table.name}: all days (not built yet, or another baseline, config or code)")
        else:
            lines.append(f"  {table.name}: {', '.join(map(str, days)) or 'nothing changed'}")
    return lines
