"""The Spark session factory: the given session where there is one, else one of its own with Delta.

Order: active session → platform's own (Databricks) → SPARK_REMOTE (Connect) → a driver here, whose executors are this
process or those of the cluster in DYNAMIX_MASTER. Delta's jars: DYNAMIX_JARS_DIR, else cached, else resolved once.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pyspark.sql import SparkSession

from dynamix.errors import EnvironmentTrouble
from dynamix.jobs.jars import resolve_jars

ALLOWED_JAVA = (17, 21)
SETTINGS: dict[str, str] = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.session.timeZone": "UTC",  # days and windows are UTC days
    "spark.sql.adaptive.enabled": "true",  # joins small parts after a shuffle, splits skewed ones
    "spark.databricks.delta.snapshotPartitions": "1",  # Delta's default of 50 tasks per log read
    # Every file of a partition spans all users: minima and maxima per file cost a write and skip nothing.
    "spark.databricks.delta.properties.defaults.dataSkippingNumIndexedCols": "0",
    "spark.sql.ui.explainMode": "simple",  # the text of every plan is built even where nobody looks
    "spark.sql.maxPlanStringLength": "20000",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "50000",
    "spark.ui.showConsoleProgress": "false",  # would overwrite our own progress lines
}
"""Of every session that is built here, on this machine or on a cluster."""
ONE_MACHINE: dict[str, str] = {
    "spark.sql.shuffle.partitions": "4",  # two cores: 200 tasks would be pure overhead
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "5",  # VACUUM else starts 10,000 tasks
    "spark.ui.enabled": "false",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.sql.catalogImplementation": "in-memory",  # no Derby folder in the caller's directory
}
"""Of a local session only; on a cluster these belong to whoever set it up (spark-defaults.conf, `--conf`)."""
REMOTE = {"spark.sql.session.timeZone": SETTINGS["spark.sql.session.timeZone"]}
"""What a session on somebody else's server is given: no more than the results need, as servers refuse most others."""
CODE_FLAGS = "-XX:-DontCompileHugeMethods -XX:ReservedCodeCacheSize=512m"
"""Judging a raw row is one generated method of more than 8,000 bytes, which Java else interprets for ever.
A cycle generates more code than the default cache holds, above all with one compiler (48 MB): it would be swept out
and compiled again until the end.

Short sessions (tests, tiny worlds) gain from `-XX:TieredStopAtLevel=1` in DYNAMIX_JAVA_OPTIONS: the optimising
compiler costs them more than it pays back. At 20 million history events it halves the writing of rows.
"""
DRIVER_FLAGS = f"-XX:+UseParallelGC {CODE_FLAGS}"
"""Executors of a cluster get no collector from us: theirs belongs to whoever set the cluster up, and two do not start."""
PORTS = {"sc": 15002, "spark": 7077}
"""Of a Connect server and of a standalone master, where the address names none."""
ANSWER_S = 3.0
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
    """The active session, or a new one. EnvironmentTrouble (exit 5) names Java, the jar or the server at fault.

    Read from the environment: SPARK_REMOTE (`sc://host:port`: a Connect server, where nothing is built or checked here),
    DYNAMIX_MASTER (default `local[*]`, a cluster's is `spark://host:port`), DYNAMIX_PY_FILES (this package as a zip, for
    workers that lack it), DYNAMIX_JARS_DIR, DYNAMIX_DRIVER_MEMORY (`6g`), DYNAMIX_JAVA_OPTIONS (further JVM options),
    JAVA_HOME, and the signs of a platform that brings its own session and of `spark-submit`, which brings the JVM.
    """
    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    env = os.environ if environment is None else environment
    where = target(env)
    if where.kind == PLATFORM:
        return SparkSession.builder.getOrCreate()
    session = _remote(where, env) if where.kind == CONNECT else _driver(app, where, env)
    for path in filter(None, env.get("DYNAMIX_PY_FILES", "").split(",")):
        session.addArtifact(path, pyfile=True)
    return session


PLATFORM, CONNECT, SUBMIT, LOCAL, CLUSTER = "platform", "connect", "spark-submit", "local", "cluster"


@dataclass(frozen=True)
class Target:
    """Where Spark runs: one of the five kinds, and the address where there is one."""

    kind: str
    address: str = ""

    @property
    def shown(self) -> str:
        """The address for people: what follows a semicolon may be a token."""
        return self.address.partition(";")[0]

    def __str__(self) -> str:
        return f"{self.kind} {self.shown}".strip()


