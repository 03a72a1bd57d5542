"""The session factory without a session: which Java, which jars, and what is said when one is missing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from pyspark.sql import SparkSession

from dynamix.errors import EnvironmentTrouble
from dynamix.features.tables import Warehouse
from dynamix.jobs import jars, session
from dynamix.jobs.frames import held
from dynamix.jobs.troubles import said_plainly


def fake_java(folder: Path, banner: str) -> Path:
    """A JAVA_HOME whose java prints this banner, as a real one does on standard error."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho '{banner}' >&2\n")
    program.chmod(0o755)
    return folder


def put_jars(folder: Path, names: tuple[str, ...]) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"jar")
    return folder


@pytest.mark.parametrize(
    ("banner", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('openjdk version "21" 2023-09-19', 21),
        ('java version "1.8.0_392"', 8),
        ('openjdk version "25-ea" 2025-09-16', 25),
    ],
)
def test_the_major_version_is_read_from_the_banner(tmp_path: Path, banner: str, major: int) -> None:
    home = fake_java(tmp_path / "jdk", banner)
    assert session.java_version({"JAVA_HOME": str(home), "PATH": os.environ["PATH"]}) == major


def test_java_home_goes_before_path(tmp_path: Path) -> None:
    home = fake_java(tmp_path / "home", 'openjdk version "21.0.2"')
    other = fake_java(tmp_path / "other", 'openjdk version "11.0.2"')
    path = f"{other / 'bin'}:{os.environ['PATH']}"
    assert session.java_version({"JAVA_HOME": str(home), "PATH": path}) == 21
    assert session.java_version({"PATH": path}) == 11


def test_no_java_is_an_environment_error_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentTrouble, match="no Java found; install a Java 17 or 21") as caught:
        session.check_java({"PATH": str(tmp_path)})
    assert caught.value.exit_code == 5


def test_a_java_home_without_java_counts_as_none(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentTrouble, match="no Java found"):
        session.check_java({"JAVA_HOME": str(tmp_path / "gone"), "PATH": os.environ["PATH"]})


def test_a_java_that_spark_cannot_start_is_named(tmp_path: Path) -> None:
    home = fake_java(tmp_path / "jdk", 'openjdk version "11.0.2"')
    with pytest.raises(EnvironmentTrouble, match="Java 11 found; allowed: 17 or 21"):
        session.check_java({"JAVA_HOME": str(home), "PATH": os.environ["PATH"]})


def test_java_is_checked_before_jars_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparkSession, "getActiveSession", staticmethod(lambda: None))
    monkeypatch.setattr(session, "resolve_jars", lambda env: pytest.fail("jars before Java"))
    with pytest.raises(EnvironmentTrouble, match="no Java found"):
        session.get_spark(environment={"PATH": str(tmp_path)})


def test_an_active_session_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    given = object()
    monkeypatch.setattr(SparkSession, "getActiveSession", staticmethod(lambda: given))
    monkeypatch.setattr(session, "check_java", lambda env: pytest.fail("nothing is checked there"))
    assert session.get_spark(environment={}) is given


@pytest.mark.parametrize(
    ("environment", "kind", "said"),
    [
        ({}, session.LOCAL, "local local[*]"),
        ({"DYNAMIX_MASTER": "local[2]"}, session.LOCAL, "local local[2]"),
        ({"DYNAMIX_MASTER": "spark://h:7077"}, session.CLUSTER, "cluster spark://h:7077"),
        ({"PYSPARK_GATEWAY_PORT": "1"}, session.SUBMIT, "spark-submit"),
        ({"SPARK_REMOTE": "sc://h/;token=abc", "DYNAMIX_MASTER": "yarn"}, session.CONNECT, "connect sc://h/"),
        ({"SPARK_REMOTE": "x", "DATABRICKS_RUNTIME_VERSION": "18"}, session.PLATFORM, "platform"),
    ],
)
def test_the_environment_says_where_spark_runs(environment: dict[str, str], kind: str, said: str) -> None:
    found = session.target(environment)
    assert (found.kind, str(found)) == (kind, said)


