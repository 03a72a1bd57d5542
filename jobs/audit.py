"""`dynamix audit`: do the tables follow the rules? Balance and leakage of all rows, equality with the oracle on a sample.

The oracle (features/oracle.py) is plain Python and shares nothing with the code that wrote the tables. The first
difference ends the audit with exit 4 and both sides shown (docs/faults.md D2).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.contracts import RUN_LOG
from dynamix.errors import GuardError
from dynamix.features import oracle
from dynamix.features.calendar import Calendar, Period, days_since_1970, since_1970
from dynamix.features.comparison import Row, Shape, differences
from dynamix.features.conversions import longest_window_s
from dynamix.features.oracle import Event, Kinds
from dynamix.features.oracle_tables import ebf_session, residuals, surface_table, user_stats
from dynamix.jobs.audit_checks import balance, caps, habit_shrinkage, leakage
from dynamix.jobs.audit_rows import as_logged, compared, plain_rows
from dynamix.jobs.baseline import stored_mark
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.features import cycle_calendar, seen_events
from dynamix.jobs.opt_out import without_opted_out

USERS = 200
MAX_EVENTS = 20_000
"""Events of one user that plain Python takes on; the sample leaves longer users out and says so."""
KEEP_ALL = "keep-all"
_EPOCH = datetime(1970, 1, 1)
_NOT_COMPARED = (
    "ebf_session.session_kind, labels and segments of training_rows, masked versions (leakage only)"
)


@dataclass(frozen=True)
class Sample:
    """The drawn users with their events as stored, and what the rules make of them."""

    users: tuple[str, ...]
    stored: list[Event]
    settled: list[Event]
    """All events of the users, settled anew."""
    seen: list[Event]
    """Those of them before the run date, of which the feature tables are made."""


def audit(run: Run, *, users: int = USERS, seed: int = 0) -> StepResult:
    """Compare the stored tables with the rules. Writes nothing.

    Balance: rows read = kept + deduplicated + quarantined, and the tables hold as many. Caps: no dwell lies above the
    one frozen for its stream. Leakage: no event of a
    history at or after its impression less the embargo, none that was not known then, no label that matures
    after its part. Equality: every event and feature row of `users` users (by a hash with `seed`), every column
    that has a rule in plain Python. Tables are taken as of the newest finished `features` run. GuardError (exit 4)
    at the first difference, with the rows of both sides.
    """
    run = replace(run, run_date=_as_of(run))
    calendar = cycle_calendar(run, seen_events(run))
    lines = [
        f"audit as of run date {run.run_date}, seed {seed}",
        *balance(run),
        *caps(run),
        *leakage(run, calendar),
    ]
    sample = _draw(run, users, seed, lines)
    result = StepResult(counters={"users": len(sample.users), "events": len(sample.stored)})
    sessions = len({event["session_id"] for event in sample.settled} - {None})
    lines.append(
        f"sample: {len(sample.users)} users, {sessions} sessions, {len(sample.stored)} events, settled by the oracle"
    )
    result.counters["sessions"] = sessions
    expected: dict[str, list[Any]] = {
        "events": sample.settled,
        "ebf_session": ebf_session(sample.seen, run.config),
        "ebf_surface": surface_table(sample.seen, run.config, run_day=days_since_1970(run.run_date)),
        "user_stats": _user_stats(run, sample, calendar),
    }
    for table, rows in expected.items():
        _compare(run, table, _of(run, table, sample.users), rows, result, lines)
    _histories(run, sample, calendar, result, lines)
    lines.append(f"not compared: {_NOT_COMPARED}")
    result.facts["text"] = "\n".join(lines)
    return result


def _as_of(run: Run) -> date:
    """Run date of the newest finished `features` step: its windows end there. That of this run where none is logged."""
    if not run.warehouse.exists(run.spark, RUN_LOG.name):
        return run.run_date
    log = run.warehouse.read(run.spark, RUN_LOG.name).where("step = 'features' AND status = 'done'")
    newest = log.orderBy(F.col("logged_at").desc()).select("run_date").limit(1).collect()
    return newest[0]["run_date"] if newest else run.run_date


def _draw(run: Run, users: int, seed: int, lines: list[str]) -> Sample:
    """The users with the smallest hashes among those of any table, so that rows of unknown users come up too."""
    counted = _all_users(run).groupBy("user_id").agg(F.sum("n").alias("n"))
    rank = F.xxhash64(F.lit(seed), "user_id")
    picked = counted.orderBy(rank, "user_id").limit(users).collect()
    long = sorted(row["user_id"] for row in picked if row["n"] > MAX_EVENTS)
    if long:
        lines.append(f"left out, more than {MAX_EVENTS} events each: {', '.join(long)}")
    names = tuple(sorted(row["user_id"] for row in picked if row["n"] <= MAX_EVENTS))
    stored = plain_rows(_of(run, "events", names))
    mark = stored_mark(run.warehouse)
    frozen, constants = (mark.baseline.caps_ms, mark.baseline.imputed_ms) if mark else ({}, {})
    settled = oracle.settle(as_logged(stored), run.config, caps=frozen, constants=constants)
    settled = [event | {"event_date": event["event_ts"] // oracle.DAY_US} for event in settled]
    end_us = days_since_1970(run.run_date) * oracle.DAY_US
    seen = [event for event in settled if max(event["event_ts"], event["ingest_ts"]) < end_us]
    return Sample(names, stored, settled, seen)


def _all_users(run: Run) -> DataFrame:
    events = run.warehouse.read(run.spark, "events")
    found = events.groupBy("user_id").agg(F.count(F.lit(1)).alias("n"))
    for name in ("ebf_session", "ebf_surface", "user_stats"):
        if run.warehouse.exists(run.spark, name):
            own = run.warehouse.read(run.spark, name).select("user_id").distinct()
            found = found.unionByName(own.withColumn("n", F.lit(0)))
    return without_opted_out(run, found)


def _of(run: Run, table: str, users: Iterable[str]) -> DataFrame:
    frame = run.warehouse.read(run.spark, table)
    return frame.where(F.col("user_id").isin(*users))


def _user_stats(run: Run, sample: Sample, calendar: Calendar) -> list[Row]:
    habit = calendar.habit
    mu, kappa = {}, math.inf
    if habit is not None:
        rows = run.warehouse.read(run.spark, "streams").where("has_dwell AND mu IS NOT NULL").collect()
        mu = {row["stream"]: row["mu"] for row in rows}
        kappa = habit_shrinkage(run, habit)
    start, end = (since_1970(habit.start), since_1970(habit.end)) if habit is not None else (0, 0)
    found = residuals(sample.seen, run.config, mu=mu, start=start, end=end)
    stats = user_stats(sample.seen, found, kappa=kappa)
    return [row | {"baseline_version": calendar.baseline_version} for row in stats]


def _compare(
    run: Run, table: str, frame: DataFrame, expected: Iterable[Row], result: StepResult, lines: list[str]
) -> None:
    shape = compared(table, frame)
    rows = plain_rows(frame.select(*shape.key, *shape.columns))
    _refuse_first(rows, expected, shape)
    result.counters[f"rows_{table}"] = len(rows)
    lines.append(
        f"{table}: {len(rows)} rows equal in {len(shape.columns)} columns: {', '.join(shape.columns)}"
    )


def _refuse_first(stored: Iterable[Row], expected: Iterable[Row], shape: Shape) -> None:
    first = next(iter(differences(stored, expected, shape)), None)
    if first is not None:
        raise GuardError(
            f"audit found a difference in {first}\nrun the step that writes {shape.table!r} anew"
        )


# ---------------------------------------------------------------- histories


def _histories(run: Run, sample: Sample, calendar: Calendar, result: StepResult, lines: list[str]) -> None:
    """Keep-all rows of the sample: which there are, their part, and each history event by event."""
    if not run.warehouse.exists(run.spark, "training_rows"):
        lines.append("training_rows: not written yet, not compared")
        return
    frame = _of(run, "training_rows", sample.users).where(F.col("mask_version") == KEEP_ALL)
    scales = {row["stream"]: row.asDict() for row in run.warehouse.read(run.spark, "streams").collect()}
    unnamed = sorted(
        {oracle.declared(e, run.config) for e in sample.seen if oracle.takes_part(e, run.config)}
        - set(scales)
    )
    if unnamed:
        raise GuardError(
            f"audit: streams {', '.join(unnamed)} of 'events' are not in 'streams'; run `dynamix features`"
        )
    stats = _of(run, "user_stats", sample.users).select("user_id", "habit").collect()
    habits = {row["user_id"]: row["habit"] for row in stats}
    own: dict[str, list[Event]] = {user: [] for user in sample.users}
    for event in sample.seen:
        own[event["user_id"]].append(event)
    kinds = _kinds(run, sample.users)
    expected = []
    for row in _impressions(run, sample.seen, calendar):
        kept = oracle.history(own[row["user_id"]], row, run.config, kinds=kinds)
        habit = habits.get(row["user_id"], 0.0)
        expected.append(row | oracle.history_columns(kept, row, run.config, scales=scales, habit=habit))
    shape = compared("training_rows", frame)
    rows = plain_rows(frame.select(*shape.key, *shape.columns))
    _refuse_unknown_then(rows, own, run, scales, kinds)
    if run.config.prediction_rows.strip():  # an SQL filter: what it leaves out, plain Python cannot tell
        predicted = {row["impression_id"] for row in rows}
        expected = [row for row in expected if row["impression_id"] in predicted]
    _refuse_first(rows, expected, shape)
    events = sum(len(row["hist_stream"]) for row in rows)
    result.counters |= {"rows_training_rows": len(rows), "history_events": events}
    lines.append(f"training_rows: {len(rows)} keep-all rows with {events} history events equal")


def _kinds(run: Run, users: Iterable[str]) -> Kinds | None:
    """Kinds of the users' sessions where histories carry them, as stored: a fitted model's word."""
    if not run.config.with_kinds:
        return None
    rows = _of(run, "ebf_session", users).select("user_id", "session_id", "session_kind").collect()
    return {(row["user_id"], row["session_id"]): row["session_kind"] for row in rows}


def _impressions(run: Run, events: Iterable[Event], calendar: Calendar) -> list[dict[str, Any]]:
    """Impressions that belong to a part and are mature by its end, as rows without a history."""
    window_us = round(longest_window_s(run.config) * 1e6)
    rows = []
    for event in events:
        if event["event_type"] not in run.config.impression_types:
            continue
        mature = event["event_ts"] + window_us
        part = _part(event["event_ts"], mature, calendar.parts)
        if part:
            rows.append(event | {"impression_id": event["event_id"], "part": part, "label_mature_ts": mature})
    return rows


def _part(at: int, mature: int, parts: Mapping[str, Period]) -> str:
    inside = [name for name, p in parts.items() if since_1970(p.start) <= at < since_1970(p.end) >= mature]
    return inside[0] if inside else ""


def _refuse_unknown_then(
    rows: Iterable[Row],
    own: Mapping[str, list[Event]],
    run: Run,
    scales: Mapping[str, Row],
    kinds: Kinds | None,
) -> None:
    """Every stored history event is one that the impression could know: earlier, ingested by then, another request."""
    for row in rows:
        known = list(oracle.visible(own[row["user_id"]], dict(row), run.config, kinds=kinds))
        could = oracle.history_columns(known, dict(row), run.config, scales=scales, habit=0.0)
        visible = {
            (stream_id, None if age_s is None else _single(age_s))
            for stream_id, age_s in zip(could["hist_stream"], could["hist_age_s"], strict=True)
        }
        for stream_id, age_s in zip(row["hist_stream"], row["hist_age_s"], strict=True):
            if (stream_id, age_s) not in visible:
                raise GuardError(
                    f"audit found a leak in table 'training_rows', impression {row['impression_id']!r} of user "
                    f"{row['user_id']!r} at {_EPOCH + timedelta(microseconds=row['event_ts'])}: its history has an "
                    f"event of stream {stream_id}, {age_s} s old, that it could not know; no such event lies before "
                    "it less the embargo, was ingested by then and is of another request; run `dynamix train` anew"
                )


def _single(value: float) -> float:
    """The value in single precision, as the table holds it."""
    return float(struct.unpack("f", struct.pack("f", value))[0])
