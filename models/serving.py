"""Raw requests to the ranker's input in NumPy: history rule, dwell scale, segment, hold-out and mask as in training.

The rows come out in the columns of `training_rows` and go through the same `rows_from_table` as the
training files, so the program sees the same numbers whichever way they came (docs/method.md A.9).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dynamix.contracts import COLD_SEGMENT, DWELL_BIN_EDGES_S, NO_DWELL_BIN, TIERS
from dynamix.declarations import base_stream
from dynamix.errors import InputError
from dynamix.features.attributes import Hidden, emptied, lost_by
from dynamix.features.calendar import DAY_US
from dynamix.features.quotas import BaseQuota, limits_of, quota_table
from dynamix.models import attributes
from dynamix.models.arrow_columns import codes, field_of, instants, instants_of
from dynamix.models.batch import stream_rank
from dynamix.models.carried import CARRIED, Carried
from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.dwells import DWELL, DwellRule, Logged, settle
from dynamix.models.hashing import is_held_out
from dynamix.models.segmenter import Past, Segmenter, assign, recent_events, stored_segmenter

if TYPE_CHECKING:
    from dynamix.models.event_segmenter import EventSegmenter

Z_LIMIT = 3.0
REQUEST = ("user_id", "request_ts", "item_id", "surface", "position", "events", "segment_id", "tier")


@dataclass(frozen=True)
class StreamScale:
    """A stream's id and the scale of its log dwell; mu None means that it has no dwell channel.

    `is_conversion` keeps it out of the segmenter's counts, as conversions and sensitive streams are.
    """

    stream_id: int
    mu: float | None
    sigma: float | None
    is_conversion: bool = False


@dataclass(frozen=True)
class Cell:
    """One row of the mask grid; tier `*` stands for both."""

    segment_id: int
    tier: str
    stream: str
    quota: int
    boost: float = 0.0
    attributes: tuple[str, ...] | None = None
    """What its kept events still carry; None = all."""


def cell_quotas(cells: Sequence[Cell], streams: Mapping[str, StreamScale]) -> NDArray[np.int32]:
    """Quotas (G, 2, F) of features/quotas.py from the cells of one mask version."""
    ids = {name: scale.stream_id for name, scale in streams.items()}
    return quota_table(((c.segment_id, c.tier, c.stream, c.quota) for c in cells), ids)


@dataclass(frozen=True)
class Preparation:
    """Everything beside the weights that turns a raw request into the ranker's input; stored as JSON."""

    streams: Mapping[str, StreamScale]
    surfaces: tuple[str, ...]
    heads: tuple[str, ...]
    item_buckets: int
    per_stream: int
    total: int
    embargo_s: float
    mask_version: str = "keep-all"
    segment_version: str = ""
    cells: tuple[Cell, ...] = ()
    segmenter: Segmenter | EventSegmenter | None = None
    habits: Mapping[str, float] = field(default_factory=dict)
    carried: Carried = field(default_factory=Carried)
    dwell: DwellRule = field(default_factory=DwellRule)
    boost_to: int = 0
    """Newest events of a stream that a quota may ask for; 0 where no cell is boosted."""

    def base(self) -> BaseQuota:
        """Newest events of a stream that stay where no cell says otherwise."""
        return BaseQuota(self.per_stream, self.carried.lengths)

    def quotas(self) -> NDArray[np.int32]:
        """Newest events kept (G, 2, F) by segment, tier and stream; what no cell names has no limit."""
        return cell_quotas(self.cells, self.streams)

    def attributes(self) -> Hidden:
        """Attributes that kept events lose, by segment, tier and stream."""
        return attributes.cell_attributes(self.cells, self.streams)

    @property
    def width(self) -> int:
        return 1 + max((s.stream_id for s in self.streams.values()), default=-1)

    def counted_as(self) -> NDArray[np.int64]:
        """Stream id (F,) under which a segmenter counts each stream's events: without its session kind."""
        ids = np.arange(self.width)
        for name, scale in self.streams.items():
            ids[scale.stream_id] = self.streams.get(base_stream(name), scale).stream_id
        return ids

    def has_scale(self) -> NDArray[np.bool_]:
        """Whether dwells of each stream (F,) have a z."""
        found = np.zeros(self.width, bool)
        for scale in self.streams.values():
            found[scale.stream_id] = scale.mu is not None and (scale.sigma or 0.0) > 0
        return found

    def to_json(self) -> dict[str, str]:
        """File name -> content of the artefacts: streams, mask grid, segmenter, habits and the history rule."""
        rule = {
            name: getattr(self, name)
            for name in ("surfaces", "heads", "item_buckets", "per_stream", "total", "embargo_s", "mask_version",
                         "segment_version")
        }  # fmt: skip
        if self.boost_to:
            rule["boost_to"] = self.boost_to
        found = {
            "rule.json": rule,
            "streams.json": {name: vars(scale) for name, scale in self.streams.items()},
            "masks.json": [attributes.to_tree(cell) for cell in self.cells],
            "segmenter.json": None if self.segmenter is None else self.segmenter.to_tree(),
            "habits.json": dict(self.habits),
            CARRIED: self.carried.to_tree(),
            DWELL: self.dwell.to_tree(),
        }
        return {name: json.dumps(tree, sort_keys=True) for name, tree in found.items()}

    @classmethod
    def from_json(cls, files: Mapping[str, str]) -> Preparation:
        tree = {name: json.loads(text) for name, text in files.items()}
        rule = tree["rule.json"]
        stored = tree["segmenter.json"]
        return cls(
            **{**rule, "surfaces": tuple(rule["surfaces"]), "heads": tuple(rule["heads"])},
            streams={name: StreamScale(**scale) for name, scale in tree["streams.json"].items()},
            cells=tuple(Cell(**attributes.from_tree(cell)) for cell in tree["masks.json"]),
            segmenter=None if stored is None else stored_segmenter(stored),
            habits=tree["habits.json"],
            carried=Carried.from_tree(tree.get(CARRIED, {})),
            dwell=DwellRule.from_tree(tree.get(DWELL, {})),
        )


