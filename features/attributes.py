"""What kept events no longer carry under a mask: attributes by segment, tier and stream, in NumPy and Arrow.

Shared by Spark kernels and serving. What is gone is empty as in streams that declare fewer attributes: NULL item,
category and age, dwell bin 12, z 0 (docs/method.md A.2.5, A.9).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dynamix.contracts import NO_DWELL_BIN
from dynamix.declarations import EVENT_ATTRIBUTES
from dynamix.features.quotas import limits_of, quota_table

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Hidden = Mapping[str, npt.NDArray[np.int32]]
"""Attribute -> table (G, 2, F) as of `quota_table`, 0 where events of the cell lose it; none where all keep it."""


def hidden_tables(
    grid: Iterable[tuple[int, str, str, Sequence[str] | None]], stream_ids: Mapping[str, int]
) -> Hidden:
    """Tables by attribute from mask rows (segment_id, tier or '*', stream, attributes kept; None = all)."""
    rows = list(grid)
    listed = {name: [_row(row, name) for row in rows] for name in EVENT_ATTRIBUTES}
    return {n: quota_table(own, stream_ids) for n, own in listed.items() if any(not row[3] for row in own)}


def _row(row: tuple[int, str, str, Sequence[str] | None], name: str) -> tuple[int, str, str, int]:
    segment, tier, stream, kept = row
    return segment, tier, stream, int(kept is None or name in kept)


def lost_by(
    tables: Hidden, segment: Ints, active: npt.NDArray[np.integer], stream: Ints, holdout: Bools
) -> dict[str, Bools]:
    """Of each event (N,) and attribute of the tables, whether the mask takes it; arguments as in `limits_of`."""
    return {name: limits_of(table, segment, active, stream, holdout) == 0 for name, table in tables.items()}


def emptied(history: Mapping[str, Any], lost: Mapping[str, Bools]) -> dict[str, Any]:
    """The flat arrays of history columns (N,), empty where an event has lost the attribute (N,)."""
    empty: dict[str, dict[str, Any]] = {
        "item": {"hist_item": None},
        "category": {"hist_category": None},
        "dwell": {"hist_dwell_bin": NO_DWELL_BIN, "hist_z": 0.0},
        "recency": {"hist_age_s": None},
    }
    found = dict(history)
    for name, gone in lost.items():
        for column, value in empty[name].items():
            nothing = pa.scalar(value, found[column].type)
            found[column] = pc.if_else(pa.array(gone), nothing, found[column])
    return found
