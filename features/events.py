"""Raw rows judged one by one: canonical event, copy of one, or quarantine with a reason.

Every row that the run may see has exactly one fate, so read = kept + deduplicated + quarantined
(docs/faults.md 9, 10, 14-17, 22, 25, 43). Nothing aborts on a bad value: parsing is by `try_*` only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StringType, StructType, VariantType

from dynamix.config import Config
from dynamix.contracts import ID_COLUMNS
from dynamix.errors import InputError
from dynamix.features.calendar import DAY_US
from dynamix.features.copies import CANONICAL, KEPT, judge_copies, quarantine_rows
from dynamix.features.instants import day_sql, seen_before, seen_us, time_trouble, valid_times
from dynamix.features.raw import ATTRIBUTES, CORRUPT
from dynamix.features.row_text import JSON, ordered, row_hash, whole_row
from dynamix.features.sql_text import named, quoted

MAX_ID_BYTES = 1024

_MEASURES = {"event_seq": "bigint", "position": "int", "value": "double", "sample_weight": "double",
             "score_logged": "double"}  # fmt: skip
_MAX_DWELL_MS = 9.0e15


@dataclass(frozen=True)
class RawSplit:
    """What became of the rows a run sees.

    seen        raw rows before `until`, as read
    judged      one row per seen row: canonical columns, `bad_dwell`, `unknown_stream`, `seen_us`, `fate`,
                `reason`, `hint`, `row_hash`, `raw`
    good        one row per event: canonical columns, `unknown_stream` (see `close_streams`) and `bad_dwell`
                (a logged dwell that is no length of time)
    quarantine  columns of `events_quarantine`: one row per (row_hash, reason), `copies` equal raw rows

    `good` and `quarantine` derive from `judged`; `on` takes its rows where they have been computed already.
    """

    seen: DataFrame
    judged: DataFrame
    run_id: str

    def on(self, judged: DataFrame) -> RawSplit:
        return replace(self, judged=judged)

    @property
    def good(self) -> DataFrame:
        return self.judged.where(F.col("fate") == KEPT).select(*CANONICAL, "bad_dwell", "unknown_stream")

    @property
    def quarantine(self) -> DataFrame:
        return quarantine_rows(self.judged, self.run_id)


def split_raw(
    raw: DataFrame, *, config: Config, run_id: str, until: datetime, known: DataFrame | None = None
) -> RawSplit:
    """Fate of every raw row whose event_ts and ingest_ts lie before `until` (naive UTC, exclusive).

    A row with one unreadable time is seen, and quarantined, unless its other time is at or after `until`.
    Copies of an event_id: the earliest ingest is kept and equal payloads are deduplicated; a different
    payload is quarantined, and where payloads of the earliest ingest itself differ, all copies are.
    `known` (event_id, payload as of `stored_payloads`) are ids that earlier runs have judged: rows of such an
    id are later copies, deduplicated where the payload agrees, quarantined where it does not or is NULL.
    """
    seen = seen_before(raw, unit=config.time_unit, until=until)
    parsed = close_streams(_parse(seen, config=config), config=config)
    judged = judge_copies(parsed, given_ids="event_id" in raw.columns, known=known)
    return RawSplit(seen, judged, run_id)


def raw_event_ids(raw: DataFrame) -> DataFrame:
    """event_id of every raw row, as ingest would store it."""
    types = {field.name: field.dataType for field in raw.schema.fields}
    return raw.select(_event_id(raw, types).alias("event_id"))


def latest_ingest(raw: DataFrame, *, config: Config) -> date:
    """The day after the latest `ingest_ts` (event_ts where absent): the run date that sees every row.

    Unreadable times and those outside 1971-2099 do not count. One action. InputError if none is left.
    """
    times = valid_times(raw, unit=config.time_unit)
    newest = raw.selectExpr(f"max(coalesce({times['ingest_ts']}, {times['event_ts']})) AS us").head()
    if newest is None or newest["us"] is None:
        raise InputError(
            "no row of the source has a readable time between 1971 and 2099; check that it has rows, the "
            "column that `columns: event_ts` names, and `time_unit:`"
        )
    return date(1970, 1, 1) + timedelta(days=int(newest["us"]) // DAY_US + 1)


def stream_name() -> Column:
    """`surface/event_type`, the name of an event's stream."""
    return F.concat_ws("/", "surface", "event_type")


def takes_part(config: Config) -> Column:
    """True for events of sessions and streams: all but impressions, unless those are organic."""
    if config.organic_impressions or not config.impression_types:
        return F.lit(True)
    return ~F.col("event_type").isin(*config.impression_types)


