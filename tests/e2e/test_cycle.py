"""A whole cycle on a small simulated world: killed, gone on with, repeated, and one day later."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as pads
import pytest
from cycles import SMALL, finished_cycle, leave_cycle, open_world
from faults.points import AFTER, watched
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dynamix.contracts import OPT_OUT, TABLES
from dynamix.errors import ConfigError, GuardError
from dynamix.features.simulate import simulate
from dynamix.jobs.arm_rows import grid_cells, load_version, mask_rows, stream_scales
from dynamix.jobs.budgets import FACTORS
from dynamix.jobs.cli import main
from dynamix.jobs.context import Run, new_run_id
from dynamix.jobs.explain import current_mask
from dynamix.jobs.run import STEPS, execute, run_all
from dynamix.jobs.story import explain_user, typical_story
from dynamix.models.registry import CHALLENGER, CHAMPION, RANKER, SEGMENTER, Registry, find
from dynamix.models.serving import cell_quotas

pytestmark = [pytest.mark.spark, pytest.mark.e2e, pytest.mark.usefixtures("as_configured")]

PROJECT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """Stands for the end of the process: nothing in the product catches it."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cycle") / "world"
    simulate(out, preset="S0", users=800, days=42, seed=3)
    return out


@dataclass(frozen=True)
class Cycle:
    """A finished cycle: its second run, what the command line printed as JSON, and the steps it skipped."""

    run: Run
    outcome: dict[str, Any]
    skipped: list[str]


def readme_command(verb: str, **places: Path) -> list[str]:
    """Arguments of `dynamix VERB …` as the README shows it, with EVENTS and W filled in."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    line = re.findall(rf"^dynamix ({verb} [^#\n]*)", text, flags=re.M)[0]
    return [str(places.get(word, word)) for word in line.split()]


def command(*arguments: str) -> dict[str, Any]:
    """Outcome of a command that has to succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        code = main([*arguments, "--json", "--quiet"])
    outcome: dict[str, Any] = json.loads(shown.getvalue())
    assert code == outcome["exit_code"] == 0, outcome["message"]
    return outcome


@pytest.fixture(scope="module")
def cycle(spark: SparkSession, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Cycle:
    """The first run dies right after the masks are written; the README's own command goes on and finishes."""
    warehouse = world.parent / "warehouse"
    first = open_world(spark, world, warehouse, *SMALL)

    def die(moment: str, point: str) -> None:
        if (moment, point) == (AFTER, "mask/masks"):
            raise Killed

    with watched(die), pytest.raises(Killed):
        run_all(first, events=str(world))
    settings = [part for value in SMALL for part in ("--set", value)]
    line = readme_command("run", EVENTS=world, W=warehouse)
    outcome = command(*line, *settings, "--truth", str(world / "truth_impressions"))
    second = open_world(spark, world, warehouse, *SMALL, run_id=outcome["run_id"])
    leave_cycle(warehouse, finished_cycle(tmp_path_factory))
    log = second.warehouse.read(spark, "run_log").where(F.col("run_id") == second.run_id)
    return Cycle(second, outcome, [r["step"] for r in log.where("status = 'skipped'").collect()])


def test_a_killed_run_goes_on_from_the_last_finished_step(cycle: Cycle) -> None:
    assert sorted(cycle.skipped) == ["features", "ingest", "segment"] == sorted(cycle.outcome["skipped"])


def test_every_table_is_there_and_keys_are_unique(spark: SparkSession, cycle: Cycle) -> None:
    run = cycle.run
    for name, table in TABLES.items():
        frame = run.warehouse.read(spark, name)
        assert frame.columns == list(table.names), name
        if name in ("events_quarantine",):
            continue
        rows, keys = frame.count(), frame.select(*table.key).distinct().count()
        assert rows == keys > 0, f"{name}: {rows} rows, {keys} keys"


def test_the_mask_grid_is_full_and_every_verdict_has_its_sentence(spark: SparkSession, cycle: Cycle) -> None:
    run, outcome = cycle.run, cycle.outcome
    masks = run.warehouse.read(spark, "masks")
    streams = run.warehouse.read(spark, "streams").count()
    live = run.warehouse.read(spark, "segment_registry").where("event <> 'death'").count()
    for row in masks.groupBy("mask_version").count().collect():
        assert row["count"] == streams * live
    assert masks.where("length(reason) < 10").count() == 0
    assert masks.where("(verdict = 'drop') = keep").count() == 0
    assert sum(outcome["verdicts"].values()) == streams * live


def test_the_ranker_is_registered_and_the_page_and_the_evidence_are_written(
    cycle: Cycle,
) -> None:
    run, outcome = cycle.run, cycle.outcome
    registry = Registry(run.warehouse.private, "")
    assert find(registry, RANKER, CHALLENGER) is not None
    assert find(registry, SEGMENTER, CHALLENGER) is not None
    assert outcome["facts"]["alias"] in {CHALLENGER, CHAMPION}
    found = json.loads((run.folder / "evidence.json").read_text(encoding="utf-8"))
    assert {a["arm"] for a in found["arms"]} >= {"keep-all", "masked"}
    page = (run.warehouse.private / "report.html").read_text(encoding="utf-8")
    assert found["label_meaning"] in page and run.run_id in page
    assert "From base rate to score" in page and page.count('name="budget"') == len(FACTORS)
    logged = {path.name for path in (run.warehouse.private / "mlruns").glob("**/artifacts/figures/*")}
    assert logged == {path.name for path in (run.folder / "figures").iterdir()} >= {"arms.svg", "receipt.txt"}


def test_the_readme_s_other_commands_work(world: Path, cycle: Cycle, tmp_path: Path) -> None:
    warehouse = cycle.run.warehouse
    page = warehouse.private / "report.html"
    page.unlink()
    command(*readme_command("report", W=warehouse.root))
    assert page.stat().st_size > 10_000
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "events").symlink_to(world / "events")
    outcome = command(*readme_command("init", EVENTS=tmp_path / "own"))
    assert outcome["facts"]["missing"] == [] and (tmp_path / "own" / "dynamix.yaml").is_file()


