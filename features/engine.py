"""Both feature tables from one shuffle: Spark brings users together, one kernel makes sessions, dwells and surfaces.

The shuffle carries narrow rows and sorts them by one 64-bit key; the rest of the order is made in NumPy. The tables
come out as packed blocks (Arrow IPC), so that they are cheap to keep while both are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import EBF_SESSION, EBF_SURFACE
from dynamix.features.calendar import days_since_1970
from dynamix.features.engine_hot import HotUsers
from dynamix.features.engine_parts import from_block, join_days, join_parts, part_table, to_block
from dynamix.features.events import takes_part
from dynamix.features.fragments import Rule
from dynamix.features.session_rows import session_sums, session_table
from dynamix.features.streams import declared_stream, has_filters, has_usable_dwell
from dynamix.features.surface_sums import Rows, Window, day_rows, surface_table, windows
from dynamix.features.timeline import whole_users
from dynamix.features.user_block import BAD, CENSORED, USABLE, Block, Reading, read_block
from dynamix.features.window_plan import WindowPlan, window_plan

_SESSION, SURFACE_SCHEMA = (
    ", ".join(f"{column.name} {column.sql_type}" for column in table.columns)
    for table in (EBF_SESSION, EBF_SURFACE)
)
_RESULT = {"session": f"{_SESSION}, _first bigint, _part bigint", "surface": SURFACE_SCHEMA}
_PACKED = "kind string, block binary"
_BATCH = 50_000


@dataclass(frozen=True)
class EbfTables:
    """`ebf_session` and `ebf_surface` of the same events; both read `packed`, which is worth keeping to write both."""

    packed: DataFrame
    kernel: Kernel
    config: Config

    @property
    def sessions(self) -> DataFrame:
        """Rows of `ebf_session`."""
        rows = _unpacked(self.packed, "session", self.kernel)
        return finished_sessions(rows, self.config, settled=self.kernel.reading.settled)

    @property
    def surfaces(self) -> DataFrame:
        """Rows of `ebf_surface`."""
        return _unpacked(self.packed, "surface", self.kernel)

    def on(self, packed: DataFrame) -> EbfTables:
        """The same tables, read from a kept copy of `packed`."""
        return replace(self, packed=packed)


@dataclass(frozen=True)
class Kernel:
    """What is made of a block: day rows and, where `end` is set, the windows that end at that day (since 1970)."""

    reading: Reading
    end: int | None = None
    hot: HotUsers | None = None
    plan: WindowPlan = field(default_factory=WindowPlan)

    def session(self, block: Block) -> Any:
        """Rows of `ebf_session` with `_first` and `_part`."""
        rule = self.reading
        return session_table(session_sums(block), block.names, gap_us=rule.rule.gap_us, given=rule.given)

    def surface(self, rows: Rows, users: Any, names: Any) -> Any:
        """Rows of `ebf_surface`."""
        found = [Window(1, rows), *([] if self.end is None else windows(rows, self.end, names, self.plan))]
        return pa.concat_tables([surface_table(window, users, names) for window in found])

    def pack(self, table: Any) -> Iterator[tuple[str, Any]]:
        """(kind, table) of a block: final rows, or parts where a user of it is cut."""
        block = read_block(table, self.reading, self.hot)
        days, names = day_rows(block)
        if self.hot is not None and (self.hot.among(block.names.users) >= 0).any():
            yield "session_part", part_table(session_sums(block), block.names)
            yield "surface_part", surface_table(Window(1, days), block.names.users, names)
        else:
            yield "session", self.session(block)
            yield "surface", self.surface(days, block.names.users, names)

    def join(self, kind: str, tables: Iterable[Any]) -> Any:
        """Final rows from the parts of all blocks."""
        if kind == "surface":
            return self.surface(*join_days(tables))
        rule = self.reading
        sessions, names = join_parts(tables, given=rule.given)
        return session_table(sessions, names, gap_us=rule.rule.gap_us, given=rule.given)


def ebf_tables(
    events: DataFrame, *, config: Config, run_date: date | None = None, hot: HotUsers | None = None
) -> EbfTables:
    """Both tables from one shuffle of the events; columns and sums as in `session_features` and `surface_days`.

    Events with a session_id (the `events` table) keep their sessions and dwells; others get sessions by the rule and
    dwells as by `derive_dwell` without caps. With `run_date` the windows that end then are among the surface rows.
    `hot` (from `hot_users` on these events) spreads such users over tasks; the rows are the same without it.
    """
    reading = reading_of(events, config)
    kernel = Kernel(
        reading, None if run_date is None else days_since_1970(run_date), hot, window_plan(config)
    )

    def run(batches: Iterator[Any]) -> Iterator[Any]:
        for table in whole_users(batches, by="key"):
            for kind, part in kernel.pack(table):
                yield pa.RecordBatch.from_arrays([pa.array([kind]), to_block(part)], names=["kind", "block"])

    packed = by_user(events.where(takes_part(config)), config, hot).mapInArrow(run, _PACKED)
    return EbfTables(packed, kernel, config)


def _unpacked(packed: DataFrame, kind: str, kernel: Kernel) -> DataFrame:
    """Rows of one table from the packed blocks; parts of cut users are sums, so that one task joins them all."""

    def unpack(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            for block in batch.column(0):
                yield from from_block(block).to_batches(max_chunksize=_BATCH)

    def join(batches: Iterator[Any]) -> Iterator[Any]:
        parts = [from_block(block) for batch in batches for block in batch.column(0)]
        if parts:
            yield from kernel.join(kind, parts).to_batches(max_chunksize=_BATCH)

    rows = packed.where(F.col("kind") == kind).select("block").mapInArrow(unpack, _RESULT[kind])
    if kernel.hot is None:
        return rows
    parts = packed.where(F.col("kind") == f"{kind}_part").select("block").repartition(1)
    return rows.unionByName(parts.mapInArrow(join, _RESULT[kind]))


def session_frame(events: DataFrame, *, config: Config) -> DataFrame:
    """Rows of `ebf_session` alone, straight from the kernel."""
    kernel = Kernel(reading_of(events, config))

    def run(batches: Iterator[Any]) -> Iterator[Any]:
        for table in whole_users(batches, by="key"):
            block = read_block(table, kernel.reading)
            yield from kernel.session(block).to_batches(max_chunksize=_BATCH)

    rows = by_user(events, config, None).mapInArrow(run, _RESULT["session"])
    return finished_sessions(rows, config, settled=kernel.reading.settled)


def surface_frame(events: DataFrame, *, config: Config, run_date: date | None = None) -> DataFrame:
    """Rows of `ebf_surface` alone, straight from the kernel."""
    events = events.where(takes_part(config))
    if "dwell_status" in events.columns:  # settled: neither order nor sessions matter, so they do not travel
        none = {"event_seq": F.lit(None).cast("bigint"), "event_id": F.lit(None).cast("string")}
        here = {"ingest_ts": F.col("event_ts"), "session_start": F.col("event_ts"), "session_id": F.lit("")}
        events = events.drop("source_session_id").withColumns(none | here)
    end = None if run_date is None else days_since_1970(run_date)
    kernel = Kernel(reading_of(events, config), end, plan=window_plan(config))

    def run(batches: Iterator[Any]) -> Iterator[Any]:
        for table in whole_users(batches, by="key"):
            block = read_block(table, kernel.reading)
            rows, names = day_rows(block)
            yield from kernel.surface(rows, block.names.users, names).to_batches(max_chunksize=_BATCH)

    return by_user(events, config, None).mapInArrow(run, _RESULT["surface"])


def reading_of(events: DataFrame, config: Config) -> Reading:
    """How the kernel reads these events: with the sessions they carry, or by the config's rule."""
    return Reading(
        rule=rule_of(config),
        given=config.session.rule == "given",
        derive=config.dwell.derive,
        censor_last=config.dwell.censor_last,
        conversion_types=config.conversion_types,
        settled="session_id" in events.columns,
    )


