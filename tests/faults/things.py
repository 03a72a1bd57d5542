"""A small partitioned table and a second writer of it: a process of its own with its own Spark."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as `pythonpath` of the tests

from faults.points import observed
from pyspark.sql import DataFrame, SparkSession

from dynamix.contracts import Column, Table
from dynamix.features.tables import Warehouse

THING = Table(
    "streams",  # a name that the warehouse knows the writer of
    key=("day", "id"),
    partition_by=("day",),
    columns=(
        Column("day", "string", nullable=False),
        Column("id", "int", nullable=False),
        Column("size", "double", check="size >= 0"),
    ),
)
Row = tuple[str, int, float]


def things(spark: SparkSession, *rows: Row) -> DataFrame:
    return spark.createDataFrame(list(rows), "day string, id int, size double")


def write(spark: SparkSession, warehouse: Warehouse, rows: Iterable[Row], *, day: str | None = None) -> int:
    """Replace a day, or all days, by these rows."""
    where = f"day = '{day}'" if day else None
    return warehouse.replace(spark, THING, things(spark, *rows), where=where)


def stored(spark: SparkSession, warehouse: Warehouse, version: int | None = None) -> list[tuple[str, int]]:
    frame = warehouse.read(spark, THING.name, version=version)
    return sorted((r["day"], r["id"]) for r in frame.collect())


def serve() -> None:
    """Orders on standard input, {"root": FOLDER, "rows": [...], "day": DAY, "dies": false}; answers the new version.

    One that dies does so when its files are written and not committed, and takes its Java along.
    """
    from dynamix.jobs.session import get_spark

    spark = get_spark("second writer")
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        rows = [(day, number, size) for day, number, size in order["rows"]]
        end = observed(spark, lambda: os.killpg(0, signal.SIGKILL)) if order.get("dies") else nullcontext()
        warehouse = Warehouse(order["root"])
        if order.get("dies"):
            warehouse.create(spark, THING)  # the creation is a commit, too
        with end:
            version = write(spark, warehouse, rows, day=order.get("day"))
        print(version, flush=True)


if __name__ == "__main__":
    serve()
