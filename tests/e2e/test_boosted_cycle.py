"""A mask with boosts from the rows to the page: trained, registered, scored in two ways, told and reported.

Whether statistics would decide a boost is for tests/segmentation/test_boost.py; here a small world is given some.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from cycles import SMALL, open_world
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dynamix.contracts import MASKS
from dynamix.features.simulate import simulate
from dynamix.features.training import COLLECTED
from dynamix.jobs import train
from dynamix.jobs.arm_rows import grid_cells, load_version, mask_rows, stream_scales
from dynamix.jobs.context import Run
from dynamix.jobs.explain import current_mask
from dynamix.jobs.report import report
from dynamix.jobs.run import execute
from dynamix.jobs.score import score
from dynamix.jobs.story import explain_user
from dynamix.models.contest import judge_mask
from dynamix.models.evidence import Verdict
from dynamix.models.registry import RANKER, Registry, artefact_folder
from dynamix.models.service import RankerService
from dynamix.models.serving import cell_quotas

pytestmark = [pytest.mark.spark, pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("as_configured")]

BASE, LONGER = 3, 20
SETTINGS = (*SMALL, f"history.per_stream={BASE}", f"mask.boost_to={LONGER}")


@dataclass(frozen=True)
class Boosted:
    """A finished cycle, its mask version, and the cells of it that were given boosts."""

    run: Run
    version: str
    cells: set[tuple[int, str]]

    @property
    def pinned(self) -> int:
        found = self.run.warehouse.version(self.run.spark, "training_rows")
        assert found is not None
        return found


@pytest.fixture(scope="module")
def boosted(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Boosted:
    place = tmp_path_factory.mktemp("boosted")
    simulate(place / "world", preset="S0", users=800, days=42, seed=3)
    run = open_world(spark, place / "world", place / "warehouse", *SETTINGS)
    for verb in ("ingest", "features", "segment", "mask"):
        execute(run, verb, skip=False, source=str(place / "world") if verb == "ingest" else None)
    version, _ = current_mask(run, statuses=("proposed",))
    cells = lengthen(run, version)
    finish(run)
    return Boosted(run, version, cells)


def finish(run: Run) -> None:
    """Train, score and report; the gates, which so few rows pass by chance alone, let the mask through."""

    def gate(*args: Any, **options: Any) -> dict[str, Verdict]:
        found = judge_mask(*args, **options)
        return {head: replace(verdict, passed=True, status="published") for head, verdict in found.items()}

    with patch.object(train, "judge_mask", gate):
        execute(run, "train", skip=False)
    execute(run, "score", skip=False)
    report(run)


def lengthen(run: Run, version: str) -> set[tuple[int, str]]:
    """Boost the kept cell of each segment that has the most events; protected streams are left as they are."""
    grid = mask_rows(run, version).persist()
    kept = grid.where("keep AND verdict IN ('keep', 'undecided') AND stream NOT LIKE '%conversion'")
    best = kept.groupBy("segment_id").agg(F.max_by("stream", "tokens").alias("most")).collect()
    cells = {(int(r["segment_id"]), str(r["most"])) for r in best}
    own = F.lit(False)
    for segment, stream in cells:
        own = own | ((F.col("segment_id") == segment) & (F.col("stream") == stream))
    made = grid.withColumn("quota", F.when(own, F.lit(LONGER)).otherwise(F.col("quota")))
    made = made.withColumn("verdict", F.when(own, F.lit("boost")).otherwise(F.col("verdict")))
    run.warehouse.replace(run.spark, MASKS, made, where=f"mask_version = '{version}'")
    grid.unpersist()
    return cells


def test_masked_rows_hold_more_events_of_boosted_cells_and_no_more_of_others(boosted: Boosted) -> None:
    run = boosted.run
    rows = load_version(run, boosted.version, pinned=boosted.pinned)
    names = {
        scale.stream_id: name
        for name, scale in stream_scales(run.warehouse.read(run.spark, "streams")).items()
    }
    row = np.repeat(np.arange(len(rows)), np.diff(rows.offsets))
    longest = np.zeros((1 + int(rows.segment.max()), 1 + max(names)), np.int64)
    outside = ~rows.holdout[row]
    np.maximum.at(
        longest, (rows.segment[row][outside], rows.stream[outside].astype(np.int64)), rows.rank[outside] + 1
    )
    beyond = {(int(g), names[int(f)]) for g, f in np.argwhere(longest > BASE)}
    assert beyond and beyond <= boosted.cells
    assert longest.max() <= LONGER
    assert rows.rank[rows.holdout[row]].max() < BASE


def test_collected_rows_under_the_mask_in_memory_are_the_masked_rows_of_spark(boosted: Boosted) -> None:
    run = boosted.run
    whole, masked = (load_version(run, v, pinned=boosted.pinned) for v in (COLLECTED, boosted.version))
    service = served(boosted)
    scales = stream_scales(run.warehouse.read(run.spark, "streams"))
    quotas = cell_quotas(grid_cells(mask_rows(run, boosted.version)), scales)
    cut = whole.under_mask(quotas, service.preparation.base())
    for name in ("offsets", "impression_hash", "stream", "item", "dwell_bin", "z", "rank", "match"):
        assert np.array_equal(getattr(cut, name), getattr(masked, name)), name


def served(boosted: Boosted) -> RankerService:
    """The masked ranker."""
    folder, _ = artefact_folder(Registry(boosted.run.warehouse.private, ""), f"models:/{RANKER}/1")
    return RankerService.load(folder)


def test_the_registered_ranker_carries_the_boosts(boosted: Boosted) -> None:
    preparation = served(boosted).preparation
    assert preparation.mask_version == boosted.version and preparation.boost_to == LONGER
    longer = {(c.segment_id, c.stream) for c in preparation.cells if c.quota > BASE}
    assert longer == boosted.cells


def test_scores_from_stored_rows_and_from_events_agree(boosted: Boosted) -> None:
    """The test part is read from COLLECTED rows on the driver, days are collected anew on the executors."""
    run = boosted.run
    before = scores(run)
    days = run.warehouse.read(run.spark, "training_rows").where("part = 'test'").select("event_date")
    first, last = days.agg(F.min("event_date"), F.max("event_date")).collect()[0]
    score(replace(run, run_id="again"), since=first, until=last + timedelta(days=1))
    after = scores(run)
    assert len(before) > 100
    assert {i: after[i] for i in before} == pytest.approx(before, abs=1e-6)


def scores(run: Run) -> dict[str, float]:
    rows = run.warehouse.read(run.spark, "scores").where("label = 'conversion'").collect()
    return {r["impression_id"]: r["score"] for r in rows}


def test_a_story_tells_of_boosted_events_and_has_the_stored_score(boosted: Boosted) -> None:
    run = boosted.run
    lengths = (
        run.warehouse.read(run.spark, "training_rows").where("part = 'test' AND NOT holdout")
        .groupBy("impression_id", "user_id")
        .pivot("mask_version", ["keep-all", boosted.version]).agg(F.first(F.size("hist_stream")))
    )  # fmt: skip
    grown = (
        lengths.where(F.col(f"`{boosted.version}`") > F.col("`keep-all`")).orderBy("impression_id").first()
    )
    assert grown is not None
    told = explain_user(run, grown["user_id"], impression=grown["impression_id"]).facts["explain"]
    assert sum(event["boosted"] for event in told["events"]) > 0
    assert sum(event["fate"] == "kept" for event in told["events"]) == grown[boosted.version]
    assert told["score"]["score"] == pytest.approx(scores(run)[grown["impression_id"]], abs=1e-6)


def test_the_page_shows_them(boosted: Boosted) -> None:
    page = (boosted.run.warehouse.private / "report.html").read_text(encoding="utf-8")
    assert page.count('<td class="v-boost') >= len(boosted.cells)
    evidence = json.loads((boosted.run.folder / "evidence.json").read_text(encoding="utf-8"))
    arms = {arm["arm"]: arm for arm in evidence["arms"]}
    stored = boosted.run.warehouse.read(boosted.run.spark, "training_rows")
    sizes = (
        stored.where("part = 'validate' AND NOT holdout")
        .groupBy("mask_version")
        .agg(F.avg(F.size("hist_stream")))
    )
    assert arms["masked"]["tokens_per_impression"] == pytest.approx(
        dict(sizes.collect())[boosted.version], rel=1e-6
    )
