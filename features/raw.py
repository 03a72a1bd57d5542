"""Raw events as they lie: where, in which format, under which names, and whether the types can be read.

Reading never repairs: values stay as the source wrote them, `dynamix.features.events` judges the rows.
The contract check looks at the schema only, so it speaks before any row is read (docs/faults.md 23, 24, 43).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ByteType,
    DataType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    NullType,
    ShortType,
    StringType,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from dynamix.config import Config
from dynamix.contracts import ID_COLUMNS, RAW_COLUMNS, REQUIRED_RAW
from dynamix.errors import ConfigError, InputError
from dynamix.features.instants import TIME_COLUMNS
from dynamix.features.sql_text import named
from dynamix.redaction import harmless

ATTRIBUTES = "attributes"
"""A raw column of this name (map, struct or JSON text) holds event information by key."""
CORRUPT = "_corrupt_record"
"""Where Spark's JSON reader keeps a line that is no JSON."""

_SUFFIXES = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json",
}  # fmt: skip
_INTEGRAL = (ByteType, ShortType, IntegerType, LongType)
_FRACTIONAL = (FloatType, DoubleType, DecimalType)


def read_raw(spark: SparkSession, source: str, *, config: Config) -> DataFrame:
    """Rows of a path or table under canonical names, values untouched, further columns kept.

    A directory with an `events/` child means that child. Format: `config.format`, else by suffix; CSV
    arrives as text, and so do its numbers. Raises InputError (exit 3) with all violations of the contract
    at once, ConfigError (exit 2) for a numeric time whose unit is not declared.
    """
    loaded = _load(spark, source, config)
    names = renames(loaded.columns, config=config)
    frame = loaded.select([F.col(named(own)).alias(name) for name, own in names])
    violations = contract_violations(frame.schema, config=config)
    if violations:
        raise InputError.contract(source, violations)
    _demand_unit(frame, source, config)
    return frame


def renames(columns: Iterable[str], *, config: Config) -> list[tuple[str, str]]:
    """(name, source column) of the frame to read: `columns:` first, the rest under their own names.

    A source column may serve several names; one that `columns:` shadows is left out. A mapped column
    that the source lacks is left out too, so that the contract check can name it with the others.
    """
    known = {column.name for column in RAW_COLUMNS} | {ATTRIBUTES} | set(config.attributes)
    strangers = sorted(set(config.columns) - known)
    if strangers:
        raise ConfigError.unknown_key(f"columns.{strangers[0]}", known)
    have = list(columns)
    mapped = [(name, own) for name, own in config.columns.items() if own in have]
    taken = {own for _, own in mapped} | set(config.columns)
    return mapped + [(own, own) for own in have if own not in taken]


def contract_violations(schema: StructType, *, config: Config) -> list[str]:
    """Every way in which the schema breaks the raw contract, as sentences; empty when it can be read.

    Ids are text or whole numbers (a float id is a damaged id), measures are numbers or text that is tried
    row by row, times are timestamps, text or numbers with a declared unit.
    """
    types = {field.name: field.dataType for field in schema.fields}
    found = []
    for column in RAW_COLUMNS:
        own = config.columns.get(column.name, column.name)
        if column.name not in types:
            if column.name in REQUIRED_RAW or column.name in config.columns:
                found.append(f"column {own!r} for events.{column.name} ({column.sql_type}) is missing")
        elif not _readable(types[column.name], column.name, column.sql_type):
            actual = types[column.name].simpleString()
            found.append(f"column {own!r} is {actual}, events.{column.name} needs {column.sql_type}")
    absent = [name for name in config.attributes if name not in types]
    if ATTRIBUTES not in types:
        found += [f"attribute column {config.columns.get(name, name)!r} is missing" for name in absent]
    elif not isinstance(types[ATTRIBUTES], MapType | StructType | StringType | NullType):
        found.append(
            f"column {ATTRIBUTES!r} is {types[ATTRIBUTES].simpleString()}, needs map, struct or JSON text"
        )
    return found


def unread_columns(raw: DataFrame, *, config: Config) -> list[str]:
    """Columns of the source that nothing reads: a new one upstream is noted, never used (docs/faults.md 23).

    Only a derived event_id depends on them, as it hashes whole rows.
    """
    read = {column.name for column in RAW_COLUMNS} | set(config.attributes) | {CORRUPT}
    if config.attributes:
        read.add(ATTRIBUTES)
    return [name for name in raw.columns if name not in read]


