"""Columns of raw requests as they come in Arrow: event fields that may be absent, instants and codes in NumPy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def field_of(flat: pa.StructArray, name: str, kind: pa.DataType | None) -> pa.Array:
    """A field of the event struct (N,) as `kind`; absent fields are null."""
    if pa.types.is_null(flat.type) or flat.type.get_field_index(name) < 0:
        return pa.nulls(len(flat), kind or pa.timestamp("us"))
    values = flat.field(name)
    return values if kind is None else values.cast(kind)


def instants_of(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A column of instants (B,) as `instants` gives them."""
    array = column.combine_chunks()
    return instants(array.chunk(0) if isinstance(array, pa.ChunkedArray) else array)


def instants(values: pa.Array) -> NDArray[np.int64]:
    """Instants (N,) as µs since 1970 UTC from timestamps of any unit, or from text in ISO form."""
    stamped = values if pa.types.is_timestamp(values.type) else values.cast(pa.timestamp("us"))
    whole = stamped.cast(pa.timestamp("us", stamped.type.tz), safe=False).cast(pa.int64())
    return np.asarray(whole.to_numpy(zero_copy_only=False), np.int64)


def codes(values: pa.Array) -> NDArray[np.int64]:
    """Dense codes of the distinct values (N,), −1 for null."""
    coded = values.dictionary_encode().indices
    return np.asarray(pc.fill_null(coded, -1).to_numpy(zero_copy_only=False), np.int64)
