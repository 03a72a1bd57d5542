"""Training rows: labelled impressions with their part, segment and the kept history under one mask version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import COLD_SEGMENT, NO_DWELL_BIN, TIERS, TRAINING_ROWS
from dynamix.features.attributes import Hidden, emptied, hidden_tables, lost_by
from dynamix.features.calendar import DAY_US, Calendar, instant_sql
from dynamix.features.history import EventBlock, ImpressionBlock, Kernel, dwell_told, map_histories
from dynamix.features.instants import day_sql
from dynamix.features.quotas import HOLDOUT_PER_MILLE, NO_LIMIT, BaseQuota, apply_quotas, quota_table
from dynamix.features.streams import hidden_attributes, stream_lengths
from dynamix.features.timeline import Ints

COLLECTED = "collected"
"""Name of the rows with all that a boost could reach, from which those under any mask are cut."""
_COLD_TIER = "passive"
_OF_THE_FUTURE = ("part", "label_click", "label_conversion", "label_mature_ts")


def holdout_users() -> Column:
    """True for users that keep their full history in every mask version (1.5 % by hash of the id)."""
    bucket = F.pmod(F.xxhash64(F.lit("holdout"), F.col("user_id")), F.lit(1000))
    return bucket < HOLDOUT_PER_MILLE


def training_rows(
    events: DataFrame,
    impressions: DataFrame,
    segments: DataFrame,
    masks: DataFrame | None,
    *,
    calendar: Calendar,
    config: Config,
    streams: DataFrame,
    mask_version: str,
) -> DataFrame:
    """The `training_rows` of one mask version; `masks` None keeps every event of the history.

    `events` carries `event_columns`, `impressions` the labels of features/conversions.py, `segments` is the SCD2
    table of one lineage, `masks` the grid of this version alone. Grain: one row per impression whose part
    (train, validate, test by event_ts) ends no earlier than its label_mature_ts; all others are left out.
    The segment is the one valid at 00:00 of the impression's day; none: 0, passive. The mask keeps the newest
    `quota` events per stream of what the history rule kept, so masked rows are subsets of keep-all rows; a
    stream or segment that is not in the grid is kept. Hold-out users keep everything. With `mask.boost_to` a quota may
    go beyond `history.per_stream`; what has none keeps the history without boosts, and so does keep-all. Under the
    version COLLECTED, without `masks`, rows hold all that a boost could reach. Arrays are oldest
    first: hist_z is 0 where an event has no usable dwell, or none that was over by t_i (its bin says so),
    hist_age_s is t_i − t in seconds.
    Declared lengths replace `history.per_stream`; what a stream does not carry, or a cell of the grid loses (`attributes`
    of `masks`), is empty: NULL item, category or age, dwell bin 12.
    The two grids, a few hundred rows, are read to the driver and travel in the kernel. Source: A.9.
    """
    ids = stream_ids(streams)
    grid = [] if masks is None else _grid(masks)
    quotas = None if masks is None else quota_table([row[:4] for row in grid], ids)
    hidden = hidden_tables([(*row[:3], row[4]) for row in grid], ids)
    base = BaseQuota(config.history.per_stream, stream_lengths(ids, config))
    longer = masks is not None or mask_version == COLLECTED
    rows = with_segments(with_part(impressions, calendar), segments)
    rows = rows.withColumn("mask_version", F.lit(mask_version)).withColumn("holdout", holdout_users())
    untimed = [i for i, names in hidden_attributes(ids, config).items() if "recency" in names]
    return map_histories(
        events,
        rows.select(*_plain_columns()),
        history=config.history,
        kernel=_training_kernel(quotas, untimed, base, hidden),
        schema=TRAINING_ROWS.ddl(),
        lengths=base.lengths,
        boost_to=config.mask.boost_to if longer else 0,
    )


def rows_to_score(
    events: DataFrame, impressions: DataFrame, segments: DataFrame, *,
    config: Config, streams: DataFrame, then: Callable[[Any], Any], schema: str, boost_to: int = 0, parcels: int = 1,
) -> DataFrame:  # fmt: skip
    """What `then` makes of impressions of any age with their whole kept histories, in rows of `schema` (a DDL string).

    `boost_to` collects as for COLLECTED rows.
    `impressions` are event rows, the other arguments as in `training_rows`. `then` takes a pyarrow.Table in the columns
    of `training_rows` under keep-all, with NULL for part and labels, and returns one; blocks, and so what is computed
    from a block at once, are the same for the same number of `parcels` (`map_histories`).
    """
    ids = stream_ids(streams)
    rows = with_segments(impressions, segments)
    rows = rows.withColumn("mask_version", F.lit("keep-all")).withColumn("holdout", holdout_users())
    unknown = [c.name for c in TRAINING_ROWS.columns if c.name in _OF_THE_FUTURE]
    rows = rows.withColumns({name: F.lit(None) for name in unknown})
    untimed = [i for i, names in hidden_attributes(ids, config).items() if "recency" in names]
    lengths = stream_lengths(ids, config)
    made = _training_kernel(None, untimed, BaseQuota(config.history.per_stream, lengths))

    def kernel(events: EventBlock, asked: ImpressionBlock, offsets: Ints, index: Ints) -> Any:
        return then(made(events, asked, offsets, index))

    return map_histories(
        events, rows.select(*_plain_columns()), history=config.history, kernel=kernel, schema=schema,
        lengths=lengths, boost_to=boost_to, parcels=parcels,
    )  # fmt: skip


def stream_ids(streams: DataFrame) -> dict[str, int]:
    """Id of every stream by name; one Spark job over a few rows."""
    return {str(r["stream"]): int(r["stream_id"]) for r in streams.select("stream", "stream_id").collect()}


def with_part(impressions: DataFrame, calendar: Calendar) -> DataFrame:
    """Impressions that belong to a part and are mature by its end, with `part`."""
    part = F.lit(None).cast("string")
    for name, period in calendar.parts.items():
        mature = F.col("label_mature_ts") <= F.expr(instant_sql(period.end))
        part = F.when(F.expr(period.sql("event_ts")) & mature, name).otherwise(part)
    return impressions.withColumn("part", part).where("part IS NOT NULL")


def with_segments(impressions: DataFrame, segments: DataFrame) -> DataFrame:
    """Impressions with segment_id, tier and segment_version as of 00:00 of their UTC day; grain kept.

    Of several rows valid at that instant the one with the latest valid_from counts (ties: the greatest
    version). Users without one are in segment 0, passive, under the newest version of the table.
    """
    # not date_trunc: that is midnight in the session's zone (docs/faults.md 19)
    midnight = F.expr(f"timestamp_micros(unix_micros(event_ts) div {DAY_US} * {DAY_US})")
    dated = impressions.withColumn("_day", midnight)
    valid = (F.col("valid_from") <= F.col("_day")) & (
        F.col("valid_to").isNull() | (F.col("_day") < F.col("valid_to"))
    )
    chosen = F.max_by(
        F.struct("segment_id", "tier", "segment_version"), F.struct("valid_from", "segment_version")
    )
    known = segments.select("user_id", "segment_id", "tier", "segment_version", "valid_from", "valid_to")
    found = (
        dated.select("user_id", "_day").distinct().join(known, "user_id").where(valid)
        .groupBy("user_id", "_day").agg(chosen.alias("_segment"))
    )  # fmt: skip
    newest = segments.agg(F.coalesce(F.max("segment_version"), F.lit("none")).alias("_newest"))
    joined = dated.join(found, ["user_id", "_day"], "left").crossJoin(F.broadcast(newest))
    return (
        joined.withColumn("segment_id", F.coalesce("_segment.segment_id", F.lit(COLD_SEGMENT)))
        .withColumn("tier", F.coalesce("_segment.tier", F.lit(_COLD_TIER)))
        .withColumn("segment_version", F.coalesce("_segment.segment_version", "_newest"))
        .drop("_day", "_segment", "_newest")
    )


def _grid(masks: DataFrame) -> list[tuple[int, str, str, int, Sequence[str] | None]]:
    kept = F.col("attributes") if "attributes" in masks.columns else F.lit(None)
    rows = masks.select("segment_id", "tier", "stream", "quota", kept.alias("kept")).collect()
    return [
        (int(r["segment_id"]), str(r["tier"]), str(r["stream"]), int(r["quota"]), r["kept"]) for r in rows
    ]


def _plain_columns() -> list[Column]:
    """All columns of `training_rows` but the history arrays, made from labelled impressions."""
    derived = {
        "impression_id": F.col("event_id"),
        "weight": F.coalesce("sample_weight", F.lit(1.0)),
        "event_date": F.expr(day_sql("unix_micros(event_ts)")),
    }
    plain = [c for c in TRAINING_ROWS.columns if not c.name.startswith("hist_")]
    return [derived.get(c.name, F.col(c.name)).cast(c.sql_type).alias(c.name) for c in plain]


def _training_kernel(
    quotas: npt.NDArray[np.int32] | None,
    untimed: Sequence[int],
    base: BaseQuota,
    hidden: Hidden | None = None,
) -> Kernel:
    def kernel(events: EventBlock, asked: ImpressionBlock, offsets: Ints, index: Ints) -> Any:
        if quotas is not None:
            limits = row_limits(asked.frame, quotas, base)
            offsets, index = apply_quotas(offsets, index, events.stream, limits)
        if len(index) > np.iinfo(np.int32).max:
            raise OverflowError(f"{len(index)} history events in one block; lower history.total")
        columns = {name: asked.frame.column(name) for name in asked.frame.column_names}
        row = np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))
        lost = _lost(asked.frame, hidden, row, events.stream[index].astype(np.int64)) if hidden else {}
        columns |= _history_columns(events, asked, offsets, index, untimed, lost)
        return pa.table(columns).select(list(TRAINING_ROWS.names))

    return kernel


def row_limits(frame: Any, quotas: npt.NDArray[np.int32], base: BaseQuota) -> npt.NDArray[np.int32]:
    """Quota of every impression and stream (B, F): the base for hold-out users, unknown segments and unlisted cells.

    `frame` has the columns segment_id, tier and holdout; `quotas` (G, 2, F) is of features/quotas.py.
    """
    segment = np.asarray(frame.column("segment_id").to_numpy(), dtype=np.int64)
    tier = np.asarray(frame.column("tier").to_numpy() == TIERS[1], dtype=np.int64)
    holdout = np.asarray(frame.column("holdout").to_numpy(), dtype=bool)
    masked = ~holdout & (segment >= 0) & (segment < len(quotas))
    unlimited = base.of(np.arange(quotas.shape[2])).astype(np.int32)
    limits = np.broadcast_to(unlimited, (len(segment), quotas.shape[2])).copy()
    limits[masked] = np.where(quotas == NO_LIMIT, unlimited, quotas)[segment[masked], tier[masked]]
    return limits


def _history_columns(
    events: EventBlock, asked: ImpressionBlock, offsets: Ints, index: Ints, untimed: Sequence[int],
    lost: Mapping[str, npt.NDArray[np.bool_]],
) -> dict[str, Any]:  # fmt: skip
    row = np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))
    age_s = (asked.ts_us[row] - events.ts_us[index]) / 1e6
    told = dwell_told(events, asked, offsets, index)
    bins = np.where(told, events.dwell_bin[index], NO_DWELL_BIN)
    z = np.where(told, np.nan_to_num(events.z[index]), 0.0)
    values = {
        "hist_stream": pa.array(events.stream[index], pa.int16()),
        "hist_item": events.item_name.take(pa.array(index)),
        "hist_category": events.category_name.take(pa.array(index)),
        "hist_dwell_bin": pa.array(bins, pa.int8()),
        "hist_z": pa.array(z.astype(np.float32)),
        "hist_age_s": pa.array(age_s.astype(np.float32), mask=np.isin(events.stream[index], untimed)),
    }
    ends = pa.array(offsets.astype(np.int32))
    return {name: pa.ListArray.from_arrays(ends, value) for name, value in emptied(values, lost).items()}


def _lost(frame: Any, hidden: Hidden, row: Ints, stream: Ints) -> dict[str, npt.NDArray[np.bool_]]:
    """Attributes that the mask takes of each kept event (M,); `frame` as in `row_limits`, `row` its impression."""
    segment = np.asarray(frame.column("segment_id").to_numpy(), dtype=np.int64)[row]
    active = np.asarray(frame.column("tier").to_numpy() == "active", dtype=np.int64)[row]
    holdout = np.asarray(frame.column("holdout").to_numpy(), dtype=bool)[row]
    return lost_by(hidden, segment, active, stream, holdout)
