"""A part of each public data set, from its own files to a registered ranker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from cycles import open_world
from pyspark.sql import SparkSession

from dynamix.jobs.run import run_all
from dynamix.models.registry import CHALLENGER, RANKER, Registry, find

pytestmark = [pytest.mark.spark, pytest.mark.e2e]


def _part_of(source: Path, out: Path, keep: Callable[[str], bool]) -> Path:
    """A copy of imported events with some of the users."""
    table = pads.dataset(source / "events", format="parquet").to_table()
    chosen = [u for u in pc.unique(table["user_id"]).to_pylist() if u is not None and keep(u)]
    (out / "events").mkdir(parents=True)
    part = table.filter(pc.is_in(table["user_id"], value_set=pa.array(chosen)))
    pq.write_table(part, out / "events" / "part.parquet")
    (out / "dynamix.yaml").write_text((source / "dynamix.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    return out


QUICK = (
    "train.epochs=1", "train.min_steps=60", "train.bootstrap=50", "train.threads=1", "segmentation.k_max=2"
)  # fmt: skip
FOLDERS = {"trivago": "trivago-recsys2019-100k", "kuairand": "kuairand-27k-likehate"}
PART = {"trivago": "0123", "kuairand": "01234"}
"""Last characters of the users taken, a ninth and a half of all: it keeps the suite short, figures are of whole sets."""


@pytest.mark.parametrize("name", ["trivago", pytest.param("kuairand", marks=pytest.mark.slow)])
def test_a_part_of_a_public_set_runs_to_a_registered_ranker(
    spark: SparkSession, data_dir: Path, tmp_path: Path, name: str
) -> None:
    from dynamix.features.sources.kuairand import import_kuairand
    from dynamix.features.sources.trivago import import_trivago

    folder = data_dir / FOLDERS[name]
    if not folder.is_dir():
        pytest.skip(f"public data set {folder.name} not found in {data_dir}: optional data, test skipped")
    importer = {"trivago": import_trivago, "kuairand": import_kuairand}[name]
    importer(folder, tmp_path / "whole")
    source = _part_of(tmp_path / "whole", tmp_path / "part", lambda user: user[-1] in PART[name])
    run = open_world(spark, source, tmp_path / "warehouse", *QUICK)
    result = run_all(run, events=str(source))
    assert find(Registry(run.warehouse.private, ""), RANKER, CHALLENGER) is not None
    assert result.counters["rows_read"] > 0
    if name == "trivago":  # who looked at a hotel's pictures clicks it: no dwell says that, only the match
        masks = run.warehouse.read(spark, "masks").where("status <> 'control' AND segment_id = 0")
        (gallery,) = masks.where("stream = 'gallery/image'").collect()
        assert gallery["verdict"] == "keep" and gallery["reason"].startswith("match: ")
