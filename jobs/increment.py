"""Ingest of what is new: rows that no earlier run could see, and the stored sessions that they touch.

Row for row equal to a build of everything at once under the same baseline (docs/faults.md D2, 12).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import EVENTS, EVENTS_QUARANTINE
from dynamix.errors import GuardError
from dynamix.features.calendar import midnight, since_1970
from dynamix.features.copies import stored_payloads
from dynamix.features.events import raw_event_ids
from dynamix.features.increment import matching, neighbours, touched_chains
from dynamix.features.instants import day_sql, seen_since, seen_us
from dynamix.jobs.baseline import Mark
from dynamix.jobs.context import Run
from dynamix.jobs.frames import held

_FIRST_RADIUS_DAYS = 1


@dataclass(frozen=True)
class Reading:
    """How much of the source a run reads: everything (`since` None), what is new, or nothing, and why."""

    since: date | None
    reason: str
    nothing: bool = False
    chunk: bool = False
    """The source holds nothing from before `since`: what lies there came from other sources."""


def choose_reading(run: Run, raw: DataFrame, mark: Mark | None, *, rebuild: bool) -> Reading:
    """Whole or new, from the state of the events table and the number of rows behind its mark.

    A source without any row before the mark is a chunk: it adds to what is stored. GuardError where the
    source has lost rows that the table still holds, unless `rebuild`.
    """
    if rebuild or mark is None:
        return Reading(None, "--rebuild" if rebuild else "no events stored yet")
    behind = rows_behind(raw, mark.until, run.config)
    if mark.agrees(behind, mark.rows):
        return _whole_source(run, mark)
    if behind > mark.rows:
        more = behind - mark.rows
        return Reading(None, f"the source has {more} more rows before {mark.until} than were read then")
    if behind == 0 and run.run_date > mark.until:
        return Reading(mark.until, f"a chunk that begins at or after {mark.until}", chunk=True)
    again = mark.since is not None and rows_behind(raw, mark.since, run.config) == 0
    if again and mark.agrees(behind, mark.rows_new) and run.run_date == mark.until:
        return Reading(mark.since, f"this chunk is in the table already, up to {mark.until}", nothing=True)
    raise GuardError(
        f"the source holds {behind} of the {mark.rows} rows that were read before {mark.until}; a build from it "
        "would lose events: pass the whole source, only rows from that day on, or --rebuild if the loss is meant"
    )


def _whole_source(run: Run, mark: Mark) -> Reading:
    if run.run_date <= mark.until:
        return Reading(
            None, f"the table holds everything before {mark.until} and the run asks for {run.run_date}"
        )
    due = mark.baseline.fitted + timedelta(days=run.config.calendar.refit_days)
    if run.run_date >= due:
        return Reading(
            None, f"the baseline of {mark.baseline.fitted} is due for its refit (calendar.refit_days)"
        )
    return Reading(mark.until, f"rows first seen since {mark.until}")


def rows_behind(raw: DataFrame, day: date, config: Config) -> int:
    """Raw rows whose times are all before `day`; rows without a readable time do not count."""
    later = seen_since(raw, unit=config.time_unit, since=midnight(day))
    return raw.count() - later.count()


def known_copies(run: Run, raw: DataFrame, since: date) -> DataFrame | None:
    """(event_id, payload) of ids in `raw` that earlier runs judged; payload NULL where they all conflicted.

    None where there is none. Derived ids hash the event's time, so only the days of the new rows are read.
    Quarantine rows first seen at or after `since` were written by a run that died before its events
    (docs/faults.md 3): they are judged again, and would else contradict the events that they came with.
    """
    spark, place = run.spark, run.warehouse
    stored = place.read(spark, EVENTS.name)
    ids = raw_event_ids(raw)
    if "event_id" not in raw.columns:
        micros = seen_us(raw.drop("ingest_ts"), unit=run.config.time_unit)
        days = raw.selectExpr(f"{day_sql(micros)} AS d")
        stored = stored.where(
            F.col("event_date").isin([row["d"] for row in days.dropna().distinct().collect()])
        )
    found = matching(ids, stored.select("event_id", "event_date")).collect()
    quarantine = place.read(spark, EVENTS_QUARANTINE.name).where(F.col("seen_date") < F.lit(since))
    conflicts = quarantine.where("event_id IS NOT NULL").select("event_id")
    torn = [row["event_id"] for row in matching(ids, conflicts).distinct().collect()]
    names = [row["event_id"] for row in found]
    if not names and not torn:
        return None
    listed = spark.createDataFrame([(name,) for name in names], "event_id string")
    rows = stored.where(F.col("event_date").isin(sorted({row["event_date"] for row in found})))
    kept = stored_payloads(rows.join(F.broadcast(listed), "event_id", "left_semi"))
    rest = [(name, None) for name in sorted(set(torn) - set(names))]
    return kept.unionByName(spark.createDataFrame(rest, "event_id string, payload bigint"))


def untimed_before(run: Run, mark: Mark) -> DataFrame:
    """Stored quarantine rows without a readable time, as of the mark: no run can tell when they were new."""
    stored = run.warehouse.read(run.spark, EVENTS_QUARANTINE.name, version=mark.quarantine)
    return stored.where("seen_date IS NULL")


def merged_copies(first: DataFrame, second: DataFrame) -> DataFrame:
    """Quarantine rows of two disjoint sources as one: equal rows add their copies."""
    names = [name for name in EVENTS_QUARANTINE.names if name not in ("row_hash", "reason", "copies")]
    both = first.unionByName(second).groupBy("row_hash", "reason")
    return both.agg(F.sum("copies").alias("copies"), *[F.min(name).alias(name) for name in names])


def overtaken(judged: DataFrame, known: DataFrame | None, since: date) -> bool:
    """True where a copy of a known event was ingested before `since`: it may be the one to keep."""
    if known is None:
        return False
    before = judged.where(F.unix_micros("ingest_ts") < since_1970(midnight(since)))
    return not before.join(F.broadcast(known), "event_id", "left_semi").isEmpty()


def chains_of(run: Run, good: DataFrame) -> DataFrame:
    """New events with the stored events of every chain they touch: held rows, see `touched_chains`."""
    stored = run.warehouse.read(run.spark, EVENTS.name)
    bounds = stored.agg(F.min("event_date").alias("low"), F.max("event_date").alias("high")).collect()[0]
    span = (bounds["high"] - bounds["low"]).days + 1 if bounds["low"] else 1
    days = _FIRST_RADIUS_DAYS
    while True:
        near = neighbours(good, stored, config=run.config, days=days)
        chains = held(touched_chains(good, near, config=run.config))
        if days >= span or chains.where("open_ended").isEmpty():
            return chains.drop("open_ended")
        days = min(4 * days, span)


def partitions_with(run: Run, settled: DataFrame) -> tuple[DataFrame, list[date], int]:
    """(rows of every partition that `settled` touches, those days, their number of rows stored before).

    `settled` has the columns of `events` and `is_new`; stored rows that it has settled anew give way to it.
    Where it is empty the newest stored day stands in, unchanged, so that the table's mark can move on.
    """
    table = run.warehouse.read(run.spark, EVENTS.name)
    days = sorted(row["event_date"] for row in settled.select("event_date").distinct().collect())
    days = days or [table.agg(F.max("event_date").alias("d")).collect()[0]["d"]]
    stored = table.where(F.col("event_date").isin(days))
    again = settled.where(~F.col("is_new")).select("event_id")
    rest = stored.join(again, "event_id", "left_anti")
    return rest.unionByName(settled.select(*EVENTS.names)), days, stored.count()
