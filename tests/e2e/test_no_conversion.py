"""A world in which nobody converts: what can be written is written, the rest is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from cycles import SMALL, open_world
from pyspark.sql import SparkSession

from dynamix.errors import GuardError
from dynamix.features.simulate import simulate
from dynamix.jobs.run import run_all

pytestmark = [pytest.mark.spark, pytest.mark.e2e, pytest.mark.slow]


def test_without_a_conversion_features_and_segments_are_written_and_masks_are_refused(
    spark: SparkSession, tmp_path: Path
) -> None:
    world = tmp_path / "world"
    simulate(world, preset="S0", users=300, days=42, seed=3)
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
