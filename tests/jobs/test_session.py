"""The session factory without a session: which Java, which jars, and what is said when one is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from dynamix.errors import EnvironmentTrouble
from dynamix.jobs import jars, session


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
    assert {key: spark.conf.get(key) for key in session.SETTINGS} == session.SETTINGS
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
