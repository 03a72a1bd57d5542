"""The state of the events table after users were forgotten: counted anew, for the next ingest to go on from."""

from __future__ import annotations

from dataclasses import replace

from pyspark.sql import functions as F

from dynamix.contracts import EVENTS, EVENTS_QUARANTINE
from dynamix.features.calendar import midnight, since_1970
from dynamix.jobs.baseline import stored_mark
from dynamix.jobs.context import Run


def recounted_mark(run: Run) -> dict[str, object] | None:
    """The note of a commit of `events` with counts as the tables are now; None where the stored one agrees.

    How many deduplicated copies were of the forgotten users nobody knows any more: all of them are `doubt`, by
    which a source may be shorter without having lost rows.
    """
    mark, place, spark = stored_mark(run.warehouse), run.warehouse, run.spark
    if mark is None:
        return None
    since = since_1970(midnight(mark.since)) if mark.since else None
    seen = F.unix_micros(F.greatest("event_ts", "ingest_ts")) >= F.lit(since or 0)
    kept = place.read(spark, EVENTS.name).agg(
        F.count(F.lit(1)).alias("all"), F.count_if(seen).alias("new")
    ).collect()[0]  # fmt: skip
    timed, later = F.col("seen_date").isNotNull(), F.lit(True)
    if mark.since is not None:
        later = F.col("seen_date") >= F.lit(mark.since)
    out = place.read(spark, EVENTS_QUARANTINE.name).agg(
        F.coalesce(F.sum("copies"), F.lit(0)).alias("all"),
        F.coalesce(F.sum(F.when(timed, F.col("copies"))), F.lit(0)).alias("timed"),
        F.coalesce(F.sum(F.when(timed & later, F.col("copies"))), F.lit(0)).alias("new"),
    ).collect()[0]  # fmt: skip
    readable = mark.quarantine >= place.redacted_before(spark, EVENTS_QUARANTINE.name)
    if readable and (kept["all"], out["all"]) == (mark.kept, mark.quarantined):
        return None
    doubled = max(0, mark.rows - mark.kept - mark.quarantined + out["all"] - out["timed"])
    fresh = replace(
        mark,
        rows=kept["all"] + out["timed"] + doubled,
        kept=kept["all"],
        quarantined=out["all"],
        rows_new=kept["new"] + out["new"] + doubled,
        quarantine=place.version(spark, EVENTS_QUARANTINE.name) or 0,
        doubt=doubled,
    )
    return fresh.note()
