"""`dynamix features`: events → streams, ebf_session, ebf_surface, user_stats."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.contracts import EBF_SESSION, EBF_SURFACE, STREAMS, USER_STATS, Table
from dynamix.errors import GuardError
from dynamix.features.baseline import fit_streams, user_stats
from dynamix.features.calendar import Calendar, build_calendar, instant_sql
from dynamix.features.sessions import session_features
from dynamix.features.streams import stream_events
from dynamix.features.surfaces import surface_days, surface_rows, surface_windows
from dynamix.jobs.context import Run, StepResult


def features(run: Run, *, since: date | None = None, until: date | None = None) -> StepResult:
    """Rewrite the four feature tables from the events that the run date may see.

    `since` and `until` (half-open) restrict which days of `ebf_session` and `ebf_surface` are replaced; the
    windows that end at the run date, streams and user statistics always follow all events.
    GuardError when no event lies before the run date.
    """
    events = seen_events(run)
    calendar = cycle_calendar(run, events)
    result = StepResult(warnings=list(calendar.lost))
    result.facts["baseline_version"] = calendar.baseline_version
    known = run.warehouse.read(run.spark, "streams") if run.warehouse.exists(run.spark, "streams") else None

    run.note(f"features: baseline {calendar.baseline_version}")
    _write(run, result, STREAMS, fit_streams(events, config=run.config, calendar=calendar, known=known))
    streams = run.warehouse.read(run.spark, "streams")
    stats = user_stats(events, streams, config=run.config, calendar=calendar)
    _write(run, result, USER_STATS, stats, empty=False)  # there are events, so there are users
    _sessions(run, result, events, since, until)
    _surfaces(run, result, events, since, until)
    return result


def seen_events(run: Run) -> DataFrame:
    """Events with event_ts and ingest_ts before the run date 00:00 UTC."""
    end = F.expr(instant_sql(datetime.combine(run.run_date, time())))
    events = run.warehouse.read(run.spark, "events")
    return events.where((F.col("event_ts") < end) & (F.col("ingest_ts") < end))


def cycle_calendar(run: Run, events: DataFrame) -> Calendar:
    """Calendar of the cycle that ends at the run date, from the first event it may see."""
    # as a number: a collected timestamp would come in the time zone of this machine
    micros = events.agg(F.unix_micros(F.min("event_ts")).alias("first")).collect()[0]["first"]
    if micros is None:
        raise GuardError(
            f"table 'events': no row before run date {run.run_date}; ingest earlier events or pass a later --run-date"
        )
    first = datetime(1970, 1, 1) + timedelta(microseconds=int(micros))
    return build_calendar(run.run_date, first_event=first, days=run.config.calendar.days)


def _sessions(
    run: Run, result: StepResult, events: DataFrame, since: date | None, until: date | None
) -> None:
    where = _range("session_date", since, until)
    sessions = session_features(events, config=run.config)
    some = events.where(F.col("session_id").isNotNull())
    if where:
        sessions = sessions.where(where)
        some = some.withColumn("session_date", F.to_date("session_start")).where(where)
    _write(run, result, EBF_SESSION, sessions, where, empty=some.isEmpty())


def _surfaces(
    run: Run, result: StepResult, events: DataFrame, since: date | None, until: date | None
) -> None:
    one = timedelta(days=1)
    where = _range("window_end", since and since + one, until and until + one)
    if where is None:
        rows = surface_rows(events, run.run_date, config=run.config)
        _write(run, result, EBF_SURFACE, rows, empty=stream_events(events, config=run.config).isEmpty())
        return
    days = surface_days(events, config=run.config)
    _write(run, result, EBF_SURFACE, days.where(where), f"window_days = 1 AND {where}")
    stored = run.warehouse.read(run.spark, "ebf_surface")
    # windows of earlier run dates go too, so that a day-by-day build ends with the rows of a one-shot build
    _write(run, result, EBF_SURFACE, surface_windows(stored, run.run_date), "window_days <> 1")


def _range(column: str, since: date | None, until: date | None) -> str | None:
    limits = []
    if since is not None:
        limits.append(f"{column} >= date'{since}'")
    if until is not None:
        limits.append(f"{column} < date'{until}'")
    return " AND ".join(limits) or None


def _write(
    run: Run, result: StepResult, table: Table, frame: DataFrame, where: str | None = None, *, empty: bool | None = None
) -> None:  # fmt: skip
    """`empty` where a look at the events tells it: else the frame is made twice, once for its first row."""
    run.note(f"features: {table.name}")
    result.tables[table.name] = run.warehouse.replace(run.spark, table, frame, where=where, empty=empty)