def close_streams(events: DataFrame, *, config: Config) -> DataFrame:
    """Mark events of streams that a closed contract does not know in `unknown_stream` (docs/faults.md 22).

    `closed_unknown` also moves them to the stream unknown/unknown; `closed_fail` leaves them for the job
    to refuse. An open contract (the default) knows every stream. Impressions are no streams.
    """
    if config.contract == "open":
        return events.withColumn("unknown_stream", F.lit(False))
    marked = events.withColumn(
        "unknown_stream", takes_part(config) & ~stream_name().isin(*config.known_streams)
    )
    if config.contract == "closed_fail":
        return marked
    bucket = F.when(F.col("unknown_stream"), F.lit("unknown"))
    return marked.withColumns({n: F.coalesce(bucket, F.col(n)) for n in ("surface", "event_type")})


# ---------------------------------------------------------------- one row


def _parse(seen: DataFrame, *, config: Config) -> DataFrame:
    """Canonical columns of every seen row with `reason` (NULL = good so far), `hint`, `bad_dwell`, `_whole`."""
    types = {field.name: field.dataType for field in seen.schema.fields}
    times = valid_times(seen, unit=config.time_unit)
    attributes, torn = _attributes(types, config)
    measures = {name: _measure(name, types, sql_type) for name, sql_type in _MEASURES.items()}
    dwell, bad_dwell = _dwell(types)
    unreadable = [("_torn", "the attributes are no JSON object")]
    unreadable += [(bad, f"{name} is no number") for name, (_, bad) in measures.items()]
    reason, hint = _reason(seen, config, unreadable)
    event_ts = f"timestamp_micros({times['event_ts']})"
    columns = {
        **{_own_name(n): _text(n, types) for n in ID_COLUMNS if n != "event_id"},
        "event_ts": event_ts,
        "ingest_ts": f"coalesce(timestamp_micros({times['ingest_ts']}), {event_ts})",
        **{name: value for name, (value, _) in measures.items()},
        "dwell_ms": dwell,
        "event_date": day_sql(times["event_ts"]),
        "bad_dwell": bad_dwell,
        "seen_us": seen_us(seen, unit=config.time_unit),
        "reason": reason,
        "hint": hint,
    }
    ready = seen.withColumns(
        {"_torn": torn, "_attributes": attributes, "_id": _event_id(seen, types), "_row": whole_row(seen)}
    )
    return ready.selectExpr(
        *[f"{column} AS `{name}`" for name, column in columns.items()],
        "_id AS event_id", "_attributes AS attributes", "_row AS _whole",
    )  # fmt: skip


def _reason(seen: DataFrame, config: Config, unreadable: list[tuple[str, str]]) -> tuple[str, str]:
    """First applicable reason of a row and what the value looks like, as SQL; copies are judged later."""
    types = {field.name: field.dataType for field in seen.schema.fields}
    bad_time, wild_time, time_hint = time_trouble(seen, unit=config.time_unit)
    times = valid_times(seen, unit=config.time_unit)
    long_ids = [
        (f"octet_length({_text(n, types)}) > {MAX_ID_BYTES}", f"{n} is over {MAX_ID_BYTES} bytes")
        for n in ID_COLUMNS
        if n in types
    ]
    long_hint, torn_hint = _first_of(long_ids), _first_of(unreadable)
    ahead_us = f"(({times['event_ts']}) - coalesce({times['ingest_ts']}, {times['event_ts']}))"
    ahead_hint = f"format_string('event_ts is %d s after its ingest', floor({ahead_us} / 1000000D))"
    rules = [
        (
            f"`{CORRUPT}` IS NOT NULL" if CORRUPT in types else "false",
            "BAD_PAYLOAD",
            "'the line is no JSON object'",
        ),
        *[
            (f"({_text(n, types)}) IS NULL", reason, quoted(f"{n} is missing or blank"))
            for n, reason in (
                ("user_id", "NULL_USER"),
                ("surface", "NULL_SURFACE"),
                ("event_type", "NULL_TYPE"),
            )
        ],
        (bad_time, "BAD_TIMESTAMP", time_hint),
        (wild_time, "TIMESTAMP_RANGE", time_hint),
        (f"({long_hint}) IS NOT NULL", "ID_TOO_LONG", long_hint),
        (f"({torn_hint}) IS NOT NULL", "BAD_PAYLOAD", torn_hint),
        (f"{ahead_us} > {int(config.future_tolerance_s * 1e6)}", "FUTURE_EVENT", ahead_hint),
    ]
    reason = " ".join(f"WHEN {applies} THEN '{name}'" for applies, name, _ in rules)
    hint = " ".join(f"WHEN {applies} THEN {text}" for applies, _, text in rules)
    return f"CASE {reason} END", f"CASE {hint} END"


