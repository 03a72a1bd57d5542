"""Kept events per impression: the point-in-time history that statistics, ranker and audit share.

One shuffle by user, then NumPy over blocks of whole users; no join per impression, no fan-out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from dynamix.config import HistoryConfig
from dynamix.features.quotas import BaseQuota, from_newest
from dynamix.features.ragged import slices_within, unrolled
from dynamix.features.timeline import (
    Bools,
    EventBlock,
    ImpressionBlock,
    Ints,
    blocks,
    each_parcel,
    user_timeline,
    whole_users,
)

__all__ = [
    "EventBlock", "ImpressionBlock", "Kernel", "dwell_told", "kept_history", "map_histories", "there", "usable_dwell",
]  # fmt: skip

_PAIR_BUDGET = 4_000_000
"""Event × impression pairs held at once; the result does not depend on it."""


Kernel = Callable[[EventBlock, ImpressionBlock, Ints, Ints], Any]
"""(events, impressions, offsets int64[B+1], index int64[M]) -> pyarrow.Table of the declared schema."""


def kept_history(
    events: EventBlock,
    impressions: ImpressionBlock,
    *,
    per_stream: int,
    total: int,
    embargo_us: int,
    run_date_us: int | None,
    lengths: Mapping[int, int] | None = None,
    boost_to: int = 0,
) -> tuple[Ints, Ints]:
    """Jagged index into `events` of each impression's history: offsets int64[B+1], index int64[M].

    Visible to impression i are its user's events with event_ts < t_i − embargo, ingest_ts ≤ t_i (≤ the run
    date when `run_date_us` is given) and another request; a missing request differs from every other.
    Of these the newest `per_stream` of each stream stay (`lengths[stream]` where that is given), of those the
    newest `total`. Newer means later in the block's order, which settles ties in time (docs/faults.md 44). An
    event with `after_us` or `until_us` is there only for impressions with after < t_i <= until. Stored oldest
    first:

        impressions   i0        i1   i2
        index         [3 5 8]   []   [11 12]        offsets [0 3 3 5]

    With `boost_to` a stream without a declared length of its own is collected up to its newest `boost_to` events: what
    lies beyond its first `per_stream` stands beside `total`, which limits the base alone, and a stream whose base
    `total` cut short has nothing beyond. So the newest `per_stream` of each stream are the history without `boost_to`.

    Exact for any input; the look-back doubles until enough visible events are found, so the cost follows
    the events kept and not the length of the longest user's past.
    """
    low, high = _before(events, impressions, embargo_us)
    known_by = impressions.ts_us if run_date_us is None else np.full_like(impressions.ts_us, run_date_us)

    def visible(position: Ints, row: Ints) -> Bools:
        own = impressions.request[row]
        same_request = (own >= 0) & (events.request[position] == own)
        return np.asarray(
            (events.ingest_us[position] <= known_by[row])
            & ~same_request
            & there(events, impressions, position, row)
        )

    by_stream = _StreamIndex.build(events)
    base = BaseQuota(per_stream, lengths or {})
    limit = base.lengthened(by_stream.group_stream, boost_to)
    longest = int(limit.max(initial=per_stream))
    shortest = int(base.of(by_stream.group_stream).min(initial=per_stream))
    bound = np.minimum(high - low, by_stream.streams_of(impressions.user) * longest)
    kept = []
    for rows in slices_within(bound, _PAIR_BUDGET):
        chunk = np.arange(rows.start, rows.stop, dtype=np.int64)
        few = high[chunk] - low[chunk] <= shortest  # no stream can exceed its limit
        whole = chunk[few]
        every = np.full(len(whole), total, dtype=np.int64)
        row_a, position_a = _newest(None, low[whole], high[whole], whole, every, visible)
        owner, start, stop, group = by_stream.queries(chunk[~few], impressions.user, high)
        row_b, position_b = _newest(by_stream.order, start, stop, owner, limit[group], visible)
        row, position = np.concatenate([row_a, row_b]), np.concatenate([position_a, position_b])
        kept.append(_within_total(row, position, events.stream, total, base if boost_to else None))
    row = np.concatenate([k[0] for k in kept]) if kept else np.empty(0, np.int64)
    index = np.concatenate([k[1] for k in kept]) if kept else np.empty(0, np.int64)
    offsets = np.zeros(len(impressions.ts_us) + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=len(impressions.ts_us)), out=offsets[1:])
    return offsets, index


def dwell_told(events: EventBlock, impressions: ImpressionBlock, offsets: Ints, index: Ints) -> Bools:
    """Of each kept event (M,), whether its dwell, or that it is censored, is known at its impression's instant.

    A dwell that goes on, and a session that may go on, are told by what comes after the impression (docs/faults.md D2).
    """
    if events.told_us is None:
        return np.ones(len(index), dtype=bool)
    now = np.repeat(impressions.ts_us, np.diff(offsets))
    return np.asarray(events.told_us[index] <= now)


def usable_dwell(events: EventBlock, impressions: ImpressionBlock, offsets: Ints, index: Ints) -> Bools:
    """Of each kept event (M,), whether it has a usable dwell that is known at its impression's instant."""
    return np.asarray(~np.isnan(events.z[index]) & dwell_told(events, impressions, offsets, index))