def target(environment: Mapping[str, str]) -> Target:
    """What `get_spark` would connect to or start under this environment, were no session active."""
    master, remote = environment.get("DYNAMIX_MASTER", ""), environment.get("SPARK_REMOTE", "")
    if environment.get("DATABRICKS_RUNTIME_VERSION"):
        return Target(PLATFORM)
    if remote:
        return Target(CONNECT, remote)
    if environment.get("PYSPARK_GATEWAY_PORT"):
        return Target(SUBMIT, master)
    return Target(LOCAL if master.startswith("local") or not master else CLUSTER, master or "local[*]")


def why_silent(where: Target) -> str | None:
    """Why nothing can be reached at the address, empty where something answers, None where that cannot be asked."""
    first = re.split("[;,]", where.address)[0]  # a token may follow, or further masters
    url = urlsplit(first)
    if url.scheme not in PORTS:
        return None
    try:
        with socket.create_connection((url.hostname or "", url.port or PORTS[url.scheme]), ANSWER_S):
            return ""
    except (OSError, ValueError) as trouble:
        return str(trouble)


def _remote(where: Target, env: Mapping[str, str]) -> SparkSession:
    """A session on a Connect server that runs already."""
    if not where.address.startswith("sc://"):
        raise EnvironmentTrouble(
            f"SPARK_REMOTE={where.shown}: allowed is the address of a Connect server that runs, `sc://host:port`; "
            "without SPARK_REMOTE a local session is started"
        )
    proxied = any(env.get(name) for name in ("grpc_proxy", "https_proxy", "http_proxy"))
    silence = None if proxied else why_silent(where)  # the client itself tries for many minutes
    if silence:
        raise EnvironmentTrouble(
            f"nothing answers at SPARK_REMOTE={where.shown} ({silence}); start the server, or unset SPARK_REMOTE"
        )
    builder = SparkSession.builder.remote(where.address)
    try:
        for key, value in REMOTE.items():
            builder = builder.config(key, value)
        session = builder.getOrCreate()
    except Exception as trouble:  # a missing package, another kind of server, a wrong token
        first = (str(trouble).splitlines() or [""])[0]
        raise EnvironmentTrouble(
            f"no session on the Connect server SPARK_REMOTE={where.shown} ({type(trouble).__name__}: {first[:200]}); "
            "check its log and that the extra `connect` of this package is installed"
        ) from trouble
    return session


def _driver(app: str, where: Target, env: Mapping[str, str]) -> SparkSession:
    """A session whose driver is this process. Under `spark-submit` master, memory and jars are those it was given."""
    submitted, local = where.kind == SUBMIT, where.kind == LOCAL
    jars: list[Path] = []
    if not submitted:
        check_java(env)
        jars = resolve_jars(env)
    work = Path(tempfile.mkdtemp(prefix="dynamix-spark-"))
    builder = SparkSession.builder.appName(app)
    if where.address:
        builder = builder.master(where.address)
    executors = {"spark.executor.defaultJavaOptions": f"{CODE_FLAGS} {env.get('DYNAMIX_JAVA_OPTIONS', '')}"}
    for key, value in (SETTINGS | (ONE_MACHINE if local else executors)).items():
        builder = builder.config(key, value)
    if not submitted:
        builder = _jvm(builder, work, jars, env)
    if local:
        builder = builder.config("spark.sql.warehouse.dir", str(work / "warehouse"))
    # Workers start whichever python3 comes first on PATH unless told (docs/faults.md 42).
    os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    if local or "PYSPARK_PYTHON" not in os.environ:  # on other machines it may lie elsewhere
        os.environ["PYSPARK_PYTHON"] = sys.executable
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


def _jvm(
    builder: SparkSession.Builder, work: Path, jars: list[Path], env: Mapping[str, str]
) -> SparkSession.Builder:
    """What a JVM that is yet to start is told: Delta's jars, memory, options, and where it logs."""
    log = work / "log4j2.properties"
    log.write_text(_LOG4J.format(file=work / "spark.log"), encoding="utf-8")
    builder = builder.config("spark.jars", ",".join(str(path) for path in jars))
    builder = builder.config("spark.driver.memory", env.get("DYNAMIX_DRIVER_MEMORY", "6g"))
    options = [DRIVER_FLAGS, env.get("DYNAMIX_JAVA_OPTIONS", ""), f"-Dlog4j2.configurationFile={log}"]
    return builder.config(
        "spark.driver.extraJavaOptions", " ".join([*options, f"-Dderby.system.home={work}"])
    )


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
