"""`doctor` names what is missing and how to mend it, and passes on a machine that runs the tests."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict
from pathlib import Path

import pytest

from dynamix.jobs import doctor as module
from dynamix.jobs.doctor import Check, doctor
from dynamix.jobs.jars import jar_names
from dynamix.jobs.session import target

NAMES = [
    "python", "spark", "java", "java modules", "spark and delta", "delta jars", "disk", "memory", "torch",
    "tracking store",
]  # fmt: skip


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_the_machine_that_runs_the_tests_is_in_order(tmp_path: Path) -> None:
    checks = doctor(tmp_path / "warehouse")
    assert [check.name for check in checks] == NAMES
    needed = {"python", "java", "java modules", "spark and delta", "torch", "tracking store"}
    assert {check.name for check in checks if check.ok} >= needed
    json.dumps([asdict(check) for check in checks])


def test_every_check_that_fails_brings_a_fix(tmp_path: Path) -> None:
    bare = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    checks = doctor(tmp_path, environment=bare)
    failed = by_name([check for check in checks if not check.ok])
    assert {"java", "java modules", "delta jars"} <= set(failed)
    assert all(check.fix for check in failed.values())


def test_an_old_python_is_refused() -> None:
    assert not module.check_python((3, 10, 14)).ok
    assert module.check_python((3, 11, 0)).ok


def test_a_connect_server_is_named_without_its_token_and_java_is_not_asked_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"sc://127.0.0.1:{server.getsockname()[1]}"
        env = {"SPARK_REMOTE": f"{address}/;token=abc", "PATH": str(tmp_path)}
        checks = by_name(doctor(tmp_path, environment=env))
    assert (checks["spark"].ok, checks["spark"].found) == (True, f"connect {address}/ answers")
    assert not {"java", "java modules", "delta jars"} & set(checks)
    gone = module.check_spark(target(env))
    assert not gone.ok and "abc" not in gone.found


def test_a_connect_server_without_its_client_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLIENT", ("json", "no_such_module"))
    check = module.check_spark(target({"SPARK_REMOTE": "sc://localhost"}))
    assert not check.ok and check.found.endswith("without no_such_module") and "extra `connect`" in check.fix


@pytest.mark.parametrize(
    ("environment", "ok"),
    [({}, True), ({"DYNAMIX_MASTER": "yarn"}, True), ({"SPARK_REMOTE": "local[2]"}, False)],
)
def test_an_address_that_cannot_be_asked_is_only_named(environment: dict[str, str], ok: bool) -> None:
    check = module.check_spark(target(environment))
    assert (check.ok, check.found) == (ok, str(target(environment)))


def test_the_first_of_several_masters_is_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        masters = f"spark://127.0.0.1:{server.getsockname()[1]},other:7077"
        assert module.check_spark(target({"DYNAMIX_MASTER": masters})).ok


def test_missing_jars_are_named_as_artifacts(tmp_path: Path) -> None:
    folder = tmp_path / "dynamix" / "jars" / "4.4.0"
    folder.mkdir(parents=True)
    for name in jar_names()[:-1]:
        (folder / name).write_bytes(b"")
    check = module.check_jars({"XDG_CACHE_HOME": str(tmp_path)})
    assert not check.ok
    assert check.found.startswith("6 of 7")
    assert "missing io.unitycatalog:unitycatalog-hadoop:0.6.0" in check.fix


def test_a_chosen_jar_folder_that_lacks_jars_fails(tmp_path: Path) -> None:
    check = module.check_jars({"DYNAMIX_JARS_DIR": str(tmp_path)})
    assert not check.ok
    assert jar_names()[0] in check.fix


def test_a_version_pair_without_jars_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_version", {"pyspark": "4.2.0", "delta-spark": "4.4.1"}.get)
    check = module.check_versions()
    assert not check.ok
    assert check.found == "pyspark 4.2.0, delta-spark 4.4.1"
    monkeypatch.setattr(module, "_version", {"pyspark": "4.2.0"}.get)
    assert module.check_versions().found.endswith("delta-spark absent")


def test_a_full_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FREE_GB", float("inf"))
    assert not module.check_disk(tmp_path / "not" / "yet" / "there").ok


def test_a_tracking_server_is_taken_from_the_environment(tmp_path: Path) -> None:
    check = module.check_store(tmp_path, {"MLFLOW_TRACKING_URI": "databricks"})
    assert check.ok and "databricks" in check.found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_warehouse_that_cannot_be_written_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert not module.check_store(tmp_path / "warehouse", {}).ok
    tmp_path.chmod(0o700)
