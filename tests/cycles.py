"""Small settings and an open run for the tests that walk whole cycles."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from dynamix.config import load_config
from dynamix.features.tables import Warehouse
from dynamix.jobs.context import Run, new_run_id
from dynamix.jobs.verbs import latest_run_date

SMALL = (
    "train.epochs=1",
    "train.min_steps=1",
    "train.bootstrap=50",
    "train.threads=1",  # two suites run side by side, and threads of torch spin while they wait
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


def finished_cycle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tests/e2e leaves a copy of its finished warehouse for tests that only read one; workers share the place."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished-cycle"


def leave_cycle(warehouse: Path, place: Path) -> None:
    """Copy the warehouse there, whole or not at all."""
    draft = place.with_name(f".{place.name}")
    shutil.copytree(warehouse, draft)
    draft.rename(place)
