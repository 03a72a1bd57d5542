"""Frames of jobs: driver-side rows as a table's frame, and frames whose rows are computed once and held."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from dynamix.contracts import Table
from dynamix.jobs.session import LOCAL, target


def held(frame: DataFrame) -> DataFrame:
    """The same rows, computed now and kept with the executors until the result is out of use. One Spark job.

    Later plans begin at these rows. A cached frame (`persist`) would carry its own plan into theirs, and
    Spark writes every plan out as text at each stage: half of a small run's time went there. Off this machine the rows
    are kept twice: of a worker that dies they would else be lost, and with them the step.
    """
    if target(os.environ).kind == LOCAL:
        return frame.localCheckpoint(eager=True)
    return frame.localCheckpoint(eager=True, storageLevel=StorageLevel.MEMORY_AND_DISK_2)


def table_frame(spark: SparkSession, table: Table, rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """Rows (column name -> value; a missing name is NULL) as a frame with the contract's columns and types.

    NumPy scalars are welcome. Raises KeyError for a name that the contract does not have.
    """
    unknown = {name for row in rows for name in row} - set(table.names)
    if unknown:
        raise KeyError(
            f"table {table.name!r} has no column {sorted(unknown)}; its columns: {', '.join(table.names)}"
        )
    schema = to_arrow_schema(cast(StructType, StructType.fromDDL(table.ddl())), timezone="UTC")
    columns = [pa.array([_plain(row.get(f.name)) for row in rows], f.type) for f in schema]
    return spark.createDataFrame(pa.table(columns, schema=schema))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return list(value.items())
    return value.item() if hasattr(value, "item") and not hasattr(value, "__len__") else value
