"""The Spark session factory: the given session where there is one, else a local one with Delta.

Order: active session (Databricks, Connect) → jars in DYNAMIX_JARS_DIR → cached jars → resolved once.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pyspark.sql import SparkSession

from dynamix.errors import EnvironmentTrouble
from dynamix.jobs.jars import resolve_jars

ALLOWED_JAVA = (17, 21)
SETTINGS: dict[str, str] = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.session.timeZone": "UTC",  # days and windows are UTC days
    "spark.sql.adaptive.enabled": "true",  # joins small parts after a shuffle, splits skewed ones
    "spark.sql.shuffle.partitions": "4",  # two cores: 200 tasks would be pure overhead
    "spark.databricks.delta.snapshotPartitions": "1",  # Delta's default of 50 tasks per log read
    # Every file of a partition spans all users: minima and maxima per file cost a write and skip nothing.
    "spark.databricks.delta.properties.defaults.dataSkippingNumIndexedCols": "0",
    "spark.sql.ui.explainMode": "simple",  # the text of every plan is built even where nobody looks
    "spark.sql.maxPlanStringLength": "20000",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "5",  # VACUUM else starts 10,000 tasks
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "50000",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",  # would overwrite our own progress lines
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.sql.catalogImplementation": "in-memory",  # no Derby folder in the caller's directory
}
JVM_FLAGS = "-XX:+UseParallelGC -XX:-DontCompileHugeMethods -XX:ReservedCodeCacheSize=512m"
"""Judging a raw row is one generated method of more than 8,000 bytes, which Java else interprets for ever.
A cycle generates more code than the default cache holds, above all with one compiler (48 MB): it would be swept out
and compiled again until the end.

Short sessions (tests, tiny worlds) gain from `-XX:TieredStopAtLevel=1` in DYNAMIX_JAVA_OPTIONS: the optimising
compiler costs them more than it pays back. At 20 million history events it halves the writing of rows.
"""
LAUNCHER_LOG = "launcher.log"
_LOG4J = """status = error
rootLogger.level = error
rootLogger.appenderRef.file.ref = file
appender.file.type = File
appender.file.name = file
appender.file.fileName = {file}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{HH:mm:ss}} %p %c{{1}}: %m%n%ex
"""


def get_spark(app: str = "dynamix", *, environment: Mapping[str, str] | None = None) -> SparkSession:
    """The active session, or a new local one. EnvironmentTrouble (exit 5) names Java or the jar at fault.

    Read from the environment: DYNAMIX_JARS_DIR, DYNAMIX_MASTER (`local[*]`), DYNAMIX_DRIVER_MEMORY (`6g`),
    DYNAMIX_JAVA_OPTIONS (further JVM options), JAVA_HOME, and the signs of a platform that brings its own
    session, where nothing is built or checked.
    """
    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    env = os.environ if environment is None else environment
    if env.get("SPARK_REMOTE") or env.get("DATABRICKS_RUNTIME_VERSION"):
        return SparkSession.builder.getOrCreate()
    check_java(env)
    jars = resolve_jars(env)
    # Workers start whichever python3 comes first on PATH unless told (docs/faults.md 42).
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    work = Path(tempfile.mkdtemp(prefix="dynamix-spark-"))
    log = work / "log4j2.properties"
    log.write_text(_LOG4J.format(file=work / "spark.log"), encoding="utf-8")
    builder = SparkSession.builder.master(env.get("DYNAMIX_MASTER", "local[*]")).appName(app)
    for key, value in SETTINGS.items():
        builder = builder.config(key, value)
    builder = builder.config("spark.jars", ",".join(str(path) for path in jars))
    builder = builder.config("spark.driver.memory", env.get("DYNAMIX_DRIVER_MEMORY", "6g"))
    builder = builder.config("spark.sql.warehouse.dir", str(work / "warehouse"))
    builder = builder.config(
        "spark.driver.extraJavaOptions",
        f"{JVM_FLAGS} {env.get('DYNAMIX_JAVA_OPTIONS', '')} -Dlog4j2.configurationFile={log} -Dderby.system.home={work}",
    )
    try:
        session = _start(builder, work)
    except Exception as trouble:
        first = (str(trouble).splitlines() or [""])[0]
        raise EnvironmentTrouble(
            f"Spark did not start ({type(trouble).__name__}: {first[:200]}); its log is in {work}; "
            "run `dynamix doctor`"
        ) from trouble
    atexit.register(shutil.rmtree, work, ignore_errors=True)  # kept where the start failed
    return session


def _start(builder: SparkSession.Builder, work: Path) -> SparkSession:
    """Start the JVM with its chatter sent to a file: VACUUM prints to standard output, which `--json` has for itself."""
    saved = {number: os.dup(number) for number in (1, 2)}
    with (work / LAUNCHER_LOG).open("w") as sink:
        for number in saved:
            os.dup2(sink.fileno(), number)
        try:
            return builder.getOrCreate()
        finally:
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)


def java_program(environment: Mapping[str, str]) -> str | None:
    """Path of the `java` that Spark's launcher takes: JAVA_HOME first, then PATH."""
    home = environment.get("JAVA_HOME")
    return (
        str(Path(home) / "bin" / "java") if home else shutil.which("java", path=environment.get("PATH", ""))
    )


def java_version(environment: Mapping[str, str]) -> int | None:
    """Major version of the Java that Spark would start, None where there is none."""
    program = java_program(environment)
    if program is None:
        return None
    try:
        done = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(match[1]) if match else None


def check_java(environment: Mapping[str, str]) -> int:
    """Java's major version. EnvironmentTrouble where it is missing or not one that Spark 4.2 takes."""
    allowed = " or ".join(str(v) for v in ALLOWED_JAVA)
    found = java_version(environment)
    if found is None:
        raise EnvironmentTrouble(f"no Java found; install a Java {allowed} runtime and set JAVA_HOME or PATH")
    if found not in ALLOWED_JAVA:
        raise EnvironmentTrouble(f"Java {found} found; allowed: {allowed}; point JAVA_HOME to such a runtime")
    return found
