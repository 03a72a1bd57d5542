"""Raw requests to the ranker's input in NumPy: history rule, dwell scale, segment, hold-out and mask as in training.

The rows come out in the columns of `training_rows` and go through the same `rows_from_table` as the
training files, so the program sees the same numbers whichever way they came (docs/method.md A.9).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dynamix.contracts import COLD_SEGMENT, DWELL_BIN_EDGES_S, N_DWELL_BINS, NO_DWELL_BIN
from dynamix.errors import InputError
from dynamix.features.quotas import HOLDOUT_PER_MILLE, NO_LIMIT, quota_table
from dynamix.models.batch import stream_rank
from dynamix.models.carried import CARRIED, Carried
from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.hashing import spark_xxhash64

Z_LIMIT = 3.0
_DAY_US, _WEEK_US = 86_400_000_000, 7 * 86_400_000_000
REQUEST = ("user_id", "request_ts", "item_id", "surface", "position", "events", "segment_id")


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


def cell_quotas(cells: Sequence[Cell], streams: Mapping[str, StreamScale]) -> NDArray[np.int32]:
    """Quotas (G, 2, F) of features/quotas.py from the cells of one mask version."""
    ids = {name: scale.stream_id for name, scale in streams.items()}
    return quota_table(((c.segment_id, c.tier, c.stream, c.quota) for c in cells), ids)


@dataclass(frozen=True)
class Segmenter:
    """Mixture over streams × dwell bins: log emission (K, F·13), log prior (K,), and when a user stays cold.

    `ids` are the stable segment ids of the K components; `active_from` the usable events of the last seven
    days from which on a user is active.
    """

    ids: tuple[int, ...]
    log_emission: NDArray[np.float64]
    log_prior: NDArray[np.float64]
    confidence: float
    min_events: int
    active_from: float
    dwell_bins: bool = True


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
    segmenter: Segmenter | None = None
    habits: Mapping[str, float] = field(default_factory=dict)
    carried: Carried = field(default_factory=Carried)

    def quotas(self) -> NDArray[np.int32]:
        """Newest events kept (G, 2, F) by segment, tier and stream; what no cell names has no limit."""
        return cell_quotas(self.cells, self.streams)

    @property
    def width(self) -> int:
        return 1 + max((s.stream_id for s in self.streams.values()), default=-1)

    def to_json(self) -> dict[str, str]:
        """File name -> content of the artefacts: streams, mask grid, segmenter, habits and the history rule."""
        rule = {
            name: getattr(self, name)
            for name in ("surfaces", "heads", "item_buckets", "per_stream", "total", "embargo_s", "mask_version",
                         "segment_version")
        }  # fmt: skip
        found = {
            "rule.json": rule,
            "streams.json": {name: vars(scale) for name, scale in self.streams.items()},
            "masks.json": [vars(cell) for cell in self.cells],
            "segmenter.json": None if self.segmenter is None else _segmenter_tree(self.segmenter),
            "habits.json": dict(self.habits),
            CARRIED: self.carried.to_tree(),
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
            cells=tuple(Cell(**cell) for cell in tree["masks.json"]),
            segmenter=None if stored is None else _segmenter_from(stored),
            habits=tree["habits.json"],
            carried=Carried.from_tree(tree.get(CARRIED, {})),
        )


@dataclass(frozen=True)
class _Events:
    """Flat events of all requests, oldest first inside each: row (N,), time (µs), stream id, z, dwell bin."""

    row: NDArray[np.int64]
    ts_us: NDArray[np.int64]
    stream: NDArray[np.int64]
    z: NDArray[np.float64]
    dwell_bin: NDArray[np.int64]
    item: pa.Array
    category: pa.Array
    conversion: NDArray[np.bool_]

    def take(self, index: NDArray[np.int64]) -> _Events:
        at = pa.array(index)
        return _Events(
            self.row[index], self.ts_us[index], self.stream[index], self.z[index], self.dwell_bin[index],
            self.item.take(at), self.category.take(at), self.conversion[index],
        )  # fmt: skip


def prepare(requests: pa.Table, preparation: Preparation) -> tuple[JaggedRows, NDArray[np.int64]]:
    """Rows for the ranker in the order of the requests, and the segment (B,) each was served with.

    A request needs `user_id`, `request_ts` (UTC), `surface` and `events`; `item_id`, `position`, `segment_id`,
    `category` and `value` may be missing or null. Events of unknown streams are left out. Raises InputError
    for missing columns. Events tie by their order in the request.
    """
    missing = [
        name for name in ("user_id", "request_ts", "surface", "events") if name not in requests.column_names
    ]
    if missing:
        raise InputError(f"request lacks {missing}; allowed columns: {', '.join(REQUEST)}, category, value")
    now = _micros(requests["request_ts"])
    users = requests["user_id"].cast(pa.string()).to_pylist()
    habits = [preparation.habits.get(u, 0.0) for u in users]
    events = _flatten(requests["events"], preparation, now=now, habits=habits)
    segment, tier = _segments(requests, events, now, preparation)
    holdout = np.array([spark_xxhash64("holdout", u) % 1000 < HOLDOUT_PER_MILLE for u in users], bool)
    kept = _history(events, now, segment, tier, holdout, preparation)
    table = _table(requests, kept, now, segment, tier, holdout, preparation)
    rows = rows_from_table(
        table, heads=preparation.heads, item_buckets=preparation.item_buckets, surfaces=preparation.surfaces,
        in_order=True,
    )  # fmt: skip
    return rows, segment


def _flatten(
    column: pa.ChunkedArray, preparation: Preparation, *, now: NDArray[np.int64], habits: Sequence[float]
) -> _Events:
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(array)), lengths)
    flat = array.flatten()
    names = list(preparation.streams)
    scales = [preparation.streams[name] for name in names]
    place = pc.index_in(_field(flat, "stream", pa.string()), value_set=pa.array(names, pa.string()))
    code = np.asarray(pc.fill_null(place, -1).to_numpy(zero_copy_only=False), np.int64)
    ts_us = _micros_array(_field(flat, "ts", None))
    dwell_ms = _field(flat, "dwell_ms", pa.float64())
    z, dwell_bin = _dwell(dwell_ms, code, row, scales, habits, left_us=now[row] - ts_us)
    ids = np.array([*(s.stream_id for s in scales), -1], np.int64)
    conversion = np.array([*(s.is_conversion for s in scales), False], bool)
    events = _Events(
        row, ts_us, ids[code], z, dwell_bin, _field(flat, "item_id", pa.string()),
        _field(flat, "category", pa.string()), conversion[code],
    )  # fmt: skip
    order = np.lexsort((ts_us, row))
    return events.take(order[code[order] >= 0])


def _dwell(
    dwell_ms: pa.Array,
    code: NDArray[np.int64],
    row: NDArray[np.int64],
    scales: Sequence[StreamScale],
    habits: Sequence[float],
    *,
    left_us: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """z (0 without a usable dwell or a scale) and dwell bin of each event, as docs/method.md A.2.3.

    `left_us` (N,) is the time from the event to its request: a dwell that goes on then is not known.
    """
    ms = np.asarray(pc.fill_null(dwell_ms, np.nan).to_numpy(zero_copy_only=False), np.float64)
    usable = np.isfinite(ms) & (ms >= 0) & ((ms + 1) * 1000 <= left_us)
    mu = np.array([*(np.nan if s.mu is None else s.mu for s in scales), np.nan])[code]
    sigma = np.array([*(np.nan if s.sigma is None else s.sigma for s in scales), np.nan])[code]
    scaled = usable & np.isfinite(mu) & (np.nan_to_num(sigma) > 0)
    habit = np.asarray(habits, np.float64)[row]
    z = np.zeros(len(ms))
    z[scaled] = np.clip(
        (np.log1p(ms[scaled]) - mu[scaled] - habit[scaled]) / sigma[scaled], -Z_LIMIT, Z_LIMIT
    )
    edges = np.asarray(DWELL_BIN_EDGES_S) * 1000
    bins = np.where(usable, np.searchsorted(edges, np.where(usable, ms, 0.0), side="left"), NO_DWELL_BIN)
    return z, bins


def _segments(
    requests: pa.Table, events: _Events, now: NDArray[np.int64], preparation: Preparation
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Segment and tier (1 = active) of each request: as given, else from the events before 00:00 of its day."""
    midnight = now - now % _DAY_US
    segmenter = preparation.segmenter
    n = len(now)
    if segmenter is None:
        found, tier = np.full(n, COLD_SEGMENT, np.int64), np.zeros(n, np.int64)
    else:
        past = (events.ts_us < midnight[events.row]) & ~events.conversion & (events.dwell_bin < N_DWELL_BINS)
        found = assign(events.row[past], events.stream[past], events.dwell_bin[past], n, segmenter)
        week = past & (events.ts_us >= midnight[events.row] - _WEEK_US)
        recent = np.bincount(events.row[week], minlength=n)
        tier = ((recent >= segmenter.active_from) & (found != COLD_SEGMENT)).astype(np.int64)
    if "segment_id" in requests.column_names:
        given = np.asarray(pc.fill_null(requests["segment_id"].cast(pa.int64()), -1).to_numpy(), np.int64)
        found = np.where(given >= 0, given, found)
    return found, tier


