"""Users who opted out: the table `opt_out`, and frames for statistics and training without them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.contracts import OPT_OUT
from dynamix.jobs.context import Run
from dynamix.jobs.forgotten import load_forgotten
from dynamix.jobs.user_lists import read_users, stored_names


def without_opted_out(run: Run, frame: DataFrame) -> DataFrame:
    """Rows of users who did not opt out, whatever their date; the frame itself where no table says that anybody did."""
    if not run.warehouse.exists(run.spark, OPT_OUT.name):
        return frame
    users = (
        run.warehouse.read(run.spark, OPT_OUT.name).select(F.col("user_id").alias("_opted_out")).distinct()
    )
    return frame.join(users, F.col("user_id") == F.col("_opted_out"), "left_anti")


def settle_opt_out(run: Run) -> None:
    """Make the table equal to the file of `privacy.opt_out`, if one is named; who was in it keeps the time.

    Users who were forgotten are in no table, this one included. An empty file takes everybody out again. InputError
    (exit 3) where the file cannot be read.
    """
    if not run.config.privacy.opt_out:
        return
    spark, place = run.spark, run.warehouse
    listed = read_users(Path(run.config.privacy.opt_out), key="privacy.opt_out", empty=True)
    forgotten = load_forgotten(place.private)
    names = {name for name in stored_names(run.config, listed) if not forgotten.knows(name)}
    known = place.read(spark, OPT_OUT.name) if place.exists(spark, OPT_OUT.name) else None
    before = {row["user_id"] for row in known.collect()} if known is not None else set()
    if known is None or names != before:
        now = datetime.now(UTC)
        fresh = spark.createDataFrame([(name, now) for name in sorted(names - before)], OPT_OUT.ddl())
        kept = spark.createDataFrame([(name,) for name in sorted(names & before)], "user_id string")
        rows = fresh if known is None else fresh.unionByName(known.join(kept, "user_id", "left_semi"))
        place.replace(spark, OPT_OUT, rows, allow_empty=True, empty=not names)
        run.note(f"opt-out: {len(names)} users are in no statistic")
