"""User ids as keyed hashes: the same id gives the same hash under one key, and nothing without the key."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from dynamix.features.raw import CORRUPT

USER = "user_id"
HIDDEN = "[hidden, as user ids are hashed]"


def pseudonym(user: str, *, key: bytes) -> str:
    """64 hex digits: HMAC-SHA256 of the id in UTF-8."""
    return hmac.new(key, user.encode(), hashlib.sha256).hexdigest()


def with_pseudonyms(raw: DataFrame, *, key: bytes) -> DataFrame:
    """Raw rows with `user_id` as its pseudonym; NULL and blank ids stay as they are, for quarantine to name.

    Whole numbers are hashed as their digits. A line that could not be parsed may hold any id: its text is replaced
    by HIDDEN. The key travels in a worker's closure and in no plan, which Spark would write into logs.
    """
    if CORRUPT in raw.columns:
        raw = raw.withColumn(CORRUPT, F.when(F.col(CORRUPT).isNotNull(), F.lit(HIDDEN)))
    text = raw.withColumn(USER, F.col(USER).cast("string"))
    fields = [StructField(f.name, StringType()) if f.name == USER else f for f in text.schema.fields]

    def work(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            place = batch.schema.get_field_index(USER)
            coded = batch.column(place).dictionary_encode()
            names = [
                pseudonym(name, key=key) if name and name.strip() else name
                for name in coded.dictionary.to_pylist()
            ]
            hashed = pa.array(names, pa.string()).take(coded.indices)
            yield batch.set_column(place, pa.field(USER, pa.string()), hashed)

    return text.mapInArrow(work, StructType(fields))