@dataclass(frozen=True)
class Events:
    """Flat events of all requests, oldest first inside each: row (N,), time (µs), stream id, z, dwell bin.

    `place` is the number of the event within its request as it came.
    """

    row: NDArray[np.int64]
    place: NDArray[np.int64]
    ts_us: NDArray[np.int64]
    stream: NDArray[np.int64]
    z: NDArray[np.float64]
    dwell_bin: NDArray[np.int64]
    item: pa.Array
    category: pa.Array
    conversion: NDArray[np.bool_]

    def take(self, index: NDArray[np.int64]) -> Events:
        """The events at these places of the arrays, in this order."""
        at = pa.array(index)
        return Events(
            self.row[index], self.place[index], self.ts_us[index], self.stream[index], self.z[index],
            self.dwell_bin[index], self.item.take(at), self.category.take(at), self.conversion[index],
        )  # fmt: skip


@dataclass(frozen=True)
class Applied:
    """What segment and mask make of B requests: segment, tier (1 = active), hold-out (B,), the events kept."""

    now: NDArray[np.int64]
    segment: NDArray[np.int64]
    tier: NDArray[np.int64]
    holdout: NDArray[np.bool_]
    kept: Events

    def lost(self, preparation: Preparation) -> dict[str, NDArray[np.bool_]]:
        """By attribute, which of the kept events (N,) lose it under the mask."""
        row, stream = self.kept.row, self.kept.stream
        return lost_by(preparation.attributes(), self.segment[row], self.tier[row], stream, self.holdout[row])


def apply(requests: pa.Table, preparation: Preparation) -> Applied:
    """Segment, tier and kept history of each request; see `prepare` for what a request holds."""
    missing = [
        name for name in ("user_id", "request_ts", "surface", "events") if name not in requests.column_names
    ]
    if missing:
        raise InputError(f"request lacks {missing}; allowed columns: {', '.join(REQUEST)}, category, value")
    now = instants_of(requests["request_ts"])
    users = requests["user_id"].cast(pa.string()).to_pylist()
    habits = np.array([preparation.habits.get(u, 0.0) for u in users], np.float64)
    events = _flatten(requests["events"], preparation, now=now, habits=habits)
    segment, tier = _segments(requests, events, now, preparation)
    holdout = np.array([is_held_out(u) for u in users], bool)
    return Applied(now, segment, tier, holdout, _history(events, now, segment, tier, holdout, preparation))


