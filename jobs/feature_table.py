"""`features_user`: one wide row per user and run date, as a time series feature table of Unity Catalog.

The table is for models outside this package that look features up by time. Its column names are those of
`dynamix.declarations.column_name`. Building the rows needs Spark alone; creating the table needs Unity Catalog.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TypedDict

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import COLD_SEGMENT, EBF_SURFACE
from dynamix.declarations import column_name
from dynamix.errors import ConfigError
from dynamix.features.calendar import midnight, since_1970
from dynamix.features.sql_text import named

USER, TIME = "user_id", "ts"
SEGMENT_COLUMNS = {
    "segment_id": "int",
    "tier": "string",
    "segment_version": "string",
    "mask_version": "string",
    "dropped": "array<string>",
}
"""Segment of the user at `ts`, the published mask and the streams that it drops for this segment."""
_TYPES = {column.name: column.sql_type for column in EBF_SURFACE.columns}


@dataclass(frozen=True)
class Feature:
    """One column of the table: a statistic of `ebf_surface` for a stream and a window."""

    name: str
    stream: str
    statistic: str
    window_days: int

    @property
    def sql_type(self) -> str:
        return _TYPES[self.statistic]


class Lookup(TypedDict):
    """Keyword arguments of the platform's FeatureLookup."""

    table_name: str
    lookup_key: list[str]
    timestamp_lookup_key: str
    feature_names: list[str]


def user_columns(streams: Iterable[str], config: Config) -> tuple[Feature, ...]:
    """Columns of every stream in its declared windows, by stream in name order; names are those of `explain`.

    ConfigError where there is no stream.
    """
    found: list[Feature] = []
    for stream in sorted(set(streams)):
        declared = config.declaration(stream)
        names = set(declared.columns())
        for days in declared.windows:
            for statistic in _TYPES:
                name = column_name(stream, statistic, days, half_life_days=declared.half_life_days)
                if name in names:
                    found.append(Feature(name, stream, statistic, days))
    if not found:
        raise ConfigError("features_user needs at least one stream; run `dynamix features` first")
    return tuple(found)


def create_sql(table: str, features: Sequence[Feature]) -> str:
    """DDL of the feature table with (user_id, ts TIMESERIES) as its primary key.

    `table` is catalog.schema.name. ConfigError for any other form: the key of a time series exists in Unity
    Catalog only.
    """
    parts = table.split(".")
    if len(parts) != 3 or not all(re.fullmatch(r"\w[\w-]*", part) for part in parts):
        raise ConfigError(
            f"feature table {table!r}; allowed: catalog.schema.table of letters, digits, _ and -, e.g. "
            "main.dynamix.features_user"
        )
    columns = [f"{named(USER)} string NOT NULL", f"{named(TIME)} timestamp NOT NULL"]
    columns += [f"{named(f.name)} {f.sql_type}" for f in features]
    columns += [f"{named(name)} {sql_type}" for name, sql_type in SEGMENT_COLUMNS.items()]
    columns.append(
        f"CONSTRAINT {named(f'{parts[2]}_key')} PRIMARY KEY ({named(USER)}, {named(TIME)} TIMESERIES)"
    )
    place = ".".join(named(part) for part in parts)
    body = ",\n  ".join(columns)
    return f"CREATE TABLE IF NOT EXISTS {place} (\n  {body}\n) USING DELTA CLUSTER BY ({named(USER)}, {named(TIME)})"


def user_rows(
    surface: DataFrame, segments: DataFrame, mask: DataFrame, *, features: Sequence[Feature], run_date: date
) -> DataFrame:
    """One row per user with a row of `surface` that ends at the run date; `ts` is its midnight.

    Every window ends before `ts`, so a lookup that takes the newest row with ts <= t gives t nothing of its
    own. A window without events is 0, its `last_ts` NULL. `segments` are rows of one version (the user's at `ts`
    counts, segment 0 where there is none), `mask` the grid of one mask version; a stream dropped in one tier
    counts as dropped.
    """
    ts = F.timestamp_micros(F.lit(since_1970(midnight(run_date))))
    today = surface.where(F.col("window_end") == F.lit(run_date))
    values = [_value(feature) for feature in features]
    wide = today.groupBy(USER).agg(*values).withColumn(TIME, ts)
    valid = segments.where(
        (F.col("valid_from") <= ts) & (F.col("valid_to").isNull() | (F.col("valid_to") > ts))
    )
    known = valid.select(USER, "segment_id", "tier", "segment_version")
    found = wide.join(known, USER, "left").withColumn(
        "segment_id", F.coalesce("segment_id", F.lit(COLD_SEGMENT))
    )
    verdicts = mask.groupBy("segment_id").agg(
        F.max("mask_version").alias("mask_version"),
        F.sort_array(F.collect_set(F.when(~F.col("keep"), F.col("stream")))).alias("dropped"),
    )
    names = [USER, TIME, *(f.name for f in features), *SEGMENT_COLUMNS]
    return found.join(F.broadcast(verdicts), "segment_id", "left").select(*names)


def _value(feature: Feature) -> Column:
    """The one value of this stream and window: the key of `ebf_surface` allows no second."""
    own = (F.col("stream") == F.lit(feature.stream)) & (F.col("window_days") == F.lit(feature.window_days))
    value = F.max(F.when(own, F.col(feature.statistic)))
    if feature.sql_type != "timestamp":
        value = F.coalesce(value, F.lit(0).cast(feature.sql_type))
    return value.alias(feature.name)


def lookup_arguments(table: str, features: Sequence[Feature], *, time: str = "event_ts") -> Lookup:
    """What FeatureLookup is called with: numbers only, as of the row's own time in column `time`."""
    numbers = [f.name for f in features if f.sql_type != "timestamp"]
    return Lookup(
        table_name=table, lookup_key=[USER], timestamp_lookup_key=time, feature_names=[*numbers, "segment_id"]
    )
