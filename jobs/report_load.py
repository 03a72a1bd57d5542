"""Gathers `ReportData` from a warehouse: the only part of the report that reads tables.

Each table is filtered to the shown version before its few rows come to the driver. A table that is not
there is named in `absent`; the page then says so instead of failing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.contracts import TABLES
from dynamix.errors import ConfigError
from dynamix.features.calendar import build_calendar, midnight
from dynamix.features.relevance import FINE_BINS, CellSums, bin_centres
from dynamix.jobs.budgets import load_budgets
from dynamix.jobs.context import Run
from dynamix.jobs.drift_data import as_watch, newest_drift
from dynamix.jobs.evidence_data import Evidence, fits, newest_evidence, number, whole
from dynamix.jobs.monitor import past_answers
from dynamix.jobs.report_data import Bin, Channel, Curve, LogStep, ReportData, SegmentInfo, cells_from_rows
from dynamix.jobs.story import typical_story

Row = Mapping[str, Any]
CURVE_BINS = 8
_CHANNEL_COLUMNS = (
    "segment_id", "tier", "stream", "label", "channel", "impressions", "positives", "beta", "se", "relevance",
    "relevance_lcb", "relevance_ucb", "information", "score_var", "dof",
)  # fmt: skip


def gather(run: Run, *, truth: Path | None = None) -> ReportData:
    """All that the report shows. `truth`: a simulated world's folder, or one of its truth folders."""
    versions = {n: v for n in TABLES if (v := run.warehouse.version(run.spark, n)) is not None}
    found = newest_evidence(run.warehouse.private)
    data = _settings(run, found[0] if found else None)
    data = replace(
        data,
        versions=versions,
        steps=_steps(run),
        absent=tuple(n for n in ("masks", "segments") if n not in versions),
    )
    if "masks" not in versions:
        return data
    masks = _newest_masks(run)
    data = replace(
        data,
        mask_version=str(masks[0]["mask_version"]),
        segment_version=str(masks[0]["segment_version"]),
        mask_status=str(masks[0]["status"]),
        cells=cells_from_rows(masks, whole=lambda stream: run.config.declaration(stream).length),
        statistics_days=_statistics_days(run),
    )
    data = replace(
        data,
        segments=_segments(run, data.segment_version),
        channels=_channels(run, data.segment_version),
        curves=_curves(run, data.segment_version),
        budgets=load_budgets(run.folder.parent / str(masks[0]["run_id"]), data.mask_version),
        drift=newest_drift(run.warehouse.private),
        watch=as_watch(answers[-1]) if (answers := past_answers(run.warehouse.private)) else None,
        story=typical_story(run, data.mask_version, label=data.label),
    )
    if data.evidence is not None and not fits(data.evidence, data.mask_version):
        data = replace(data, notice=_other_mask(data.evidence, data.mask_version))
    return data if truth is None else replace(data, truth=planted(run, truth, data.segment_version))


def _other_mask(evidence: Evidence, mask_version: str) -> str:
    trained = evidence.masked.mask_version if evidence.masked is not None else "none"
    return (
        f"The newest training compared mask {trained}, not {mask_version}, which is shown: NE, savings and one mask for "
        "everybody are of that other mask until `dynamix train` has run."
    )


def _settings(run: Run, evidence: Evidence | None) -> ReportData:
    config = run.config
    heads = config.heads()
    label = evidence.label if evidence and evidence.label else ""
    label = label or ("conversion" if "conversion" in heads or not heads else heads[0])
    meaning = evidence.label_meaning if evidence and evidence.label_meaning else config.meaning(label)
    return ReportData(
        run_id=run.run_id,
        run_date=run.run_date,
        config_hash=config.digest(),
        evidence=evidence,
        delta=config.mask.delta,
        ne_budget=config.mask.ne_budget,
        support=config.mask.support,
        label=label,
        label_meaning=meaning,
        currency=config.prices.currency,
        per_training_hour=config.prices.per_training_hour,
        per_billion_inferences=config.prices.per_billion_inferences,
    )


def _rows(frame: DataFrame) -> list[dict[str, Any]]:
    return [row.asDict() for row in frame.collect()]