def _readable(actual: DataType, name: str, wanted: str) -> bool:
    if isinstance(actual, NullType):
        return True
    if name in ID_COLUMNS:
        whole = isinstance(actual, DecimalType) and actual.scale == 0
        return isinstance(actual, (StringType, *_INTEGRAL)) or whole
    if wanted == "timestamp":
        return isinstance(actual, (TimestampType, TimestampNTZType, StringType, *_INTEGRAL, *_FRACTIONAL))
    return isinstance(actual, (StringType, *_INTEGRAL, *_FRACTIONAL))


def _demand_unit(frame: DataFrame, source: str, config: Config) -> None:
    if config.time_unit is not None:
        return
    for field in frame.schema.fields:
        if field.name in TIME_COLUMNS and isinstance(field.dataType, (*_INTEGRAL, *_FRACTIONAL)):
            own = config.columns.get(field.name, field.name)
            example = frame.select(F.col(named(field.name)).cast("double")).dropna().head()
            raise undeclared_unit(source, own, field.dataType.simpleString(), example[0] if example else None)


def undeclared_unit(source: str, column: str, data_type: str, example: float | None) -> ConfigError:
    """The error for a number where a time should be, with the unit that its size suggests."""
    hint = ""
    if example is not None:
        guess = "s" if abs(example) < 1e11 else "ms" if abs(example) < 1e14 else "us"
        hint = f"; {example:.0f} looks like {guess}"
    return ConfigError(
        f"{source}: column {column!r} holds times as {data_type} and no unit is declared{hint}; "
        "set `time_unit:` to s, ms or us"
    )


def _load(spark: SparkSession, source: str, config: Config) -> DataFrame:
    remote = re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:/", source) is not None
    path = Path(source)
    if not remote and not path.exists():
        if re.fullmatch(r"[\w`-]+(\.[\w`-]+){0,2}", source) and _is_table(spark, source):
            return spark.table(source)
        raise InputError(f"events source {source!r} is neither a path nor a table; check --events")
    if not remote and (path / "events").is_dir():
        path = path / "events"
    kind = config.format or ("parquet" if remote else _format_of(path))
    try:
        place = source if remote else str(path.absolute())
        return _reader(spark, kind, source).load(place if remote or kind == "delta" else _verbatim(place))
    except Exception as trouble:  # a torn footer arrives as a raw Java error, not as a PySparkException
        if "UNABLE_TO_INFER_SCHEMA" in str(trouble):
            raise InputError.empty(source) from None
        reason = _root_line(trouble)
        raise InputError(
            f"{source}: cannot be read as {kind} ({reason}); set `format:` or mend the file"
        ) from harmless(trouble)


def _verbatim(path: str) -> str:
    """The path with Hadoop's wildcards escaped: it is this one folder, not a pattern of others."""
    return re.sub(r"([\\{}\[\]*?])", r"\\\1", path)


def _root_line(trouble: Exception) -> str:
    """The innermost cause of a Java error, else its first line."""
    lines = str(trouble).splitlines() or [type(trouble).__name__]
    causes = [line for line in lines if line.startswith("Caused by: ")]
    return (causes[-1].removeprefix("Caused by: ") if causes else lines[0])[:300]


def _is_table(spark: SparkSession, name: str) -> bool:
    try:
        return spark.catalog.tableExists(name)
    except AnalysisException:  # more parts than this catalog has
        return False


def _reader(spark: SparkSession, kind: str, source: str) -> DataFrameReader:
    reader = spark.read.format(kind)
    if kind == "csv":
        # Text only: inference would turn ids such as 007 into numbers and reads the files twice.
        separator = "\t" if source.endswith(".tsv") else ","
        return reader.option("header", True).option("sep", separator).option("escape", '"')
    if kind == "parquet":
        return reader.option("mergeSchema", True)  # else one file's schema decides which columns exist
    return reader


def _format_of(path: Path) -> str:
    if (path / "_delta_log").is_dir():
        return "delta"
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        bare = file.with_suffix("") if file.suffix in {".gz", ".bz2", ".zst"} else file
        if not file.name.startswith(("_", ".")) and bare.suffix in _SUFFIXES:
            return _SUFFIXES[bare.suffix]
    if path.is_dir() and not files:
        raise InputError.empty(str(path))
    raise InputError(f"{path}: the suffix tells no format; set `format:` to parquet, delta, csv or json")
