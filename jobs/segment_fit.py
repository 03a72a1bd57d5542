"""Fits of the segmenters that read events: a bounded number of users comes to the driver through Arrow, unpadded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.errors import EnvironmentTrouble, GuardError
from dynamix.features.calendar import Calendar, instant_sql, midnight, since_1970
from dynamix.features.conversions import label_impressions
from dynamix.features.relevance import position_code
from dynamix.features.streams import scaled_events
from dynamix.features.timeline import codes
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.frames import held
from dynamix.segmentation.blocks import INPUT
from dynamix.segmentation.counts import segmenter_streams
from dynamix.segmentation.exposures import dwell_exposures
from dynamix.segmentation.given import Rates, fit_given
from dynamix.segmentation.jagged import Floats, Jagged
from dynamix.segmentation.outcome import NO_EVIDENCE, Outcome, doubts, outcome_in_memory
from dynamix.segmentation.segmenters import Segmenter
from dynamix.segmentation.slopes import Evidence
from dynamix.segmentation.user_events import fit_users, user_events, window_events

EVIDENCE_VALUES = 40_000_000
"""Impressions × streams that come to the driver at most: 320 MB of exposures."""


@dataclass(frozen=True)
class FitInputs:
    """Of one cycle: events as seen, `streams`, the calendar, and the number of stream ids."""

    events: DataFrame
    streams: DataFrame
    calendar: Calendar
    n_streams: int


def fit_on_driver(run: Run, given: FitInputs, result: StepResult) -> tuple[Outcome, DataFrame]:
    """The configured method fitted on at most `segmentation.fit_users` users, and the held events of all users.

    GuardError (exit 4) where no user has an event in the segmenter's input window; EnvironmentTrouble (exit 5) where a
    GPU is asked for and there is none.
    """
    config, recipe = run.config.segmentation, _recipe(run.config)
    stats = run.warehouse.read(run.spark, "user_stats").where(
        F.col("baseline_version") == given.calendar.baseline_version
    )
    frame = held(user_events(given.events, given.streams, stats, config=run.config, calendar=given.calendar))
    chosen = held(fit_users(frame, at_most=config.fit_users))
    rows = chosen.toArrow()
    if rows.num_rows:
        inputs = window_events(rows, n_streams=given.n_streams, gap_s=run.config.session.gap_s)
    if not rows.num_rows or not (inputs.part == INPUT).any():
        raise GuardError(
            "segment: no user has a usable event in the segmenter's input window; ingest more days"
        )
    evidence, seen = _evidence(run, given, stats, chosen.select("user_id"), inputs, result)
    cap = " (segmentation.fit_users)" if inputs.n_users == config.fit_users else ""
    run.note(
        f"segment: {config.method} on {len(inputs.stream):,} events of {inputs.n_users:,} users{cap}; evidence {seen}"
    )
    fitted = recipe.fit(inputs, evidence)
    found = outcome_in_memory(fitted, inputs, config=config, evidence=seen)
    run.note(f"segment: {found.reason}")
    doubt = doubts(found, config)
    if doubt:
        result.warnings.append(f"{config.method} chooses segments by slopes alone, and here {doubt}")
    return found, frame


def _recipe(config: Config) -> Segmenter:
    from dynamix.segmentation.methods import segmenter  # imports torch, which `mix` has no use for

    own = config.segmentation
    if own.method == "neural" and own.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise EnvironmentTrouble(
                "segmentation.device=cuda, but torch sees no CUDA device; use segmentation.device=cpu, or a machine "
                "with a GPU"
            )
    return segmenter(own.method, own)


def _evidence(
    run: Run, given: FitInputs, stats: DataFrame, users: DataFrame, inputs: Jagged, result: StepResult
) -> tuple[Evidence | None, str]:
    """Labelled impressions of the evidence window whose labels are final before the input window, and what they are.

    The head is conversion where it is served, else the first. None, `none` where there are none or no positive.
    """
    window, border = given.calendar.evidence, given.calendar.segment_input.start
    if window is None:
        return None, NO_EVIDENCE  # the calendar's own sentence says so
    heads = run.config.heads()
    head = "conversion" if "conversion" in heads else heads[0]
    final = F.col("label_mature_ts") <= F.expr(instant_sql(border))
    labelled = label_impressions(given.events, config=run.config).where(window.sql("event_ts")).where(final)
    rows = labelled.join(users, "user_id", "left_semi").withColumn("label", F.col(f"label_{head}"))
    order = F.xxhash64(F.lit("evidence"), F.col("event_id"))
    rows = rows.orderBy(order, "event_id").limit(max(1, EVIDENCE_VALUES // given.n_streams))
    own = segmenter_streams(given.streams, config=run.config)
    history = scaled_events(given.events, own, stats, run.config)
    table = dwell_exposures(
        history, rows, history=run.config.history, n_streams=given.n_streams,
        run_date_us=since_1970(midnight(run.run_date)),
    ).toArrow()  # fmt: skip
    table = table.sort_by([("user_id", "ascending"), ("event_id", "ascending")]).combine_chunks()
    y = table.column("label").to_numpy().astype(np.float64)
    if not y.sum():
        result.warnings.append(
            f"evidence none: {len(y)} impressions of {window.start:%Y-%m-%d} to {window.end:%Y-%m-%d} have a final "
            f"{head} label before {border:%Y-%m-%d %H:%M}, none is positive; shorten the windows of `attribution`"
        )
        return None, NO_EVIDENCE
    user = pc.index_in(table.column("user_id"), value_set=inputs.users).to_numpy().astype(np.int64)
    x = table.column("x").combine_chunks().flatten().to_numpy().reshape(len(y), given.n_streams)
    result.counters |= {"evidence_impressions": len(y), "evidence_positives": int(y.sum())}
    seen = f"{head} {window.start:%Y-%m-%d} to {window.end:%Y-%m-%d}"
    return Evidence(user, x, y, _without_history(table, y, head)), seen


def _without_history(table: pa.Table, y: Floats, head: str) -> Floats:
    """p (B,) by surface and position, the same baseline that relevance starts from."""
    surface, names = codes(table.column("surface"))
    place, group = np.unique(np.stack([surface, position_code(table)]), axis=1, return_inverse=True)
    group = group.ravel()
    size = place.shape[1]
    listed = names.to_pylist()
    n, positives = (np.bincount(group, weights=w, minlength=size) for w in (np.ones(len(y)), y))
    rates = Rates(
        [str(listed[s]) for s in place[0]], place[1], np.zeros(size, np.int64), n.astype(np.float64),
        {head: positives.astype(np.float64)},
    )  # fmt: skip
    zero = pa.array(np.zeros(len(y), np.int64))
    return fit_given(rates, kind="baseline", n_segments=1).of(table.append_column("segment_id", zero), head)
