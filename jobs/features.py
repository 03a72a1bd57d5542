"""`dynamix features`: events → streams, ebf_session, ebf_surface, user_stats.

Each table remembers the version of `events` it was built from; a later run rebuilds the days that changed
since then and leaves the others alone (docs/architecture.md, "Increments").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.config import FEATURE_SECTIONS
from dynamix.contracts import EBF_SESSION, EBF_SURFACE, EVENTS, OPT_OUT, STREAMS, USER_STATS, Table
from dynamix.errors import ConfigError, GuardError
from dynamix.features.baseline import add_streams, add_users, fit_streams, user_stats
from dynamix.features.calendar import Calendar, build_calendar, instant_sql, midnight
from dynamix.features.engine import EbfTables, ebf_tables
from dynamix.features.engine_hot import hot_users
from dynamix.features.instants import day_sql
from dynamix.features.session_gaps import changed_days, settle_neighbours, timeline, with_neighbours
from dynamix.features.sessions import session_features
from dynamix.features.streams import stream_events
from dynamix.features.surfaces import surface_days, surface_rows, surface_windows
from dynamix.jobs.baseline import stored_mark
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.frames import held
from dynamix.jobs.kinds import cycle_kinds, kinded_sessions, with_kinds
from dynamix.jobs.opt_out import without_opted_out
from dynamix.jobs.run_log import content_id, source_hash

_DAY = timedelta(days=1)
FEATURE_TABLES = (STREAMS, USER_STATS, EBF_SESSION, EBF_SURFACE)


@dataclass(frozen=True)
class Inputs:
    """Events that the run date may see, their version, the cycle's calendar, and what a table must say to agree."""

    events: DataFrame
    version: int
    calendar: Calendar
    note: Mapping[str, object]


def features(run: Run, *, since: date | None = None, until: date | None = None) -> StepResult:
    """Bring the four feature tables up to the events that the run date may see.

    Without dates: the days of events that changed since each table was built, or everything where the
    baseline, the config or the code is another one. `since` and `until` (half-open) replace those days of
    `ebf_session` and `ebf_surface` whatever has changed; the windows that end at the run date, streams and
    user statistics then follow all events. GuardError when no event lies before the run date; ConfigError for a
    range without a day.
    """
    if since is not None and until is not None and since >= until:
        raise ConfigError(f"--from {since} --to {until} holds no day; --to is the day after the last one")
    result = StepResult()
    given = since is not None or until is not None
    inputs = feature_inputs(run)
    result.warnings = list(inputs.calendar.lost)
    result.facts["baseline_version"] = inputs.calendar.baseline_version
    run.note(f"features: baseline {inputs.calendar.baseline_version}")
    dirty = {t.name: None if given else dirty_days(run, t, inputs) for t in FEATURE_TABLES}
    known = [days for days in dirty.values() if days is not None]
    if len(known) == len(dirty):
        result.facts["days"] = ", ".join(map(str, sorted(set().union(*known)))) or "none"
    anew = not given and dirty[EBF_SESSION.name] is None and dirty[EBF_SURFACE.name] is None
    both = _both_tables(run, inputs) if anew else None
    if given:
        _session_range(run, result, inputs, since, until)
    else:
        _sessions(run, result, inputs, dirty[EBF_SESSION.name], both)
    _streams(run, result, inputs, dirty[STREAMS.name])  # after the sessions, whose kinds streams may carry
    _users(run, result, inputs, dirty[USER_STATS.name])
    if given:
        _surface_range(run, result, inputs, since, until)
    else:
        _surfaces(run, result, inputs, dirty[EBF_SURFACE.name], both)
    return result


def _both_tables(run: Run, inputs: Inputs) -> EbfTables:
    """Sessions and surfaces of all events from one pass over them, kept until both are written."""
    run.note("features: one pass over the events for ebf_session and ebf_surface")
    hot = hot_users(inputs.events, config=run.config)
    tables = ebf_tables(inputs.events, config=run.config, run_date=run.run_date, hot=hot)
    return tables.on(held(tables.packed))


def feature_inputs(run: Run) -> Inputs:
    """Events, their version and calendar, and what must be equal in a stored table for an increment to be exact."""
    version = run.warehouse.data_version(
        run.spark, EVENTS.name
    )  # first: a commit in between is then built again
    events = seen_events(run)
    calendar = cycle_calendar(run, events)
    config = run.config.digest(*FEATURE_SECTIONS)
    opted_out = content_id(run.spark, run.warehouse, OPT_OUT.name)
    agreed = {
        "baseline_version": calendar.baseline_version,
        "config": config,
        "code": source_hash(),
        "opt_out": opted_out,
    }
    return Inputs(events, version, calendar, agreed)


