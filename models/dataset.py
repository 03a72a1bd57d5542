"""Rows of `training_rows` as ragged NumPy arrays in memory, and their batches; no per-row Python.

The Parquet files are those of a pinned version, as listed by `Warehouse.files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import torch
from numpy.typing import NDArray

from dynamix.contracts import NO_DWELL_BIN, PARTS
from dynamix.errors import EnvironmentTrouble, InputError
from dynamix.features.attributes import Hidden, lost_by
from dynamix.features.quotas import BaseQuota, limits_of
from dynamix.models.arrow_columns import instants_of
from dynamix.models.attributes import emptied
from dynamix.models.batch import (
    CATEGORY_MATCH,
    EVENT_FIELDS,
    ITEM_MATCH,
    RankBatch,
    ragged_take,
    stream_rank,
)
from dynamix.models.hashing import bucket, hash_ids
from dynamix.models.memory import pieces

_ROW_COLUMNS = (
    "impression_id", "user_id", "event_ts", "request_id", "surface", "item_id", "category", "position", "weight",
    "part", "segment_id", "tier", "holdout", "value",
)  # fmt: skip
_HISTORY = ("hist_stream", "hist_item", "hist_category", "hist_dwell_bin", "hist_z", "hist_age_s")
_PER_ROW = (
    "impression", "impression_hash", "user", "event_us", "request", "segment", "tier", "surface", "item_id",
    "item_hash", "dense", "weight", "part", "holdout",
)  # fmt: skip


@dataclass(frozen=True)
class JaggedRows:
    """R impressions with N history events; order is (user hash, time, impression hash), equal in every arm.

    Ids are 64-bit hashes (0 = none); `part` indexes contracts.PARTS; `tier` is 1 for active. Events are
    oldest first inside `offsets`; `z` is 0 where `usable` is False. Labels are NaN where not known.
    """

    offsets: NDArray[np.int64]
    impression: NDArray[Any]  # (R,) str
    impression_hash: NDArray[np.int64]
    user: NDArray[np.int64]
    event_us: NDArray[np.int64]
    request: NDArray[np.int64]
    segment: NDArray[np.int64]
    tier: NDArray[np.int64]
    surface: NDArray[np.int64]
    item_id: NDArray[np.int32]
    item_hash: NDArray[np.int64]
    dense: NDArray[np.float32]  # (R, 4)
    weight: NDArray[np.float32]
    part: NDArray[np.int8]
    holdout: NDArray[np.bool_]
    stream: NDArray[np.int16]
    item: NDArray[np.int32]
    dwell_bin: NDArray[np.int8]
    z: NDArray[np.float32]
    usable: NDArray[np.bool_]
    log_age: NDArray[np.float32]
    match: NDArray[np.int8]
    rank: NDArray[np.int16]
    labels: Mapping[str, NDArray[np.float32]]
    surfaces: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def tokens_per_row(self) -> float:
        return self.tokens / len(self) if len(self) else 0.0

    def take(self, rows: NDArray[np.int64]) -> JaggedRows:
        """The rows at these places, in this order, with their events."""
        offsets, index = ragged_take(self.offsets, rows)
        per_row = {name: getattr(self, name)[rows] for name in _PER_ROW}
        events = {name: getattr(self, name)[index] for name in EVENT_FIELDS}
        labels = {head: values[rows] for head, values in self.labels.items()}
        return replace(self, offsets=offsets, labels=labels, **per_row, **events)

    def select(self, part: str, *, holdout: bool | None = None) -> JaggedRows:
        """Rows of one part of the calendar; `holdout` True or False takes only these users."""
        at = self.part == PARTS.index(part)
        if holdout is not None:
            at = at & (self.holdout == holdout)
        return self.take(np.flatnonzero(at))

    def keep_events(self, keep: NDArray[np.bool_]) -> JaggedRows:
        """The same rows with fewer events: where `keep` (N,) is False the event is gone."""
        sums = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
        events = {name: getattr(self, name)[keep] for name in EVENT_FIELDS}
        rank = stream_rank(self.offsets, self.stream, keep=keep)[keep].astype(np.int16)
        return replace(self, **{**events, "rank": rank}, offsets=sums[self.offsets])

    def under_mask(
        self, quotas: NDArray[np.int32], base: BaseQuota | None = None, hidden: Hidden | None = None
    ) -> JaggedRows:
        """Histories cut to the newest `quotas[segment, tier, stream]` (G, 2, F) events of each stream.

        Tiers in the order of contracts.TIERS, as features/quotas.py has them. `hidden` as in features/attributes.py:
        what kept events of a cell lose is empty, as where it is missing.
        Hold-out users, and segments or streams outside the table, keep everything, or their `base` where rows hold more
        than that (docs/method.md A.9).
        """
        segment, tier, stream, holdout = self._cells()
        limit = limits_of(quotas, segment, tier, stream, holdout)
        kept = self.keep_events(self.rank < (limit if base is None else base.where_unlimited(limit, stream)))
        return kept._without(hidden) if hidden else kept

    def _without(self, hidden: Hidden) -> JaggedRows:
        lost = lost_by(hidden, *self._cells())
        events: dict[str, Any] = emptied({name: getattr(self, name) for name in EVENT_FIELDS}, lost)
        return replace(self, **events)

    def _cells(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Segment, tier, stream and hold-out (N,) of every event."""
        row = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        segment, stream = self.segment[row].astype(np.int64), self.stream.astype(np.int64)
        return segment, self.tier[row], stream, self.holdout[row]

    def cap_users(self, max_rows: int) -> JaggedRows:
        """At most about `max_rows` rows: whole users by ascending hash; 0 keeps all."""
        if not max_rows or len(self) <= max_rows:
            return self
        order = np.argsort(self.user.view(np.uint64), kind="stable")
        limit = self.user.view(np.uint64)[order[max_rows - 1]]
        return self.take(np.flatnonzero(self.user.view(np.uint64) <= limit))

    def batch(self, rows: NDArray[np.int64]) -> RankBatch:
        """The rows as a RankBatch of torch tensors on the CPU."""
        offsets, index = ragged_take(self.offsets, rows)
        tensor = torch.from_numpy
        whole = ("stream", "item", "dwell_bin", "match", "rank")
        events = {name: tensor(getattr(self, name)[index].astype(np.int64)) for name in whole}
        return RankBatch(
            offsets=tensor(offsets),
            **{
                name: tensor(getattr(self, name)[rows].astype(np.int64))
                for name in ("segment", "tier", "surface")
            },
            item_id=tensor(self.item_id[rows].astype(np.int64)),
            dense=tensor(self.dense[rows]),
            **events,
            z=tensor(self.z[index]),
            usable=tensor(self.usable[index]),
            log_age=tensor(self.log_age[index]),
            labels={head: tensor(values[rows]) for head, values in self.labels.items()},
            weight=tensor(self.weight[rows]),
            user=tensor(self.user[rows]),
        )

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[RankBatch]:
        """Batches of `size` rows (the last is shorter), shuffled iff a generator is given."""
        for rows in self.places(size, generator):
            yield self.batch(rows)

    def places(self, size: int, generator: torch.Generator | None = None) -> Iterator[NDArray[np.int64]]:
        """The rows of each of `batches`."""
        order = (
            np.arange(len(self))
            if generator is None
            else torch.randperm(len(self), generator=generator).numpy()
        )
        yield from pieces(order, size)


