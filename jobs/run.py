"""`run`: the whole cycle in order; a step whose inputs, config and code are unchanged is skipped and named."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynamix.config import FEATURE_SECTIONS, RAW_SECTIONS
from dynamix.errors import DynamixError
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.features import features
from dynamix.jobs.ingest import ingest
from dynamix.jobs.mask import mask
from dynamix.jobs.opt_out import settle_opt_out
from dynamix.jobs.report import report
from dynamix.jobs.run_log import Entry, Step, fingerprint, is_done, record
from dynamix.jobs.score import score
from dynamix.jobs.segment import segment
from dynamix.jobs.train import train
from dynamix.jobs.troubles import said_plainly

_LABELS = ("attribution", "labels", "prediction_rows")
_IMPRESSIONS = (*_LABELS, "history", "calendar", "streams", "session.kinds")
STEPS: dict[str, Step] = {
    step.verb: step
    for step in (
        Step("ingest", ingest, ("opt_out",), ("events", "events_quarantine"), RAW_SECTIONS),
        Step(
            "features",
            features,
            ("events", "opt_out"),
            ("streams", "ebf_session", "ebf_surface", "user_stats"),
            FEATURE_SECTIONS,
        ),
        Step(
            "segment",
            segment,
            ("events", "streams", "user_stats", "opt_out"),
            ("segments", "segment_registry"),
            ("segmentation", "calendar", "streams", "history", "session", *_LABELS),
        ),
        Step(
            "mask",
            mask,
            ("events", "streams", "user_stats", "segments", "segment_registry", "opt_out"),
            ("cell_stats", "masks", "mask_audit"),
            (*_IMPRESSIONS, "mask"),
        ),
        Step(
            "train",
            train,
            ("events", "streams", "user_stats", "segments", "segment_registry", "masks", "opt_out"),
            ("training_rows",),
            (*_IMPRESSIONS, "mask", "train", "label_meaning"),
        ),
        Step("score", score, ("training_rows",), ("scores",), ("train", "labels")),
    )
}


def execute(
    run: Run, verb: str, *, skip: bool, source: str | None = None, skips: list[Entry] | None = None,
    **options: Any,
) -> StepResult:  # fmt: skip
    """Run one step, or skip it; its row of the run log is written either way, also when it fails.

    With `skips` the row of a skipped step waits there for the next one that is written: one commit instead of many.
    """
    step = STEPS[verb]
    if verb == "ingest":
        settle_opt_out(run)  # before the fingerprint, which the table is part of
    given = (f"{k}={v}" for k, v in options.items() if v)  # an option that is off is an option not given
    mark = fingerprint(run, step, source=source, extra=given)
    if skip and is_done(run, step, mark):
        run.note(f"{verb}: skipped, inputs, config and code unchanged")
        skipped = StepResult(skipped=[verb])
        entry = Entry(step, "skipped", mark, skipped)
        if skips is None:
            record(run, [entry])
        else:
            skips.append(entry)
        return skipped
    waiting = [] if skips is None else skips
    run.note(f"{verb}: started, step {list(STEPS).index(verb) + 1} of {len(STEPS)}")
    start = time.monotonic()
    try:
        with said_plainly(run.warehouse):
            result = step.action(run, **({"events": source} if source else {}), **options)
    except DynamixError as trouble:
        seconds = time.monotonic() - start
        record(run, [*waiting, Entry(step, "failed", mark, StepResult(), seconds, trouble.message)])
        raise
    seconds = time.monotonic() - start
    record(run, [*waiting, Entry(step, "done", mark, result, seconds)])
    waiting.clear()
    run.note(f"{verb}: done in {seconds:.1f} s")
    return result


def logged(run: Run, verb: str, action: Callable[..., StepResult], **options: Any) -> StepResult:
    """A verb that is no step of the cycle; what it has done is a row of the run log, what it refused is not."""
    start = time.monotonic()
    result = action(run, **options)
    record(run, [Entry(Step(verb, action, (), (), ()), "done", "", result, time.monotonic() - start)])
    return result


def run_all(run: Run, *, events: str, truth: Path | None = None, **options: Any) -> StepResult:
    """ingest → features → segment → mask → train → score → report. Raises the first step's error."""
    total = StepResult()
    per_verb: dict[str, dict[str, Any]] = {
        "ingest": {k: v for k, v in options.items() if k in {"allow_empty", "rebuild"}},
        "train": {"truth": truth} if truth else {},
    }
    skips: list[Entry] = []
    for verb in STEPS:
        source = events if verb == "ingest" else None
        merge(total, execute(run, verb, skip=True, source=source, skips=skips, **per_verb.get(verb, {})))
    if skips:
        record(run, skips)
    planted = truth if truth is not None and (truth.parent / "truth_cells").exists() else None
    merge(total, report(run, truth=planted, unless_current=total.skipped == list(STEPS)))
    return total


def merge(total: StepResult, part: StepResult) -> None:
    """Add a step's findings to those of the whole run."""
    total.tables.update(part.tables)
    total.metrics.update(part.metrics)
    total.counters.update(part.counters)
    total.verdicts.update(part.verdicts)
    total.warnings.extend(w for w in part.warnings if w not in total.warnings)
    total.skipped.extend(part.skipped)
    total.facts.update(part.facts)
