"""What new events do to stored ones: which sessions they touch, and the rows that come of it.

A new event can change only the events it is connected to by silences no longer than the gap (rule `given`:
the events of its source session). All else of the table stays as it is (docs/faults.md 12, docs/method.md A.2).
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import EVENT_ORDER, EVENTS
from dynamix.features.events import takes_part
from dynamix.features.sessions import opens_chain, timeline_keys

DAY_S = 86_400
_FRESH = ("dwell_status", "dwell_logged_ms", "session_id", "session_start")


def matching(ids: DataFrame, stored: DataFrame) -> DataFrame:
    """Rows of `stored` whose event_id occurs in `ids` (event_id; any grain)."""
    # 8 bytes an id are broadcast; the few rows that share a hash are then compared as text
    hashes = ids.select(F.xxhash64("event_id").alias("_hash")).distinct()
    near = stored.withColumn("_hash", F.xxhash64("event_id")).join(F.broadcast(hashes), "_hash", "left_semi")
    return near.drop("_hash").join(ids.select("event_id").distinct(), "event_id", "left_semi")


def neighbours(new: DataFrame, stored: DataFrame, *, config: Config, days: int) -> DataFrame:
    """Stored session events of the users of `new`, at most `days` days from one of that user's new events.

    Adds `_edge_before` and `_edge_after`: the row's day has no neighbouring day in the selection, so a chain
    of events may go on beyond it. Rule `given` selects whole users: a source session knows no distance.
    """
    mine = new.where(takes_part(config))
    old = stored.where(takes_part(config))
    if config.session.rule == "given":
        kept = old.join(mine.select("user_id").distinct(), "user_id", "left_semi")
        return kept.withColumns({"_edge_before": F.lit(False), "_edge_after": F.lit(False)})
    by_user = Window.partitionBy("user_id").orderBy("event_date")
    around = F.explode(F.sequence(F.date_sub("event_date", days), F.date_add("event_date", days)))
    selected = (
        mine.select("user_id", around.alias("event_date"))
        .distinct()
        .withColumn("_edge_before", _apart(F.lag("event_date").over(by_user), F.date_sub("event_date", 1)))
        .withColumn("_edge_after", _apart(F.lead("event_date").over(by_user), F.date_add("event_date", 1)))
    )
    return old.join(selected, ["user_id", "event_date"])


def touched_chains(new: DataFrame, near: DataFrame, *, config: Config) -> DataFrame:
    """New and stored events of every chain that holds a new one, ready to be sessionised anew.

    `new` has canonical columns with the logged dwell in dwell_ms, `near` is of `neighbours`. Adds `is_new`
    and `open_ended` (the chain may go on outside the selection: select more days). A chain is a maximal run
    of a user's events without a silence longer than the gap; new impressions are chains of their own.
    """
    canonical = [n for n in EVENTS.names if n not in _FRESH]
    logged = near.withColumn("dwell_ms", F.col("dwell_logged_ms"))
    edges = ["_edge_before", "_edge_after"]
    stored = logged.select(*canonical, *edges).withColumns(
        {"is_new": F.lit(False), "unknown_stream": F.lit(False)}
    )
    fresh = new.withColumns({"is_new": F.lit(True), **{edge: F.lit(False) for edge in edges}})
    pool = fresh.unionByName(stored).withColumns(
        {"_in": takes_part(config), "_us": F.unix_micros("event_ts")}
    )
    keys = timeline_keys(config)
    ordered = Window.partitionBy(*keys).orderBy(*EVENT_ORDER)
    running = ordered.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    numbered = pool.withColumn("_before", F.lag("_us").over(ordered)).withColumn(
        "_chain", F.sum(opens_chain(config).cast("bigint")).over(running)
    )
    chain = Window.partitionBy(*keys, "_chain")
    gap_s = F.lit(config.session.gap_s)
    into_day_s = F.col("_us") / F.lit(1e6) - F.unix_date("event_date") * F.lit(DAY_S)
    beyond = (F.col("_edge_before") & (into_day_s <= gap_s)) | (
        F.col("_edge_after") & (F.lit(DAY_S) - into_day_s <= gap_s)
    )
    marked = numbered.withColumns(
        {"_touched": F.max("is_new").over(chain), "open_ended": F.max(beyond).over(chain)}
    )
    # an impression is in no chain: only the new ones are in the pool
    return marked.where("_touched").drop("_in", "_us", "_before", "_chain", "_touched", *edges)


def _apart(neighbour: Column, wanted: Column) -> Column:
    return F.coalesce(neighbour != wanted, F.lit(True))
