"""Segments and pairs of versions from which nothing may follow (docs/faults.md 4, 33, 34)."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pyspark.sql import SparkSession

from dynamix.config import Config, MaskConfig
from dynamix.contracts import MASKS
from dynamix.errors import GuardError
from dynamix.features.relevance import NUISANCE, WHOLE, C, CellSums, block_sums
from dynamix.features.tables import Warehouse
from dynamix.jobs.arm_rows import mask_versions, set_status
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.frames import table_frame
from dynamix.jobs.run_log import Entry, Step, record
from dynamix.models.contest import GLOBAL, KEEP_ALL, MASKED
from dynamix.segmentation.masks import Statistics, judge

Floats = npt.NDArray[np.float64]
ROWS, RATE = 600, 0.05


def masks_row(version: str, status: str, segments: str, day: int) -> dict[str, Any]:
    return {
        "mask_version": version, "seq": 1, "segment_version": segments, "segment_id": 0, "segment_name": "cold",
        "tier": "*", "stream": "a/view", "keep": True, "quota": 5, "boost": 0.0, "positives": 0, "tokens": 0.0,
        "verdict": "undecided", "reason": "no row", "status": status, "run_date": date(2026, 1, day), "run_id": "r",
    }  # fmt: skip


def _sums(rng: np.random.Generator, *, constant: bool, positives: bool) -> CellSums:
    """Sums of one stream of 600 impressions whose exposure varies, or has no spread at all."""
    x = np.zeros((ROWS, 1, C)) if constant else rng.normal(size=(ROWS, 1, C))
    y = (rng.random(ROWS) < RATE).astype(float) * positives
    shared, p = np.zeros((ROWS, len(NUISANCE))), np.full(ROWS, RATE)
    user = np.repeat(np.arange(ROWS // 4), 4)
    return CellSums.unpack(block_sums(x, shared, y, p, user, has_dwell=np.ones((ROWS, 1), bool))[0])


def _statistics(**cells: dict[str, bool]) -> Statistics:
    """One stream a cell, each of a segment of its own, numbered from 1."""
    rng = np.random.default_rng(0)
    found = {}
    for segment, (stream, options) in enumerate(cells.items(), start=1):
        for half in (0, 1):
            parts = [_sums(rng, **options) for _ in range(3)]
            for window, part in enumerate(parts):
                found[segment, stream, "conversion", half, window] = part
            found[segment, stream, "conversion", half, WHOLE] = parts[0] + parts[1] + parts[2]
    return Statistics(found, ("conversion",))


def test_fault_33_a_segment_without_conversions_or_spread_is_undecided_and_keeps_everything() -> None:
    plenty = {"constant": False, "positives": True}
    verdicts = judge(
        _statistics(none=plenty | {"positives": False}, flat=plenty | {"constant": True}, usual=plenty),
        MaskConfig(),
    )
    found = {v.stream: v for v in verdicts}
    assert {found[name].verdict for name in ("none", "flat")} <= {"undecided", "keep"}
    assert "support" in {c.rule for c in found["none"].checks if not c.passed}
    for v in verdicts:
        numbers = [v.effect.relevance, v.effect.lcb, v.effect.ucb, v.tokens, *(c.value for c in v.checks)]
        numbers += [n for c in v.effect.channels.values() for n in (c.beta, c.se, c.relevance, c.lcb, c.ucb)]
        assert np.isfinite(numbers).all(), v.stream
        assert v.reason


@pytest.mark.spark
def test_fault_04_masks_of_other_segments_are_refused_by_training(
    spark: SparkSession, tmp_path: Path
) -> None:
    """What a kill between segments and masks leaves: the newest masks are for the segments of the day before."""
    warehouse = Warehouse(tmp_path / "W")
    run = Run(spark, warehouse, Config(), date(2026, 1, 9), "r", quiet=True)
    rows = [masks_row(f"m-{status}", status, "s-old", 8) for status in ("proposed", "control")]
    assert mask_versions(run, "s-new") == {KEEP_ALL: "keep-all"}  # no masks yet
    warehouse.replace(spark, MASKS, table_frame(spark, MASKS, rows))
    with pytest.raises(
        GuardError, match=r"is for segments s-old, the newest are s-new; run `dynamix mask`"
    ) as no:
        mask_versions(run, "s-new")
    assert no.value.exit_code == 4
    assert mask_versions(run, "s-old") == {KEEP_ALL: "keep-all", MASKED: "m-proposed", GLOBAL: "m-control"}


@pytest.mark.spark
def test_fault_04_a_mask_that_a_dead_training_retired_is_asked_again_and_one_of_a_finished_training_is_not(
    spark: SparkSession, tmp_path: Path
) -> None:
    """An older mask in force is for older segments: it neither takes the place of the retired one nor stops the run."""
    warehouse = Warehouse(tmp_path / "W")
    run = Run(spark, warehouse, Config(), date(2026, 1, 9), "train-1", quiet=True)
    rows = [
        masks_row("m-old", "published", "s-old", 1), masks_row("m-new", "proposed", "s-new", 8),
        masks_row("c-new", "control", "s-new", 8),
    ]  # fmt: skip
    warehouse.replace(spark, MASKS, table_frame(spark, MASKS, rows))
    whole = {KEEP_ALL: "keep-all", MASKED: "m-new", GLOBAL: "c-new"}
    assert mask_versions(run, "s-new") == whole
    set_status(run, "m-new", "retired", by_gate=True)
    assert mask_versions(run, "s-new") == whole  # the run died before it logged its end
    step = Step("train", lambda _: StepResult(), (), (), ())
    record(run, [Entry(step, "failed", "", StepResult())])
    assert mask_versions(run, "s-new") == whole
    record(run, [Entry(step, "done", "", StepResult())])
    assert mask_versions(run, "s-new") == {KEEP_ALL: "keep-all", GLOBAL: "c-new"}


@pytest.mark.spark
def test_a_mask_that_the_watch_retired_is_not_asked_again(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "W")
    run = Run(spark, warehouse, Config(), date(2026, 1, 9), "train-1", quiet=True)
    warehouse.replace(spark, MASKS, table_frame(spark, MASKS, [masks_row("m", "published", "s", 8)]))
    set_status(run, "m", "retired")
    assert mask_versions(run, "s") == {KEEP_ALL: "keep-all"}
