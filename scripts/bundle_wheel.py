"""Build the wheel that the Databricks bundle deploys: dist/bundle/dynamix_ebf-<version>.postN-py3-none-any.whl.

It differs from the package's own wheel in two things (docs/decisions/0009). Its version is new with every build,
since a cluster keeps a wheel whose version it has; N is the build's time in UTC. And it does not ask for the
packages that the platform brings, since another Spark beside the platform's own breaks both.

Run it with the interpreter of `make setup`; nothing is downloaded.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
OUT = PROJECT / "dist" / "bundle"
FOLDERS = ("src", "features", "segmentation", "models", "jobs")
FILES = ("setup.py", "README.md", "LICENSE")
PLATFORM = ("pyspark", "delta-spark")
"""Requirements that the Databricks runtime fulfils by a build of its own."""
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def bundle_project(text: str, *, stamp: str) -> str:
    """The text of pyproject.toml with version `<version>.post<stamp>` and without the platform's packages."""
    text, versions = re.subn(r'^version = "([^"]+)"$', rf'version = "\1.post{stamp}"', text, flags=re.M)
    for name in PLATFORM:
        text, lines = re.subn(rf'^    "{name}==[^"]*",\n', "", text, flags=re.M)
        if lines != 1:
            raise SystemExit(f"pyproject.toml asks for {name} in {lines} lines; expected one `{name}==...`")
    if versions != 1:
        raise SystemExit(f"pyproject.toml states {versions} versions; expected one")
    return text


def build(out: Path = OUT, *, project: Path = PROJECT) -> Path:
    """Build the wheel from a copy of the tree, in place of older ones in `out`; its path."""
    stamp = f"{datetime.now(UTC):%Y%m%d%H%M%S}"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in FOLDERS:
            shutil.copytree(
                project / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
            )
        for name in FILES:
            shutil.copy(project / name, copy)
        text = (project / "pyproject.toml").read_text(encoding="utf-8")
        (copy / "pyproject.toml").write_text(bundle_project(text, stamp=stamp), encoding="utf-8")
        fresh = copy / "out"
        fresh.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", BUILD, str(fresh)], cwd=copy, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"the wheel was not built; run `make setup` first\n{done.stderr[-2000:]}")
        (wheel,) = fresh.glob("*.whl")
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("dynamix_ebf-*.whl"):
            old.unlink()
        return Path(shutil.copy(wheel, out))


if __name__ == "__main__":
    print(f"wheel: {build().relative_to(PROJECT)}")