def test_the_mask_laid_on_keep_all_rows_in_memory_gives_the_masked_rows(
    spark: SparkSession, cycle: Cycle
) -> None:
    """The control arm's rows are made that way; the stored rows come from Spark."""
    run = cycle.run
    pinned = run.warehouse.version(spark, "training_rows")
    assert pinned is not None
    proposals = run.warehouse.read(spark, "masks").where("status <> 'control'")
    version = str(proposals.agg(F.max_by("mask_version", "seq")).collect()[0][0])
    keep_all, masked = (load_version(run, v, pinned=pinned) for v in ("keep-all", version))
    scales = stream_scales(run.warehouse.read(spark, "streams"))
    cut = keep_all.under_mask(cell_quotas(grid_cells(mask_rows(run, version)), scales))
    assert cut.tokens < keep_all.tokens or not cycle.outcome["verdicts"]["drop"]
    for name in ("offsets", "impression_hash", "stream", "item", "dwell_bin", "z", "rank", "match"):
        assert np.array_equal(getattr(cut, name), getattr(masked, name)), name


def test_masked_rows_are_the_same_impressions_with_fewer_events(spark: SparkSession, cycle: Cycle) -> None:
    run = cycle.run
    rows = run.warehouse.read(spark, "training_rows").select(
        "mask_version", "impression_id", F.size("hist_stream").alias("n"), "label_conversion"
    )
    versions = [r[0] for r in rows.select("mask_version").distinct().collect()]
    whole = rows.where("mask_version = 'keep-all'").drop("mask_version").withColumnRenamed("n", "all")
    for version in versions:
        own = rows.where(F.col("mask_version") == version)
        joined = own.join(whole.drop("label_conversion"), "impression_id")
        assert own.count() == whole.count() == joined.count()
        assert joined.where("n > all").count() == 0


def test_a_user_s_story_agrees_with_the_stored_rows_and_scores(spark: SparkSession, cycle: Cycle) -> None:
    run = cycle.run
    version, _ = current_mask(run, statuses=("published", "proposed", "retired"))
    story = typical_story(run, version, label="conversion")
    assert story is not None and story.score is not None and (story.part, story.holdout) == ("test", False)
    scores = run.warehouse.read(spark, "scores").where("label = 'conversion'")
    stored = run.warehouse.read(spark, "training_rows").select(
        "impression_id", "user_id", "mask_version", F.size("hist_stream").alias("n")
    )
    lengths = {(r["impression_id"], r["mask_version"]): r["n"] for r in stored.collect()}
    impression = scores.join(stored.where("mask_version = 'keep-all' AND n > 3").select("impression_id", "n"),
                             "impression_id").orderBy("n", "impression_id").limit(1).collect()[0]  # fmt: skip
    told = command("explain", "--user", impression["user_id"], "--impression", impression["impression_id"],
                   "--warehouse", str(run.warehouse.root))["facts"]["explain"]  # fmt: skip
    fates = Counter(event["fate"] for event in told["events"])
    assert fates["kept"] == lengths[impression["impression_id"], version]
    assert sum(fates.values()) - fates["outside"] == lengths[impression["impression_id"], "keep-all"]
    assert told["score"]["score"] == pytest.approx(impression["score"], abs=1e-6)
    assert told["score"]["bars"][0]["before"] == told["score"]["base"]
    assert told["score"]["bars"][-1]["after"] == told["score"]["score"]
    user = impression["user_id"]
    opt_out = spark.createDataFrame([(user, datetime.now(UTC))], OPT_OUT.ddl())
    run.warehouse.replace(spark, OPT_OUT, opt_out)
    try:
        with pytest.raises(GuardError, match="opted out"):
            explain_user(run, user)
    finally:
        run.warehouse.drop("opt_out")
    with pytest.raises(ConfigError, match="no training row"):
        explain_user(run, "nobody-here")


