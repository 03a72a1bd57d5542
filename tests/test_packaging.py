"""The wheel holds what the folders hold, and as a zip it is all that a bare executor needs of our code.

A bare executor has the locked third-party packages and not this project: an interpreter that ignores `.pth`
files, so that the editable installation does not reach it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from importlib import metadata
from math import log
from pathlib import Path
from typing import Any

import clusters
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dynamix.jobs.run_log import source_hash

PROJECT = Path(__file__).resolve().parents[1]
FOLDERS = {"dynamix": "src/dynamix"} | {
    f"dynamix/{name}": name for name in ("features", "segmentation", "models", "jobs")
}
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def shipped_files(tree: Path) -> dict[str, Path]:
    """Name in the wheel of every module, template and type marker of the five folders -> the file itself."""
    return {
        f"{package}/{path.relative_to(tree / folder).as_posix()}": path
        for package, folder in FOLDERS.items()
        for path in (tree / folder).rglob("*")
        if path.suffix in (".py", ".j2") or path.name == "py.typed"
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the build reads, so that it leaves no `build/` or `*.egg-info` in the checkout."""
    copy = tmp_path_factory.mktemp("tree")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
    for folder in FOLDERS.values():
        shutil.copytree(PROJECT / folder, copy / folder, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the environment's own setuptools: nothing is downloaded."""
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def zipped(wheel: Path) -> Path:
    """The same bytes under the name that Spark puts on the executors' path: it takes `.zip`, never `.whl`."""
    return Path(shutil.copy(wheel, wheel.parent / "dynamix.zip"))


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clusters.bare_python(tmp_path_factory.mktemp("bare"))


def clean_environment(**extra: str) -> dict[str, str]:
    """The caller's environment without anything that could put this project on a path or move Spark."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SPARK", "PYSPARK"))}
    return own | extra


def run(program: Path | str, *arguments: str, folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *arguments], cwd=folder, env=clean_environment(**extra), capture_output=True,
        text=True, check=False, timeout=240,
    )  # fmt: skip


def test_the_wheel_holds_the_modules_and_templates_of_the_folders_and_nothing_else(
    wheel: Path, tree: Path
) -> None:
    expected = shipped_files(tree)
    assert {
        "dynamix/jobs/templates/report.html.j2",
        "dynamix/models/trunks/din.py",
        "dynamix/py.typed",
    } <= set(expected)
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert names == set(expected)
        changed = [name for name, path in expected.items() if archive.read(name) != path.read_bytes()]
    assert not changed


def test_a_folder_without_an_init_file_would_be_noticed(wheel: Path, tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "tree")
    orphan = tmp_path / "tree" / "features" / "orphan" / "module.py"
    orphan.parent.mkdir()
    orphan.write_text("", encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    done = run(sys.executable, "-c", BUILD, str(out), folder=tmp_path / "tree")
    assert done.returncode == 0, done.stderr[-2000:]
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        lost = set(shipped_files(tmp_path / "tree")) - set(archive.namelist())
    assert lost == {"dynamix/features/orphan/module.py"}


def test_the_wheel_claims_one_top_level_name(wheel: Path) -> None:
    """Two wheels that both ship `models/` would merge silently on a user's machine."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dynamix"}


def test_the_entry_point_and_the_dependencies_are_those_of_the_project_file(wheel: Path) -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        about = message_from_bytes(archive.read(f"{info}/METADATA"))
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        module, function = project["scripts"]["dynamix"].split(":")
        source = archive.read(module.replace(".", "/") + ".py").decode()
    assert f"dynamix = {module}:{function}" in scripts
    assert f"def {function}(" in source
    wanted = [Requirement(text) for text in about.get_all("Requires-Dist", [])]
    always = {str(need) for need in wanted if need.marker is None}
    assert always == {str(Requirement(text)) for text in project["dependencies"]}


def test_the_bare_interpreter_finds_every_dependency_and_not_our_code(
    bare_python: Path, tmp_path: Path
) -> None:
    """Else the two tests below would prove nothing."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    modules = sorted(
        name
        for name, owners in metadata.packages_distributions().items()
        if not name.startswith("_") and needs & {canonicalize_name(owner) for owner in owners}
    )
    look = "import sys; from importlib.util import find_spec; print([n for n in sys.argv[1:] if not find_spec(n)])"
    done = run(bare_python, "-c", look, *modules, "dynamix", folder=tmp_path)
    assert len(modules) >= len(needs)
    assert done.stdout.strip() == "['dynamix']", done.stderr[-2000:]


IMPORT_ALL = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.argv[1]), module.__file__
"""


def test_every_module_that_runs_on_executors_imports_from_the_zip(
    zipped: Path, tree: Path, bare_python: Path, tmp_path: Path
) -> None:
    """A caller's own `models/` in the working folder changes nothing: ours is `dynamix.models`."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise RuntimeError('not ours')", encoding="utf-8")
    names = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in sorted(shipped_files(tree))
        if name.startswith(("dynamix/features/", "dynamix/segmentation/")) and name.endswith(".py")
    ]
    done = run(bare_python, "-c", IMPORT_ALL, str(zipped), *names, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


ITSELF = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from dynamix.jobs import artefacts, bundle, report, run_log
from dynamix.models.requirements import model_code
assert run_log.__file__.startswith(sys.argv[1]), run_log.__file__
assert artefacts.style_sheet() and (bundle.files("dynamix.models") / bundle.READER).is_file()
for name in ("pyfunc_model.py", "pyfunc_segmenter.py"):
    with model_code(name) as code:
        assert Path(code).name == name and Path(code).read_text()
print(run_log.source_hash())
"""


def test_a_driver_reads_what_it_needs_of_itself_from_the_zip_too(
    zipped: Path, bare_python: Path, tmp_path: Path
) -> None:
    """As under `spark-submit --py-files`, where the zip goes before what is installed."""
    done = run(bare_python, "-c", ITSELF, str(zipped), folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == source_hash()


PROGRAM = '''
import json
import sys

import pyarrow as pa
from pyspark.sql import SparkSession

from dynamix.config import HistoryConfig
from dynamix.features.exposure import exposure_block
from dynamix.features.history import map_histories

EVENTS = """
select u user_id, timestamp_seconds(t) event_ts, timestamp_seconds(t) ingest_ts, bigint(1) event_seq,
       e event_id, string(null) request_id, i item_id, string(null) category, smallint(0) stream_id,
       double(z) z, tinyint(3) dwell_bin, false censored
from values ('a', 10, 'e1', 'x', 0.5), ('a', 20, 'e2', 'y', 1.5), ('a', 40, 'e3', 'x', 9.0) as v(u, t, e, i, z)
"""
ASKED = """
select u user_id, timestamp_seconds(t) event_ts, e event_id, string(null) request_id, i item_id
from values ('a', 30, 'i1', 'x'), ('c', 30, 'i2', 'x') as v(u, t, e, i)
"""


def kernel(events, impressions, offsets, index):
    x = exposure_block(events, impressions, offsets, index, n_streams=1)[:, 0, :]  # (B, 6)
    origin = sys.modules[exposure_block.__module__].__file__
    return pa.table({
        "event_id": impressions.frame["event_id"],
        "x": pa.array(x.tolist(), pa.list_(pa.float64())),
        "origin": pa.array([origin] * len(x)),
        "worker": pa.array([sys.flags.no_site == 1] * len(x)),
    })


def rows(spark):
    frame = map_histories(
        spark.sql(EVENTS), spark.sql(ASKED), history=HistoryConfig(embargo=0), kernel=kernel,
        schema="event_id string, x array<double>, origin string, worker boolean",
    )
    return [row.asDict() for row in frame.collect()]


settings = {
    "spark.ui.enabled": "false",
    "spark.driver.memory": "1g",
    "spark.executor.memory": "1g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": "1",
    "spark.task.maxFailures": "1",  # the first run is meant to fail
}
builder = SparkSession.builder.master("local-cluster[1,1,1024]")
for key, value in settings.items():
    builder = builder.config(key, value)
spark = builder.getOrCreate()
report = {}
try:
    report["without"] = rows(spark)
except Exception as trouble:
    report["without"] = str(trouble)
spark.addArtifact(sys.argv[1], pyfile=True)
report["with"] = rows(spark)
spark.stop()
print(json.dumps(report))
'''


@pytest.fixture(scope="module")
def executor_report(
    zipped: Path, bare_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """One exposure job on one separate bare executor, before and after the zip is handed to the session."""
    folder = tmp_path_factory.mktemp("cluster")
    home = clusters.spark_home(folder)  # local-cluster writes its work folder there
    program = folder / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    done = run(
        sys.executable, str(program), str(zipped), folder=folder, SPARK_HOME=str(home),
        SPARK_LOCAL_IP="127.0.0.1", PYSPARK_PYTHON=str(bare_python), PYSPARK_DRIVER_PYTHON=sys.executable,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


@pytest.mark.spark
def test_without_the_zip_a_bare_executor_cannot_import_our_code(executor_report: dict[str, Any]) -> None:
    assert "ModuleNotFoundError: No module named 'dynamix'" in executor_report["without"]


@pytest.mark.spark
def test_with_the_zip_the_history_kernel_runs_on_a_bare_executor(executor_report: dict[str, Any]) -> None:
    found = {row["event_id"]: row for row in executor_report["with"]}
    for row in found.values():
        assert row["worker"], "not the bare interpreter"
        assert row["origin"].endswith("dynamix.zip/dynamix/features/exposure.py")
    # two events 20 s and 10 s before i1, one on its item; channels in the order of contracts.CHANNELS
    assert found["i1"]["x"] == pytest.approx([2.0 / 3.0, log(3), -log(11), 0.0, 1.0, log(2)])
    assert found["i2"]["x"] == [0.0] * 6  # another user: nothing seen
    assert sorted(found) == ["i1", "i2"]
