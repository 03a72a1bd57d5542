"""Packed sums as rows of a table, and their addition by key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dynamix.features.clustered import Floats

KEYS = ("segment_id", "stream_id", "label", "half", "window")
SCHEMA = "segment_id int, stream_id int, label string, half int, window int, sums array<double>"


def add_up(table: Any) -> Any:
    """Rows of equal keys summed in the order of their blocks, so that the last bit follows neither race nor partition."""
    table = table.sort_by([("block", "ascending")])
    keys = zip(*[table.column(name).to_pylist() for name in KEYS], strict=True)
    flat = table.column("sums").combine_chunks()
    ends, values = np.asarray(flat.offsets), np.asarray(flat.flatten())
    total: dict[tuple[Any, ...], Floats] = {}
    for key, begin, end in zip(keys, ends[:-1] - ends[0], ends[1:] - ends[0], strict=True):
        own = values[begin:end]
        total[key] = total[key] + own if key in total else own
    return sums_table(list(total), list(total.values()))


def sums_table(keys: Sequence[tuple[Any, ...]], total: Sequence[Floats], **more: Any) -> Any:
    """A pyarrow.Table of one row a key (values in the order of KEYS) with its sums, and the columns `more`."""
    offsets = pa.array(np.cumsum([0, *map(len, total)]).astype(np.int32))
    types = {"label": pa.string()}
    columns = zip(KEYS, zip(*keys, strict=True) if keys else [()] * len(KEYS), strict=True)
    arrays = {name: pa.array(list(values), types.get(name, pa.int32())) for name, values in columns}
    flat = np.concatenate(total) if total else np.zeros(0)
    return pa.table({**more, **arrays, "sums": pa.ListArray.from_arrays(offsets, pa.array(flat))})
