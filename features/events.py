"""Raw rows judged one by one: canonical event, copy of one, or quarantine with a reason.

Every row that the run may see has exactly one fate, so read = kept + deduplicated + quarantined
(docs/faults.md 9, 10, 14-17, 22, 25, 43). Nothing aborts on a bad value: parsing is by `try_*` only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StringType, StructType, VariantType

from dynamix.config import Config
from dynamix.contracts import EVENTS, ID_COLUMNS
from dynamix.errors import InputError
from dynamix.features.instants import DAY_US, seen_before, seen_us, time_trouble, valid_times
from dynamix.features.raw import ATTRIBUTES, CORRUPT

MAX_ID_BYTES = 1024
KEPT, DEDUPLICATED, QUARANTINED = "kept", "deduplicated", "quarantined"

_LATER = ("dwell_status", "dwell_logged_ms", "bad_dwell", "session_id", "session_start")
_CANONICAL = tuple(name for name in EVENTS.names if name not in _LATER)
_MEASURES = {"event_seq": "bigint", "position": "int", "value": "double", "sample_weight": "double",
             "score_logged": "double"}  # fmt: skip
_MAX_DWELL_MS = 9.0e15
_JSON = {
    # Spark's default drops microseconds, which would make two events of one millisecond one event.
    "ignoreNullFields": "false",
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
    "timeZone": "UTC",
}


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
        return self.judged.where(F.col("fate") == KEPT).select(*_CANONICAL, "bad_dwell", "unknown_stream")

    @property
    def quarantine(self) -> DataFrame:
        return _quarantine(self.judged, self.run_id)


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
    judged = _judge_copies(parsed, given_ids="event_id" in raw.columns, known=known)
    return RawSplit(seen, judged, run_id)


def raw_event_ids(raw: DataFrame) -> DataFrame:
    """event_id of every raw row, as ingest would store it."""
    types = {field.name: field.dataType for field in raw.schema.fields}
    return raw.select(_event_id(raw, types).alias("event_id"))


def stored_payloads(events: DataFrame) -> DataFrame:
    """(event_id, payload) of rows of `events`: what a later copy must say to be the same event."""
    logged = events.withColumn("dwell_ms", F.col("dwell_logged_ms"))
    return logged.select("event_id", _payload().alias("payload"))


def latest_ingest(raw: DataFrame, *, config: Config) -> date:
    """The day after the latest `ingest_ts` (event_ts where absent): the run date that sees every row.

    Unreadable times and those outside 1971-2099 do not count. One action. InputError if none is left.
    """
    times = valid_times(raw, unit=config.time_unit)
    newest = raw.select(F.max(F.coalesce(times["ingest_ts"], times["event_ts"])).alias("us")).head()
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
    unreadable = [(torn, "the attributes are no JSON object")]
    unreadable += [(bad, f"{name} is no number") for name, (_, bad) in measures.items()]
    reason, hint = _reason(seen, config, unreadable)
    event_ts = F.timestamp_micros(times["event_ts"])
    columns = {
        **{_own_name(n): _text(n, types) for n in ID_COLUMNS},
        "event_id": _event_id(seen, types),
        "event_ts": event_ts,
        "ingest_ts": F.coalesce(F.timestamp_micros(times["ingest_ts"]), event_ts),
        **{name: value for name, (value, _) in measures.items()},
        "dwell_ms": dwell,
        "attributes": attributes,
        "event_date": F.date_from_unix_date(F.floor(times["event_ts"] / F.lit(DAY_US)).cast("int")),
        "bad_dwell": bad_dwell,
        "seen_us": seen_us(seen, unit=config.time_unit),
        "reason": reason,
        "hint": hint,
        "_whole": _whole_row(seen),
    }
    return seen.select([column.alias(name) for name, column in columns.items()])


def _reason(seen: DataFrame, config: Config, unreadable: list[tuple[Column, str]]) -> tuple[Column, Column]:
    """First applicable reason of a row and what the value looks like; copies are judged later."""
    types = {field.name: field.dataType for field in seen.schema.fields}
    bad_time, wild_time, time_hint = time_trouble(seen, unit=config.time_unit)
    times = valid_times(seen, unit=config.time_unit)
    long_ids = [(n, F.octet_length(_text(n, types)) > MAX_ID_BYTES) for n in ID_COLUMNS if n in types]
    long_hint = F.coalesce(*[F.when(bad, F.lit(f"{n} is over {MAX_ID_BYTES} bytes")) for n, bad in long_ids])
    torn_hint = F.coalesce(*[F.when(bad, F.lit(text)) for bad, text in unreadable])
    ahead_us = times["event_ts"] - F.coalesce(times["ingest_ts"], times["event_ts"])
    ahead_hint = F.format_string("event_ts is %d s after its ingest", F.floor(ahead_us / F.lit(1e6)))
    corrupt = F.col(CORRUPT).isNotNull() if CORRUPT in types else F.lit(False)
    rules = [
        (corrupt, "BAD_PAYLOAD", F.lit("the line is no JSON object")),
        (_text("user_id", types).isNull(), "NULL_USER", F.lit("user_id is missing or blank")),
        (_text("surface", types).isNull(), "NULL_SURFACE", F.lit("surface is missing or blank")),
        (_text("event_type", types).isNull(), "NULL_TYPE", F.lit("event_type is missing or blank")),
        (bad_time, "BAD_TIMESTAMP", time_hint),
        (wild_time, "TIMESTAMP_RANGE", time_hint),
        (long_hint.isNotNull(), "ID_TOO_LONG", long_hint),
        (torn_hint.isNotNull(), "BAD_PAYLOAD", torn_hint),
        (ahead_us > F.lit(int(config.future_tolerance_s * 1e6)), "FUTURE_EVENT", ahead_hint),
    ]
    reason, hint = F.when(F.lit(False), F.lit("")), F.when(F.lit(False), F.lit(""))
    for applies, name, text in rules:
        reason, hint = reason.when(applies, F.lit(name)), hint.when(applies, text)
    return reason, hint


def _event_id(raw: DataFrame, types: dict[str, DataType]) -> Column:
    return F.coalesce(_text("event_id", types), _hash(_whole_row(raw, but="ingest_ts")))


def _own_name(name: str) -> str:
    return "source_session_id" if name == "session_id" else name


def _text(name: str, types: dict[str, DataType]) -> Column:
    """Id as text, NULL where blank: an empty id would join strangers."""
    if name not in types:
        return F.lit(None).cast("string")
    text = F.col(name).cast("string")
    return F.when(F.trim(text) != "", text)


def _number(name: str, types: dict[str, DataType]) -> tuple[Column, Column]:
    """(value as double, True where text stands that is no number); blank text and NaN are missing."""
    if name not in types:
        return F.lit(None).cast("double"), F.lit(False)
    if not isinstance(types[name], StringType):
        value = F.col(name).cast("double")
        return value, F.lit(False)
    value = F.col(name).try_cast("double")
    return value, value.isNull() & (F.trim(F.col(name)) != "")


def _measure(name: str, types: dict[str, DataType], sql_type: str) -> tuple[Column, Column]:
    """(typed value, True where it cannot be one); not finite is missing, a fraction is no whole number."""
    value, bad = _number(name, types)
    finite = F.when(F.abs(value) < F.lit(float("inf")), value)
    if sql_type == "double":
        return finite, F.coalesce(bad, F.lit(False))
    whole = F.col(name).try_cast(sql_type) if name in types else F.lit(None).cast(sql_type)
    fits = whole.isNotNull() & (whole.cast("double") == finite)
    return F.when(fits, whole), F.coalesce(bad | (finite.isNotNull() & ~fits), F.lit(False))


def _dwell(types: dict[str, DataType]) -> tuple[Column, Column]:
    """(whole milliseconds, True where a value is logged that is no length of time: such an event stays)."""
    value, bad = _number("dwell_ms", types)
    sound = F.coalesce((value >= 0) & (value < F.lit(_MAX_DWELL_MS)), F.lit(False))
    wrong = F.coalesce(bad, F.lit(False)) | (value.isNotNull() & ~sound)
    return F.when(sound, F.round(value).cast("bigint")), wrong


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
            values.append(_as_text(F.col(f"`{name}`"), types[name]))
        elif isinstance(kind, MapType):
            values.append(_as_text(F.try_element_at(F.col(ATTRIBUTES), F.lit(name)), kind.valueType))
        elif isinstance(kind, StructType) and name in kind.names:
            values.append(_as_text(F.col(f"{ATTRIBUTES}.`{name}`"), kind[name].dataType))
        else:
            values.append(F.try_element_at(nested, F.lit(name)))
    if not values:
        return F.lit(None).cast("map<string,string>"), torn
    names = F.array(*[F.lit(name) for name in config.attributes])
    known = F.map_filter(F.map_from_arrays(names, F.array(*values)), lambda _, value: value.isNotNull())
    return F.when(F.size(known) > 0, known), torn


def _as_text(column: Column, data_type: DataType) -> Column:
    if isinstance(data_type, MapType | ArrayType | StructType | VariantType):
        return F.to_json(_ordered(column, data_type), _JSON)
    return column.cast("string")


# ---------------------------------------------------------------- copies and quarantine


def _judge_copies(parsed: DataFrame, *, given_ids: bool, known: DataFrame | None) -> DataFrame:
    """Add `fate`, `row_hash` and `raw` (both NULL unless quarantined); see `split_raw` for the rule.

    Most ids occur once: only rows whose id's hash occurs again are shuffled, sorted and compared. The hashes
    of such ids are broadcast, 8 bytes each.
    """
    old = None
    if known is not None:
        met = parsed.join(F.broadcast(known.withColumn("_known", F.lit(True))), "event_id", "left")
        old = _later_copies(met.where("_known IS NOT NULL"))
        parsed = met.where("_known IS NULL").drop("_known", "payload")
    hashed = parsed.withColumn("_hash", F.xxhash64("event_id"))
    again = hashed.groupBy("_hash").agg(F.count(F.lit(1)).alias("_n")).where("_n > 1")
    marked = hashed.join(F.broadcast(again), "_hash", "left")
    # Always true, but unknown to the optimiser: it would else push the dozens of conditions behind `reason`
    # into every filter on the fate, and spend a minute on their normal form.
    opaque = F.spark_partition_id() >= 0
    own_fate = F.when(F.col("reason").isNotNull(), QUARANTINED).when(opaque, KEPT)
    alone = marked.where("_n IS NULL").withColumn("fate", own_fate).drop("_hash", "_n")
    judged = alone.unionByName(_compared(marked.where("_n IS NOT NULL"), given_ids=given_ids))
    if old is not None:
        judged = judged.unionByName(old)
    out = F.col("fate") == QUARANTINED
    return judged.select(
        *_CANONICAL, "bad_dwell", "unknown_stream", "seen_us", "fate", "reason", "hint",
        F.when(out, _hash(F.col("_whole"))).alias("row_hash"),
        F.when(out, F.to_json("_whole", _JSON)).alias("raw"),
    )  # fmt: skip


def _later_copies(rows: DataFrame) -> DataFrame:
    """Rows whose event an earlier run has judged: equal payload or conflict."""
    bad, same = F.col("reason").isNotNull(), F.coalesce(_payload() == F.col("payload"), F.lit(False))
    fate = F.when(bad, QUARANTINED).otherwise(DEDUPLICATED)
    return _conflicts(rows.withColumn("fate", fate), ~bad & ~same).drop("_known", "payload")


def _conflicts(rows: DataFrame, where: Column) -> DataFrame:
    return rows.withColumns(
        {
            "fate": F.when(where, QUARANTINED).otherwise(F.col("fate")),
            "reason": F.when(where, "CONFLICTING_DUPLICATE").otherwise(F.col("reason")),
            "hint": F.when(where, "same event_id, other payload").otherwise(F.col("hint")),
        }
    )


def _compared(rows: DataFrame, *, given_ids: bool) -> DataFrame:
    """Rows judged against the others of their event_id."""
    bad = F.col("reason").isNotNull()
    # bad rows judge no copies: a key each keeps them from piling up in one task
    key = F.when(bad, F.concat(F.lit("!"), _hash(F.col("_whole")))).otherwise(
        F.concat(F.lit("="), F.col("event_id"))
    )
    same_id = Window.partitionBy("_key").orderBy("ingest_ts", "_payload")
    copies = same_id.rowsBetween(Window.unboundedPreceding, Window.unboundedFollowing)
    # Derived ids hash the whole row, so their copies never disagree and need no payload.
    payload = _payload() if given_ids else F.lit(0).cast("bigint")
    keyed = rows.withColumns({"_key": key, "_payload": payload})
    first = F.min(F.struct("ingest_ts", "_payload")).over(copies)["_payload"]
    # `~` reverses the order of whole numbers without overflow, so this is the largest payload of that time
    last = F.bitwise_not(
        F.min(F.struct("ingest_ts", F.bitwise_not("_payload").alias("inverse"))).over(copies)["inverse"]
    )
    ranked = keyed.withColumns({"_first": first, "_last": last, "_rank": F.row_number().over(same_id)})
    conflict = ~bad & ((F.col("_first") != F.col("_last")) | (F.col("_payload") != F.col("_first")))
    fate = F.when(bad, QUARANTINED).when(F.col("_rank") == 1, KEPT).otherwise(DEDUPLICATED)
    return _conflicts(ranked.withColumn("fate", fate), conflict).drop(
        "_hash", "_n", "_key", "_payload", "_first", "_last", "_rank"
    )


def _payload() -> Column:
    """64-bit hash of what an event says besides its id and ingest; NULL differs from every value."""
    names = [n for n in _CANONICAL if n not in ("event_id", "ingest_ts", "event_date", "attributes")]
    values = [*map(F.col, names), F.to_json("attributes")]
    missing = F.concat(*[F.when(value.isNull(), "1").otherwise("0") for value in values])
    return F.xxhash64(*values, missing, "bad_dwell")


def _quarantine(judged: DataFrame, run_id: str) -> DataFrame:
    out = judged.where(F.col("fate") == QUARANTINED)
    conflict = F.when(F.col("reason") == "CONFLICTING_DUPLICATE", F.col("event_id"))
    day = F.date_from_unix_date(F.floor(F.col("seen_us") / F.lit(DAY_US)).cast("int"))
    grouped = out.groupBy("row_hash", "reason").agg(
        F.min("raw").alias("raw"),
        F.min("hint").alias("hint"),
        F.count(F.lit(1)).alias("copies"),
        F.min(conflict).alias("event_id"),
        F.min(day).alias("seen_date"),
    )
    return grouped.withColumn("run_id", F.lit(run_id))


def _whole_row(frame: DataFrame, *, but: str = "") -> Column:
    fields = sorted(
        ((f.name, f.dataType) for f in frame.schema.fields if f.name != but), key=lambda field: field[0]
    )
    return F.struct(*[_ordered(F.col(f"`{name}`"), kind).alias(name) for name, kind in fields])


def _hash(row: Column) -> Column:
    """First 32 hex digits of SHA-256 over the row as JSON, NULLs written out."""
    return F.substring(F.sha2(F.to_json(row, _JSON), 256), 1, 32)


def _ordered(column: Column, data_type: DataType) -> Column:
    """The value with the keys of maps and structs in order, at any depth, so that its JSON is one text."""
    if isinstance(data_type, MapType):
        kind, keys = data_type.valueType, F.array_sort(F.map_keys(column))
        values = F.transform(keys, lambda key: _ordered(F.try_element_at(column, key), kind))
        return F.map_from_arrays(keys, values)
    if isinstance(data_type, ArrayType):
        element = data_type.elementType
        return F.transform(column, lambda item: _ordered(item, element))
    if isinstance(data_type, StructType):
        fields = sorted(data_type.fields, key=lambda field: field.name)
        ordered = F.struct(*[_ordered(column[f.name], f.dataType).alias(f.name) for f in fields])
        return F.when(column.isNotNull(), ordered)
    return column