def test_a_second_run_changes_no_table_and_names_what_it_skips(
    spark: SparkSession, world: Path, cycle: Cycle
) -> None:
    run = cycle.run
    names = [n for n in TABLES if n != "run_log"]
    before = {n: run.warehouse.version(spark, n) for n in names}
    again = open_world(spark, world, run.warehouse.root, *SMALL)
    result = run_all(again, events=str(world), truth=world / "truth_impressions")
    assert result.skipped == list(STEPS)
    log = run.warehouse.read(spark, "run_log").where(F.col("run_id") == again.run_id)
    assert sorted((r["step"], r["status"]) for r in log.collect()) == sorted((s, "skipped") for s in STEPS)
    assert {n: run.warehouse.version(spark, n) for n in names} == before


def test_impressions_of_any_days_and_of_any_source_are_scored(
    spark: SparkSession, world: Path, cycle: Cycle, tmp_path: Path
) -> None:
    """Those of the test part as before, the others beside them; a second time they are replaced."""
    run = cycle.run

    def scores() -> dict[str, float]:
        rows = run.warehouse.read(spark, "scores").where("label = 'conversion'").collect()
        assert len({r["impression_id"] for r in rows}) == len(rows)
        return {r["impression_id"]: r["score"] for r in rows}

    def refused(*more: str) -> int:
        with contextlib.redirect_stderr(io.StringIO()):
            return main(["score", *place, "--quiet", *more])

    place, before = ["--warehouse", str(run.warehouse.root)], scores()
    day = (
        run.warehouse.read(spark, "training_rows")
        .where("part = 'test'")
        .agg(F.min("event_date"))
        .collect()[0][0]
    )
    assert (
        refused("--from", str(day), "--impressions", "x")
        == refused("--from", str(day), "--to", str(day))
        == 2
    )
    assert refused("--from", "2099-01-01") == 4
    for _ in range(2):
        outcome = command("score", *place, "--from", str(day))
        after = scores()
        assert len(after) == outcome["facts"]["counters"]["rows_read"] > len(before)
        assert {i: after[i] for i in before} == pytest.approx(before, abs=1e-6)
    raw = pads.dataset(world / "events", format="parquet").to_table().to_pandas()
    own = raw[(raw["event_type"] == "impression") & raw["event_id"].isin(list(after))].head(50)
    (tmp_path / "asked").mkdir()
    copies = own.assign(event_id="copy-" + own["event_id"])
    nobody = own.head(1).assign(event_id="nobody", user_id="")
    pd.concat([copies, nobody]).to_parquet(tmp_path / "asked" / "rows.parquet")
    outcome = command("score", *place, "--impressions", str(tmp_path / "asked"))
    assert outcome["facts"]["counters"]["rows_read"] == len(own) == 50
    assert "1 of 51 rows" in outcome["warnings"][0]
    found = scores()
    assert {i: found[f"copy-{i}"] for i in own["event_id"]} == pytest.approx(
        {i: after[i] for i in own["event_id"]}, abs=1e-6
    )
    assert {i: found[i] for i in after} == after


def test_a_later_cycle_keeps_ids_and_adds_versions(spark: SparkSession, world: Path, cycle: Cycle) -> None:
    """One day later on the same events: a new segment version whose ids are matched, and masks for it."""
    run = cycle.run
    later = Run(spark, run.warehouse, run.config, run.run_date + timedelta(days=1), new_run_id(), quiet=True)
    for verb in ("features", "segment"):
        execute(later, verb, skip=True)
    registry = run.warehouse.read(spark, "segment_registry").where("segment_id > 0")
    versions = sorted(r[0] for r in registry.select("segment_version").distinct().collect())
    assert len(versions) == 2
    born = {(r["segment_version"], r["event"]) for r in registry.select("segment_version", "event").collect()}
    assert (versions[0], "birth") in born and (versions[1], "keep") in born
    with pytest.raises(GuardError, match="run `dynamix mask` first"):
        execute(later, "train", skip=True)
