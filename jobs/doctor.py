"""`doctor`: is everything there that a run needs? Each finding comes with its fix; Spark is not started."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from dynamix.errors import EnvironmentTrouble
from dynamix.jobs.jars import ARTIFACTS, DELTA_VERSION, SPARK_LINE, cache_folder, find_jars, jar_names
from dynamix.jobs.session import (
    ALLOWED_JAVA,
    CLUSTER,
    CONNECT,
    LOCAL,
    Target,
    java_program,
    java_version,
    target,
    why_silent,
)

OLDEST_PYTHON = (3, 11)
JAVA_MODULE = "jdk.incubator.vector"
FREE_GB = 5.0
"""GB: the demo's two worlds with their tables and shuffle files stay well below it."""
MEMORY_GB = 8.0
"""GB: the driver takes up to 6 (DYNAMIX_DRIVER_MEMORY), Python workers and torch the rest."""

CLIENT = ("grpc", "grpc_status", "zstandard")
"""Modules of the extra `connect`."""


@dataclass(frozen=True)
class Check:
    """One finding; `fix` says what to do where `ok` is False."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def doctor(warehouse: Path | None = None, *, environment: Mapping[str, str] | None = None) -> list[Check]:
    """All checks, in the order in which a fresh machine is mended; raises nothing.

    Java and jars are looked at where a driver is to be started here.
    """
    env = os.environ if environment is None else environment
    place = (warehouse or Path.cwd()).absolute()
    where = target(env)
    own_jvm = where.kind in (LOCAL, CLUSTER)
    return [
        check_python(sys.version_info[:3]),
        check_spark(where),
        *([check_java(env), check_modules(env)] if own_jvm else []),
        check_versions(),
        *([check_jars(env)] if own_jvm else []),
        check_disk(place),
        check_memory(),
        check_device(),
        check_store(warehouse, env),
    ]


def check_python(version: tuple[int, ...]) -> Check:
    """The interpreter of driver and workers is new enough."""
    found = ".".join(str(part) for part in version)
    oldest = ".".join(str(part) for part in OLDEST_PYTHON)
    return Check("python", version >= OLDEST_PYTHON, found, f"install Python {oldest} or newer, `make setup`")


def check_spark(where: Target) -> Check:
    """Where Spark runs; of a Connect server or a standalone master, that something answers and the client is there."""
    if where.kind == CONNECT and (lacking := [name for name in CLIENT if find_spec(name) is None]):
        fix = "install the extra `connect` of this package (`make setup` does)"
        return Check("spark", False, f"{where}, without {', '.join(lacking)}", fix)
    if where.kind == CONNECT and not where.address.startswith("sc://"):
        return Check("spark", False, str(where), "set SPARK_REMOTE to `sc://host:port`, or unset it")
    silence = why_silent(where)
    if silence is None:
        return Check("spark", True, str(where))
    fix = "start it, or unset SPARK_REMOTE and DYNAMIX_MASTER to run on this machine"
    return Check("spark", not silence, f"{where}: {silence}" if silence else f"{where} answers", fix)


def check_java(environment: Mapping[str, str]) -> Check:
    """A Java that Spark can start is on JAVA_HOME or PATH (docs/faults.md 42)."""
    allowed = " or ".join(str(v) for v in ALLOWED_JAVA)
    fix = f"install a Java {allowed} runtime and set JAVA_HOME or PATH"
    found = java_version(environment)
    where = "JAVA_HOME" if environment.get("JAVA_HOME") else "PATH"
    text = f"no Java on {where}" if found is None else f"Java {found} by {where}"
    return Check("java", found in ALLOWED_JAVA, text, fix)


def check_modules(environment: Mapping[str, str]) -> Check:
    """The Java runtime carries the module that Spark's launcher adds; trimmed runtimes lack it."""
    fix = f"use a full Java runtime: this one has no module {JAVA_MODULE}"
    program = java_program(environment)
    if program is None:
        return Check("java modules", False, "no Java", fix)
    try:
        done = subprocess.run([program, "--list-modules"], capture_output=True, text=True, check=False)
    except OSError as trouble:
        return Check("java modules", False, str(trouble), fix)
    there = any(line.partition("@")[0] == JAVA_MODULE for line in done.stdout.splitlines())
    return Check("java modules", there, f"{JAVA_MODULE} {'present' if there else 'absent'}", fix)