def dirty_days(run: Run, table: Table, inputs: Inputs) -> list[date] | None:
    """Days of `events` that changed since the table was built; None where it must be built anew."""
    note = run.warehouse.note(table.name, "events_version")
    if note is None or any(note.get(key) != value for key, value in inputs.note.items()):
        return None
    if int(note["events_version"]) > inputs.version:
        return None
    changed = run.warehouse.changed_partitions(EVENTS.name, "event_date", since=int(note["events_version"]))
    if changed is None:
        return None
    if note.get("run_date") and date.fromisoformat(str(note["run_date"])) > run.run_date:
        return None
    return sorted(date.fromisoformat(day) for day in changed)


def seen_events(run: Run) -> DataFrame:
    """Events with event_ts and ingest_ts before the run date 00:00 UTC, of users who did not opt out."""
    end = F.expr(instant_sql(midnight(run.run_date)))
    events = without_opted_out(run, run.warehouse.read(run.spark, "events"))
    # the day is implied, and named because files are skipped by it
    return events.where(
        (F.col("event_date") < F.lit(run.run_date)) & (F.col("event_ts") < end) & (F.col("ingest_ts") < end)
    )


def cycle_calendar(run: Run, events: DataFrame) -> Calendar:
    """Calendar of the cycle that ends at the run date, with the baseline that its events were settled under."""
    # as a number: a collected timestamp would come in the time zone of this machine
    first_day = events.agg(F.min("event_date").alias("d")).collect()[0]["d"]
    if first_day is None:
        raise GuardError(
            f"table 'events': no row before run date {run.run_date}; ingest earlier events or pass a later --run-date"
        )
    opening = events.where(F.col("event_date") == F.lit(first_day))
    micros = opening.agg(F.unix_micros(F.min("event_ts")).alias("first")).collect()[0]["first"]
    first = datetime(1970, 1, 1) + timedelta(microseconds=int(micros))
    calendar = build_calendar(run.run_date, first_event=first, days=run.config.calendar.days)
    mark = stored_mark(run.warehouse)
    if mark is None or mark.baseline.fitted > run.run_date:
        return calendar
    return mark.baseline.freeze(calendar)


def _streams(run: Run, result: StepResult, inputs: Inputs, days: list[date] | None) -> None:
    if days == []:
        return
    there = run.warehouse.exists(run.spark, STREAMS.name)
    stored = held(run.warehouse.read(run.spark, STREAMS.name)) if there else None  # a few rows, read often
    config, calendar, kinded = run.config, inputs.calendar, kinded_sessions(run)
    if days is None or stored is None:
        frame = fit_streams(inputs.events, config=config, calendar=calendar, known=stored, sessions=kinded)
    else:
        new = _on(inputs.events, days)
        frame = add_streams(new, stored, config=config, calendar=calendar, sessions=kinded)
    _write(run, result, STREAMS, held(frame), inputs)  # a few rows, looked at and written


def _users(run: Run, result: StepResult, inputs: Inputs, days: list[date] | None) -> None:
    if days == []:
        return
    streams = run.warehouse.read(run.spark, STREAMS.name)
    habit = inputs.calendar.habit
    if days is None or (habit is not None and any(_meets(day, habit.start, habit.end) for day in days)):
        frame = user_stats(inputs.events, streams, config=run.config, calendar=inputs.calendar)
    else:
        stored = run.warehouse.read(run.spark, USER_STATS.name)
        frame = add_users(_on(inputs.events, days), stored)
    _write(run, result, USER_STATS, frame, inputs, empty=False)  # there are events, so there are users


def _meets(day: date, start: datetime, end: datetime) -> bool:
    return midnight(day) < end and start < midnight(day) + _DAY


def _sessions(
    run: Run, result: StepResult, inputs: Inputs, days: list[date] | None, both: EbfTables | None
) -> None:
    if days is None:
        some = inputs.events.where(F.col("session_id").isNotNull())
        rows = both.sessions if both else session_features(inputs.events, config=run.config)
        rows = _kinded(run, inputs, rows, whole=True)
        _write(run, result, EBF_SESSION, rows, inputs, empty=some.isEmpty())
    elif days:
        _repair_sessions(run, result, inputs, days)


def _kinded(run: Run, inputs: Inputs, sessions: DataFrame, *, whole: bool = False) -> DataFrame:
    """Sessions with their kinds: those frozen with the baseline, unless all rows are made on its own day."""
    mark = stored_mark(run.warehouse)
    fits = whole and (mark is None or mark.baseline.fitted >= run.run_date)
    kinds = cycle_kinds(run, inputs.events, inputs.calendar, stored=not fits)
    return with_kinds(sessions, kinds)


