"""`ingest`: raw events to `events` and `events_quarantine`, all of the source before the run date at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.config import DEFINITION_SECTIONS, Config
from dynamix.contracts import DWELL_STATUSES, EVENTS, EVENTS_QUARANTINE
from dynamix.errors import ConfigError, DynamixError, GuardError, InputError
from dynamix.features.calendar import build_calendar, midnight
from dynamix.features.dwell import cap_dwell, derive_dwell, dwell_caps
from dynamix.features.events import split_raw
from dynamix.features.imputed import (
    LAST,
    by_stream,
    find_imputed,
    flag_imputed,
    frequent_last_dwells,
    is_last,
)
from dynamix.features.instants import seen_since
from dynamix.features.quality import gate, load_early
from dynamix.features.raw import unread_columns
from dynamix.features.sessions import assign_sessions
from dynamix.jobs.baseline import Baseline, Mark, stored_mark
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.drift import report_drift
from dynamix.jobs.frames import held
from dynamix.jobs.increment import (
    Reading,
    chains_of,
    choose_reading,
    known_copies,
    merged_copies,
    overtaken,
    partitions_with,
    untimed_before,
)
from dynamix.jobs.opt_out import without_opted_out
from dynamix.jobs.raw_rows import RawRows, open_raw
from dynamix.jobs.tally import Source, Tally, balance_line, refuse_bad_source, tally_rows, without_untimed

HOT_USER_SHARE = 0.1


def ingest(run: Run, *, events: str, allow_empty: bool = False, rebuild: bool = False) -> StepResult:
    """Read, judge, sessionise and write the events before the run date; nothing is written on an error.

    Later runs read what is new since the last one and rewrite the days whose sessions it touches; the whole
    source is read where that would not do (`choose_reading` says why, and so does the run). Raises
    InputError (exit 3) for an empty source without `allow_empty`, a broken contract or more
    than `max_quarantined` unusable rows; ConfigError (exit 2) for an undeclared unit or a warehouse of
    another definition without `rebuild`; GuardError (exit 4) where the quality gate refuses or the source
    has lost rows.
    """
    definition = run.config.digest(*DEFINITION_SECTIONS)
    _same_definition(run, definition, rebuild=rebuild)
    opened = open_raw(run, events)
    raw = opened.rows
    result = StepResult(warnings=_unread_warning(raw, run.config))
    _count_forgotten(run, opened, result)
    load_early()
    mark = None if rebuild else stored_mark(run.warehouse)
    reading = choose_reading(run, raw, mark, rebuild=rebuild)
    result.facts["reading"] = reading.reason
    if reading.nothing:
        run.note(f"ingest: nothing to do, {reading.reason}")
        return result
    source = Source(events, raw, definition, allow_empty, rebuild)
    if mark is not None and reading.since is not None and _ingest_new(run, source, mark, reading, result):
        return result
    run.note(f"ingest: the whole source, {result.facts['reading']}")
    _ingest_all(run, source, result, frozen=_frozen(run.run_date, mark))
    return result


def _frozen(run_date: date, mark: Mark | None) -> Baseline | None:
    """The older baseline under which this run date was ingested before, None where it has to be fitted.

    A repeat of an increment, as after a crash, must end with the increment's rows (docs/faults.md 2).
    """
    if mark is None or mark.until != run_date or mark.baseline.fitted >= run_date:
        return None
    return mark.baseline


def _ingest_all(run: Run, source: Source, result: StepResult, *, frozen: Baseline | None) -> None:
    lazy = split_raw(source.raw, config=run.config, run_id=run.run_id, until=midnight(run.run_date))
    split = lazy.on(held(lazy.judged))
    tally = tally_rows(split)
    refuse_bad_source(tally, source, run.config)
    run.note(balance_line(tally))
    result.counters.update(tally.counters())
    settled = held(_settle(split.good, run.config))
    baseline = frozen or _fit_baseline(run, settled, tally, result)
    capped = _finish(settled, baseline)
    if tally.kept:
        _pass_gate(run, capped.drop("unknown_stream"), tally.kept, result)
        _describe(capped, run.config, result)
    quarantine = split.quarantine if tally.quarantined else split.quarantine.limit(0)
    if source.rebuild:
        run.warehouse.drop(EVENTS_QUARANTINE.name)
        run.warehouse.drop(EVENTS.name)
    _write(run, Written(capped.drop("unknown_stream"), quarantine, tally), source, result, baseline=baseline)
    if tally.kept:
        report_drift(run, capped.drop("unknown_stream"), result, definition=source.definition)


def _ingest_new(run: Run, source: Source, mark: Mark, reading: Reading, result: StepResult) -> bool:
    """Judge the rows first seen since the mark and settle the sessions they touch; False: the whole is needed."""
    since = reading.since
    assert since is not None
    new = seen_since(source.raw, unit=run.config.time_unit, since=midnight(since))
    known = known_copies(run, new, since)
    lazy = split_raw(new, config=run.config, run_id=run.run_id, until=midnight(run.run_date), known=known)
    split = lazy.on(held(lazy.judged))
    if overtaken(split.judged, known, since):
        result.facts["reading"] = f"a copy of a stored event came before {since}"
        return False
    quarantine, tally = split.quarantine, tally_rows(split)
    before = untimed_before(run, mark)
    if reading.chunk:
        quarantine = merged_copies(before, quarantine)
    else:
        tally = without_untimed(tally, before)
    refuse_bad_source(tally, source, run.config)
    run.note(f"ingest: {reading.reason}: {balance_line(tally)}")
    result.counters.update(tally.counters())
    chains = chains_of(run, split.good)
    settled = held(_finish(_settle(chains, run.config), mark.baseline))
    finished, days, stored = partitions_with(run, settled)
    result.facts["days"] = ", ".join(map(str, days))
    _pass_gate(run, finished, stored + tally.kept, result)
    if tally.kept:
        _describe(settled.where("is_new").drop("is_new"), run.config, result)
    written = Written(finished, quarantine, tally, since, days, mark)
    _write(run, written, source, result, baseline=mark.baseline)
    if tally.kept:
        table = run.warehouse.read(run.spark, EVENTS.name)
        touched = table.where(F.col("event_date").isin(days))
        report_drift(run, touched, result, definition=source.definition)
    return True


def _settle(good: DataFrame, config: Config) -> DataFrame:
    """Events with sessions and uncapped dwells settled; what the source logged, and LAST, stand beside them."""
    logged = good.withColumns({"dwell_logged_ms": F.col("dwell_ms"), "_bad": F.col("bad_dwell")})
    placed = assign_sessions(logged, config=config).withColumn(LAST, is_last())
    return derive_dwell(placed, config=config).withColumnRenamed("_bad", "bad_dwell")


def _fit_baseline(run: Run, settled: DataFrame, tally: Tally, result: StepResult) -> Baseline | None:
    """Filled-in constants and caps per stream, fitted on the baseline window of this cycle and frozen with it.

    Each constant is a warning; no cap is fitted on one.
    """
    if tally.first_event is None:
        return None
    calendar = build_calendar(run.run_date, first_event=tally.first_event, days=run.config.calendar.days)
    window = without_opted_out(run, settled).where(calendar.baseline.sql("event_ts"))
    share = run.config.dwell.imputed_share
    often = frequent_last_dwells(window, share=share).collect()
    found = find_imputed(
        ((r["stream"], r["dwell_ms"], r["n"], r["total"], r["inner"]) for r in often), share=share
    )
    result.warnings.extend(one.sentence() for one in found)
    constants = by_stream(found)
    genuine = flag_imputed(window, constants=constants).where("dwell_status <> 'imputed'")
    rows = dwell_caps(genuine, run.config.dwell.cap_quantile).collect()
    return Baseline.of(calendar, {row["stream"]: row["cap_ms"] for row in sorted(rows)}, constants)


def _finish(settled: DataFrame, baseline: Baseline | None) -> DataFrame:
    """Settled rows with filled-in constants flagged and long dwells capped, as the baseline has them."""
    if baseline is None:
        return settled.drop(LAST)
    flagged = flag_imputed(settled, constants=baseline.imputed_ms)
    return cap_dwell(flagged, caps=baseline.caps_ms).drop(LAST)


def _pass_gate(run: Run, finished: DataFrame, expected: int, result: StepResult) -> None:
    until = midnight(run.run_date)
    late = (F.col("event_ts") >= F.lit(until)) | (F.col("ingest_ts") >= F.lit(until))
    report = gate(
        finished, EVENTS, extra=_event_rules(run.config) | {"every row is before the run date": late}
    )
    report.store(run.folder / "quality", EVENTS.name)
    if report.metrics.get("rows", expected) != expected:
        raise DynamixError(
            f"{report.metrics['rows']} events came of {expected} rows; the source changed while it was "
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


def _describe(capped: DataFrame, config: Config, result: StepResult) -> None:
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
        F.sum("n").alias("events"),
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
    if row["users"] > 10 and row["most"]["n"] > HOT_USER_SHARE * row["events"]:
        share = row["most"]["n"] / row["events"]
        result.warnings.append(f"hot user {row['most']['user_id']!r} has {share:.0%} of the events; a bot?")


@dataclass(frozen=True)
class Written:
    """Finished rows of both tables. An increment says since when, which days of `events`, and after which mark."""

    events: DataFrame
    quarantine: DataFrame
    tally: Tally
    since: date | None = None
    days: Sequence[date] = ()
    before: Mark | None = None

    @property
    def event_range(self) -> str | None:
        listed = ", ".join(f"date'{day}'" for day in self.days)
        return f"event_date IN ({listed})" if listed else None

    @property
    def quarantine_range(self) -> str | None:
        return f"seen_date IS NULL OR seen_date >= date'{self.since}'" if self.since else None

    def mark(self, run_date: date, quarantine: int, baseline: Baseline) -> Mark:
        """State of the table once these rows are in it."""
        timed, kept, out = self.tally.timed, self.tally.kept, self.tally.quarantined
        old = (self.before.rows, self.before.kept, self.before.quarantined) if self.before else (0, 0, 0)
        doubt = self.before.doubt if self.before else 0
        return Mark(
            run_date,
            old[0] + timed,
            old[1] + kept,
            old[2] + out,
            timed,
            self.since,
            quarantine,
            baseline,
            doubt,
        )


def _write(
    run: Run, written: Written, source: Source, result: StepResult, *, baseline: Baseline | None
) -> None:
    """Both tables, `events` last: its commit is what makes the step done."""
    spark, place = run.spark, run.warehouse
    quarantined = place.replace(
        spark, EVENTS_QUARANTINE, written.quarantine, where=written.quarantine_range,
        metadata={"run_id": run.run_id}, allow_empty=True, definition=source.definition,
    )  # fmt: skip
    result.tables[EVENTS_QUARANTINE.name] = quarantined
    note: dict[str, object] = {"run_id": run.run_id}
    if baseline is not None:
        note |= written.mark(run.run_date, quarantined, baseline).note()
        result.facts["baseline_version"] = baseline.version
    result.tables[EVENTS.name] = place.replace(
        spark, EVENTS, written.events, where=written.event_range, metadata=note,
        allow_empty=written.tally.read == 0, definition=source.definition,
        empty=written.tally.kept == 0 and written.before is None,
    )  # fmt: skip


def _same_definition(run: Run, definition: str, *, rebuild: bool) -> None:
    """Refuse early what the write would refuse (docs/faults.md 30)."""
    for table in (EVENTS, EVENTS_QUARANTINE):
        stored = run.warehouse.definition(run.spark, table.name)
        if stored and stored != definition and not rebuild:
            raise ConfigError.other_definition(table.name, stored, definition)


def _count_forgotten(run: Run, opened: RawRows, result: StepResult) -> None:
    """How many rows of forgotten users the source still has: they count as not read."""
    if opened.forgotten is None:
        return
    left_out = opened.forgotten.count()
    result.counters["rows_forgotten"] = left_out
    if left_out:
        run.note(f"ingest: {left_out} rows of forgotten users left out")


def _unread_warning(raw: DataFrame, config: Config) -> list[str]:
    unread = unread_columns(raw, config=config)
    if not unread:
        return []
    return [f"columns nothing reads: {', '.join(unread)}; name them under `attributes:` to keep them"]