def load_rows(
    files: Sequence[str], *, heads: Sequence[str], item_buckets: int, surfaces: tuple[str, ...] | None = None
) -> JaggedRows:
    """All rows of the Parquet files; `surfaces` fixes the vocabulary, None takes the files' own.

    Raises InputError for missing columns or unequal history arrays, EnvironmentTrouble for lost files.
    """
    try:
        data = pads.dataset(list(files), format="parquet")
        labels = tuple(f"label_{head}" for head in heads)
        wanted = (*_ROW_COLUMNS, *labels, *_HISTORY)
        missing = sorted(set(wanted) - set(data.schema.names))
        if missing:
            raise InputError(
                f"training_rows: columns {missing} are missing; run `dynamix train` to write them anew"
            )
        known = (
            surfaces if surfaces is not None else _vocabulary(data.to_table(columns=["surface"])["surface"])
        )
        parts = [
            rows_from_table(part, heads=heads, item_buckets=item_buckets, surfaces=known, in_order=True)
            for part in _pieces(data, list(wanted))
        ]
    except (FileNotFoundError, pa.ArrowInvalid) as trouble:
        raise EnvironmentTrouble(
            f"training rows cannot be read: {trouble}; run `dynamix train` again"
        ) from trouble
    return sorted_rows(joined(parts))


def _pieces(data: pads.Dataset, columns: list[str]) -> Iterator[pa.Table]:
    """The files one after another, so that strings of one file at a time are in memory; an empty one at least."""
    empty = True
    for fragment in data.get_fragments():
        table = fragment.to_table(schema=data.schema, columns=columns)
        if table.num_rows:
            empty = False
            yield table.combine_chunks()
    if empty:
        yield data.schema.empty_table().select(columns)


def joined(parts: Sequence[JaggedRows]) -> JaggedRows:
    """Rows of several parts one after another; all share surfaces and heads."""
    first = parts[0]
    if len(parts) == 1:
        return first
    sizes = np.cumsum([0, *[p.tokens for p in parts[:-1]]])
    offsets = np.concatenate(
        [[0], *[p.offsets[1:] + start for p, start in zip(parts, sizes, strict=True)]]
    ).astype(np.int64)
    names = (*_PER_ROW, *EVENT_FIELDS)
    arrays: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
    labels = {head: np.concatenate([p.labels[head] for p in parts]) for head in first.labels}
    return replace(first, offsets=offsets, labels=labels, **arrays)


