"""`dynamix mask`: one scan for the statistics of every cell, the keep rule, mask versions with controls."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import CELL_STATS, MASK_AUDIT, MASKS, VERDICTS
from dynamix.errors import GuardError
from dynamix.features.calendar import Calendar, midnight, since_1970
from dynamix.features.conversions import (
    SETTINGS,
    attribution_counts,
    label_impressions,
    setting_label,
    with_settings,
)
from dynamix.features.gram import MAX_STREAMS
from dynamix.features.relevance import (
    cell_sums,
    statistics_rows,
    thirds,
)
from dynamix.features.sql_text import equals, one_of
from dynamix.features.streams import event_columns, hidden_attributes, stream_lengths
from dynamix.features.timeline import parcels_of
from dynamix.features.training import with_segments
from dynamix.jobs.budgets import at_budgets, store_budgets
from dynamix.jobs.cell_stats import TIER, Measured, stat_rows, unpacked
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.decide import Decision, decide, one_mask, protection
from dynamix.jobs.features import cycle_calendar, seen_events
from dynamix.jobs.frames import held, table_frame
from dynamix.jobs.given import prediction_without_history
from dynamix.jobs.heatmap import terminal
from dynamix.jobs.kinds import kinded_sessions
from dynamix.jobs.life import RowsOf, watch_published, write_watch
from dynamix.jobs.mask_attributes import kept_attributes
from dynamix.jobs.mask_audit import GATE_RULES, audit_rows, backed_off
from dynamix.jobs.report_data import cells_from_rows
from dynamix.jobs.sensitive import hidden_cells
from dynamix.segmentation.cells import Cell
from dynamix.segmentation.effects import Effect
from dynamix.segmentation.life import Stay
from dynamix.segmentation.masks import Verdict


@dataclass(frozen=True)
class Scan:
    """What one scan reads and makes: which rows, labels under which attribution settings, sums over all streams.

    `whole`: of the heads, too, only the sums of all rows, without windows, parts, recency and bins of dwell.
    """

    rows: RowsOf = statistics_rows
    settings: tuple[str, ...] = ()
    together: bool = False
    whole: bool = False


EVERYTHING = Scan(settings=SETTINGS, together=True)
"""What the rule reads."""


def mask(run: Run, *, given: str | None = None) -> StepResult:
    """Write `cell_stats`, a proposed mask version under `mask.rule`, and the one-mask control beside it.

    GuardError (exit 4) where no impression of the statistics period is mature or no head has a positive;
    ConfigError where `--given champion` finds no scores. Rerunning the same inputs gives the same version.
    """
    given = given or run.config.mask.given
    segments = newest_segments(run)
    measured, result = measure(run, given, *segments)
    result.counters |= _fates(run)
    result.tables["cell_stats"] = _write_stats(run, measured, given)
    watched = watch_published(
        run, lambda rows: measure(run, "baseline", *segments, scan=Scan(rows, whole=True))[0].statistics
    )
    stays: dict[Cell, Stay] = {**backed_off(run), **watched.restored}
    proposed = decide(run.config, measured, stays)
    version = _version(run, measured, proposed)
    grid = _grid_rows(run, measured, proposed, version)
    audit = audit_rows(proposed, version, watched.fresh(run.run_date))
    if run.config.mask.rule != "global":
        control = one_mask(run.config, measured, "control")
        control_version = _version(run, measured, control)
        grid += _grid_rows(run, measured, control, control_version)
        audit += audit_rows(control, control_version)
        result.facts["control_version"] = control_version
    _write_masks(run, grid, audit, result)
    write_watch(run, watched, result)
    if run.config.mask.rule == "bound":
        others = at_budgets(
            measured.statistics, run.config.mask, proposed.verdicts,
            protection=protection(run.config, measured.streams), stays=stays,
        )  # fmt: skip
        store_budgets(run.folder, version, others)
    own = [row for row in grid if row["mask_version"] == version]
    result.verdicts = {v: sum(r["verdict"] == v for r in own) for v in VERDICTS}
    every = max(_tokens(measured, proposed.verdicts), 1e-12)
    dropped = _tokens(measured, [v for v in proposed.verdicts if v.verdict == "drop"])
    older = sum(cut.tokens for cut in proposed.cuts.values())
    result.metrics |= {"tokens_dropped_share": (dropped + older) / every, "tokens_older_share": older / every}
    if run.config.mask.boost_to:
        result.metrics["tokens_boosted_share"] = sum(b.tokens for b in proposed.boosts.values()) / every
    cells = cells_from_rows(own, whole=lambda stream: run.config.declaration(stream).length)
    cells = hidden_cells(cells, run.config)
    result.facts |= {"mask_version": version, "given": given, "heatmap": terminal(cells)}
    result.counters["cells_cut"] = len(proposed.cuts)
    if proposed.without:
        result.counters["cells_without_attributes"] = len(proposed.without)
    return result


def measure(
    run: Run, given: str, segments: DataFrame, version: str, names: Mapping[int, str], *, scan: Scan = EVERYTHING
) -> tuple[Measured, StepResult]:  # fmt: skip
    """Statistics of every cell under these segments (rows as in `segments`), as `scan` says, with counters."""
    spark, config = run.spark, run.config
    events = seen_events(run)
    calendar = cycle_calendar(run, events)
    streams = run.warehouse.read(spark, "streams")
    stats = run.warehouse.read(spark, "user_stats").where(
        F.col("baseline_version") == calendar.baseline_version
    )
    listed = {int(r["stream_id"]): str(r["stream"]) for r in streams.select("stream_id", "stream").collect()}
    heads = config.heads()
    labels = label_impressions(events, config=config)
    if scan.settings:
        labels = with_settings(labels, events, config=config)
    rows = held(with_segments(scan.rows(labels, calendar), segments))
    result = StepResult(warnings=list(calendar.lost))
    refuse_without_labels(rows, config, calendar, result)
    others = tuple(setting_label(head, setting) for head in heads for setting in scan.settings)
    detailed, plain = ((), (*heads, *others)) if scan.whole else (heads, others)
    prediction, rows = prediction_without_history(run, rows, given, (*heads, *others), 1 + max(names))
    history = event_columns(events, streams, stats, config, sessions=kinded_sessions(run))
    ids = {name: i for i, name in listed.items()}
    untimed = [i for i, hidden in hidden_attributes(ids, config).items() if "recency" in hidden]
    together = scan.together and max(listed) < MAX_STREAMS
    if scan.together and not together:
        result.warnings.append(
            f"{1 + max(listed)} streams, more than {MAX_STREAMS}: they are judged one by one, so of two copies both stay"
        )
    run.note(f"mask: one scan over the histories of {result.counters['rows_read']} impressions")
    table = cell_sums(
        history, rows, history=config.history, heads=detailed, n_streams=1 + max(listed),
        given=prediction, thirds_us=thirds(calendar), run_date_us=since_1970(midnight(run.run_date)),
        lengths=stream_lengths(ids, config), untimed=untimed, others=plain, together=together,
        boost_to=0 if scan.whole else config.mask.boost_to,
        parcels=parcels_of(events.count() + result.counters["rows_read"]),
    ).collect()  # fmt: skip
    statistics = unpacked(table, listed, heads=heads, settings=scan.settings)
    end = (calendar.statistics.end - timedelta(microseconds=1)).date() + timedelta(days=1)
    return Measured(statistics, version, names, tuple(sorted(listed.values())), end), result


def newest_segments(run: Run) -> tuple[DataFrame, str, dict[int, str]]:
    """Rows of the newest segment version up to the run date, its name, and the name of every live segment."""
    registry = run.warehouse.read(run.spark, "segment_registry")
    until = f"s{run.run_date:%Y%m%d}."
    found = (
        registry.where(F.col("segment_version") < until).agg(F.max("segment_version").alias("v")).collect()
    )
    version = found[0]["v"]
    if version is None:
        raise GuardError(f"segment_registry has no version up to {run.run_date}; run `dynamix segment` first")
    rows = registry.where((F.col("segment_version") == version) & (F.col("event") != "death"))
    names = {
        int(r["segment_id"]): str(r["segment_name"])
        for r in rows.select("segment_id", "segment_name").collect()
    }
    segments = run.warehouse.read(run.spark, "segments").where(F.col("segment_version") == version)
    return segments, str(version), names


def _fates(run: Run) -> dict[str, int]:
    """What became of the conversions that the run sees (docs/faults.md 18)."""
    counts = attribution_counts(seen_events(run), run.config).collect()[0].asDict()
    return {f"conversions_{k}" if k != "conversions" else k: int(v) for k, v in counts.items()}


def refuse_without_labels(rows: DataFrame, config: Config, calendar: Calendar, result: StepResult) -> None:
    """Counts of mature impressions and positives per head; GuardError where there are none."""
    heads = config.heads()
    sums = [F.coalesce(F.sum(f"label_{h}"), F.lit(0.0)).alias(h) for h in heads]
    found = rows.agg(F.count(F.lit(1)).alias("n"), *sums).collect()[0]
    result.counters["rows_read"] = int(found["n"])
    if not found["n"]:
        raise GuardError(
            f"no impression of {calendar.statistics.start:%Y-%m-%d} to {calendar.statistics.end:%Y-%m-%d} is mature; "
            "ingest more days, declare `impression_types`, or shorten the windows of `attribution`"
        )
    for head in heads:
        result.counters[f"positives_{head}"] = int(found[head])
    missing = [h for h in heads if not found[h]]
    if missing:
        raise GuardError(
            f"no positive label for {', '.join(missing)} in {found['n']} impressions of the statistics period: masks "
            "are refused; check `conversion_types`, `attribution.join_on` and its windows, or leave the head out "
            "of `labels`"
        )


def _write_stats(run: Run, measured: Measured, given: str) -> int:
    frame = table_frame(run.spark, CELL_STATS, stat_rows(measured, given))
    where = f"{equals(segment_version=measured.segment_version)} AND window_end = date'{measured.window_end}'"
    return run.warehouse.replace(run.spark, CELL_STATS, frame, where=where)


def _tokens(measured: Measured, verdicts: Sequence[Verdict]) -> float:
    """Kept events of the cells, summed over impressions."""
    head = measured.statistics.heads[0]
    found = (measured.statistics.of((v.segment_id, v.stream), head) for v in verdicts)
    return float(sum(s.tokens for s in found if s is not None))


def _version(run: Run, measured: Measured, decision: Decision) -> str:
    """`m<yyyymmdd>-<8 hex>` over the grid, the segments it is for, and the rule's config."""
    content = {
        "status": decision.status,
        "segments": measured.segment_version,
        "config": run.config.digest("mask", "history", "streams", "labels", "attribution"),
        "cells": [(v.segment_id, v.stream, v.verdict, v.reason) for v in decision.verdicts],
        "cuts": [(*cell, cut.events) for cell, cut in sorted(decision.cuts.items())],
    }
    if decision.without:
        content["without"] = [[*cell, *one.attributes] for cell, one in sorted(decision.without.items())]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return f"m{run.run_date:%Y%m%d}-{digest}"


