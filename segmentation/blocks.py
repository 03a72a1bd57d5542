"""Event counts of users as coordinate arrays: what fits and posteriors of mixtures read. Plain NumPy, without Spark.

A cell is stream id × dwell bin (`stream_id · 13 + bin`), or the stream alone where the config says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from dynamix.contracts import N_DWELL_BINS

Ints = npt.NDArray[np.int64]
INPUT, NEXT, OTHER = 0, 1, 2
"""Part of a count: the segmenter's input window, the window it has to predict, any other day."""


@dataclass(frozen=True)
class CountBlock:
    """Counts of U users in coordinate form: entry m adds n[m] events of `cell[m]` on `day[m]` to `row[m]`."""

    users: Any
    """pyarrow string array (U,)"""
    row: Ints
    day: Ints
    part: Ints
    cell: Ints
    n: Ints

    def matrix(self, width: int, *parts: int) -> sparse.csr_matrix:
        """Counts (U, width) summed over the days of the named parts (all parts when none is named)."""
        take = np.isin(self.part, parts) if parts else np.ones(len(self.row), bool)
        shape = (len(self.users), width)
        entries = (self.n[take].astype(np.float64), (self.row[take], self.cell[take]))
        return sparse.csr_matrix(entries, shape=shape)


def cell_width(n_streams: int, *, dwell_bins: bool) -> int:
    """Number of cells of `n_streams` streams."""
    return n_streams * (N_DWELL_BINS if dwell_bins else 1)


def count_block(batch: Any) -> CountBlock:
    """A record batch of `user_counts` as coordinate arrays."""
    users, row, field = entries_of(batch)
    return CountBlock(users, row, *(field(name).astype(np.int64) for name in ("day", "part", "cell", "n")))


def entries_of(batch: Any) -> tuple[Any, Ints, Callable[[str], npt.NDArray[Any]]]:
    """Of a record batch with `user_id` and `entries`: ids (U,), the row (N,) of each entry, and a field (N,) by name."""
    lists = batch.column(batch.schema.get_field_index("entries"))
    entries = lists.flatten()
    row = np.repeat(np.arange(len(lists), dtype=np.int64), np.diff(lists.offsets.to_numpy()))

    def field(name: str) -> npt.NDArray[Any]:
        return np.asarray(entries.field(name).to_numpy(zero_copy_only=False))

    return batch.column(batch.schema.get_field_index("user_id")).cast(pa.string()), row, field