class Noted:
    """A builder that only notes what it is told; its session counts what it is handed."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}
        self.handed: list[str] = []

    def config(self, key: str, value: str) -> Noted:
        self.told[key] = value
        return self

    def master(self, value: str) -> Noted:
        return self.config("master", value)

    def appName(self, value: str) -> Noted:
        return self.config("app", value)

    def getOrCreate(self) -> Noted:
        return self

    def addArtifact(self, path: str, *, pyfile: bool) -> None:
        assert pyfile
        self.handed.append(path)


def built(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Noted:
    """What a driver under this environment would be told, without starting one."""
    noted = Noted()
    monkeypatch.setattr(SparkSession, "getActiveSession", staticmethod(lambda: None))
    monkeypatch.setattr(SparkSession, "builder", noted)
    monkeypatch.setattr(session, "check_java", lambda env: 17)
    monkeypatch.setattr(session, "resolve_jars", lambda env: [Path("delta.jar")])
    monkeypatch.setenv("PYSPARK_PYTHON", "their-python")
    assert session.get_spark(environment=environment) is noted  # type: ignore[comparison-overlap]
    return noted


def test_a_cluster_keeps_its_own_settings_and_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    told = built(monkeypatch, DYNAMIX_MASTER="spark://h:7077", DYNAMIX_PY_FILES="a.zip,b.zip")
    assert (
        told.told.items()
        >= {**session.SETTINGS, "master": "spark://h:7077", "spark.jars": "delta.jar"}.items()
    )
    assert not set(session.ONE_MACHINE) & set(told.told)
    assert told.told["spark.executor.defaultJavaOptions"].startswith(session.CODE_FLAGS)
    assert os.environ["PYSPARK_PYTHON"] == "their-python"
    assert told.handed == ["a.zip", "b.zip"]


def test_this_machine_takes_its_own_settings_and_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    told = built(monkeypatch).told
    assert told.items() >= {**session.ONE_MACHINE, "master": "local[*]"}.items()
    assert os.environ["PYSPARK_PYTHON"] == sys.executable


def test_spark_submit_keeps_the_master_memory_and_jars_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = built(monkeypatch, PYSPARK_GATEWAY_PORT="1").told
    assert not {"master", "spark.jars", "spark.driver.memory"} & set(told)
    assert told.items() >= session.SETTINGS.items()


def test_a_remote_that_is_no_running_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparkSession, "getActiveSession", staticmethod(lambda: None))
    with pytest.raises(
        EnvironmentTrouble, match=r"SPARK_REMOTE=local\[2\]: allowed is .*sc://host:port"
    ) as caught:
        session.get_spark(environment={"SPARK_REMOTE": "local[2]"})
    assert caught.value.exit_code == 5


def test_a_server_that_does_not_answer_is_said_at_once_and_without_its_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Spark's own client tries for many minutes."""
    monkeypatch.setattr(SparkSession, "getActiveSession", staticmethod(lambda: None))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"sc://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(EnvironmentTrouble, match="nothing answers at SPARK_REMOTE=sc://127") as caught:
        session.get_spark(environment={"SPARK_REMOTE": f"{address}/;token=abc"})
    assert "abc" not in caught.value.message


@pytest.mark.parametrize(("master", "twice"), [("local[2]", False), ("spark://h:7077", True)])
def test_held_rows_are_kept_twice_where_a_worker_may_die(
    monkeypatch: pytest.MonkeyPatch, master: str, twice: bool
) -> None:
    monkeypatch.setenv("DYNAMIX_MASTER", master)
    frame = Mock()
    assert held(frame) is frame.localCheckpoint.return_value
    level = frame.localCheckpoint.call_args.kwargs.get("storageLevel")
    assert (level is not None and level.replication == 2) is twice


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ModuleNotFoundError: No module named 'dynamix'", "hand them the wheel of .* DYNAMIX_PY_FILES"),
        ("[CHECKPOINT_RDD_BLOCK_ID_NOT_FOUND] Checkpoint block rdd_7_1 not found!", "a worker died"),
    ],
)
def test_what_workers_lack_is_said_plainly(said: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentTrouble, match=told), said_plainly(Warehouse(tmp_path)):
        raise RuntimeError(f"PythonException: ...\n{said}\n")


