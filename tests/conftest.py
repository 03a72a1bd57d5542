"""Shared fixtures: one lazy Spark session a run, and the only place that knows where optional data lies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from pyspark.sql import SparkSession

PROJECT = Path(__file__).resolve().parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker's `__main__` has no file, which pyspark.sql.connect (imported by great_expectations) takes for a
    # doctest: it would end the process with SystemExit(0).
    sys.modules["__main__"].__file__ = __file__

settings.register_profile(
    "dynamix", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("dynamix")


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The product's own session factory; started by the first test that asks, once a run."""
    from dynamix.jobs.session import get_spark

    # thousands of tiny plans, each run once: the optimising compiler would never pay back
    os.environ.setdefault("DYNAMIX_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")
    session = get_spark("dynamix-tests")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the optional public data sets; a test that needs one skips where it is absent."""
    folder = Path(os.environ.get("DYNAMIX_DATA_DIR", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"public data sets not found in {folder}: optional data, test skipped")
    return folder
