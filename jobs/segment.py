"""`dynamix segment`: fit the segmenter, settle ids and names, write who is in which segment when, register it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.contracts import COLD_SEGMENT, N_DWELL_BINS, SEGMENT_REGISTRY, SEGMENTS
from dynamix.features.calendar import Calendar
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.features import cycle_calendar, seen_events
from dynamix.jobs.frames import held, table_frame
from dynamix.jobs.segment_fit import FitInputs, fit_on_driver
from dynamix.jobs.segmenters import PLAIN, served, write_segmenter
from dynamix.models.registry import register_segmenter
from dynamix.segmentation.assign import activity_border, event_histories, histories
from dynamix.segmentation.counts import user_counts
from dynamix.segmentation.fitted import MixFitted
from dynamix.segmentation.identity import (
    COLD_NAME,
    Identity,
    Previous,
    first_ids,
    id_map,
    match_ids,
    names,
    overlap_matrix,
)
from dynamix.segmentation.midnights import Rule
from dynamix.segmentation.mix import fit_fixed, fit_mixture
from dynamix.segmentation.outcome import Outcome, outcome_of_mixture

CONTROLS = {"one": 1, "tier": 2}


@dataclass(frozen=True)
class Settled:
    """A fitted segmenter with stable ids, names and its version."""

    fitted: Outcome
    identity: Identity
    names: tuple[str, ...]
    rule: Rule
    version: str
    baseline_version: str


def segment(run: Run, *, tracking_uri: str = "") -> StepResult:
    """Write `segments` and `segment_registry` of one version and register it as `dynamix-segmenter`.

    Rows of another version of the same run date are replaced, earlier run dates stay. GuardError (exit 4)
    without events in the segmenter's window; EnvironmentTrouble (exit 5) when the registry fails.
    """
    events = seen_events(run)
    calendar = cycle_calendar(run, events)
    streams = held(run.warehouse.read(run.spark, "streams"))
    counts = held(user_counts(events, streams, config=run.config, calendar=calendar))
    result = StepResult()
    listed = {int(r["stream_id"]): str(r["stream"]) for r in streams.select("stream_id", "stream").collect()}
    unnamed = {number for number, stream in listed.items() if run.config.declaration(stream).sensitive}
    listed |= {number: f"stream {number}" for number in unnamed}
    inputs = FitInputs(events, streams, calendar, 1 + max(listed))
    settled, rows = _settle(run, inputs, counts, listed, result)
    tree = _tree(run, settled, calendar)
    if settled.fitted.segmenter.name != PLAIN:  # before any row names the version
        write_segmenter(run, settled.version, tree)
    _write(run, settled, rows, result)
    _register(run, settled, tree, result, tracking_uri)
    return result


def _settle(
    run: Run, inputs: FitInputs, counts: DataFrame, streams: dict[int, str], result: StepResult
) -> tuple[Settled, DataFrame]:
    config, calendar = run.config.segmentation, inputs.calendar
    fitted, own_events = _fit(run, inputs, counts, result)
    border_day = (calendar.next_window.end - calendar.first).days
    active_from = activity_border(counts, min_events=config.min_events, day=border_day)
    rule = Rule.of(config, active_from=active_from)
    run.note("segment: posterior of every user at every midnight")
    segmenter = fitted.segmenter
    if isinstance(segmenter, MixFitted):
        group = segmenter.group if segmenter.name != PLAIN else None
        placed = histories(counts, segmenter.mixture, rule=rule, calendar=calendar, group=group)
    else:
        placed = event_histories(
            own_events, segmenter, rule=rule, calendar=calendar, n_streams=inputs.n_streams,
            gap_s=run.config.session.gap_s,
        )  # fmt: skip
    rows = held(placed)
    previous = _previous(run)
    identity = _identity(run, fitted, rows, previous)
    per_stream = N_DWELL_BINS if config.dwell_bins else 1
    named = names(fitted.summary, streams, cells_per_stream=per_stream)
    if config.control == "tier":
        named = ("active", "passive")
    version = _version(run, fitted, identity, rule)
    return Settled(fitted, identity, named, rule, version, calendar.baseline_version), rows


def _fit(run: Run, inputs: FitInputs, counts: DataFrame, result: StepResult) -> tuple[Outcome, DataFrame]:
    """The configured method or control, and what it is applied to: counts or events of every user."""
    config = run.config.segmentation
    if config.method != "mix":
        return fit_on_driver(run, inputs, result)
    if config.control in CONTROLS:
        found = fit_fixed(
            counts,
            n_streams=inputs.n_streams,
            k=CONTROLS[config.control],
            config=config,
            reason=f"control {config.control}",
        )
    else:
        found = fit_mixture(counts, n_streams=inputs.n_streams, config=config, progress=run.note)
    return outcome_of_mixture(found, dwell_bins=config.dwell_bins), counts


def _previous(run: Run) -> tuple[str, Previous] | None:
    """The newest version of an earlier run date: its name, live segments and the largest id given so far."""
    if not run.warehouse.exists(run.spark, SEGMENT_REGISTRY.name):
        return None
    registry = run.warehouse.read(run.spark, SEGMENT_REGISTRY.name)
    today = f"s{run.run_date:%Y%m%d}-"
    earlier = registry.where((F.col("segment_version") < today) & (F.col("segment_id") > COLD_SEGMENT))
    newest = earlier.agg(F.max("segment_version").alias("v"), F.max("segment_id").alias("id")).collect()[0]
    if newest["v"] is None:
        return None
    live = earlier.where((F.col("segment_version") == newest["v"]) & (F.col("event") != "death"))
    rows = live.select("segment_id", "prototype").orderBy("segment_id").collect()
    ids = tuple(int(r["segment_id"]) for r in rows)
    emission = np.array([r["prototype"] for r in rows], np.float64)
    return str(newest["v"]), Previous(ids, emission, int(newest["id"]))


def _identity(run: Run, fitted: Outcome, rows: DataFrame, previous: tuple[str, Previous] | None) -> Identity:
    if previous is None:
        return first_ids(fitted.summary)
    version, old = previous
    current = rows.where("last").select("user_id", "component")
    stored = (
        run.warehouse.read(run.spark, SEGMENTS.name)
        .where((F.col("segment_version") == version) & F.col("valid_to").isNull())
        .select("user_id", "segment_id")
    )
    pairs = current.join(stored, "user_id").groupBy("component", "segment_id").count().collect()
    triples = [(int(r["component"]), int(r["segment_id"]), int(r["count"])) for r in pairs]
    return match_ids(fitted.summary, old, overlap_matrix(triples, fitted.k, old.ids))


def _version(run: Run, fitted: Outcome, identity: Identity, rule: Rule) -> str:
    """`s<yyyymmdd>-<8 hex>` over the whole fitted segmenter, the ids, the rule and the config of the segmenter."""
    plain = fitted.segmenter.name == PLAIN  # no session counts there
    content = {
        "emission": np.round(fitted.summary.log_p, 9).tolist(),
        "prior": np.round(fitted.summary.log_pi, 9).tolist(),
        "segmenter": None if plain else fitted.segmenter.to_json(),
        "ids": identity.ids,
        "rule": vars(rule),
        "config": run.config.digest("segmentation", *(() if plain else ("session",))),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return f"s{run.run_date:%Y%m%d}-{digest}"


def _write(run: Run, settled: Settled, rows: DataFrame, result: StepResult) -> None:
    day = f"{run.run_date:%Y%m%d}"
    where = f"segment_version >= 's{day}-' AND segment_version < 's{day}.'"  # any version of this run date
    ids = id_map(settled.identity)
    named = {COLD_SEGMENT: COLD_NAME} | dict(zip(settled.identity.ids, settled.names, strict=True))
    to_id = F.create_map(*[F.lit(x) for pair in ids.items() for x in pair])
    to_name = F.create_map(*[F.lit(x) for pair in named.items() for x in pair])
    frame = (
        rows.withColumn("segment_version", F.lit(settled.version))
        .withColumn("segment_id", to_id[F.col("component")])
        .withColumn("posterior", F.transform_keys("posterior", lambda k, _: to_id[k]))
        .withColumn("segment_name", to_name[F.col("segment_id")])
        .drop("component", "last")
    )
    result.tables["segments"] = run.warehouse.replace(run.spark, SEGMENTS, frame, where=where)
    registry = table_frame(run.spark, SEGMENT_REGISTRY, _registry_rows(settled))
    result.tables["segment_registry"] = run.warehouse.replace(
        run.spark, SEGMENT_REGISTRY, registry, where=where
    )
    _count(rows, settled, named, result)


def _registry_rows(settled: Settled) -> list[dict[str, Any]]:
    """One row per segment, the cold one included, and one per segment that ended."""
    fitted, summary = settled.fitted, settled.fitted.summary
    shared = {
        "segment_version": settled.version, "method": fitted.segmenter.name, "verdict": fitted.reason,
        "baseline_version": settled.baseline_version,
        "guards": {k: float(v) for k, v in fitted.numbers.items()} | {
            "active_from": settled.rule.active_from,
            "k": float(fitted.k),
        },
    }  # fmt: skip
    empty = {"prototype": [], "share": 0.0}
    rows = [
        {
            **shared,
            **empty,
            "segment_id": COLD_SEGMENT,
            "segment_name": COLD_NAME,
            "parent_ids": [],
            "event": "keep",
        }
    ]
    emission, share = np.exp(summary.log_p), np.exp(summary.log_pi)
    for place, segment_id in enumerate(settled.identity.ids):
        event = settled.identity.events[place]
        rows.append({
            **shared, "segment_id": segment_id, "segment_name": settled.names[place], "event": event,
            "prototype": emission[place], "share": float(share[place]),
            "parent_ids": [segment_id] if event == "keep" else [],
        })  # fmt: skip
    for gone in settled.identity.dead:
        rows.append({**shared, **empty, "segment_id": gone, "segment_name": "ended", "parent_ids": [gone],
                     "event": "death"})  # fmt: skip
    return rows


def _count(rows: DataFrame, settled: Settled, named: dict[int, str], result: StepResult) -> None:
    """Users per segment at the run date, coverage of the confident rule, and the choice of K."""
    ids = id_map(settled.identity)
    found = rows.where("last").groupBy("component").agg(F.count(F.lit(1)).alias("n")).collect()
    users = {ids[int(r["component"])]: int(r["n"]) for r in found}
    total = sum(users.values())
    for segment_id in sorted(named):
        result.counters[f"users_segment_{segment_id}"] = users.get(segment_id, 0)
    result.metrics["segments"] = float(settled.fitted.k)
    result.metrics["warm_share"] = 1.0 - users.get(COLD_SEGMENT, 0) / max(total, 1)
    result.facts |= {
        "segment_version": settled.version,
        "segments": "; ".join(f"{i} {named[i]}: {users.get(i, 0)} users" for i in sorted(named)),
        "segmenter": settled.fitted.reason,
    }
    if settled.fitted.k > 1 and users.get(COLD_SEGMENT, 0) == total:
        result.warnings.append(
            f"all users stay in segment 0: no posterior of {settled.fitted.k} segments reaches segmentation.confidence="
            f"{settled.rule.confidence} with segmentation.min_events={settled.rule.min_events} usable events"
        )
    if settled.fitted.k == 1 and settled.rule.control == "none":
        result.warnings.append(f"one segment only: {settled.fitted.reason}")


def _tree(run: Run, settled: Settled, calendar: Calendar) -> dict[str, Any]:
    """The segmenter as serving loads it, with its `method`."""
    fitted, rule = settled.fitted.segmenter, settled.rule
    found = served(
        fitted, settled.identity.ids, config=run.config, calendar=calendar, active_from=rule.active_from
    )
    return {**found.to_tree(), "method": fitted.name}


def _register(
    run: Run, settled: Settled, tree: Mapping[str, Any], result: StepResult, tracking_uri: str
) -> None:
    """Store the segmenter as JSON in the run's folder and as a version of `dynamix-segmenter`."""
    fitted = settled.fitted
    path: Path = run.folder / "segmenter.json"
    path.write_text(json.dumps(tree, sort_keys=True), encoding="utf-8")
    numbers = {k: float(v) for k, v in fitted.numbers.items() if np.isfinite(v)}
    version = register_segmenter(
        run.registry(tracking_uri),
        artefact=path,
        metrics=numbers | result.metrics,
        tags={
            "segment_version": settled.version,
            "run_id": run.run_id,
            "run_date": str(run.run_date),
            "method": fitted.segmenter.name,
            "evidence": fitted.evidence,
            "baseline_version": settled.baseline_version,
        },
        run_name=f"segment {run.run_id}",
        reads_events=not isinstance(fitted.segmenter, MixFitted),
    )
    result.facts["segmenter_model"] = version.address