def prepare(requests: pa.Table, preparation: Preparation) -> tuple[JaggedRows, NDArray[np.int64]]:
    """Rows for the ranker in the order of the requests, and the segment (B,) each was served with.

    A request needs `user_id`, `request_ts` (UTC), `surface` and `events`; `item_id`, `position`, `segment_id`,
    `tier`, `category` and `value` may be missing or null. Events of unknown streams are left out. Raises InputError
    for missing columns. Events tie by their order in the request.
    """
    found = apply(requests, preparation)
    rows = rows_from_table(
        _table(requests, found, preparation), heads=preparation.heads, item_buckets=preparation.item_buckets,
        surfaces=preparation.surfaces, in_order=True,
    )  # fmt: skip
    return rows, found.segment


def _flatten(
    column: pa.ChunkedArray, preparation: Preparation, *, now: NDArray[np.int64], habits: NDArray[np.float64]
) -> Events:
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(array)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    flat = array.flatten()
    names = list(preparation.streams)
    found = pc.index_in(field_of(flat, "stream", pa.string()), value_set=pa.array(names, pa.string()))
    code = np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), np.int64)
    ts_us = instants(field_of(flat, "ts", None))
    order = np.lexsort((ts_us, row))
    order = order[code[order] >= 0]
    row, place, ts_us, code = row[order], place[order], ts_us[order], code[order]
    scales = [preparation.streams[name] for name in names]
    stream = np.array([s.stream_id for s in scales], np.int64)[code]
    logged = pc.fill_null(field_of(flat, "dwell_ms", pa.float64()), np.nan).to_numpy(zero_copy_only=False)[
        order
    ]
    session = codes(field_of(flat, "session_id", pa.string()))[order]
    ms = settle(Logged(row, ts_us, stream, logged, session), now[row], preparation.dwell)
    z, dwell_bin = _scaled(ms, code, scales, habits[row])
    at = pa.array(order)
    return Events(
        row, place, ts_us, stream, z, dwell_bin, field_of(flat, "item_id", pa.string()).take(at),
        field_of(flat, "category", pa.string()).take(at), np.array([s.is_conversion for s in scales], bool)[code],
    )  # fmt: skip


