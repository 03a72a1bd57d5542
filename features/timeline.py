"""A user's events and impressions side by side, as blocks of whole users in NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.contracts import EVENT_ORDER, NO_DWELL_BIN

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ROW_TARGET = 200_000
"""Rows of events and impressions that make a block; a block always ends with a whole user."""
PARCEL_ROWS = 100_000
"""Events and impressions of a parcel on average."""


@dataclass(frozen=True)
class EventBlock:
    """N events of whole users, sorted by (user, event_ts, event_seq, ingest_ts, event_id), nulls first.

    Codes are dense within the block and shared with the ImpressionBlock; −1 stands for NULL.
    """

    user: Ints
    ts_us: Ints
    ingest_us: Ints
    request: Ints
    stream: npt.NDArray[np.int16]
    item: Ints
    category: Ints
    z: npt.NDArray[np.float64]
    """NaN = no usable dwell."""
    dwell_bin: npt.NDArray[np.int8]
    censored: Bools
    item_name: Any
    """pyarrow string array (N,)."""
    category_name: Any
    after_us: Ints | None = None
    """(N,) the event is there only for impressions strictly after this instant; None = for all."""
    until_us: Ints | None = None
    """(N,) and only for impressions up to this one."""
    told_us: Ints | None = None
    """(N,) from this instant on it is known how long the event was dwelt on, or that nobody will know; None = always."""


@dataclass(frozen=True)
class ImpressionBlock:
    """B impressions of the same users; `frame` is a pyarrow.Table (B rows) with all their columns."""

    user: Ints
    ts_us: Ints
    request: Ints
    item: Ints
    category: Ints
    frame: Any


_EVENT_FIELDS = {
    "event_ts": "timestamp",
    "ingest_ts": "timestamp",
    "request_id": "string",
    "item_id": "string",
    "category": "string",
    "stream_id": "smallint",
    "z": "double",
    "dwell_bin": "tinyint",
    "censored": "boolean",
}
_SEEN_FIELDS = {"after_us": "bigint", "until_us": "bigint", "told_us": "bigint"}
"""Only where events, or what is known of them, are there for some impressions of their user and not for others."""
_IMPRESSION_FIELDS = ("event_ts", "request_id", "item_id", "category")


def parcels_of(n_rows: int) -> int:
    """Parcels of a good size for a scan over so many events and impressions."""
    return 1 + n_rows // PARCEL_ROWS


def user_timeline(events: DataFrame, impressions: DataFrame, *, parcels: int = 0) -> DataFrame:
    """Events (`impression` NULL) and impressions of a user together, in the total order of events.

    With `parcels` a further column `parcel` 0..parcels−1, a hash of the user alone; rows of a parcel stand together.
    """

    def field(frame: DataFrame, name: str, sql_type: str) -> Column:
        have = F.col(f"`{name}`") if name in frame.columns else F.lit(None)
        return have.cast(sql_type).alias(name)

    order = {"event_seq": "bigint", "event_id": "string"}
    fields = _EVENT_FIELDS | {name: kind for name, kind in _SEEN_FIELDS.items() if name in events.columns}
    past = events.select(
        "user_id",
        F.lit(None).cast(impressions.schema.simpleString()).alias("impression"),
        *[field(events, name, kind) for name, kind in (fields | order).items()],
    )
    asked = impressions.select(
        "user_id",
        F.struct(*[F.col(f"`{name}`") for name in impressions.columns]).alias("impression"),
        *[
            field(impressions, name, kind)
            if name in (*_IMPRESSION_FIELDS, *order, "ingest_ts")
            else F.lit(None).cast(kind).alias(name)
            for name, kind in (fields | order).items()
        ],
    )
    whole, by = past.unionByName(asked), ["user_id"]
    if parcels:
        whole = whole.withColumn("parcel", F.pmod(F.xxhash64(F.lit("parcel"), "user_id"), F.lit(parcels)))
        by = ["parcel", "user_id"]
    return whole.repartition(by[0]).sortWithinPartitions(*by, *EVENT_ORDER).select(*by, "impression", *fields)


def whole_users(batches: Iterator[Any], *, by: str = "user_id", target: int = ROW_TARGET) -> Iterator[Any]:
    """Regroup batches sorted by column `by` into tables of at least `target` rows that never split one of its values."""
    held: list[Any] = []
    rows, limit = 0, target
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows < limit:
            continue
        table = pa.Table.from_batches(held)
        cut = _last_start(table.column(by))
        if cut:
            yield table.slice(0, cut)
        held = table.slice(cut).to_batches()
        rows = table.num_rows - cut
        limit = max(target, 2 * rows)  # a user longer than that is joined once per doubling, not per batch
    if rows:
        yield pa.Table.from_batches(held)


def each_parcel(batches: Iterator[Any]) -> Iterator[Any]:
    """Regroup batches sorted by column `parcel` into one table a parcel, however Spark cut and joined partitions."""
    for table in whole_users(batches, by="parcel"):
        column = table.column("parcel").to_numpy()
        borders = np.flatnonzero(column[1:] != column[:-1]) + 1
        for start, stop in zip([0, *borders], [*borders, len(column)], strict=True):
            yield table.slice(start, stop - start)


def _last_start(column: Any) -> int:
    """Row at which the last value of a sorted column begins."""
    return int(pc.index(column, column[-1]).as_py())


def blocks(table: Any) -> tuple[EventBlock, ImpressionBlock]:
    """Split a sorted timeline of whole users into its events and its impressions, with shared codes."""
    table = table.combine_chunks()
    asked = pc.is_valid(table.column("impression").combine_chunks())
    code = {name: codes(table.column(name))[0] for name in ("user_id", "request_id", "item_id", "category")}
    seen: Bools = asked.to_numpy(zero_copy_only=False).astype(bool)
    past = table.filter(pc.invert(asked))
    nested = table.filter(asked).column("impression").combine_chunks()
    frame = pa.Table.from_arrays(nested.flatten(), names=[field.name for field in nested.type])
    events = EventBlock(
        user=code["user_id"][~seen],
        ts_us=_micros(past.column("event_ts")),
        ingest_us=_micros(past.column("ingest_ts")),
        request=code["request_id"][~seen],
        stream=_numbers(past.column("stream_id"), -1).astype(np.int16),
        item=code["item_id"][~seen],
        category=code["category"][~seen],
        z=_numbers(past.column("z"), np.nan).astype(np.float64),
        dwell_bin=_numbers(past.column("dwell_bin"), NO_DWELL_BIN).astype(np.int8),
        censored=_numbers(past.column("censored"), False).astype(bool),
        item_name=past.column("item_id").combine_chunks(),
        category_name=past.column("category").combine_chunks(),
        **_seen(past),
    )
    impressions = ImpressionBlock(
        user=code["user_id"][seen],
        ts_us=_micros(table.column("event_ts").filter(asked)),
        request=code["request_id"][seen],
        item=code["item_id"][seen],
        category=code["category"][seen],
        frame=frame,
    )
    return events, impressions


def _seen(past: Any) -> dict[str, Ints]:
    """after_us, until_us and told_us where the timeline has them; NULL sets no limit."""
    whole = np.iinfo(np.int64)
    open_ends = {"after_us": whole.min, "until_us": whole.max, "told_us": whole.min}
    return {
        name: _numbers(past.column(name), end).astype(np.int64)
        for name, end in open_ends.items()
        if name in past.column_names
    }


def codes(column: Any) -> tuple[Ints, Any]:
    """(dense codes by first appearance, −1 for NULL; the distinct values) of an Arrow column."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = whole.dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return np.asarray(pc.fill_null(encoded.indices, -1)).astype(np.int64), encoded.dictionary


def _micros(column: Any) -> Ints:
    micros = column.cast(pa.timestamp("us", tz=getattr(column.type, "tz", None))).cast(pa.int64())
    return _numbers(micros, np.iinfo(np.int64).min).astype(np.int64)


def _numbers(column: Any, missing: Any) -> npt.NDArray[Any]:
    filled = pc.fill_null(column, pa.scalar(missing, type=column.type))
    return np.asarray(filled.to_numpy() if isinstance(filled, pa.ChunkedArray) else filled)