def _grid_rows(run: Run, measured: Measured, decision: Decision, version: str) -> list[dict[str, Any]]:
    """The full grid: every live segment × every stream; cells without statistics are `undecided`."""
    by_cell = {(v.segment_id, v.stream): v for v in decision.verdicts}
    rows = []
    for segment_id in sorted(measured.names):
        for stream in measured.streams:
            v = by_cell.get((segment_id, stream))
            e: Effect | None = v.effect if v else None
            dropped = v is not None and v.verdict == "drop"
            cut = decision.cuts.get((segment_id, stream))
            without = decision.without.get((segment_id, stream))
            longer = v is not None and v.verdict == "boost"
            whole = run.config.mask.boost_to if longer else run.config.declaration(stream).length
            reason = v.reason if v else "no impression of this segment in the statistics period"
            rows.append({
                "mask_version": version, "seq": 0, "segment_version": measured.segment_version,
                "segment_id": segment_id, "segment_name": measured.names[segment_id], "tier": TIER,
                "stream": stream, "keep": not dropped,
                "quota": 0 if dropped else cut.events if cut else whole, "boost": 0.0,
                "attributes": kept_attributes(run.config, stream, without),
                "relevance": e.relevance if e else None,
                "relevance_lcb": e.lcb if e else None,
                "relevance_ucb": e.ucb if e else None,
                "positives": int(e.positives) if e else 0, "tokens": v.tokens if v else 0.0,
                "verdict": v.verdict if v else "undecided",
                "reason": "; ".join([reason, *(x.reason for x in (cut, without) if x)]),
                "status": decision.status, "run_date": run.run_date, "run_id": run.run_id,
            })  # fmt: skip
    return rows