def assign(
    row: NDArray[np.int64],
    stream: NDArray[np.int64],
    dwell_bin: NDArray[np.int64],
    n: int,
    segmenter: Segmenter,
) -> NDArray[np.int64]:
    """Segment (n,) of the greatest posterior if it reaches the confidence and there are enough events, else 0."""
    width = segmenter.log_emission.shape[1]
    symbol = stream * N_DWELL_BINS + dwell_bin if segmenter.dwell_bins else stream
    known = symbol < width
    score = np.tile(segmenter.log_prior, (n, 1))
    np.add.at(score, row[known], segmenter.log_emission[:, symbol[known]].T)
    score -= score.max(axis=1, keepdims=True)
    posterior = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
    events = np.bincount(row[known], minlength=n)
    sure = (posterior.max(axis=1) >= segmenter.confidence) & (events >= segmenter.min_events)
    return np.where(sure, np.asarray(segmenter.ids)[posterior.argmax(axis=1)], COLD_SEGMENT)


def segment_counts(tree: Mapping[str, Any], users: Any) -> dict[str, Any]:
    """segment_id of each user from `counts` (F·13 event counts by stream and dwell bin), by a stored mixture."""
    segmenter = _segmenter_from(tree)
    counts = np.stack([np.asarray(c, np.float64) for c in users["counts"]])
    score = counts[:, : segmenter.log_emission.shape[1]] @ segmenter.log_emission.T + segmenter.log_prior
    score -= score.max(axis=1, keepdims=True)
    posterior = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
    sure = (posterior.max(axis=1) >= segmenter.confidence) & (counts.sum(axis=1) >= segmenter.min_events)
    found = np.where(sure, np.asarray(segmenter.ids)[posterior.argmax(axis=1)], COLD_SEGMENT)
    return {"user_id": list(users["user_id"]), "segment_id": found.tolist()}


