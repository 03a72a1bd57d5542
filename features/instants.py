"""Times of raw rows as microseconds since 1970: read, ranged, and what an unreadable one looks like.

Microseconds are exact in doubles here: the year 2099 ends at 4.1e15 < 2^53 (docs/faults.md 14, 19).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import reduce
from operator import or_

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, NullType, StringType, TimestampNTZType, TimestampType

TIME_COLUMNS = ("event_ts", "ingest_ts")
MICROS = {"s": 1_000_000, "ms": 1_000, "us": 1}
EARLIEST_US = 31_536_000_000_000  # 1971-01-01 00:00
LATEST_US = 4_102_444_800_000_000  # 2100-01-01 00:00, exclusive
DAY_US = 86_400_000_000
BARE_NUMBER = "a bare number"
"""In the hint of a time in text that only a declared unit can read."""


def micros(column: Column, data_type: DataType, *, unit: str | None) -> Column:
    """Microseconds since 1970 as double, NULL where the value is no time (NaN and infinite included).

    Text needs a date in front, as Spark completes a bare `10:00` with today's date; text of digits is a
    number of `unit`. Text and wall-clock timestamps without a zone are read in the session's zone, UTC.
    """
    if isinstance(data_type, TimestampType | TimestampNTZType):
        return F.unix_micros(column.cast("timestamp")).cast("double")
    if isinstance(data_type, StringType):
        dated = F.when(column.rlike(r"^\s*[+-]?\d{4,6}-\d"), F.try_to_timestamp(column))
        parsed = F.unix_micros(dated).cast("double")
        if unit is None:
            return parsed
        bare = F.when(is_bare_number(column), column.try_cast("double")) * F.lit(float(MICROS[unit]))
        return F.coalesce(parsed, _finite(bare))
    if isinstance(data_type, NullType):
        return F.lit(None).cast("double")
    return _finite(column.cast("double") * F.lit(float(MICROS[unit or "us"])))


def is_bare_number(column: Column) -> Column:
    """True for text that is a plain number, which is no instant until a unit is declared."""
    return column.rlike(r"^\s*[+-]?\d+(\.\d+)?\s*$")


def valid_times(raw: DataFrame, *, unit: str | None) -> dict[str, Column]:
    """Whole microseconds per time column, NULL where absent, unreadable or outside 1971-2099."""
    columns = {name: _raw_micros(raw, name, unit) for name in TIME_COLUMNS}
    return {name: F.when(_in_range(us), F.round(us).cast("bigint")) for name, us in columns.items()}


def seen_before(raw: DataFrame, *, unit: str | None, until: datetime) -> DataFrame:
    """Rows none of whose valid times is at or after `until` (naive UTC); unreadable times exclude nothing."""
    return raw.where(F.coalesce(seen_us(raw, unit=unit) < F.lit(since_1970(until)), F.lit(True)))


def seen_since(raw: DataFrame, *, unit: str | None, since: datetime) -> DataFrame:
    """Rows with a valid time at or after `since` (naive UTC), and those without any valid time.

    A condition on the bare columns goes first where they are timestamps: files skip row groups by it.
    """
    limit, earliest = F.lit(since_1970(since)), F.timestamp_micros(F.lit(EARLIEST_US))
    bare = [
        F.col(name).isNull() | (F.col(name) >= F.timestamp_micros(limit)) | (F.col(name) < earliest)
        for name in TIME_COLUMNS
        if name in raw.columns and isinstance(raw.schema[name].dataType, TimestampType)
    ]
    if len(bare) == sum(name in raw.columns for name in TIME_COLUMNS):
        raw = raw.where(reduce(or_, bare))
    return raw.where(F.coalesce(seen_us(raw, unit=unit) >= limit, F.lit(True)))


def since_1970(instant: datetime) -> int:
    """Microseconds from 1970 to a naive UTC instant."""
    return (instant - datetime(1970, 1, 1)) // timedelta(microseconds=1)


def seen_us(raw: DataFrame, *, unit: str | None) -> Column:
    """When a run could first see a row, µs since 1970: the later of its valid times, NULL without one."""
    times = valid_times(raw, unit=unit)
    return F.greatest(*times.values())  # skips NULLs


def time_trouble(raw: DataFrame, *, unit: str | None) -> tuple[Column, Column, Column]:
    """(unreadable, out of range, hint) over both times.

    A missing event_ts is unreadable; a missing ingest_ts is none, event_ts stands in for it.
    """
    bad, wild, hints = F.lit(False), F.lit(False), [F.lit(None).cast("string")]
    for name in TIME_COLUMNS:
        if name not in raw.columns:
            continue
        us = _raw_micros(raw, name, unit)
        broken = us.isNull() & (F.col(name).isNotNull() if name == "ingest_ts" else F.lit(True))
        outside = us.isNotNull() & ~_in_range(us)
        if isinstance(raw.schema[name].dataType, StringType) and unit is None:
            bare = F.lit(f"{name} is {BARE_NUMBER}; declare `time_unit:`")
            hints.append(F.when(broken & is_bare_number(F.col(name)), bare))
        hints.append(F.when(broken, F.lit(f"{name} is missing or no time")))
        hints.append(F.when(outside, _range_hint(name, us)))
        bad, wild = bad | broken, wild | F.coalesce(outside, F.lit(False))
    return bad, wild, F.coalesce(*hints)


def _raw_micros(raw: DataFrame, name: str, unit: str | None) -> Column:
    if name not in raw.columns:
        return F.lit(None).cast("double")
    return micros(F.col(name), raw.schema[name].dataType, unit=unit)


def _finite(column: Column) -> Column:
    return F.when(F.abs(column) < F.lit(float("inf")), column)  # NaN sorts above inf, so it fails too


def _in_range(us: Column) -> Column:
    return (us >= F.lit(float(EARLIEST_US))) & (us < F.lit(float(LATEST_US)))


def _range_hint(name: str, us: Column) -> Column:
    guess = F.when(us == 0, F.lit("the epoch itself, often a missing value"))
    for factor in (1_000.0, 1_000_000.0):
        guess = guess.when(_in_range(us * factor), F.lit(f"read in a unit {factor:,.0f} times too fine"))
        guess = guess.when(_in_range(us / factor), F.lit(f"read in a unit {factor:,.0f} times too coarse"))
    detail = F.coalesce(guess, F.lit("no unit of s, ms or us brings it there"))
    return F.concat(F.lit(f"{name} is outside 1971-2099: "), detail, F.lit("; check `time_unit:`"))