def _first_of(cases: list[tuple[str, str]]) -> str:
    """The text of the first condition that is true, NULL where none is."""
    return f"CASE {' '.join(f'WHEN {bad} THEN {quoted(text)}' for bad, text in cases)} END"


def _event_id(raw: DataFrame, types: dict[str, DataType]) -> Column:
    return F.coalesce(F.expr(_text("event_id", types)), row_hash(whole_row(raw, but="ingest_ts")))


def _own_name(name: str) -> str:
    return "source_session_id" if name == "session_id" else name


def _text(name: str, types: dict[str, DataType]) -> str:
    """Id as text, NULL where blank: an empty id would join strangers."""
    if name not in types:
        return "CAST(NULL AS STRING)"
    text = f"CAST(`{name}` AS STRING)"
    return f"CASE WHEN trim({text}) <> '' THEN {text} END"


def _number(name: str, types: dict[str, DataType]) -> tuple[str, str]:
    """(value as double, True where text stands that is no number); blank text and NaN are missing."""
    if name not in types:
        return "CAST(NULL AS DOUBLE)", "false"
    if not isinstance(types[name], StringType):
        return f"CAST(`{name}` AS DOUBLE)", "false"
    value = f"try_cast(`{name}` AS DOUBLE)"
    return value, f"({value} IS NULL AND trim(`{name}`) <> '')"


def _measure(name: str, types: dict[str, DataType], sql_type: str) -> tuple[str, str]:
    """(typed value, True where it cannot be one); not finite is missing, a fraction is no whole number."""
    value, bad = _number(name, types)
    finite = f"CASE WHEN abs({value}) < double('Infinity') THEN {value} END"
    if sql_type == "double":
        return finite, f"coalesce({bad}, false)"
    whole = f"try_cast(`{name}` AS {sql_type})" if name in types else f"CAST(NULL AS {sql_type})"
    fits = f"({whole} IS NOT NULL AND CAST({whole} AS DOUBLE) = {finite})"
    return (
        f"CASE WHEN {fits} THEN {whole} END",
        f"coalesce({bad} OR (({finite}) IS NOT NULL AND NOT {fits}), false)",
    )


def _dwell(types: dict[str, DataType]) -> tuple[str, str]:
    """(whole milliseconds, True where a value is logged that is no length of time: such an event stays)."""
    value, bad = _number("dwell_ms", types)
    sound = f"coalesce({value} >= 0 AND {value} < {_MAX_DWELL_MS:.0f}D, false)"
    wrong = f"(coalesce({bad}, false) OR ({value} IS NOT NULL AND NOT {sound}))"
    return f"CASE WHEN {sound} THEN CAST(round({value}) AS BIGINT) END", wrong


def _attributes(types: dict[str, DataType], config: Config) -> tuple[Column, Column]:
    """(map of the named attributes without NULLs, True where the attributes' JSON is torn)."""
    nested, torn = F.lit(None).cast("map<string,string>"), F.lit(False)
    kind = types.get(ATTRIBUTES)
    if isinstance(kind, StringType):
        nested = F.from_json(
            F.when(F.try_parse_json(ATTRIBUTES).isNotNull(), F.col(ATTRIBUTES)), "map<string,string>"
        )
        torn = nested.isNull() & F.coalesce(F.trim(ATTRIBUTES) != "", F.lit(False))
    values = []
    for name in config.attributes:
        if name in types:
            values.append(_as_text(F.col(named(name)), types[name]))
        elif isinstance(kind, MapType):
            values.append(_as_text(F.try_element_at(F.col(ATTRIBUTES), F.lit(name)), kind.valueType))
        elif isinstance(kind, StructType) and name in kind.names:
            values.append(_as_text(F.col(f"{ATTRIBUTES}.{named(name)}"), kind[name].dataType))
        else:
            values.append(F.try_element_at(nested, F.lit(name)))
    if not values:
        return F.lit(None).cast("map<string,string>"), torn
    names = F.array(*[F.lit(name) for name in config.attributes])
    known = F.map_filter(F.map_from_arrays(names, F.array(*values)), lambda _, value: value.isNotNull())
    return F.when(F.size(known) > 0, known), torn


def _as_text(column: Column, data_type: DataType) -> Column:
    if isinstance(data_type, MapType | ArrayType | StructType | VariantType):
        return F.to_json(ordered(column, data_type), JSON)
    return column.cast("string")
