"""Other Sparks than a local one, on this host: a Connect server, and a standalone cluster of master and two workers.

All come from the installed pyspark. Their Python workers run an interpreter with the third-party packages and
without this project, which they can only have as the zip that a session hands them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyspark
from faults.processes import LEAN

from dynamix.jobs.jars import resolve_jars

HOST = "127.0.0.1"
START_LIMIT_S = 400
CONNECT_SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"
WORKER_MB = 1024
"""An executor's heap; there is one executor a worker."""
QUIET = """rootLogger.level = info
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.target = SYSTEM_ERR
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %p %c{1}: %m%n
logger.spark.name = org.apache.spark
logger.spark.level = warn
logger.deploy.name = org.apache.spark.deploy
logger.deploy.level = info
logger.connect.name = org.apache.spark.sql.connect.service
logger.connect.level = info
"""


def bare_python(folder: Path) -> Path:
    """An interpreter with the third-party packages on its path and without our editable installation."""
    paths = dict.fromkeys(sysconfig.get_path(key) for key in ("purelib", "platlib"))
    script = folder / "python"
    script.write_text(
        "#!/bin/sh\n"
        f'export PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{":".join(paths)}"\n'
        f'exec "{sys.executable}" -S "$@"\n',  # -S: no .pth file is read
        encoding="utf-8",
    )
    script.chmod(0o755)
    return script


def spark_home(folder: Path) -> Path:
    """The installed Spark under a folder of our own: it writes into its home, which is not to be site-packages."""
    home = folder / "spark"
    home.mkdir()
    for name in ("bin", "jars", "python", "sbin"):
        (home / name).symlink_to(Path(pyspark.__file__).parent / name)
    conf = home / "conf"
    conf.mkdir()
    (conf / "log4j2.properties").write_text(QUIET, encoding="utf-8")
    return home


def clean_environment(**extra: str) -> dict[str, str]:
    """The caller's environment without what could put this project on a path or move Spark, and small processes."""
    prefixes = ("PYTHON", "SPARK", "PYSPARK", "DYNAMIX", "MLFLOW")
    own = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    return own | LEAN | {"SPARK_LOCAL_IP": HOST} | extra


@dataclass
class Daemon:
    """A process of Spark with its own group, and what it has logged."""

    command: list[str]
    folder: Path
    environment: dict[str, str]
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "log"
        with self.log.open("w") as sink:
            self._process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=sink,
                stderr=sink, start_new_session=True,
            )  # fmt: skip

    def said(self, pattern: str) -> str:
        """The first group of the pattern as soon as the log has it."""
        end = time.monotonic() + START_LIMIT_S
        while time.monotonic() < end and self._process.poll() is None:
            found = re.search(pattern, self.log.read_text(encoding="utf-8", errors="replace"))
            if found:
                return found[1]
            time.sleep(0.2)
        raise AssertionError(f"no {pattern!r} in {self.log.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        """SIGKILL to the process and to all that it has started and not set apart: of a worker, its executor too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@dataclass(frozen=True)
class Cluster:
    """A master's address, its home, the interpreter of its executors, and its workers."""

    address: str
    home: Path
    python: Path
    workers: list[Daemon]


@contextlib.contextmanager
def connect_server(folder: Path) -> Iterator[str]:
    """Address of a Connect server with Delta on two cores; its clock is not UTC, its workers lack this project."""
    home, python = spark_home(folder), bare_python(folder)
    settings = {
        "spark.connect.grpc.binding.address": HOST,
        "spark.connect.grpc.binding.port": "0",
        "spark.driver.host": HOST,
        "spark.driver.bindAddress": HOST,
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "4",
        "spark.sql.session.timeZone": "Asia/Tokyo",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.catalogImplementation": "in-memory",
        "spark.driver.extraJavaOptions": LEAN["DYNAMIX_JAVA_OPTIONS"],
        "spark.jars": ",".join(str(path) for path in resolve_jars(os.environ)),
    }
    given = [part for key, value in settings.items() for part in ("--conf", f"{key}={value}")]
    command = [str(home / "bin" / "spark-submit"), "--class", CONNECT_SERVER, "--master", "local[2]"]
    server = Daemon(
        [*command, *given], folder,
        clean_environment(SPARK_HOME=str(home), SPARK_DAEMON_MEMORY="1g", PYSPARK_PYTHON=str(python)),
    )  # fmt: skip
    try:
        place = server.said(r"Spark Connect server started at: (\S+:\d+)")
        yield f"sc://{place}"
    finally:
        server.kill()


@contextlib.contextmanager
def standalone_cluster(folder: Path) -> Iterator[Cluster]:
    """A master and two workers of one core each."""
    home, python = spark_home(folder), bare_python(folder)
    environment = clean_environment(SPARK_HOME=str(home), SPARK_DAEMON_MEMORY="256m")
    launcher = str(home / "bin" / "spark-class")

    def daemon(name: str, role: str, *arguments: str) -> Daemon:
        place = folder / name
        place.mkdir()
        command = [launcher, f"org.apache.spark.deploy.{role}", "--host", HOST, "--port", "0"]
        return Daemon([*command, "--webui-port", "0", *arguments], place, environment)

    master = daemon("master", "master.Master")
    workers: list[Daemon] = []
    try:
        address = master.said(r"Starting Spark master at (spark://\S+)")
        for number in range(2):
            name = f"worker-{number}"
            work = str(folder / name / "work")
            size = ["--cores", "1", "--memory", f"{WORKER_MB}m", "--work-dir", work]
            workers.append(daemon(name, "worker.Worker", *size, address))
        for worker in workers:
            worker.said(r"(Successfully registered with master)")
        yield Cluster(address, home, python, workers)
    finally:
        for process in (*workers, master):
            process.kill()


def conf_folder(cluster: Cluster, folder: Path) -> Path:
    """A SPARK_CONF_DIR as whoever runs a cluster would have it."""
    settings = {
        "spark.executor.memory": f"{WORKER_MB}m",
        "spark.driver.host": HOST,
        "spark.driver.bindAddress": HOST,
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "4",
        "spark.sql.adaptive.coalescePartitions.enabled": "false",  # so that both workers have rows
        "spark.sql.catalogImplementation": "in-memory",
        "spark.sql.warehouse.dir": str(folder / "tables"),
    }
    folder.mkdir()
    lines = [f"{key} {value}" for key, value in settings.items()]
    (folder / "spark-defaults.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copy(cluster.home / "conf" / "log4j2.properties", folder)
    return folder