def sorted_rows(rows: JaggedRows) -> JaggedRows:
    """The rows in their order: user hash, time, impression hash."""
    return rows.take(np.lexsort((rows.impression_hash, rows.event_us, rows.user)))


def rows_from_table(
    table: pa.Table,
    *,
    heads: Sequence[str],
    item_buckets: int,
    surfaces: tuple[str, ...] | None = None,
    in_order: bool = False,
) -> JaggedRows:
    """JaggedRows of a table in the columns of `training_rows`; also what serving calls for raw requests.

    Rows are sorted (see JaggedRows) unless `in_order` leaves them as they come.
    """
    known = _vocabulary(table["surface"]) if surfaces is None else surfaces
    item_hash, category_hash = hash_ids(table["item_id"]), hash_ids(table["category"])
    events = _events(table, item_hash, category_hash, item_buckets)
    rows = JaggedRows(
        impression=table["impression_id"].to_numpy(),
        impression_hash=hash_ids(table["impression_id"]),
        user=hash_ids(table["user_id"]),
        event_us=instants_of(table["event_ts"]),
        request=hash_ids(table["request_id"]),
        segment=_numbers(table["segment_id"], 0).astype(np.int64),
        tier=_flags(pc.equal(table["tier"], "active")).astype(np.int64),
        surface=_flags_index(table["surface"], known),
        item_id=bucket(item_hash, item_buckets),
        item_hash=item_hash,
        dense=_dense(table),
        weight=_numbers(table["weight"], 1.0).astype(np.float32),
        part=_flags_index(table["part"], PARTS).astype(np.int8) - np.int8(1),
        holdout=_flags(table["holdout"]),
        labels={h: _numbers(table[f"label_{h}"], np.nan).astype(np.float32) for h in heads},
        surfaces=known,
        **events,
    )
    return rows if in_order else sorted_rows(rows)


def _events(
    table: pa.Table, item_hash: NDArray[np.int64], category_hash: NDArray[np.int64], item_buckets: int
) -> dict[str, Any]:
    lists = {name: _list(table[name]) for name in _HISTORY}
    offsets = lists["hist_stream"][0]
    uneven = [name for name in _HISTORY if not np.array_equal(lists[name][0], offsets)]
    if uneven:
        raise InputError(f"training_rows: {uneven} differ in length from hist_stream; write the rows anew")
    values = {name: pair[1] for name, pair in lists.items()}
    lengths = np.diff(offsets)
    item, category = hash_ids(values["hist_item"]), hash_ids(values["hist_category"])
    same_item = (item == np.repeat(item_hash, lengths)) & (item != 0)
    same_category = (category == np.repeat(category_hash, lengths)) & (category != 0)
    z = _numbers(values["hist_z"], np.nan).astype(np.float32)
    bins = _numbers(values["hist_dwell_bin"], NO_DWELL_BIN)
    usable = np.isfinite(z) & (bins < NO_DWELL_BIN)
    stream = _numbers(values["hist_stream"], 0).astype(np.int16)
    age = np.maximum(_numbers(values["hist_age_s"], 0.0), 0.0)
    return {
        "offsets": offsets,
        "stream": stream,
        "item": bucket(item, item_buckets),
        "dwell_bin": np.clip(bins, 0, NO_DWELL_BIN).astype(np.int8),
        "z": np.where(usable, z, np.float32(0)),
        "usable": usable,
        "log_age": np.log1p(age).astype(np.float32),
        "match": (same_item * ITEM_MATCH + same_category * CATEGORY_MATCH).astype(np.int8),
        "rank": stream_rank(offsets, stream).astype(np.int16),
    }


def _list(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.Array]:
    """Offsets from 0 and the flat values of a list column; a null list counts as empty."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets, array.flatten()


def _dense(table: pa.Table) -> NDArray[np.float32]:
    position, value = _numbers(table["position"], np.nan), _numbers(table["value"], np.nan)
    return np.stack(
        [
            np.log1p(np.maximum(np.nan_to_num(position), 0)),
            np.isnan(position),
            np.sign(np.nan_to_num(value)) * np.log1p(np.abs(np.nan_to_num(value))),
            np.isnan(value),
        ],
        axis=1,
    ).astype(np.float32)


def _numbers(values: pa.Array | pa.ChunkedArray, null: float) -> NDArray[np.float64]:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    filled = pc.fill_null(values.cast(pa.float64()), float(null))
    return np.asarray(filled.to_numpy(zero_copy_only=False), np.float64)


def _flags(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(pc.fill_null(values, False).to_numpy(), bool)


def _flags_index(values: pa.ChunkedArray, known: Sequence[str]) -> NDArray[np.int64]:
    """1 + place of each value in `known`, 0 for any other and for null."""
    place = pc.index_in(values, value_set=pa.array(list(known), pa.string()))
    return np.asarray(pc.fill_null(place, -1).to_numpy(), np.int64) + 1


def _vocabulary(values: pa.ChunkedArray) -> tuple[str, ...]:
    return tuple(sorted(v for v in pc.unique(values).to_pylist() if v is not None))
