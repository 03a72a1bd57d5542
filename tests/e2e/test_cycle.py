"""Whole cycles: a small simulated world, a killed run, and a part of each public data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dynamix.config import load_config
from dynamix.contracts import TABLES
from dynamix.errors import GuardError
from dynamix.features import tables
from dynamix.features.simulate import simulate
from dynamix.features.tables import Warehouse
from dynamix.jobs.context import Run, StepResult, new_run_id
from dynamix.jobs.run import STEPS, execute, run_all
from dynamix.jobs.verbs import latest_run_date
from dynamix.models.registry import CHALLENGER, CHAMPION, RANKER, SEGMENTER, Registry, find

pytestmark = [pytest.mark.spark, pytest.mark.e2e]

SMALL = (
    "train.epochs=1",
    "train.bootstrap=50",
    "mask.ne_budget=0.05",
    "mask.delta=0.6",
    "segmentation.k_max=4",
)


def open_world(
    spark: SparkSession, world: Path, warehouse: Path, *settings: str, run_id: str | None = None
) -> Run:
    config = load_config(files=[world / "dynamix.yaml"], settings=settings)
    place = Warehouse(warehouse)
    day = latest_run_date(spark, place, config, str(world))
    return Run(spark, place, config, day, run_id or new_run_id(), quiet=True)


class Killed(BaseException):
    """Stands for the end of the process: nothing in the product catches it."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cycle") / "world"
    simulate(out, preset="S0", users=800, days=21, seed=3)
    return out


@pytest.fixture(scope="module")
def cycle(spark: SparkSession, world: Path) -> tuple[Run, StepResult, list[str]]:
    """The first run dies right after the masks are written; the second goes on and finishes."""
    warehouse = world.parent / "warehouse"
    first = open_world(spark, world, warehouse, *SMALL)

    def die(moment: str, table: str) -> None:
        if moment == "after" and table == "masks":
            raise Killed

    tables.commit_hooks.append(die)
    try:
        with pytest.raises(Killed):
            run_all(first, events=str(world))
    finally:
        tables.commit_hooks.remove(die)
    second = open_world(spark, world, warehouse, *SMALL)
    result = run_all(second, events=str(world), truth=world / "truth_impressions")
    log = second.warehouse.read(spark, "run_log").where(F.col("run_id") == second.run_id)
    skipped = [r["step"] for r in log.where("status = 'skipped'").collect()]
    return second, result, skipped


def test_a_killed_run_goes_on_from_the_last_finished_step(
    cycle: tuple[Run, StepResult, list[str]],
) -> None:
    _, _, skipped = cycle
    assert sorted(skipped) == ["features", "ingest", "segment"]


def test_every_table_is_there_and_keys_are_unique(
    spark: SparkSession, cycle: tuple[Run, StepResult, list[str]]
) -> None:
    run = cycle[0]
    for name, table in TABLES.items():
        frame = run.warehouse.read(spark, name)
        assert frame.columns == list(table.names), name
        if name in ("events_quarantine",):
            continue
        rows, keys = frame.count(), frame.select(*table.key).distinct().count()
        assert rows == keys > 0, f"{name}: {rows} rows, {keys} keys"


def test_the_mask_grid_is_full_and_every_verdict_has_its_sentence(
    spark: SparkSession, cycle: tuple[Run, StepResult, list[str]]
) -> None:
    run, result, _ = cycle
    masks = run.warehouse.read(spark, "masks")
    streams = run.warehouse.read(spark, "streams").count()
    live = run.warehouse.read(spark, "segment_registry").where("event <> 'death'").count()
    for row in masks.groupBy("mask_version").count().collect():
        assert row["count"] == streams * live
    assert masks.where("length(reason) < 10").count() == 0
    assert masks.where("(verdict = 'drop') = keep").count() == 0
    assert sum(result.verdicts.values()) == streams * live


def test_the_ranker_is_registered_and_the_page_and_the_evidence_are_written(
    cycle: tuple[Run, StepResult, list[str]],
) -> None:
    run, result, _ = cycle
    registry = Registry(run.warehouse.private, "")
    assert find(registry, RANKER, CHALLENGER) is not None
    assert find(registry, SEGMENTER, CHALLENGER) is not None
    assert result.facts["alias"] in {CHALLENGER, CHAMPION}
    found = json.loads((run.folder / "evidence.json").read_text(encoding="utf-8"))
    assert {a["arm"] for a in found["arms"]} >= {"keep-all", "masked"}
    page = (run.warehouse.private / "report.html").read_text(encoding="utf-8")
    assert found["label_meaning"] in page and run.run_id in page