def _write_masks(
    run: Run, grid: list[dict[str, Any]], audit: list[dict[str, Any]], result: StepResult
) -> None:
    """Replace the versions of this run date that nobody decided on; numbers (`seq`) go on from those stored."""
    versions = sorted({str(r["mask_version"]) for r in grid})
    seq = 1
    if run.warehouse.exists(run.spark, MASKS.name):
        stored = run.warehouse.read(run.spark, MASKS.name)
        last = stored.agg(F.max("seq").alias("seq")).collect()[0]["seq"]
        known = {
            str(r["mask_version"]): (int(r["seq"]), str(r["status"]))
            for r in stored.where(F.col("mask_version").isin(versions))
            .select("mask_version", "seq", "status").distinct().collect()
        }  # fmt: skip
        seq = int(last or 0) + 1
    else:
        known = {}
    for row in grid:
        have = known.get(str(row["mask_version"]))
        row["seq"] = have[0] if have else seq
        row["status"] = have[1] if have else row["status"]  # a published version stays published
    where = one_of("mask_version", versions)
    frame = table_frame(run.spark, MASKS, grid)
    result.tables["masks"] = run.warehouse.replace(run.spark, MASKS, frame, where=where)
    notes = table_frame(run.spark, MASK_AUDIT, audit)
    where = f"{where} AND NOT ({GATE_RULES})"
    result.tables["mask_audit"] = run.warehouse.replace(run.spark, MASK_AUDIT, notes, where=where)