def test_there_are_seven_jars_of_two_releases() -> None:
    names = jars.jar_names()
    assert len(set(names)) == 7
    assert sum(name.endswith(f"-{jars.DELTA_VERSION}.jar") for name in names) == 5
    assert sum(name.endswith(f"-{jars.UNITY_VERSION}.jar") for name in names) == 2


def test_a_chosen_folder_is_used_and_nothing_is_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jars, "_run_resolver", lambda *_: pytest.fail("resolved"))
    folder = put_jars(tmp_path / "jars", jars.jar_names())
    found = jars.resolve_jars({"DYNAMIX_JARS_DIR": str(folder)})
    assert [path.parent for path in found] == [folder] * 7


def test_a_chosen_folder_that_lacks_a_jar_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = put_jars(tmp_path / "jars", jars.jar_names()[1:])
    with pytest.raises(EnvironmentTrouble, match=jars.jar_names()[0]):
        jars.resolve_jars({"DYNAMIX_JARS_DIR": str(folder), "XDG_CACHE_HOME": str(tmp_path)})


def test_the_cache_follows_the_users_cache_folder(tmp_path: Path) -> None:
    cache = jars.cache_folder({"XDG_CACHE_HOME": str(tmp_path)})
    assert cache == tmp_path / "dynamix" / "jars" / jars.DELTA_VERSION
    put_jars(cache, jars.jar_names())
    assert jars.find_jars({"XDG_CACHE_HOME": str(tmp_path)}) is not None


def test_resolved_jars_enter_the_cache_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    monkeypatch.setattr(jars, "_run_resolver", lambda work, _: _fill_ivy(work, jars.ARTIFACTS))
    assert [path.name for path in jars.resolve_jars(env)] == list(jars.jar_names())
    folder = jars.cache_folder(env)
    assert sorted(path.name for path in folder.iterdir()) == sorted(jars.jar_names())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no working folder is left


def test_an_unresolvable_artifact_is_named_and_leaves_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    without = {name: where for name, where in jars.ARTIFACTS.items() if name != "delta-storage"}
    monkeypatch.setattr(jars, "_run_resolver", lambda work, _: _fill_ivy(work, without))
    with pytest.raises(EnvironmentTrouble, match=r"io\.delta:delta-storage:4\.4\.0 .*DYNAMIX_JARS_DIR"):
        jars.resolve_jars(env)
    assert not jars.cache_folder(env).exists()
    assert jars.find_jars(env) is None


def test_the_command_ends_with_exit_5_and_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dynamix.jobs.jars"],
        env={**os.environ, "DYNAMIX_JARS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.spark
@pytest.mark.usefixtures("as_configured")
def test_the_local_session_has_the_promised_settings(spark: SparkSession) -> None:
    promised = session.SETTINGS | session.ONE_MACHINE
    assert {key: spark.conf.get(key) for key in promised} == promised
    assert spark.conf.get("spark.sql.ansi.enabled") == "true"
    assert os.environ["PYSPARK_PYTHON"] == sys.executable
    assert len((spark.conf.get("spark.jars") or "").split(",")) == 7


def _fill_ivy(work: Path, artifacts: dict[str, str]) -> str:
    """What a start of Spark leaves behind: `<group>_<artifact>-<version>.jar`."""
    names = [f"{where.split(':')[0]}_{name}-{where.split(':')[1]}.jar" for name, where in artifacts.items()]
    put_jars(work / "ivy" / "jars", tuple(names))
    return "module not found: ..."


@pytest.mark.spark
@pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="needs /proc to see where another process prints to"
)
def test_what_the_jvm_prints_never_meets_what_json_prints(spark: SparkSession) -> None:
    """VACUUM prints to standard output."""
    jvm = spark.sparkContext._gateway.proc  # type: ignore[union-attr]
    for number in (1, 2):
        assert Path(os.readlink(f"/proc/{jvm.pid}/fd/{number}")).name == session.LAUNCHER_LOG
