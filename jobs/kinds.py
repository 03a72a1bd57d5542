"""Session kinds of a cycle: fitted on a bounded sample of its baseline window, kept as JSON beside the tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.features.calendar import Calendar, Period
from dynamix.features.kinds import SessionKinds, conversion_names, fit_kinds, label_sessions
from dynamix.features.sessions import session_features
from dynamix.jobs.context import Run
from dynamix.jobs.files import write_whole

SAMPLE = 5_000
"""Sessions that kinds are fitted on: those of the least hash of their id."""


def cycle_kinds(
    run: Run, events: DataFrame, calendar: Calendar, *, stored: bool = False
) -> SessionKinds | None:
    """Kinds of the cycle's baseline window, written under `W/_dynamix/session_kinds`; None where no session lies there.

    The same events give the same kinds. `stored` takes what an earlier run of this baseline version and config
    fitted, so that a part of the days is labelled like the rest; it fits where there is nothing to take.
    """
    path = kinds_file(run, calendar.baseline_version)
    if stored and path.is_file():
        return SessionKinds.from_json(path.read_text(encoding="utf-8"))
    sample = sample_sessions(events, calendar.baseline, config=run.config)
    kinds = fit_kinds(
        session_features(sample, config=run.config).toArrow(),
        conversions=conversion_names(run.config),
        baseline_version=calendar.baseline_version,
    )
    if kinds is not None:
        write_whole(path, kinds.to_json())
    return kinds


def kinds_file(run: Run, baseline_version: str) -> Path:
    """Where the kinds of a baseline version lie; another definition of streams or sessions has a file of its own."""
    mark = run.config.digest(
        "session", "streams", "conversion_types", "impression_types", "organic_impressions"
    )
    return run.warehouse.private / "session_kinds" / f"{baseline_version}-{mark[:8]}.json"


def sample_sessions(events: DataFrame, period: Period, *, config: Config, limit: int = SAMPLE) -> DataFrame:
    """Events of at most `limit` whole sessions that start in the period: those of the least hash, so any order agrees."""
    inside = events.where(period.sql("session_start")).where(F.col("session_id").isNotNull())
    mark = F.xxhash64("session_id")
    least = (
        inside.select("session_id", mark.alias("mark")).distinct().orderBy("mark", "session_id").limit(limit)
    )
    border = least.agg(F.max("mark").alias("mark")).collect()[0]["mark"]
    return inside.where(mark <= border) if border is not None else inside.limit(0)


def with_kinds(sessions: DataFrame, kinds: SessionKinds | None) -> DataFrame:
    """Rows of `ebf_session` with session_kind filled by the frozen kinds; unchanged where there are none."""
    if kinds is None:
        return sessions

    def work(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            table = pa.Table.from_batches([batch])
            place = table.schema.get_field_index("session_kind")
            filled = table.set_column(place, table.schema.field(place), label_sessions(table, kinds))
            yield from filled.to_batches()

    return sessions.mapInArrow(work, sessions.schema)


def kinded_sessions(run: Run) -> DataFrame | None:
    """Rows of `ebf_session` where streams of histories carry their kinds, else None."""
    return run.warehouse.read(run.spark, "ebf_session") if run.config.with_kinds else None
