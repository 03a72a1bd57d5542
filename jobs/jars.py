"""The seven Delta jars: found in a folder, else resolved once into a cache; a later start needs no network.

Resolving through the session's own package option would pull 33 jars at each start, some of them older
copies of what Spark ships (docs/decisions/0002-delta-jars.md).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from dynamix.errors import EnvironmentTrouble

RESOLVE_LIMIT_S = 900
DELTA_VERSION = "4.4.0"
UNITY_VERSION = "0.6.0"
SPARK_LINE = "4.2_2.13"
ARTIFACTS: dict[str, str] = {
    f"delta-spark_{SPARK_LINE}": f"io.delta:{DELTA_VERSION}",
    "delta-storage": f"io.delta:{DELTA_VERSION}",
    "delta-kernel-api": f"io.delta:{DELTA_VERSION}",
    "delta-kernel-defaults": f"io.delta:{DELTA_VERSION}",
    "delta-kernel-unitycatalog": f"io.delta:{DELTA_VERSION}",
    "unitycatalog-client": f"io.unitycatalog:{UNITY_VERSION}",
    "unitycatalog-hadoop": f"io.unitycatalog:{UNITY_VERSION}",
}
_EXCLUDED = (
    "org.apache.hadoop:hadoop-client-api",
    "org.apache.hadoop:hadoop-client-runtime",
    "com.fasterxml.jackson.core:jackson-databind",
    "com.fasterxml.jackson.core:jackson-core",
    "com.fasterxml.jackson.core:jackson-annotations",
    "org.slf4j:slf4j-api",
)
_RESOLVER = """
import sys
from pyspark.sql import SparkSession
builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
builder = builder.config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
builder = builder.config("spark.jars.ivy", sys.argv[1]).config("spark.jars.packages", sys.argv[2])
builder.config("spark.jars.excludes", sys.argv[3]).getOrCreate().stop()
"""


def jar_names() -> tuple[str, ...]:
    """Names of the seven jar files as Maven writes them."""
    return tuple(f"{name}-{where.split(':')[1]}.jar" for name, where in ARTIFACTS.items())


def cache_folder(environment: Mapping[str, str]) -> Path:
    """`$XDG_CACHE_HOME/dynamix/jars/<version>`, by default below `~/.cache`."""
    base = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "dynamix" / "jars" / DELTA_VERSION


def find_jars(environment: Mapping[str, str]) -> list[Path] | None:
    """The seven jars from DYNAMIX_JARS_DIR or the cache; None where they have to be resolved.

    EnvironmentTrouble where DYNAMIX_JARS_DIR is set and lacks one of them (docs/faults.md 42).
    """
    chosen = environment.get("DYNAMIX_JARS_DIR")
    folder = Path(chosen) if chosen else cache_folder(environment)
    paths = [folder / name for name in jar_names()]
    missing = [path.name for path in paths if not path.is_file()]
    if not missing:
        return paths
    if chosen:
        raise EnvironmentTrouble(
            f"DYNAMIX_JARS_DIR={chosen} lacks {', '.join(missing)}; put the seven Delta jars there, "
            "or unset it to have them resolved"
        )
    return None


def resolve_jars(environment: Mapping[str, str]) -> list[Path]:
    """The seven jars, resolved by one start of Spark in a process of its own where the cache lacks them."""
    found = find_jars(environment)
    if found is not None:
        return found
    target = cache_folder(environment)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        log = _run_resolver(Path(work), environment)
        draft = Path(work) / "jars-complete"
        draft.mkdir()
        for name, where in ARTIFACTS.items():
            group, version = where.split(":")
            source = Path(work) / "ivy" / "jars" / f"{group}_{name}-{version}.jar"
            if not source.is_file():
                raise EnvironmentTrouble(_unresolved(f"{group}:{name}:{version}", log))
            shutil.copyfile(source, draft / f"{name}-{version}.jar")
        if find_jars(environment) is None:  # another process may have been faster: its jars are in use
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
    return [target / name for name in jar_names()]


def _run_resolver(work: Path, environment: Mapping[str, str]) -> str:
    package = f"io.delta:delta-spark_{SPARK_LINE}:{DELTA_VERSION}"
    command = [sys.executable, "-c", _RESOLVER, str(work / "ivy"), package, ",".join(_EXCLUDED)]
    # Its own process: a later session must not inherit the package settings.
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            capture_output=True,
            text=True,
            check=False,
            cwd=work,
            timeout=RESOLVE_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"not found: no answer within {RESOLVE_LIMIT_S} s"
    return done.stderr + done.stdout


def _unresolved(artifact: str, log: str) -> str:
    hints = [
        line.strip() for line in log.splitlines() if "not found" in line.lower() or "refused" in line.lower()
    ]
    cause = f" ({hints[0][:160]})" if hints else ""
    return (
        f"Delta jar {artifact} could not be resolved{cause}; check the network or the mirror of your Ivy "
        "settings, or put the seven jars in a folder and set DYNAMIX_JARS_DIR"
    )


def main() -> int:
    """Resolve the jars if need be and print their paths; 5 with one line where that fails."""
    try:
        for path in resolve_jars(os.environ):
            print(path)
    except EnvironmentTrouble as trouble:
        print(f"set-up: {trouble.message}", file=sys.stderr)
        return trouble.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
