"""Are two outputs of the features benchmark the same rows? Every written column, to the last bit of a double."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

KEYS = {"sessions": ("user_id", "session_start"), "surfaces": ("user_id", "window_end", "stream")}


def differences(left: Path, right: Path) -> list[str]:
    """A line for each table and column in which the Parquet outputs differ; empty where all rows are equal."""
    found = []
    for table, keys in KEYS.items():
        ours, theirs = ds.dataset(left / table, format="parquet"), ds.dataset(right / table, format="parquet")
        names = sorted(ours.schema.names)
        if names != sorted(theirs.schema.names):
            found.append(f"{table}: columns {names} against {sorted(theirs.schema.names)}")
            continue
        if ours.count_rows() != theirs.count_rows():
            found.append(f"{table}: {ours.count_rows()} rows against {theirs.count_rows()}")
            continue
        orders = [_order(side, keys) for side in (ours, theirs)]
        for name in names:
            a, b = (_column(side, name, order) for side, order in zip((ours, theirs), orders, strict=True))
            if not a.equals(b):
                found.append(f"{table}.{name}: {_example(a, b)}")
    return found


def rows(output: Path) -> dict[str, int]:
    """Rows of each table of an output."""
    return {table: ds.dataset(output / table, format="parquet").count_rows() for table in KEYS}


def _order(side: Any, keys: tuple[str, ...]) -> Any:
    table = side.to_table(columns=list(keys))
    return pc.sort_indices(table, [(key, "ascending") for key in keys])


def _column(side: Any, name: str, order: Any) -> Any:
    """A column in the order of the keys, with one type for all writers: maps and lists of pairs as lists of structs."""
    values = side.to_table(columns=[name]).column(0).combine_chunks().take(order)
    if pa.types.is_map(values.type):
        values = pa.ListArray.from_arrays(values.offsets, _pairs(values.keys, values.items))
    elif pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        entries = values.flatten()
        offsets = np.append(0, np.cumsum(np.asarray(pc.fill_null(pc.list_value_length(values), 0))))
        values = pa.ListArray.from_arrays(
            pa.array(offsets.astype(np.int32)), _pairs(entries.field("key"), entries.field("value"))
        )
    elif pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("us", tz=values.type.tz)).cast(pa.int64())
    elif pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
        values = values.cast(pa.string())
    return values


def _pairs(keys: Any, items: Any) -> Any:
    keys = keys.cast(pa.string()) if not pa.types.is_integer(keys.type) else keys.cast(pa.int64())
    return pa.StructArray.from_arrays([keys, items.cast(pa.int64())], ["key", "value"])


def _example(a: Any, b: Any) -> str:
    """The first differing value of each side, and how many differ."""
    if a.type != b.type:
        return f"type {a.type} against {b.type}"
    if isinstance(a, pa.ListArray):
        pairs = [i for i in range(min(len(a), 100_000)) if a[i] != b[i]]
        return f"{len(pairs)} of the first 100,000 differ" + (
            f", as {a[pairs[0]]} against {b[pairs[0]]}" if pairs else ""
        )
    differ = pc.fill_null(pc.not_equal(a, b), True)
    both_null = pc.and_(pc.is_null(a), pc.is_null(b))
    places = np.flatnonzero(np.asarray(pc.and_(differ, pc.invert(both_null))))
    return (
        f"{len(places)} differ, as {a[int(places[0])]} against {b[int(places[0])]}"
        if len(places)
        else "nulls differ"
    )
