"""`dynamix-task`: failures are raised, `mask` leaves its task value; a stand-in plays the platform."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from dynamix.contracts import MASKS
from dynamix.features.tables import Warehouse
from dynamix.jobs import task
from dynamix.jobs.cli import Outcome
from dynamix.jobs.frames import table_frame

MASK = ["mask", "--warehouse", "w", "--set", "streams={shop/view: {length: 7}}"]
OLD, NEW = "m20260101-aaaaaaaa", "m20260102-bbbbbbbb"


class Platform:
    """Stand-in for `dbutils.jobs.taskValues`: remembers what was set."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.sessions: list[object] = []

    def set(self, key: str, value: int) -> None:
        self.values[key] = value

    def utilities(self, spark: object) -> SimpleNamespace:
        self.sessions.append(spark)
        return SimpleNamespace(jobs=SimpleNamespace(taskValues=self))


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> Platform:
    stand_in = Platform()
    module = ModuleType("pyspark.dbutils")
    module.DBUtils = stand_in.utilities  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyspark.dbutils", module)
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "19.0")
    return stand_in


@pytest.fixture
def mask_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb has run and 3 cells differ."""

    def perform(arguments: Namespace) -> Outcome:
        return Outcome(verb=arguments.verb, facts={"mask_version": NEW})

    def changed(masks: object, version: str, *, whole: Callable[[str], int]) -> int:
        assert (whole("shop/view"), whole("feed/view")) == (7, 50)  # declared below, and the default
        return {("masks of w", NEW): 3}[str(masks), version]

    def read(warehouse: Warehouse, spark: object, name: str) -> str:
        return f"{name} of {warehouse.root.name}"

    monkeypatch.setattr(task, "perform", perform)
    monkeypatch.setattr(task, "get_spark", lambda: "session")
    monkeypatch.setattr(task, "changed_cells", changed)
    monkeypatch.setattr(Warehouse, "read", read)


def test_mask_sets_the_number_of_changed_cells(platform: Platform, mask_done: None) -> None:
    assert task.main(MASK) is None  # type: ignore[func-returns-value]
    assert platform.values == {"changed_cells": 3}
    assert platform.sessions == ["session"]


def test_other_verbs_set_nothing(platform: Platform, mask_done: None) -> None:
    task.main(["features", "--warehouse", "w"])
    assert platform.values == {}


@pytest.mark.parametrize("due", [True, False])
def test_monitor_sets_whether_a_refit_is_due_and_that_is_no_failure(
    platform: Platform, mask_done: None, monkeypatch: pytest.MonkeyPatch, due: bool
) -> None:
    def perform(arguments: Namespace) -> Outcome:
        return Outcome(verb="monitor", exit_code=4 if due else 0, facts={"refit_due": due})

    monkeypatch.setattr(task, "perform", perform)
    task.main(["monitor", "--warehouse", "w"])
    assert platform.values == {"refit_due": int(due)}


def test_a_monitor_that_could_not_look_is_a_failure(
    platform: Platform, mask_done: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perform(arguments: Namespace) -> Outcome:
        return Outcome(verb="monitor", exit_code=4, message="table 'events' is not in w")

    monkeypatch.setattr(task, "perform", perform)
    with pytest.raises(task.TaskFailed, match="exit code 4: table 'events'"):
        task.main(["monitor", "--warehouse", "w"])
    assert platform.values == {}


def test_away_from_the_platform_the_value_is_said_and_not_set(
    monkeypatch: pytest.MonkeyPatch, mask_done: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DATABRICKS_RUNTIME_VERSION", raising=False)
    task.main(MASK)
    assert "changed_cells = 3; no task value set" in capsys.readouterr().err


def test_a_failed_verb_is_an_exception_with_its_code_and_message(
    tmp_path: Path, platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["mask", "--warehouse", str(tmp_path), "--set", "mask.ne_bugdet=1"]
    with pytest.raises(task.TaskFailed, match=r"dynamix mask: exit code 2: .*mask\.ne_bugdet"):
        task.main(argv)
    assert "mask.ne_bugdet" in capsys.readouterr().err
    assert platform.values == {}


def test_wrong_usage_is_an_exception_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(task.TaskFailed, match="exit code 2"):
        task.main(["mask"])
    assert "--warehouse" in capsys.readouterr().err


def test_the_version_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    task.main(["--version"])
    assert capsys.readouterr().out.startswith("dynamix ")


def cell(version: str, status: str, segment: int, stream: str, quota: int) -> dict[str, Any]:
    return {
        "mask_version": version, "seq": 1, "segment_version": "s20260101-00000000", "segment_id": segment,
        "segment_name": f"segment {segment}", "tier": "*", "stream": stream, "keep": quota > 0, "quota": quota,
        "boost": 0.0, "positives": 0, "tokens": 1.0, "verdict": "keep" if quota else "drop",
        "reason": "as the test says", "status": status, "run_date": date(2026, 1, 2), "run_id": "r",
    }  # fmt: skip


@pytest.mark.spark
def test_changed_cells_are_those_with_another_quota(spark: SparkSession) -> None:
    rows = [
        cell(OLD, "published", 1, "shop/view", 0),  # dropped in both
        cell(OLD, "published", 1, "feed/view", 0),  # kept again
        cell(OLD, "published", 2, "shop/view", 50),
        cell(OLD, "published", 2, "feed/view", 20),  # cut in both
        cell(OLD, "published", 2, "chat/view", 5),
        cell(OLD, "published", 3, "feed/view", 20),  # the segment is gone: whole now
        cell("m20260101-cccccccc", "retired", 2, "feed/view", 0),  # says nothing
        cell(NEW, "proposed", 1, "shop/view", 0),
        cell(NEW, "proposed", 1, "feed/view", 50),
        cell(NEW, "proposed", 2, "shop/view", 10),  # cut now
        cell(NEW, "proposed", 2, "feed/view", 20),
        cell(NEW, "proposed", 2, "chat/view", 5),
        cell(NEW, "proposed", 2, "mail/view", 50),  # a new stream, whole
        cell(NEW, "proposed", 1, "mail/view", 0),  # a new stream, dropped
    ]
    masks = table_frame(spark, MASKS, rows)

    def changed(masks: DataFrame, version: str) -> int:
        return task.changed_cells(masks, version, whole=lambda stream: 50)

    assert changed(masks, NEW) == 4
    assert changed(masks, OLD) == 0
    unpublished = masks.where("status = 'proposed'")
    assert changed(unpublished, NEW) == 5  # whatever is not whole