def there(events: EventBlock, impressions: ImpressionBlock, position: Ints, row: Ints) -> Bools:
    """Of each event and impression (M,), False where the event is there for later or for earlier impressions only."""
    found = np.ones(len(position), dtype=bool)
    if events.after_us is not None:
        found &= events.after_us[position] < impressions.ts_us[row]
    if events.until_us is not None:
        found &= impressions.ts_us[row] <= events.until_us[position]
    return found


def _before(events: EventBlock, impressions: ImpressionBlock, embargo_us: int) -> tuple[Ints, Ints]:
    """Range [low, high) of each impression's user whose events lie strictly before t − embargo."""
    stamps = np.unique(events.ts_us)
    width = len(stamps) + 1
    key = events.user * width + np.searchsorted(stamps, events.ts_us)
    cut = np.searchsorted(stamps, impressions.ts_us - embargo_us, side="left")
    low = np.searchsorted(events.user, impressions.user, side="left").astype(np.int64)
    return low, np.searchsorted(key, impressions.user * width + cut, side="left").astype(np.int64)


@dataclass(frozen=True)
class _StreamIndex:
    """Event positions grouped by (user, stream), oldest first within a group."""

    order: Ints
    """positions, group after group"""
    group_start: Ints
    """first entry of each group in `order` (G,)"""
    group_user: Ints
    """user of each group (G,), ascending"""
    group_stream: Ints
    """stream of each group (G,)"""
    key: Ints
    """group · (N+1) + position, ascending like `order`"""
    n_events: int

    @classmethod
    def build(cls, events: EventBlock) -> _StreamIndex:
        n = len(events.ts_us)
        streams = int(events.stream.max()) + 1 if n else 1
        code = events.user * streams + events.stream
        order = np.argsort(code, kind="stable").astype(np.int64)
        groups, start, group = np.unique(code[order], return_index=True, return_inverse=True)
        return cls(
            order, start.astype(np.int64), groups // streams, groups % streams, group * (n + 1) + order, n
        )

    def _groups(self, user: Ints) -> tuple[Ints, Ints]:
        low = np.searchsorted(self.group_user, user, side="left").astype(np.int64)
        return low, np.searchsorted(self.group_user, user, side="right").astype(np.int64)

    def streams_of(self, user: Ints) -> Ints:
        """Number of streams each user has (B,)."""
        low, high = self._groups(user)
        return high - low

    def queries(self, rows: Ints, user: Ints, high: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """One query per impression of `rows` and stream of its user: (impression, start, stop in `order`, group)."""
        low, stop = self._groups(user[rows])
        local, group = unrolled(low, stop - low)
        owner = rows[local]
        end = np.searchsorted(self.key, group * (self.n_events + 1) + high[owner], side="left")
        return owner, self.group_start[group], end.astype(np.int64), group


def _newest(
    order: Ints | None,
    low: Ints,
    high: Ints,
    owner: Ints,
    limit: Ints,
    visible: Callable[[Ints, Ints], Bools],
) -> tuple[Ints, Ints]:
    """Newest `limit` (Q,) visible entries of each range [low, high) of `order` (None: positions themselves).

    Returns (impression, event position) pairs. The look-back starts at `limit` entries and doubles for
    the ranges in which the filters left too few.
    """
    todo = np.arange(len(low), dtype=np.int64)
    width = limit
    rows, positions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    while len(todo):
        short = []
        for part in slices_within(np.minimum(high[todo] - low[todo], width[todo]), _PAIR_BUDGET):
            query = todo[part]
            start = np.maximum(low[query], high[query] - width[query])
            local, flat = unrolled(start, high[query] - start)
            position = flat if order is None else order[flat]
            seen = visible(position, owner[query][local])
            local, position = local[seen], position[seen]
            count = np.bincount(local, minlength=len(query))
            done = (count >= limit[query]) | (start == low[query])
            from_newest = np.cumsum(count)[local] - 1 - np.arange(len(local))
            take = done[local] & (from_newest < limit[query][local])
            rows.append(owner[query][local[take]])
            positions.append(position[take])
            short.append(query[~done])
        todo = np.concatenate(short)
        width = width * 2
    return np.concatenate(rows), np.concatenate(positions)


def _within_total(
    row: Ints, position: Ints, stream: npt.NDArray[np.int16], total: int, base: BaseQuota | None
) -> tuple[Ints, Ints]:
    """Pairs in (impression, position) order, of them the newest `total` of each impression.

    With `base` these are of the base alone; a stream of which all base events stay keeps what lies beyond, too.
    """
    if base is None:
        return _newest_overall(row, position, len(stream), total)
    row, position = _newest_overall(row, position, len(stream), len(position))  # sorted, all of them
    cell = row * (int(stream.max(initial=0)) + 1) + stream[position]
    limit = base.of(stream[position])
    rank = from_newest(cell)
    near = rank < limit
    own_row, own = _newest_overall(row[near], position[near], len(stream), total)
    n = len(stream) + 1
    kept = np.isin(row * n + position, own_row * n + own)
    whole = np.isin(cell, cell[kept & (rank == limit - 1)])  # its oldest base event stays, so all of them do
    take = kept | (~near & whole)
    return row[take], position[take]


def _newest_overall(row: Ints, position: Ints, n_events: int, total: int) -> tuple[Ints, Ints]:
    """Pairs in (impression, position) order, cut to the newest `total` of each impression."""
    key = np.sort(row * (n_events + 1) + position)  # sorting one integer beats a two-key argsort
    row, position = np.divmod(key, n_events + 1)
    last = np.searchsorted(row, row, side="right") if len(row) else row
    take = last - np.arange(len(row)) <= total
    return row[take], position[take]


def map_histories(
    events: DataFrame, impressions: DataFrame, *, history: HistoryConfig, kernel: Kernel, schema: str,
    run_date_us: int | None = None, lengths: Mapping[int, int] | None = None, boost_to: int = 0, parcels: int = 0,
) -> DataFrame:  # fmt: skip
    """Rows that `kernel` makes of each block of whole users with their kept histories.

    `events` has the columns of features/streams.py `event_columns`; `impressions` has user_id, event_ts and
    any further columns, which the kernel finds in `ImpressionBlock.frame`. Users without an impression give
    nothing, impressions without an event an empty history. `run_date_us` (µs since 1970 UTC) replaces t_i
    as the instant by which an event must be known where `history.as_known_at` is `run_date`; without it
    every given event counts as known. `lengths` (stream id -> newest events kept) replaces `history.per_stream`
    where a stream declares its own, `boost_to` lengthens the others (`kept_history`). With `parcels` users are dealt
    into that many by their hash and each parcel is one block, so that what the kernel adds up within a block does not
    depend on cores and partitions. The kernel's table is cast to `schema` (a DDL string).
    """
    arrow_schema = to_arrow_schema(cast(StructType, StructType.fromDDL(schema)), timezone="UTC")
    embargo_us = round(history.embargo_s * 1e6)
    known: int | None = None
    if history.as_known_at == "run_date":
        known = run_date_us if run_date_us is not None else int(np.iinfo(np.int64).max)
    per_stream, total = history.per_stream, history.total

    def work(batches: Iterator[Any]) -> Iterator[Any]:
        for table in each_parcel(batches) if parcels else whole_users(batches):
            block, seen = blocks(table)
            if not len(seen.ts_us):
                continue
            offsets, index = kept_history(
                block, seen, per_stream=per_stream, total=total, embargo_us=embargo_us, run_date_us=known,
                lengths=lengths, boost_to=boost_to,
            )  # fmt: skip
            result = kernel(block, seen, offsets, index)
            yield from result.select(arrow_schema.names).cast(arrow_schema).to_batches(max_chunksize=20_000)

    return user_timeline(events, impressions, parcels=parcels).mapInArrow(work, schema)