def _repair_sessions(run: Run, result: StepResult, inputs: Inputs, days: list[date]) -> None:
    """Sessions that begin on the days, and stored ones elsewhere whose neighbour changed."""
    began = F.expr(day_sql("unix_micros(session_start)")).isin(days)
    longest = int(run.config.session.max_length_s // 86_400) + 1
    reach = sorted({day + k * _DAY for day in days for k in range(longest + 1)})
    events = inputs.events if run.config.session.rule == "given" else _on(inputs.events, reach)
    fresh = session_features(events.where(began), config=run.config)
    fresh = held(_kinded(run, inputs, fresh))
    stored = run.warehouse.read(run.spark, EBF_SESSION.name)
    found = timeline(fresh, stored, days=days, config=run.config)
    settled = held(settle_neighbours(found, config=run.config))
    moved = sorted(row["session_date"] for row in changed_days(settled, days).collect())
    rows = fresh.unionByName(stored.where(F.col("session_date").isin(moved)))
    where = _listed("session_date", [*days, *moved])
    _write(run, result, EBF_SESSION, with_neighbours(rows, settled), inputs, where, allow_empty=True)


def _surfaces(
    run: Run, result: StepResult, inputs: Inputs, days: list[date] | None, both: EbfTables | None
) -> None:
    config = run.config
    if days is None:
        rows = both.surfaces if both else surface_rows(inputs.events, run.run_date, config=config)
        _write(
            run,
            result,
            EBF_SURFACE,
            rows,
            inputs,
            empty=stream_events(inputs.events, config=config).isEmpty(),
        )
        return
    where = _listed("window_end", [day + _DAY for day in days]) if days else "false"
    fresh = surface_days(_on(inputs.events, days), config=config)
    _replace_days(run, result, inputs, fresh, where, allow_empty=True)


def _replace_days(
    run: Run, result: StepResult, inputs: Inputs | None, fresh: DataFrame, where: str, *, allow_empty: bool = False
) -> None:  # fmt: skip
    """Day rows of a range give way to `fresh` ones, and all windows to those of the run date, in one commit.

    Windows of earlier run dates go too, so that a day-by-day build ends with the rows of a one-shot build.
    """
    fresh = held(fresh)
    stored = run.warehouse.read(run.spark, EBF_SURFACE.name).where("window_days = 1")
    days = stored.where(f"NOT ({where})").unionByName(fresh)
    windows = surface_windows(days, run.run_date, config=run.config)
    rows = fresh.repartition("window_end").unionByName(windows)  # the windows lie in few tasks already
    _write(
        run, result, EBF_SURFACE, rows, inputs, f"window_days <> 1 OR {where}",
        empty=fresh.isEmpty(), allow_empty=allow_empty, gather=False,
    )  # fmt: skip


def _session_range(
    run: Run, result: StepResult, inputs: Inputs, since: date | None, until: date | None
) -> None:
    where = _range("session_date", since, until)
    rows = session_features(inputs.events, config=run.config).where(where)
    rows = _kinded(run, inputs, rows)
    some = inputs.events.where("session_id IS NOT NULL").withColumn(
        "session_date", F.expr(day_sql("unix_micros(session_start)"))
    )
    _write(run, result, EBF_SESSION, rows, None, where, empty=some.where(where).isEmpty())


def _surface_range(
    run: Run, result: StepResult, inputs: Inputs, since: date | None, until: date | None
) -> None:
    where = _range("window_end", since and since + _DAY, until and until + _DAY)
    days = surface_days(inputs.events, config=run.config)
    _replace_days(run, result, None, days.where(where), where)


def _on(events: DataFrame, days: list[date]) -> DataFrame:
    return events.where(F.col("event_date").isin(days))


def _listed(column: str, days: list[date]) -> str:
    listed = ", ".join(f"date'{day}'" for day in sorted(set(days)))
    return f"{column} IN ({listed})"


def _range(column: str, since: date | None, until: date | None) -> str:
    limits = []
    if since is not None:
        limits.append(f"{column} >= date'{since}'")
    if until is not None:
        limits.append(f"{column} < date'{until}'")
    return " AND ".join(limits)


def _write(
    run: Run, result: StepResult, table: Table, frame: DataFrame, inputs: Inputs | None,
    where: str | None = None, *, empty: bool | None = None, allow_empty: bool = False, gather: bool = True,
) -> None:  # fmt: skip
    """Replace a range; `inputs` where the table now agrees with them as a whole. `gather` as in `Warehouse.replace`.

    `empty` where a look at the events tells it: else the frame is made twice, once for its first row.
    """
    run.note(f"features: {table.name}")
    note: dict[str, object] = {"run_id": run.run_id}
    if inputs is not None:
        note |= {**inputs.note, "events_version": inputs.version, "run_date": str(run.run_date)}
    result.tables[table.name] = run.warehouse.replace(
        run.spark,
        table,
        frame,
        where=where,
        metadata=note,
        empty=empty,
        allow_empty=allow_empty,
        gather=gather,
    )