def rule_of(config: Config) -> Rule:
    """`session:` of the config in whole microseconds."""
    return Rule(int(config.session.gap_s * 1e6), int(config.session.max_length_s * 1e6))


def by_user(events: DataFrame, config: Config, hot: HotUsers | None) -> DataFrame:
    """Narrow rows, those of a user (or of a range of a hot one) side by side; their order within is not settled.

    Columns: key, user_id, us, seq, ingest, event_id, surface, event_type, dwell_ms, flags, and where there
    are such source_session_id, session_id, start_us; `stream` where a declaration may rename events. A filled-in
    dwell (`imputed`) is none here.
    """
    us = F.unix_micros("event_ts")
    have = set(events.columns)
    dwell: Column | str = "dwell_ms"
    if "session_id" in have:
        dwell = F.when(F.col("dwell_status") != "imputed", F.col("dwell_ms")).alias("dwell_ms")
        flags = (
            F.when(has_usable_dwell(), USABLE)
            .when(F.col("dwell_status") == "censored", CENSORED)
            .otherwise(0)
        )
    else:
        flags = F.when(F.col("bad_dwell"), BAD).otherwise(0) if "bad_dwell" in have else F.lit(0)
    columns: list[Column | str] = [
        (F.xxhash64("user_id") if hot is None else hot.key(us)).alias("key"),
        "user_id",
        us.alias("us"),
        F.col("event_seq").alias("seq"),
        F.unix_micros("ingest_ts").alias("ingest"),
        "event_id",
        "surface",
        "event_type",
        dwell,
        flags.cast("tinyint").alias("flags"),
    ]
    columns += ["source_session_id"] if "source_session_id" in have else []
    columns += (
        ["session_id", F.unix_micros("session_start").alias("start_us")] if "session_id" in have else []
    )
    columns += [declared_stream(config).alias("stream")] if has_filters(config) else []
    narrow = events.select(*columns)
    # one long: radix sort
    return narrow.repartition("key").sortWithinPartitions("key")


def finished_sessions(rows: DataFrame, config: Config, *, settled: bool) -> DataFrame:
    """Columns of `ebf_session`; where the events had no session_id it is made here."""
    made = F.col("session_id") if settled else session_id(config, first="_first", part="_part")
    return rows.withColumn("session_id", made).select(*EBF_SESSION.names)


def session_id(config: Config, *, first: str, part: str) -> Column:
    """First 32 hex digits of SHA-256 over chain's first event (µs), part, source's id where given, and user."""
    # The user stands last and the separator is no digit: no two tuples give one text.
    texts: list[Column | str] = [F.col(first).cast("string"), F.col(part).cast("string")]
    if config.session.rule == "given":
        given = F.coalesce("source_session_id", F.lit(""))
        texts += [F.length(given).cast("string"), given]
    return F.substring(F.sha2(F.concat_ws("|", *texts, "user_id"), 256), 1, 32)
