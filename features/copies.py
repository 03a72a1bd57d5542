"""Copies of an event: which one stays, which are the same, which contradict it; and what goes to quarantine.

The rule stands at `split_raw` in features/events.py (docs/faults.md 9, 10).
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from dynamix.contracts import EVENTS
from dynamix.features.instants import day_sql
from dynamix.features.row_text import row_hash, row_text, text_hash

KEPT, DEDUPLICATED, QUARANTINED = "kept", "deduplicated", "quarantined"
_LATER = ("dwell_status", "dwell_logged_ms", "bad_dwell", "session_id", "session_start")
CANONICAL = tuple(name for name in EVENTS.names if name not in _LATER)


def stored_payloads(events: DataFrame) -> DataFrame:
    """(event_id, payload) of rows of `events`: what a later copy must say to be the same event."""
    logged = events.withColumn("dwell_ms", F.col("dwell_logged_ms"))
    return logged.select("event_id", _payload().alias("payload"))


def judge_copies(parsed: DataFrame, *, given_ids: bool, known: DataFrame | None) -> DataFrame:
    """Add `fate`, `row_hash` and `raw` (both NULL unless quarantined); see `split_raw` for the rule.

    Most ids occur once: only rows whose id's hash occurs again are shuffled, sorted and compared. The hashes
    of such ids are broadcast, 8 bytes each.
    """
    old = None
    if known is not None:
        met = parsed.join(F.broadcast(known.withColumn("_known", F.lit(True))), "event_id", "left")
        old = _later_copies(met.where("_known IS NOT NULL"))
        parsed = met.where("_known IS NULL").drop("_known", "payload")
    hashed = parsed.withColumn("_hash", F.xxhash64("event_id"))
    again = hashed.groupBy("_hash").agg(F.count(F.lit(1)).alias("_n")).where("_n > 1")
    marked = hashed.join(F.broadcast(again), "_hash", "left")
    # Always true, but unknown to the optimiser: it would else push the dozens of conditions behind `reason`
    # into every filter on the fate, and spend a minute on their normal form.
    opaque = F.spark_partition_id() >= 0
    own_fate = F.when(F.col("reason").isNotNull(), QUARANTINED).when(opaque, KEPT)
    alone = marked.where("_n IS NULL").withColumn("fate", own_fate).drop("_hash", "_n")
    judged = alone.unionByName(_compared(marked.where("_n IS NOT NULL"), given_ids=given_ids))
    if old is not None:
        judged = judged.unionByName(old)
    raw = F.when(F.col("fate") == QUARANTINED, row_text(F.col("_whole")))
    return judged.select(
        *CANONICAL, "bad_dwell", "unknown_stream", "seen_us", "fate", "reason", "hint",
        text_hash(raw).alias("row_hash"), raw.alias("raw"),
    )  # fmt: skip


def _later_copies(rows: DataFrame) -> DataFrame:
    """Rows whose event an earlier run has judged: equal payload or conflict."""
    bad, same = F.col("reason").isNotNull(), F.coalesce(_payload() == F.col("payload"), F.lit(False))
    fate = F.when(bad, QUARANTINED).otherwise(DEDUPLICATED)
    return _conflicts(rows.withColumn("fate", fate), ~bad & ~same).drop("_known", "payload")


def _conflicts(rows: DataFrame, where: Column) -> DataFrame:
    return rows.withColumns(
        {
            "fate": F.when(where, QUARANTINED).otherwise(F.col("fate")),
            "reason": F.when(where, "CONFLICTING_DUPLICATE").otherwise(F.col("reason")),
            "hint": F.when(where, "same event_id, other payload").otherwise(F.col("hint")),
        }
    )


def _compared(rows: DataFrame, *, given_ids: bool) -> DataFrame:
    """Rows judged against the others of their event_id."""
    bad = F.col("reason").isNotNull()
    # bad rows judge no copies: a key each keeps them from piling up in one task
    key = F.when(bad, F.concat(F.lit("!"), row_hash(F.col("_whole")))).otherwise(
        F.concat(F.lit("="), F.col("event_id"))
    )
    same_id = Window.partitionBy("_key").orderBy("ingest_ts", "_payload")
    copies = same_id.rowsBetween(Window.unboundedPreceding, Window.unboundedFollowing)
    # Derived ids hash the whole row, so their copies never disagree and need no payload.
    payload = _payload() if given_ids else F.lit(0).cast("bigint")
    keyed = rows.withColumns({"_key": key, "_payload": payload})
    first = F.min(F.struct("ingest_ts", "_payload")).over(copies)["_payload"]
    # `~` reverses the order of whole numbers without overflow, so this is the largest payload of that time
    last = F.bitwise_not(
        F.min(F.struct("ingest_ts", F.bitwise_not("_payload").alias("inverse"))).over(copies)["inverse"]
    )
    ranked = keyed.withColumns({"_first": first, "_last": last, "_rank": F.row_number().over(same_id)})
    conflict = ~bad & ((F.col("_first") != F.col("_last")) | (F.col("_payload") != F.col("_first")))
    fate = F.when(bad, QUARANTINED).when(F.col("_rank") == 1, KEPT).otherwise(DEDUPLICATED)
    return _conflicts(ranked.withColumn("fate", fate), conflict).drop(
        "_hash", "_n", "_key", "_payload", "_first", "_last", "_rank"
    )


def _payload() -> Column:
    """64-bit hash of what an event says besides its id and ingest; NULL differs from every value."""
    names = [n for n in CANONICAL if n not in ("event_id", "ingest_ts", "event_date", "attributes")]
    values = [*map(F.col, names), F.to_json("attributes")]
    missing = F.concat(*[F.when(value.isNull(), "1").otherwise("0") for value in values])
    return F.xxhash64(*values, missing, "bad_dwell")


def quarantine_rows(judged: DataFrame, run_id: str) -> DataFrame:
    """Columns of `events_quarantine`: one row per (row_hash, reason) of the judged rows that are no events."""
    out = judged.where(F.col("fate") == QUARANTINED)
    conflict = F.when(F.col("reason") == "CONFLICTING_DUPLICATE", F.col("event_id"))
    grouped = out.groupBy("row_hash", "reason").agg(
        F.min("raw").alias("raw"),
        F.min("hint").alias("hint"),
        F.count(F.lit(1)).alias("copies"),
        F.min(conflict).alias("event_id"),
        F.expr(f"min({day_sql('seen_us')})").alias("seen_date"),
    )
    return grouped.withColumn("run_id", F.lit(run_id))