def check_versions() -> Check:
    """The Python packages of Spark and Delta belong to the jars: one pair, not two newest versions."""
    installed = {name: _version(name) for name in ("pyspark", "delta-spark")}
    found = ", ".join(f"{name} {version or 'absent'}" for name, version in installed.items())
    line = SPARK_LINE.partition("_")[0]
    paired = (installed["pyspark"] or "").startswith(f"{line}.") and installed["delta-spark"] == DELTA_VERSION
    wanted = f"pyspark {line}.x with delta-spark {DELTA_VERSION}"
    return Check("spark and delta", paired, found, f"run `make setup`; the jars belong to {wanted}")


def check_jars(environment: Mapping[str, str]) -> Check:
    """The seven Delta jars lie in DYNAMIX_JARS_DIR or the cache; the fix names the missing artifacts."""
    chosen = environment.get("DYNAMIX_JARS_DIR")
    folder = Path(chosen) if chosen else cache_folder(environment)
    try:
        paths = find_jars(environment)
    except EnvironmentTrouble as trouble:
        return Check("delta jars", False, f"incomplete in {folder}", trouble.message)
    if paths is not None:
        size = sum(path.stat().st_size for path in paths)
        return Check("delta jars", True, f"{len(paths)} jars, {size / 1e6:.1f} MB, in {folder}")
    absent = [
        f"{where.split(':')[0]}:{artifact}:{where.split(':')[1]}"
        for (artifact, where), name in zip(ARTIFACTS.items(), jar_names(), strict=True)
        if not (folder / name).is_file()
    ]
    fix = f"`make setup` resolves them once (network needed), or set DYNAMIX_JARS_DIR; missing {', '.join(absent)}"
    return Check("delta jars", False, f"{len(ARTIFACTS) - len(absent)} of {len(ARTIFACTS)} in {folder}", fix)


def check_disk(place: Path) -> Check:
    """Room for tables where the warehouse is (or will be), and for shuffle files in the temporary folder."""
    spots = {"warehouse": _existing(place), "temporary files": Path(tempfile.gettempdir())}
    free = {what: shutil.disk_usage(path).free / 1e9 for what, path in spots.items()}
    found = ", ".join(f"{size:.0f} GB free for {what} ({spots[what]})" for what, size in free.items())
    fix = f"free {FREE_GB:.0f} GB, use another --warehouse, or set TMPDIR to a larger disk"
    return Check("disk", min(free.values()) >= FREE_GB, found, fix)


def check_memory() -> Check:
    """Physical memory of the machine; passes where it cannot be read."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError):
        return Check("memory", True, "unknown on this system")
    fix = "close other programs and set DYNAMIX_DRIVER_MEMORY (e.g. 3g), or use smaller data"
    return Check("memory", total >= MEMORY_GB, f"{total:.0f} GB", fix)


def check_device() -> Check:
    """Where `train.device: auto` would train; a machine without GPU is in order."""
    try:
        import torch  # seconds of import, only for those who ask
    except ImportError as trouble:
        return Check("torch", False, f"torch cannot be imported: {trouble}", "run `make setup`")
    if not torch.cuda.is_available():
        found = f"torch {torch.__version__}, no CUDA device: training runs on the CPU ({platform.machine()})"
        return Check("torch", True, found)
    return Check("torch", True, f"torch {torch.__version__}, CUDA device {torch.cuda.get_device_name(0)}")


def check_store(warehouse: Path | None, environment: Mapping[str, str]) -> Check:
    """The tracking store: a server by MLFLOW_TRACKING_URI, else SQLite in a writable warehouse."""
    server = environment.get("MLFLOW_TRACKING_URI")
    if server:
        return Check("tracking store", True, f"MLFLOW_TRACKING_URI is set ({server.partition(':')[0]})")
    if warehouse is None:
        return Check("tracking store", True, "SQLite in the warehouse (none named: pass --warehouse)")
    folder = _existing(warehouse.absolute())
    ok = os.access(folder, os.W_OK)
    fix = f"make {folder} writable or use another --warehouse"
    return Check("tracking store", ok, f"SQLite in {warehouse}", fix)


def _existing(path: Path) -> Path:
    """The nearest folder of the path that is already there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
