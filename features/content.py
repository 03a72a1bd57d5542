"""What identifies the content of a table, and the contract that made it."""

from __future__ import annotations

import hashlib
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StructType

from dynamix.contracts import Table


def content_hash(frame: DataFrame, table: Table) -> str:
    """SHA-256 over the sorted row hashes; maps enter with sorted keys."""
    names = [n for n in table.names if n not in table.unhashed and not n.endswith("_at")]
    fields = {f.name: f.dataType for f in frame.schema.fields}
    parts = [F.coalesce(_hashable(F.col(n), fields[n]).cast("string"), F.lit("\x00")) for n in names]
    rows = frame.select(F.sha2(F.concat_ws("\x01", *parts), 256).alias("h"))
    listed = rows.groupBy(F.substring("h", 1, 2).alias("b")).agg(
        F.sha2(F.concat_ws("", F.sort_array(F.collect_list("h"))), 256).alias("h")
    )
    digest = hashlib.sha256()
    for row in listed.orderBy("b").collect():
        digest.update(f"{row['b']}{row['h']}".encode())
    return digest.hexdigest()[:16]


def contract_digest(table: Table) -> str:
    """Hash of the contract's columns, key and partitions, stored with the table."""
    text = "|".join([table.ddl(), ",".join(table.key), ",".join(table.partition_by)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hashable(column: Any, data_type: DataType) -> Any:
    if isinstance(data_type, MapType):
        return F.to_json(F.array_sort(F.map_entries(column)))
    if isinstance(data_type, ArrayType | StructType):
        return F.to_json(column)
    return column
