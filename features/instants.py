"""Times of raw rows as microseconds since 1970: read, ranged, and what an unreadable one looks like.

Microseconds are exact in doubles here: the year 2099 ends at 4.1e15 < 2^53 (docs/faults.md 14, 19). Expressions
are built as SQL text: as columns they would be thousands of calls into the JVM before the first row is read.
"""

from __future__ import annotations

from datetime import datetime

from pyspark.sql import DataFrame
from pyspark.sql.types import DataType, NullType, StringType, TimestampNTZType, TimestampType

from dynamix.features.calendar import DAY_US, since_1970
from dynamix.features.sql_text import quoted

TIME_COLUMNS = ("event_ts", "ingest_ts")
MICROS = {"s": 1_000_000, "ms": 1_000, "us": 1}
EARLIEST_US = 31_536_000_000_000  # 1971-01-01 00:00
LATEST_US = 4_102_444_800_000_000  # 2100-01-01 00:00, exclusive
BARE_NUMBER = "a bare number"
"""In the hint of a time in text that only a declared unit can read."""


def micros_sql(name: str, data_type: DataType, *, unit: str | None) -> str:
    """Microseconds since 1970 as double, NULL where the value is no time (NaN and infinite included).

    Text needs a date in front, as Spark completes a bare `10:00` with today's date; text of digits is a
    number of `unit`. Text and wall-clock timestamps without a zone are read in the session's zone, UTC.
    """
    if isinstance(data_type, TimestampType | TimestampNTZType):
        return f"CAST(unix_micros(CAST(`{name}` AS TIMESTAMP)) AS DOUBLE)"
    if isinstance(data_type, StringType):
        dated = f"CASE WHEN `{name}` RLIKE r'^\\s*[+-]?\\d{{4,6}}-\\d' THEN try_to_timestamp(`{name}`) END"
        parsed = f"CAST(unix_micros({dated}) AS DOUBLE)"
        if unit is None:
            return parsed
        number = f"CASE WHEN {bare_number_sql(name)} THEN try_cast(`{name}` AS DOUBLE) END"
        return f"coalesce({parsed}, {_finite(f'{number} * {float(MICROS[unit])}D')})"
    if isinstance(data_type, NullType):
        return "CAST(NULL AS DOUBLE)"
    return _finite(f"CAST(`{name}` AS DOUBLE) * {float(MICROS[unit or 'us'])}D")


def bare_number_sql(name: str) -> str:
    """True for text that is a plain number, which is no instant until a unit is declared."""
    return f"`{name}` RLIKE r'^\\s*[+-]?\\d+(\\.\\d+)?\\s*$'"


def valid_times(raw: DataFrame, *, unit: str | None) -> dict[str, str]:
    """Whole microseconds per time column as SQL, NULL where absent, unreadable or outside 1971-2099."""
    columns = {name: _raw_micros(raw, name, unit) for name in TIME_COLUMNS}
    return {
        name: f"CASE WHEN {_in_range(us)} THEN CAST(round({us}) AS BIGINT) END"
        for name, us in columns.items()
    }


def seen_before(raw: DataFrame, *, unit: str | None, until: datetime) -> DataFrame:
    """Rows none of whose valid times is at or after `until` (naive UTC); unreadable times exclude nothing."""
    return raw.where(f"coalesce({seen_us(raw, unit=unit)} < {since_1970(until)}, true)")


def seen_since(raw: DataFrame, *, unit: str | None, since: datetime) -> DataFrame:
    """Rows with a valid time at or after `since` (naive UTC), and those without any valid time.

    A condition on the bare columns goes first where they are timestamps: files skip row groups by it.
    """
    limit = since_1970(since)
    bare = [
        f"`{name}` IS NULL OR `{name}` >= timestamp_micros({limit}) OR `{name}` < timestamp_micros({EARLIEST_US})"
        for name in TIME_COLUMNS
        if name in raw.columns and isinstance(raw.schema[name].dataType, TimestampType)
    ]
    if len(bare) == sum(name in raw.columns for name in TIME_COLUMNS):
        raw = raw.where(" OR ".join(bare))
    return raw.where(f"coalesce({seen_us(raw, unit=unit)} >= {limit}, true)")


def day_sql(us: str) -> str:
    """UTC day of an instant in microseconds, both as SQL."""
    return f"date_from_unix_date(CAST(floor(({us}) / {DAY_US}) AS INT))"


def seen_us(raw: DataFrame, *, unit: str | None) -> str:
    """When a run could first see a row, µs since 1970 as SQL: the later of its valid times, NULL without one."""
    return f"greatest({', '.join(valid_times(raw, unit=unit).values())})"  # skips NULLs


def time_trouble(raw: DataFrame, *, unit: str | None) -> tuple[str, str, str]:
    """(unreadable, out of range, hint) over both times, as SQL.

    A missing event_ts is unreadable; a missing ingest_ts is none, event_ts stands in for it.
    """
    bad, wild, hints = ["false"], ["false"], ["CAST(NULL AS STRING)"]
    for name in TIME_COLUMNS:
        if name not in raw.columns:
            continue
        us = _raw_micros(raw, name, unit)
        broken = f"(({us}) IS NULL" + (f" AND `{name}` IS NOT NULL)" if name == "ingest_ts" else ")")
        outside = f"(({us}) IS NOT NULL AND NOT {_in_range(us)})"
        if isinstance(raw.schema[name].dataType, StringType) and unit is None:
            bare = f"{name} is {BARE_NUMBER}; declare `time_unit:`"
            hints.append(f"CASE WHEN {broken} AND {bare_number_sql(name)} THEN {quoted(bare)} END")
        hints.append(f"CASE WHEN {broken} THEN {quoted(f'{name} is missing or no time')} END")
        hints.append(f"CASE WHEN {outside} THEN {_range_hint(name, us)} END")
        bad.append(broken)
        wild.append(f"coalesce({outside}, false)")
    return f"({' OR '.join(bad)})", f"({' OR '.join(wild)})", f"coalesce({', '.join(hints)})"


def _raw_micros(raw: DataFrame, name: str, unit: str | None) -> str:
    if name not in raw.columns:
        return "CAST(NULL AS DOUBLE)"
    return micros_sql(name, raw.schema[name].dataType, unit=unit)


def _finite(value: str) -> str:
    return f"CASE WHEN abs({value}) < double('Infinity') THEN {value} END"  # NaN sorts above inf, so it fails too


def _in_range(us: str) -> str:
    return f"(({us}) >= {float(EARLIEST_US)}D AND ({us}) < {float(LATEST_US)}D)"


def _range_hint(name: str, us: str) -> str:
    guesses = [f"WHEN ({us}) = 0 THEN 'the epoch itself, often a missing value'"]
    for factor in (1_000, 1_000_000):
        for sign, word in (("*", "fine"), ("/", "coarse")):
            inside = _in_range(f"({us}) {sign} {float(factor)}D")
            guesses.append(f"WHEN {inside} THEN {quoted(f'read in a unit {factor:,.0f} times too {word}')}")
    detail = f"CASE {' '.join(guesses)} ELSE 'no unit of s, ms or us brings it there' END"
    return f"concat({quoted(f'{name} is outside 1971-2099: ')}, {detail}, '; check `time_unit:`')"