def _scaled(
    ms: NDArray[np.float64],
    code: NDArray[np.int64],
    scales: Sequence[StreamScale],
    habit: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """z (0 without a usable dwell or a scale) and dwell bin of each event, as docs/method.md A.2.3."""
    usable = np.isfinite(ms)
    mu = np.array([np.nan if s.mu is None else s.mu for s in scales])[code]
    sigma = np.array([np.nan if s.sigma is None else s.sigma for s in scales])[code]
    scaled = usable & np.isfinite(mu) & (np.nan_to_num(sigma) > 0)
    z = np.zeros(len(ms))
    z[scaled] = np.clip(
        (np.log1p(ms[scaled]) - mu[scaled] - habit[scaled]) / sigma[scaled], -Z_LIMIT, Z_LIMIT
    )
    edges = np.asarray(DWELL_BIN_EDGES_S) * 1000
    bins = np.where(usable, np.searchsorted(edges, np.where(usable, ms, 0.0), side="left"), NO_DWELL_BIN)
    return z, bins


def _segments(
    requests: pa.Table, events: Events, now: NDArray[np.int64], preparation: Preparation
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Segment and tier (1 = active) of each request: as given, else from the events before 00:00 of its day."""
    n, segmenter = len(now), preparation.segmenter
    midnight = (now - now % DAY_US)[events.row]
    since = 0 if segmenter is None else segmenter.since_us
    at = (events.ts_us < midnight) & (events.ts_us >= since) & ~events.conversion
    ago = (midnight[at] - 1 - events.ts_us[at]) // DAY_US
    scaled = (events.dwell_bin[at] != NO_DWELL_BIN) & preparation.has_scale()[events.stream[at]]
    past = Past(
        events.row[at], preparation.counted_as()[events.stream[at]], events.dwell_bin[at], ago,
        (events.ts_us[at] - since) / 1e6, np.where(scaled, events.z[at], np.nan),
    )  # fmt: skip
    found = np.full(n, COLD_SEGMENT, np.int64) if segmenter is None else assign(past, n, segmenter)
    if "segment_id" in requests.column_names:
        given = np.asarray(pc.fill_null(requests["segment_id"].cast(pa.int64()), -1).to_numpy(), np.int64)
        found = np.where(given >= 0, given, found)
    active = recent_events(past, n) >= (np.inf if segmenter is None else segmenter.active_from)
    tier = (active & (found != COLD_SEGMENT)).astype(np.int64)
    if "tier" in requests.column_names:
        named = pc.fill_null(requests["tier"].cast(pa.string()), "").to_numpy()
        tier = np.where(np.isin(named, TIERS), named == TIERS[0], tier).astype(np.int64)
    return found, tier


def _history(
    events: Events,
    now: NDArray[np.int64],
    segment: NDArray[np.int64],
    tier: NDArray[np.int64],
    holdout: NDArray[np.bool_],
    preparation: Preparation,
) -> Events:
    """The newest events before the embargo by stream and in all, as `kept_history` has them, then the mask."""
    before = events.ts_us < (now - round(preparation.embargo_s * 1e6))[events.row]
    events = events.take(np.flatnonzero(before))
    base = preparation.base()
    length = base.lengthened(events.stream, preparation.boost_to)
    events = events.take(np.flatnonzero(_rank(events, len(now), by_stream=True) < length))
    events = events.take(np.flatnonzero(_within_total(events, len(now), base, preparation.total)))
    row = events.row
    limit = limits_of(preparation.quotas(), segment[row], tier[row], events.stream, holdout[row])
    limit = base.where_unlimited(limit, events.stream)
    return events.take(np.flatnonzero(_rank(events, len(now), by_stream=True) < limit))


def _within_total(events: Events, n: int, base: BaseQuota, total: int) -> NDArray[np.bool_]:
    """Of the base the newest `total` of each of n requests, and what lies beyond a base that stays as a whole (N,)."""
    rank, limit = _rank(events, n, by_stream=True), base.of(events.stream)
    near = np.flatnonzero(rank < limit)
    kept = np.zeros(len(rank), bool)
    kept[near] = _rank(events.take(near), n, by_stream=False) < total
    cell = events.row * (1 + int(events.stream.max(initial=0))) + events.stream
    whole = np.isin(cell, cell[kept & (rank == limit - 1)])
    return np.asarray(kept | ((rank >= limit) & whole))


def _rank(events: Events, n: int, *, by_stream: bool) -> NDArray[np.int64]:
    offsets = np.concatenate([[0], np.cumsum(np.bincount(events.row, minlength=n))]).astype(np.int64)
    return stream_rank(offsets, events.stream if by_stream else np.zeros_like(events.stream))


def _table(requests: pa.Table, found: Applied, preparation: Preparation) -> pa.Table:
    now, segment, tier, events = found.now, found.segment, found.tier, found.kept
    n = len(now)
    ends = pa.array(np.concatenate([[0], np.cumsum(np.bincount(events.row, minlength=n))]).astype(np.int32))
    age_s = (now[events.row] - events.ts_us) / 1e6

    def optional(name: str, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
        return requests[name].cast(kind) if name in requests.column_names else pa.nulls(n, kind)

    columns: dict[str, Any] = {
        "impression_id": pa.array(np.arange(n).astype(str)),
        "user_id": requests["user_id"].cast(pa.string()),
        "event_ts": pa.array(now, pa.timestamp("us")),
        "request_id": pa.nulls(n, pa.string()),
        "surface": requests["surface"].cast(pa.string()),
        "item_id": optional("item_id", pa.string()),
        "category": optional("category", pa.string()),
        "position": optional("position", pa.float64()),
        "value": optional("value", pa.float64()),
        "weight": pa.array(np.ones(n)),
        "part": pa.array(["test"] * n),
        "segment_id": pa.array(segment),
        "tier": pa.array(np.where(tier > 0, "active", "passive")),
        "holdout": pa.array(found.holdout),
        **{f"label_{head}": pa.nulls(n, pa.float64()) for head in preparation.heads},
    }
    carried, stream = preparation.carried, events.stream
    no_dwell = carried.hides("dwell", stream)
    history = {
        "hist_stream": pa.array(stream.astype(np.int16)),
        "hist_item": carried.shown("item", stream, events.item),
        "hist_category": carried.shown("category", stream, events.category),
        "hist_dwell_bin": pa.array(np.where(no_dwell, NO_DWELL_BIN, events.dwell_bin).astype(np.int8)),
        "hist_z": pa.array(np.where(no_dwell, 0.0, events.z).astype(np.float32)),
        "hist_age_s": carried.shown("recency", stream, pa.array(age_s.astype(np.float32))),
    }
    history = emptied(history, found.lost(preparation))
    return pa.table(
        columns | {name: pa.ListArray.from_arrays(ends, value) for name, value in history.items()}
    )
