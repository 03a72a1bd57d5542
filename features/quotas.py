"""What a mask leaves of a history: quotas by segment, tier and stream, in NumPy; shared by Spark kernels and serving."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dynamix.contracts import TIERS

HOLDOUT_PER_MILLE = 15
"""Users that keep everything in every mask version, by hash of the id."""
NO_LIMIT = np.iinfo(np.int32).max
BOTH_TIERS = "*"
KEPT, CUT, REMOVED, OUTSIDE = "kept", "cut", "removed", "outside"
FATES = (KEPT, CUT, REMOVED, OUTSIDE)
"""Kept; an older event of a stream of which the mask keeps the newest; of a stream that it drops; in no history: too
old by `history.per_stream` or `history.total`, under the embargo, of the same request, or not known yet."""

Ints = npt.NDArray[np.int64]
_ACTIVE_FIRST = TIERS.index("active"), TIERS.index("passive")


@dataclass(frozen=True)
class BaseQuota:
    """Newest events of a stream that stay wherever no mask lengthens it: `per_stream`, or `lengths[stream]`."""

    per_stream: int
    lengths: Mapping[int, int] = field(default_factory=dict)

    def of(self, stream: npt.NDArray[np.integer]) -> Ints:
        """Newest events (N,) by stream id (N,)."""
        found = np.full(len(stream), self.per_stream, np.int64)
        for number, length in self.lengths.items():
            found[stream == number] = length
        return found

    def lengthened(self, stream: npt.NDArray[np.integer], boost_to: int) -> Ints:
        """Newest events (N,) that a boost may reach: `boost_to`, and the base where a stream declares its length."""
        base = self.of(stream)
        declared = np.isin(stream, list(self.lengths))
        return np.where(declared, base, np.maximum(base, boost_to))

    def where_unlimited(self, limit: Ints, stream: npt.NDArray[np.integer]) -> Ints:
        """`limit` (N,), and the base where it is NO_LIMIT: hold-out users, segments and streams outside a grid."""
        return np.where(limit == NO_LIMIT, self.of(stream), limit)

    def part(self, offsets: Ints, index: Ints, stream: npt.NDArray[np.int16]) -> tuple[Ints, Ints]:
        """Histories without what lies beyond the base: offsets and index; `stream` (N,) is that of every event."""
        of = np.arange(int(stream.max(initial=-1)) + 1)
        limits = np.broadcast_to(self.of(of).astype(np.int32), (len(offsets) - 1, len(of)))
        return apply_quotas(offsets, index, stream, limits)


def quota_table(
    grid: Iterable[tuple[int, str, str, int]], stream_ids: Mapping[str, int]
) -> npt.NDArray[np.int32]:
    """Quota (G, 2, F) by segment, tier (order of contracts.TIERS) and stream_id from mask rows.

    Rows are (segment_id, tier or '*', stream, quota); cells that no row names have no limit, a row of one
    tier wins over a '*' row. Streams without an id have no events and are ignored.
    """
    grid = list(grid)
    segments = 1 + max((row[0] for row in grid), default=-1)
    width = 1 + max(stream_ids.values(), default=-1)
    table = np.full((segments, len(TIERS), width), NO_LIMIT, dtype=np.int32)
    for segment, tier, stream, quota in sorted(grid, key=lambda row: row[1] != BOTH_TIERS):
        if stream in stream_ids:
            tiers = slice(None) if tier == BOTH_TIERS else TIERS.index(tier)
            table[segment, tiers, stream_ids[stream]] = quota
    return table


def limits_of(
    quotas: npt.NDArray[np.int32],
    segment: Ints,
    active: npt.NDArray[np.integer],
    stream: Ints,
    holdout: npt.NDArray[np.bool_],
) -> Ints:
    """Limit (N,) of each event from a `quota_table`; segment, active (1) or passive (0), stream and hold-out are (N,).

    Hold-out users, and segments or streams outside the table, have NO_LIMIT (docs/method.md A.9).
    """
    limit = np.full(len(stream), NO_LIMIT, np.int64)
    listed = (segment >= 0) & (segment < quotas.shape[0]) & (stream < quotas.shape[2])
    at = np.flatnonzero(~holdout & listed)
    limit[at] = quotas[segment[at], np.where(active[at] > 0, *_ACTIVE_FIRST), stream[at]]
    return limit


def from_newest(cell: Ints) -> Ints:
    """Rank of each history entry (M,) among those of its cell, 0 = newest.

    `cell` (M,) numbers (impression, stream); the entries of an impression stand oldest first.
    """
    order = np.argsort(cell, kind="stable")
    last = np.searchsorted(cell[order], cell[order], side="right")
    rank = np.empty(len(cell), dtype=np.int64)
    rank[order] = last - 1 - np.arange(len(cell))
    return rank


def apply_quotas(
    offsets: Ints, index: Ints, stream: npt.NDArray[np.int16], limits: npt.NDArray[np.int32]
) -> tuple[Ints, Ints]:
    """Histories cut to the newest `limits[i, f]` events of each stream: new offsets and index.

    `stream` holds the stream of every event (N,), `limits` is (B, F) with 0 = dropped; a stream id beyond F
    is kept. Order stays oldest first.
    """
    rows = len(offsets) - 1
    row = np.repeat(np.arange(rows, dtype=np.int64), np.diff(offsets))
    of = stream[index].astype(np.int64)
    width = int(max(limits.shape[1], of.max(initial=-1) + 1))
    limit = np.full(len(index), NO_LIMIT, dtype=np.int64)
    listed = of < limits.shape[1]
    limit[listed] = limits[row[listed], of[listed]]
    keep = from_newest(row * width + of) < limit
    kept = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row[keep], minlength=rows), out=kept[1:])
    return kept, index[keep]
