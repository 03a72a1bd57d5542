"""Shared fixtures: one lazy Spark session a run, and the only place that knows where optional data lies."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from pyspark.sql import SparkSession

PROJECT = Path(__file__).resolve().parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker's `__main__` has no file, which pyspark.sql.connect (imported by great_expectations) takes for a
    # doctest: it would end the process with SystemExit(0).
    sys.modules["__main__"].__file__ = __file__

os.environ.pop("MLFLOW_TRACKING_URI", None)  # a developer's own store gets no versions of tests

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
    with _settings(session, INTERPRETED):
        yield session
    session.stop()


INTERPRETED = {
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.adaptive.enabled": "false",
}
"""Plans of a few rows, each run once: to generate, compile and plan them anew costs a third of the processor's time
(a commit of 60 rows: 1.6 s in place of 2.4). The rows are the same; whole cycles run `as_configured`."""


@pytest.fixture(scope="module")
def as_configured(spark: SparkSession) -> Iterator[None]:
    """The session runs under the product's own settings, with generated code."""
    with _settings(spark, dict.fromkeys(INTERPRETED)):
        yield


@contextlib.contextmanager
def _settings(session: SparkSession, values: Mapping[str, str | None]) -> Iterator[None]:
    """Set these of the session's settings for a while; None is what the session was started with."""
    before = {name: session.conf.get(name, None) for name in values}
    _set(session, values)
    try:
        yield
    finally:
        _set(session, before)


def _set(session: SparkSession, values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        started = session.sparkContext.getConf().get(name)
        chosen = started if value is None else value
        if chosen is None:
            session.conf.unset(name)
        else:
            session.conf.set(name, chosen)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the optional public data sets; a test that needs one skips where it is absent."""
    folder = Path(os.environ.get("DYNAMIX_DATA_DIR", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"public data sets not found in {folder}: optional data, test skipped")
    return folder
