"""The wheel that the bundle deploys: a new version every build, the entry points, and no Spark of its own."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from email import message_from_bytes
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from dynamix import __version__

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "scripts" / "bundle_wheel.py"
PYPROJECT = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bundle_wheel", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bundle_wheel"] = module
    spec.loader.exec_module(module)
    return module


bundle_wheel = load_script()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle")
    (out / "dynamix_ebf-0.0.1-py3-none-any.whl").write_bytes(b"of an earlier build")
    built: Path = bundle_wheel.build(out)
    assert [path.name for path in out.iterdir()] == [built.name]  # the glob of the bundle finds one
    return built


def about(wheel: Path) -> tuple[str, list[Requirement], str]:
    """(version, requirements that always hold, entry points)."""
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        read = message_from_bytes(archive.read(f"{info}/METADATA"))
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    needs = [Requirement(text) for text in read.get_all("Requires-Dist", [])]
    return str(read["Version"]), [need for need in needs if need.marker is None], scripts


def test_the_version_is_that_of_the_package_and_of_this_build(wheel: Path) -> None:
    version = Version(about(wheel)[0])
    assert version.base_version == __version__
    assert version > Version(__version__)
    assert wheel.name == f"dynamix_ebf-{version}-py3-none-any.whl"


def test_a_later_build_has_a_later_version() -> None:
    stamps = ("20261121000000", "20261121000001")
    texts = [bundle_wheel.bundle_project(PYPROJECT, stamp=stamp) for stamp in stamps]
    versions = [Version(text.split('version = "')[1].split('"')[0]) for text in texts]
    assert versions[0] < versions[1]


def test_nothing_the_wheel_asks_for_brings_another_spark(wheel: Path) -> None:
    """Walks the requirements of the installed packages; the package itself asks for pyspark."""
    assert "pyspark" in reached([Requirement("dynamix-ebf")])
    wanted = reached(about(wheel)[1])
    assert {"torch", "mlflow", "great-expectations", "pydantic"} <= wanted
    assert wanted & {"pyspark", "delta-spark", "pyspark-client", "databricks-connect"} == set()


def reached(needs: list[Requirement]) -> set[str]:
    """Names of all distributions that these requirements bring, as far as they are installed."""
    names: set[str] = set()
    todo = list(needs)
    while todo:
        need = todo.pop()
        name = canonicalize_name(need.name)
        if name in names or (need.marker is not None and not need.marker.evaluate({"extra": ""})):
            continue
        names.add(name)
        try:
            todo += [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue  # of another platform
    return names


def test_both_commands_are_entry_points(wheel: Path) -> None:
    scripts = about(wheel)[2]
    assert "dynamix = dynamix.jobs.cli:main" in scripts
    assert "dynamix-task = dynamix.jobs.task:main" in scripts


@pytest.mark.parametrize("line", ['    "pyspark==4.2.0",\n', 'version = "0.1.0"\n'])
def test_a_project_file_of_another_form_is_refused(line: str) -> None:
    assert line in PYPROJECT
    with pytest.raises(SystemExit, match=r"pyproject\.toml"):
        bundle_wheel.bundle_project(PYPROJECT.replace(line, ""), stamp="1")