def _newest_masks(run: Run) -> list[dict[str, Any]]:
    masks = run.warehouse.read(run.spark, "masks").where("status <> 'control'")
    newest = masks.orderBy(F.desc("run_date"), F.desc("seq"), F.desc("run_id"), "mask_version").select(
        "mask_version"
    )
    head = newest.limit(1).collect()
    if not head:
        raise ConfigError("table 'masks' holds no version; run `dynamix mask` first")
    return _rows(masks.where(F.col("mask_version") == head[0]["mask_version"]))


def _channels(run: Run, segment_version: str) -> tuple[Channel, ...]:
    if not run.warehouse.exists(run.spark, "cell_stats"):
        return ()
    stats = run.warehouse.read(run.spark, "cell_stats")
    stats = stats.where((F.col("segment_version") == segment_version) & (F.col("half") == -1))
    newest = stats.agg(F.max("window_end").alias("end"))
    stats = stats.join(F.broadcast(newest), F.col("window_end") == F.col("end")).select(*_CHANNEL_COLUMNS)
    order = ("segment_id", "tier", "stream", "label", "channel")
    return tuple(_channel(r) for r in _rows(stats.orderBy(*order)))


def _curves(run: Run, segment_version: str) -> tuple[Curve, ...]:
    """Dwell -> positives of every cell, from the histogram in the joint rows' mergeable state."""
    if not run.warehouse.exists(run.spark, "cell_stats"):
        return ()
    stats = run.warehouse.read(run.spark, "cell_stats").where(
        (F.col("segment_version") == segment_version) & (F.col("channel") == "joint")
    )
    newest = stats.agg(F.max("window_end").alias("end"))
    rows = stats.join(F.broadcast(newest), F.col("window_end") == F.col("end"))
    listed = rows.select("segment_id", "stream", "label", "sums").orderBy("segment_id", "stream", "label")
    return tuple(
        Curve(int(r["segment_id"]), str(r["stream"]), str(r["label"]), _bins(CellSums.unpack(r["sums"])))
        for r in listed.collect()
    )


def _bins(sums: CellSums) -> tuple[Bin, ...]:
    """At most `CURVE_BINS` bins of about equal size from the fine ones, then the impressions without a dwell.

    A bin is labelled by the mean dwell of its impressions, in standard deviations of ln(1 + dwell).
    """
    n, y = sums.hist[0], sums.hist[1]
    shown, centres = n[:FINE_BINS], bin_centres()
    bins = []
    share = shown.sum() / CURVE_BINS
    start = 0
    for stop in range(1, FINE_BINS + 1):
        enough = shown[start:stop].sum() >= share and shown[stop:].sum() >= share / 2
        if (enough or stop == FINE_BINS) and shown[start:stop].sum() > 0:
            inside = shown[start:stop]
            mean = float(inside @ centres[start:stop] / inside.sum())
            bins.append(Bin(f"{mean:+.1f}", int(inside.sum()), int(y[start:stop].sum())))
            start = stop
    if n[FINE_BINS] > 0:
        bins.append(Bin("none", int(n[FINE_BINS]), int(y[FINE_BINS])))
    return tuple(bins)


def _channel(row: Row) -> Channel:
    text = ("tier", "stream", "label", "channel")
    count = ("segment_id", "impressions", "positives", "dof")
    values: dict[str, Any] = {k: number(v) for k, v in row.items() if k not in text and k not in count}
    values |= {k: str(row[k]) for k in text} | {k: whole(row[k]) or 0 for k in count}
    return Channel(**values)


def _segments(run: Run, version: str) -> tuple[SegmentInfo, ...]:
    known: dict[int, dict[str, Any]] = {}
    if run.warehouse.exists(run.spark, "segment_registry"):
        registry = run.warehouse.read(run.spark, "segment_registry").where(
            F.col("segment_version") == version
        )
        for row in _rows(registry.select("segment_id", "segment_name", "method", "event", "verdict")):
            known[int(row["segment_id"])] = row
    users: dict[int, dict[str, int]] = {}
    if run.warehouse.exists(run.spark, "segments"):
        current = run.warehouse.read(run.spark, "segments")
        current = current.where((F.col("segment_version") == version) & F.col("valid_to").isNull())
        counted = current.groupBy("segment_id", "segment_name", "tier").agg(F.count("*").alias("n"))
        for row in _rows(counted):
            users.setdefault(int(row["segment_id"]), {})[str(row["tier"])] = int(row["n"])
            known.setdefault(int(row["segment_id"]), row)
    return tuple(
        SegmentInfo(
            segment_id=i,
            name=str(r.get("segment_name") or i),
            users=dict(sorted(users.get(i, {}).items())),
            method=str(r.get("method") or ""),
            event=str(r.get("event") or ""),
            verdict=str(r.get("verdict") or ""),
        )
        for i, r in sorted(known.items())
    )


