"""The cycle on a Connect server and on a standalone cluster gives the tables of a local run, bit for bit.

Each Spark is in processes of its own, and so is each driver; this one's session only reads what they wrote. A worker that
is killed on the way costs time and no row.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from clusters import Cluster, clean_environment, conf_folder, connect_server, standalone_cluster
from cycles import open_world
from faults.two_days import SETTINGS, contents, run_command, simulated
from pyspark.sql import SparkSession

from dynamix.jobs.doctor import CLIENT
from dynamix.jobs.jars import resolve_jars
from dynamix.jobs.run import run_all
from dynamix.models.launch import LOG

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.e2e, pytest.mark.usefixtures("as_configured")]

PROJECT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("elsewhere.py")
HELD = "segment: posterior of every user"
"""Said when the next job reads rows that the workers hold."""
Line = Callable[[str], None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("clusters") / "world")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of `make bundle` under the name that Spark puts on the workers' path."""
    out = tmp_path_factory.mktemp("package")
    wheel = runpy.run_path(str(PROJECT / "scripts" / "bundle_wheel.py"))["build"](out)
    return Path(shutil.copy(wheel, out / "dynamix.zip"))


@pytest.fixture(scope="module")
def local(spark: SparkSession, world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Content of each table after a cycle in the ordinary local session."""
    place = tmp_path_factory.mktemp("local") / "W"
    run_all(open_world(spark, world, place, *SETTINGS), events=str(world))
    found = contents(spark, place, known={}, base=place)
    assert {"events", "masks", "training_rows", "scores"} <= set(found)
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


def driven(command: list[str], environment: dict[str, str], *, said: Line = lambda line: None) -> str:
    """What a driver printed that has to succeed; `said` sees each line as it comes."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        said(line)
    text = "".join(lines)
    assert process.wait() == 0, text[-4000:]
    return text


def cycle(world: Path, place: Path, out: Path) -> list[str]:
    """Arguments of the driver: a whole `dynamix run` with its progress lines, and where it notes its workers' files."""
    return [str(DRIVER), str(out), *(word for word in run_command(world, place) if word != "--quiet")]


def on_the_cluster(cluster: Cluster, folder: Path, **more: str) -> dict[str, str]:
    """Environment of a driver there; the interpreter of the executors is the bare one."""
    conf = conf_folder(cluster, folder / "conf")
    return clean_environment(
        SPARK_HOME=str(cluster.home), SPARK_CONF_DIR=str(conf), PYSPARK_PYTHON=str(cluster.python), **more
    )


def packaged_only(out: Path, package: Path, *, executors: int) -> None:
    """All workers have the package from the zip, and there are so many executors."""
    found: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
    assert {Path(row["file"]).parts[-4:] for row in found} == {
        (package.name, "dynamix", "features", "history.py")
    }
    assert len({row["folder"] for row in found}) == executors


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in CLIENT),
    reason="the extra `connect` is not installed: `make setup` does, test skipped",
)
def test_a_connect_server_gives_the_tables_of_a_local_run(
    spark: SparkSession, world: Path, package: Path, local: dict[str, str], tmp_path: Path
) -> None:
    with connect_server(tmp_path) as address:
        environment = clean_environment(SPARK_REMOTE=address, DYNAMIX_PY_FILES=str(package))
        printed = driven([sys.executable, *cycle(world, tmp_path / "W", tmp_path / "out")], environment)
    assert "RECEIPT" in printed
    packaged_only(tmp_path / "out", package, executors=1)
    assert contents(spark, tmp_path / "W", known={}, base=tmp_path / "W") == local


def test_a_cluster_that_loses_a_worker_gives_the_tables_of_a_local_run(
    spark: SparkSession, world: Path, package: Path, local: dict[str, str], tmp_path: Path
) -> None:
    """Worker and executor are killed while the other one needs rows that both held."""
    killed: list[str] = []
    with standalone_cluster(tmp_path) as cluster:

        def strike(line: str) -> None:
            if HELD in line:
                killed.append(line)
                cluster.workers[0].kill()

        environment = on_the_cluster(
            cluster, tmp_path, DYNAMIX_MASTER=cluster.address, DYNAMIX_PY_FILES=str(package)
        )
        driven([sys.executable, *cycle(world, tmp_path / "W", tmp_path / "out")], environment, said=strike)
    assert len(killed) == 1
    packaged_only(tmp_path / "out", package, executors=1)  # the other one
    assert contents(spark, tmp_path / "W", known={}, base=tmp_path / "W") == local


def test_spark_submit_to_a_cluster_gives_the_tables_of_a_local_run(
    spark: SparkSession, cluster: Cluster, world: Path, package: Path, local: dict[str, str], tmp_path: Path
) -> None:
    environment = on_the_cluster(cluster, tmp_path, PYSPARK_DRIVER_PYTHON=sys.executable)
    del environment["DYNAMIX_MASTER"]  # `--master` says it
    jars = ",".join(str(path) for path in resolve_jars(os.environ))
    submit = [
        str(cluster.home / "bin" / "spark-submit"),
        "--master",
        cluster.address,
        "--driver-memory",
        "1g",
    ]
    given = ["--jars", jars, "--py-files", str(package)]
    driven([*submit, *given, *cycle(world, tmp_path / "W", tmp_path / "out")], environment)
    packaged_only(tmp_path / "out", package, executors=2)
    assert contents(spark, tmp_path / "W", known={}, base=tmp_path / "W") == local
    trained_by_two_processes(cluster, package, tmp_path)


def trained_by_two_processes(cluster: Cluster, package: Path, folder: Path) -> None:
    """The training once more on that cluster, by Spark's TorchDistributor with two processes: the same predictions."""
    runs = folder / "W" / "_dynamix" / "runs"
    (before,) = runs.glob("*/predictions.parquet")
    (folder / "again").mkdir()
    environment = on_the_cluster(
        cluster, folder / "again", DYNAMIX_MASTER=cluster.address, DYNAMIX_PY_FILES=str(package)
    )
    settings = [f"--set={one}" for one in (*SETTINGS, "train.launcher=spark", "train.processes=2")]
    train = ["-m", "dynamix.jobs.cli", "train", "--warehouse", str(folder / "W"), *settings]
    driven([sys.executable, *train], environment)
    (after,) = set(runs.glob("*/predictions.parquet")) - {before}
    assert (after.parent / LOG).is_file()  # of the processes and their starter
    one, other = (whole_histories(path) for path in (before, after))
    assert list(one.index) == list(other.index) and len(one)
    off = (one["p"] / other["p"] - 1).abs()
    # gradients of two processes are summed in another order; where a sum is all but 0, Adam's first step makes more of it
    assert off.mean() < 1e-5 and off.max() < 2e-3


def whole_histories(predictions: Path) -> pd.DataFrame:
    """Predictions of the arm that keeps everything, which is trained whatever became of the mask."""
    found = pd.read_parquet(predictions).query("arm == 'keep-all'")
    return found.set_index(["impression_id", "part", "label"]).sort_index()