def test_masked_rows_are_the_same_impressions_with_fewer_events(
    spark: SparkSession, cycle: tuple[Run, StepResult, list[str]]
) -> None:
    run = cycle[0]
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


def test_a_second_run_changes_no_table_and_names_what_it_skips(
    spark: SparkSession, world: Path, cycle: tuple[Run, StepResult, list[str]]
) -> None:
    run = cycle[0]
    names = [n for n in TABLES if n != "run_log"]
    before = {n: run.warehouse.version(spark, n) for n in names}
    again = open_world(spark, world, run.warehouse.root, *SMALL)
    result = run_all(again, events=str(world), truth=world / "truth_impressions")
    assert result.skipped == list(STEPS)
    assert {n: run.warehouse.version(spark, n) for n in names} == before


def test_a_later_cycle_keeps_ids_and_adds_versions(
    spark: SparkSession, world: Path, cycle: tuple[Run, StepResult, list[str]]
) -> None:
    """One day later on the same events: a new segment version whose ids are matched, and masks for it."""
    run = cycle[0]
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


def test_without_a_conversion_features_and_segments_are_written_and_masks_are_refused(
    spark: SparkSession, world: Path, tmp_path: Path
) -> None:
    table = pads.dataset(world / "events", format="parquet").to_table()
    source = tmp_path / "none"
    (source / "events").mkdir(parents=True)
    pq.write_table(table.filter(pc.field("event_type") != "conversion"), source / "events" / "part.parquet")
    (source / "dynamix.yaml").write_text(
        (world / "dynamix.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    run = open_world(spark, source, tmp_path / "warehouse", *SMALL, "segmentation.control=one")
    with pytest.raises(GuardError, match="no positive label for conversion") as refused:
        run_all(run, events=str(source))
    assert refused.value.exit_code == 4
    there = [n for n in ("events", "ebf_session", "segments", "masks") if run.warehouse.exists(spark, n)]
    assert there == ["events", "ebf_session", "segments"]


def _part_of(source: Path, out: Path, keep: Callable[[str], bool]) -> Path:
    """A copy of imported events with some of the users."""
    table = pads.dataset(source / "events", format="parquet").to_table()
    chosen = [u for u in pc.unique(table["user_id"]).to_pylist() if u is not None and keep(u)]
    import pyarrow as pa

    (out / "events").mkdir(parents=True)
    part = table.filter(pc.is_in(table["user_id"], value_set=pa.array(chosen)))
    pq.write_table(part, out / "events" / "part.parquet")
    (out / "dynamix.yaml").write_text((source / "dynamix.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    return out


@pytest.mark.parametrize("name", ["trivago", "kuairand"])
def test_a_part_of_a_public_set_runs_to_a_registered_ranker(
    spark: SparkSession, data_dir: Path, tmp_path: Path, name: str
) -> None:
    from dynamix.features.sources.kuairand import import_kuairand
    from dynamix.features.sources.trivago import import_trivago

    if not (data_dir / name).is_dir():
        pytest.skip(f"public data set {name} not found in {data_dir}: optional data, test skipped")
    importer = {"trivago": import_trivago, "kuairand": import_kuairand}[name]
    importer(data_dir / name, tmp_path / "whole")
    source = tmp_path / "whole"
    if name == "trivago":  # a third of the users keeps the suite short; the figures come from the whole set
        source = _part_of(source, tmp_path / "part", lambda user: user[-1] in "0123456789ABCDEFGHIJ")
    run = open_world(spark, source, tmp_path / "warehouse", "train.epochs=1", "train.bootstrap=50")
    result = run_all(run, events=str(source))
    assert find(Registry(run.warehouse.private, ""), RANKER, CHALLENGER) is not None
    assert result.counters["rows_read"] > 0
    masks = run.warehouse.read(spark, "masks").where("status <> 'control'")
    gallery = masks.where("stream LIKE '%gallery%'").collect() if name == "trivago" else []
    assert all(row["verdict"] != "drop" for row in gallery)