def _steps(run: Run) -> tuple[LogStep, ...]:
    if not run.warehouse.exists(run.spark, "run_log"):
        return ()
    log = run.warehouse.read(run.spark, "run_log").where("status <> 'skipped'")
    newest = log.groupBy("step").agg(F.max_by(F.struct(*log.columns), "logged_at").alias("row"))
    rows = _rows(newest.select("row.*").orderBy("logged_at"))
    return tuple(
        LogStep(
            step=str(r["step"]),
            status=str(r["status"]),
            seconds=float(r["seconds"]),
            rows_read=whole(r["rows_read"]),
            rows_kept=whole(r["rows_kept"]),
            rows_deduplicated=whole(r["rows_deduplicated"]),
            rows_quarantined=whole(r["rows_quarantined"]),
            config_hash=str(r["config_hash"]),
            inputs=dict(sorted(dict(r["input_versions"] or {}).items())),
            outputs=dict(sorted(dict(r["output_versions"] or {}).items())),
            message=str(r["message"] or ""),
        )
        for r in rows
    )


def _statistics_days(run: Run) -> float | None:
    """Length of the statistics period of this run's calendar, None where no event is known."""
    if not run.warehouse.exists(run.spark, "streams"):
        return None
    first = run.warehouse.read(run.spark, "streams").agg(F.min("first_seen").alias("t")).collect()[0]["t"]
    if first is None or first >= midnight(run.run_date):
        return None
    return build_calendar(run.run_date, first_event=first, days=run.config.calendar.days).statistics.days


def planted(run: Run, world: Path, segment_version: str) -> dict[tuple[int, str], str]:
    """Planted kind of each (fitted segment, stream): that of the true segment most of its users are of.

    Segment 0 (cold) has no true counterpart and gets none. Empty where the world has no truth tables.
    """
    folder = world if (world / "truth_cells").exists() else world.parent
    if not (folder / "truth_cells").exists() or not (folder / "truth_users").exists():
        raise ConfigError(
            f"truth {world}: no truth_cells and truth_users there; give a folder made by `simulate`"
        )
    users = run.spark.read.parquet(str(folder / "truth_users")).select(
        "user_id", F.col("segment").alias("planted")
    )
    current = run.warehouse.read(run.spark, "segments").where("valid_to IS NULL AND segment_id <> 0")
    current = current.where(F.col("segment_version") == segment_version).select("user_id", "segment_id")
    pairs = current.join(users, "user_id").groupBy("segment_id", "planted").agg(F.count("*").alias("n"))
    counted = [(int(r["segment_id"]), int(r["planted"]), int(r["n"])) for r in _rows(pairs)]
    cells = _rows(run.spark.read.parquet(str(folder / "truth_cells")).select("segment", "stream", "kind"))
    return match_truth(counted, ((int(r["segment"]), str(r["stream"]), str(r["kind"])) for r in cells))


def match_truth(
    pairs: Iterable[tuple[int, int, int]], cells: Iterable[tuple[int, str, str]]
) -> dict[tuple[int, str], str]:
    """Kinds by fitted segment from (fitted, planted, users) counts; ties go to the smaller planted id."""
    best: dict[int, tuple[int, int]] = {}
    for fitted, true, n in pairs:
        if fitted not in best or (n, -true) > best[fitted]:
            best[fitted] = (n, -true)
    kinds: dict[int, dict[str, str]] = {}
    for segment, stream, kind in cells:
        kinds.setdefault(segment, {})[stream] = kind
    return {
        (fitted, stream): kind
        for fitted, (_, true) in best.items()
        for stream, kind in kinds.get(-true, {}).items()
    }