def _history(
    events: _Events,
    now: NDArray[np.int64],
    segment: NDArray[np.int64],
    tier: NDArray[np.int64],
    holdout: NDArray[np.bool_],
    preparation: Preparation,
) -> _Events:
    """The newest `per_stream` of each stream before the embargo, of those the newest `total`, then the mask."""
    before = events.ts_us < (now - round(preparation.embargo_s * 1e6))[events.row]
    events = events.take(np.flatnonzero(before))
    length = preparation.carried.limits(events.stream, preparation.per_stream)
    events = events.take(np.flatnonzero(_rank(events, len(now), by_stream=True) < length))
    events = events.take(np.flatnonzero(_rank(events, len(now), by_stream=False) < preparation.total))
    quotas = preparation.quotas()
    limit = np.full(len(events.row), NO_LIMIT, np.int64)
    own = segment[events.row]
    at = np.flatnonzero(~holdout[events.row] & (own >= 0) & (own < len(quotas)))
    limit[at] = quotas[own[at], tier[events.row[at]], events.stream[at]]
    return events.take(np.flatnonzero(_rank(events, len(now), by_stream=True) < limit))


def _rank(events: _Events, n: int, *, by_stream: bool) -> NDArray[np.int64]:
    offsets = np.concatenate([[0], np.cumsum(np.bincount(events.row, minlength=n))]).astype(np.int64)
    return stream_rank(offsets, events.stream if by_stream else np.zeros_like(events.stream))


def _table(
    requests: pa.Table,
    events: _Events,
    now: NDArray[np.int64],
    segment: NDArray[np.int64],
    tier: NDArray[np.int64],
    holdout: NDArray[np.bool_],
    preparation: Preparation,
) -> pa.Table:
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
        "holdout": pa.array(holdout),
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
    return pa.table(
        columns | {name: pa.ListArray.from_arrays(ends, value) for name, value in history.items()}
    )


def _field(flat: pa.StructArray, name: str, kind: pa.DataType | None) -> pa.Array:
    """A field of the event struct; absent fields are null."""
    if pa.types.is_null(flat.type) or flat.type.get_field_index(name) < 0:
        return pa.nulls(len(flat), kind or pa.timestamp("us"))
    values = flat.field(name)
    return values if kind is None else values.cast(kind)


def _micros(column: pa.ChunkedArray) -> NDArray[np.int64]:
    array = column.combine_chunks()
    return _micros_array(array.chunk(0) if isinstance(array, pa.ChunkedArray) else array)


def _micros_array(values: pa.Array) -> NDArray[np.int64]:
    """Instants as µs since 1970 UTC from timestamps of any unit, or from text in ISO form."""
    stamped = values if pa.types.is_timestamp(values.type) else values.cast(pa.timestamp("us"))
    whole = stamped.cast(pa.timestamp("us", stamped.type.tz), safe=False).cast(pa.int64())
    return np.asarray(whole.to_numpy(zero_copy_only=False), np.int64)


def _segmenter_tree(segmenter: Segmenter) -> dict[str, object]:
    tree = dict(vars(segmenter))
    return tree | {"log_emission": segmenter.log_emission.tolist(), "log_prior": segmenter.log_prior.tolist()}


def _segmenter_from(tree: Mapping[str, Any]) -> Segmenter:
    arrays = {name: np.asarray(tree[name], np.float64) for name in ("log_emission", "log_prior")}
    return Segmenter(**{**tree, **arrays, "ids": tuple(tree["ids"])})
