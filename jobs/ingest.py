"""`ingest`: raw events to `events` and `events_quarantine`, all of the source before the run date at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, time

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.config import DEFINITION_SECTIONS, Config
from dynamix.contracts import DWELL_STATUSES, EVENTS, EVENTS_QUARANTINE
from dynamix.errors import ConfigError, DynamixError, GuardError, InputError
from dynamix.features.calendar import Calendar, build_calendar
from dynamix.features.dwell import cap_dwell, derive_dwell, dwell_caps
from dynamix.features.events import DEDUPLICATED, KEPT, QUARANTINED, RawSplit, close_streams, split_raw
from dynamix.features.instants import BARE_NUMBER
from dynamix.features.quality import gate, load_early
from dynamix.features.raw import read_raw, undeclared_unit, unread_columns
from dynamix.features.sessions import assign_sessions
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.drift import report_drift

HOT_USER_SHARE = 0.1


@dataclass(frozen=True)
class Tally:
    """Row counts of a source: read = kept + deduplicated + quarantined, reasons add up to quarantined."""

    read: int
    kept: int
    deduplicated: int
    reasons: Mapping[str, int]
    bad_dwell: int
    first_event: datetime | None
    bare_numbers: int

    @property
    def quarantined(self) -> int:
        return sum(self.reasons.values())

    def counters(self) -> dict[str, int]:
        return {
            "rows_read": self.read,
            "rows_kept": self.kept,
            "rows_deduplicated": self.deduplicated,
            "rows_quarantined": self.quarantined,
            "bad_dwell": self.bad_dwell,
            **{f"quarantined_{reason}": n for reason, n in sorted(self.reasons.items())},
        }


def ingest(run: Run, *, events: str, allow_empty: bool = False, rebuild: bool = False) -> StepResult:
    """Read, judge, sessionise and write the events before the run date; nothing is written on an error.

    Raises InputError (exit 3) for an empty source without `allow_empty`, a broken contract or more
    than `max_quarantined` unusable rows; ConfigError (exit 2) for an undeclared unit or a warehouse of
    another definition without `rebuild`; GuardError (exit 4) where the quality gate refuses.
    """
    config = run.config
    definition = config.digest(*DEFINITION_SECTIONS)
    _same_definition(run, definition, rebuild=rebuild)
    raw = read_raw(run.spark, events, config=config)
    split = split_raw(raw, config=config, run_id=run.run_id, until=datetime.combine(run.run_date, time()))
    result = StepResult(warnings=_unread_warning(raw, config))
    load_early()
    with _kept_in_memory(split.judged):
        tally = _tally(split)
        _refuse_bad_source(tally, events, config, allow_empty=allow_empty)
        run.note(_balance_line(tally))
        result.counters.update(tally.counters())
        settled = _settle(split.good, config)
        with _kept_in_memory(settled):
            caps, calendar = _caps(run, settled, tally)
            capped = cap_dwell(settled, caps=caps)
            finished = capped.drop("unknown_stream")
            if tally.kept:
                _pass_gate(run, finished, tally, result)
                _describe(capped, config, tally, result)
            quarantine = split.quarantine if tally.quarantined else split.quarantine.limit(0)
            _write(run, finished, quarantine, result, caps, calendar, definition, rebuild=rebuild)
            if tally.kept:
                report_drift(run, finished, result, definition=definition)
    return result


def _settle(good: DataFrame, config: Config) -> DataFrame:
    """Events with streams, sessions and uncapped dwells settled; `unknown_stream` is still there."""
    closed = close_streams(good, config=config)
    return derive_dwell(assign_sessions(closed, config=config), config=config)


def _tally(split: RawSplit) -> Tally:
    bare = F.count_if(F.col("hint").contains(BARE_NUMBER))
    rows = (
        split.judged.groupBy("fate", "reason")
        .agg(
            F.count(F.lit(1)).alias("n"),
            F.count_if("bad_dwell").alias("bad"),
            F.min("event_ts").alias("first"),
            bare.alias("bare"),
        )
        .collect()
    )
    n = {row["fate"]: row["n"] for row in rows if row["fate"] != QUARANTINED}
    kept = [row for row in rows if row["fate"] == KEPT]
    tally = Tally(
        read=split.seen.count(),  # counted apart, so that the balance is a check and not a definition
        kept=n.get(KEPT, 0),
        deduplicated=n.get(DEDUPLICATED, 0),
        reasons={row["reason"]: row["n"] for row in rows if row["fate"] == QUARANTINED},
        bad_dwell=sum(row["bad"] for row in kept),
        first_event=kept[0]["first"] if kept else None,
        bare_numbers=sum(row["bare"] for row in rows),
    )
    if tally.read != tally.kept + tally.deduplicated + tally.quarantined:
        raise DynamixError(
            f"rows do not balance: {_balance_line(tally)}; the source changed while it was read, run again"
        )
    return tally


def _refuse_bad_source(tally: Tally, source: str, config: Config, *, allow_empty: bool) -> None:
    if tally.read == 0:
        if allow_empty:
            return
        raise InputError.empty(f"{source} (before the run date)")
    share = tally.quarantined / tally.read
    if share <= config.max_quarantined:
        return
    if tally.bare_numbers > tally.quarantined / 2:
        raise undeclared_unit(source, config.columns.get("event_ts", "event_ts"), "text of digits", None)
    reasons = ", ".join(
        f"{name} {n}" for name, n in sorted(tally.reasons.items(), key=lambda r: (-r[1], r[0]))
    )
    raise InputError.too_much_quarantined(source, share, config.max_quarantined, reasons)


def _caps(run: Run, settled: DataFrame, tally: Tally) -> tuple[dict[str, int], Calendar | None]:
    """Caps per stream, fitted on the baseline window of this cycle and frozen with it."""
    if tally.first_event is None:
        return {}, None
    calendar = build_calendar(run.run_date, first_event=tally.first_event, days=run.config.calendar.days)
    window = settled.where(calendar.baseline.sql("event_ts"))
    rows = dwell_caps(window, run.config.dwell.cap_quantile).collect()
    return {row["stream"]: row["cap_ms"] for row in sorted(rows)}, calendar


def _pass_gate(run: Run, finished: DataFrame, tally: Tally, result: StepResult) -> None:
    until = datetime.combine(run.run_date, time())
    late = (F.col("event_ts") >= F.lit(until)) | (F.col("ingest_ts") >= F.lit(until))
    report = gate(
        finished, EVENTS, extra=_event_rules(run.config) | {"every row is before the run date": late}
    )
    report.store(run.folder / "quality", EVENTS.name)
    if report.metrics.get("rows", tally.kept) != tally.kept:
        raise DynamixError(
            f"{report.metrics['rows']} events came of {tally.kept} kept rows; the source changed while it was "
            "read, run again"
        )
    result.metrics["quality_expectations"] = float(len(report.results.get("results", ())))
    if not report.success:
        raise GuardError(
            f"quality gate of table 'events' refused, nothing was written: {'; '.join(report.failures)}; "
            "report this with the run's log, bad input should have been quarantined"
        )


def _event_rules(config: Config) -> dict[str, Column]:
    """Conditions that are true for a bad row, beyond columns and keys."""
    unknown = F.col("dwell_status").isin("censored", "missing")
    rules = {
        "censored and missing dwells are NULL, all others known": unknown != F.col("dwell_ms").isNull(),
        "session_id and session_start are both set or both NULL": F.col("session_id").isNull()
        != F.col("session_start").isNull(),
        "no session starts after its event": F.col("session_start") > F.col("event_ts"),
    }
    if config.impression_types and not config.organic_impressions:
        impression = F.col("event_type").isin(*config.impression_types)
        rules["impressions have no session"] = impression & F.col("session_id").isNotNull()
    return rules


def _describe(capped: DataFrame, config: Config, tally: Tally, result: StepResult) -> None:
    """Counters of dwells, impressions and unknown streams; warnings on a hot user and a closed contract."""
    counts = {
        "events_outside_sessions": F.count_if(F.col("session_id").isNull()),
        "unknown_streams": F.count_if("unknown_stream"),
        **{f"dwell_{status}": F.count_if(F.col("dwell_status") == status) for status in DWELL_STATUSES},
    }
    per_user = capped.groupBy("user_id").agg(
        F.count(F.lit(1)).alias("n"), *[count.alias(name) for name, count in counts.items()]
    )
    row = per_user.agg(
        F.count(F.lit(1)).alias("users"),
        F.max(F.struct("n", "user_id")).alias("most"),
        *[F.sum(name).alias(name) for name in counts],
    ).collect()[0]
    result.counters |= {name: row[name] for name in ("users", *counts)}
    if config.contract == "closed_fail" and row["unknown_streams"]:
        raise InputError(
            f"{row['unknown_streams']} events are of streams outside `known_streams:` and the contract is closed_fail; "
            "add the streams, or set `contract:` to open or closed_unknown"
        )
    if row["unknown_streams"]:
        result.warnings.append(f"{row['unknown_streams']} events of unknown streams went to unknown/unknown")
    if row["users"] > 10 and row["most"]["n"] > HOT_USER_SHARE * tally.kept:
        share = row["most"]["n"] / tally.kept
        result.warnings.append(f"hot user {row['most']['user_id']!r} has {share:.0%} of the events; a bot?")


def _write(
    run: Run, finished: DataFrame, quarantine: DataFrame, result: StepResult, caps: Mapping[str, int],
    calendar: Calendar | None, definition: str, *, rebuild: bool,
) -> None:  # fmt: skip
    """Both tables, `events` last: its commit is what makes the step done."""
    spark, place = run.spark, run.warehouse
    if rebuild:
        place.drop(EVENTS_QUARANTINE.name)
        place.drop(EVENTS.name)
    note: dict[str, object] = {"run_id": run.run_id, "caps_ms": dict(caps)}
    if calendar is not None:
        note["baseline_version"] = calendar.baseline_version
        result.facts["baseline_version"] = calendar.baseline_version
    result.tables[EVENTS_QUARANTINE.name] = place.replace(
        spark, EVENTS_QUARANTINE, quarantine, metadata=note, allow_empty=True, definition=definition
    )
    result.tables[EVENTS.name] = place.replace(
        spark, EVENTS, finished, metadata=note,
        allow_empty=result.counters["rows_read"] == 0, definition=definition,
        empty=result.counters["rows_kept"] == 0,
    )  # fmt: skip


def _same_definition(run: Run, definition: str, *, rebuild: bool) -> None:
    """Refuse early what the write would refuse (docs/faults.md 30)."""
    for table in (EVENTS, EVENTS_QUARANTINE):
        stored = run.warehouse.definition(run.spark, table.name)
        if stored and stored != definition and not rebuild:
            raise ConfigError.other_definition(table.name, stored, definition)


def _unread_warning(raw: DataFrame, config: Config) -> list[str]:
    unread = unread_columns(raw, config=config)
    if not unread:
        return []
    return [f"columns nothing reads: {', '.join(unread)}; name them under `attributes:` to keep them"]


def _balance_line(tally: Tally) -> str:
    return (
        f"{tally.read} rows read = {tally.kept} kept + {tally.deduplicated} deduplicated "
        f"+ {tally.quarantined} quarantined"
    )


@contextmanager
def _kept_in_memory(frame: DataFrame) -> Iterator[None]:
    frame.persist()
    try:
        yield
    finally:
        frame.unpersist()
