"""`dynamix train --warm-start champion` and `train.launcher` through the command line, on a small simulated world."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cycles import SMALL
from pyspark.sql import SparkSession

from dynamix.features.simulate import simulate
from dynamix.jobs.cli import main
from dynamix.models.launch import LOG
from dynamix.models.registry import CHAMPION, RANKER, Registry, find, move_alias

pytestmark = [
    pytest.mark.spark,
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.usefixtures("as_configured", "spark"),
]

SETTINGS = (
    *SMALL,
    "segmentation.k_max=2",
    "mask.ne_budget=0.45",
    "train.min_steps=60",
    "train.batch_size=256",
)
TWO = ("train.launcher=torchrun", "train.processes=2")


class Place:
    """A warehouse and the commands that are given to it."""

    def __init__(self, folder: Path) -> None:
        self.world, self.warehouse = folder / "world", folder / "warehouse"
        self.private = self.warehouse / "_dynamix"

    def command(self, verb: str, *arguments: str, settings: tuple[str, ...] = ()) -> dict[str, Any]:
        """Outcome of `dynamix VERB`."""
        options = [part for value in (*SETTINGS, *settings) for part in ("--set", value)]
        given = ["--config", str(self.world / "dynamix.yaml"), "--warehouse", str(self.warehouse)]
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            main([verb, *arguments, *given, *options, "--json", "--quiet"])
        outcome: dict[str, Any] = json.loads(shown.getvalue())
        return outcome

    def champion(self) -> str | None:
        found = find(Registry(self.private, ""), RANKER, CHAMPION)
        return None if found is None else found.version

    def evidence(self, outcome: dict[str, Any]) -> dict[str, Any]:
        found = json.loads(
            (self.private / "runs" / outcome["run_id"] / "evidence.json").read_text(encoding="utf-8")
        )
        assert isinstance(found, dict)
        return found

    def begin_again(self) -> None:
        """Version 1 is champion; so few rows promote nobody by themselves."""
        if (now := self.champion()) != "1":
            move_alias(Registry(self.private, ""), RANKER, CHAMPION, "1", expected=now)


@pytest.fixture(scope="module")
def place(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Place:
    found = Place(tmp_path_factory.mktemp("warm"))
    simulate(found.world, preset="S0", users=300, days=14, seed=3)
    done = found.command("run", "--events", str(found.world))
    assert done["exit_code"] == 0, done["message"]
    assert found.evidence(done)["warm_start"] is None
    return found


@pytest.fixture
def begun(place: Place) -> Place:
    place.begin_again()
    return place


def test_every_arm_begins_from_the_champion_and_the_evidence_says_so(begun: Place) -> None:
    """With steps of no length it stays the champion, seen on validation rows; two processes train what one does."""
    (first,) = begun.private.glob("runs/*/evidence.json")
    cold = json.loads(first.read_text(encoding="utf-8"))
    done = []
    for settings in (("train.learning_rate=1e-9",), (), TWO):
        begun.begin_again()
        done.append(begun.command("train", "--warm-start", "champion", settings=settings))
        assert done[-1]["exit_code"] == 0, done[-1]["message"]
    found = [begun.evidence(one) for one in done]
    address = f"models:/{RANKER}/1"
    assert {e["warm_start"] for e in found} == {e["spec"]["start"] for e in found} == {address}
    assert {arm["arm"] for arm in found[1]["arms"]} >= {"keep-all", "masked"}
    still, warm, shared = (one["metrics"]["keep_all_ne"] for one in done)
    assert still == pytest.approx(cold["arms"][0]["ne"], rel=1e-5)
    assert abs(warm / cold["arms"][0]["ne"] - 1) > 1e-4
    assert shared == pytest.approx(warm, rel=1e-4)
    losses = [[arm["epochs"][0][0]["train_loss"] for arm in e["arms"]] for e in found]
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)
    assert done[2]["tables"]["training_rows"]["rows"] == done[1]["tables"]["training_rows"]["rows"]


def test_another_contract_is_exit_2_and_nothing_is_trained(begun: Place) -> None:
    refused = begun.command("train", "--warm-start", "champion", settings=("train.hidden=[8]",))
    assert refused["exit_code"] == 2
    assert f"models:/{RANKER}/1 has another contract: train.hidden is" in refused["message"]
    assert begun.champion() == "1"


@contextlib.contextmanager
def killing_a_rank(folder: Path) -> Iterator[list[int]]:
    """SIGKILL to rank 1 of the first training under `folder` that has said something; who was hit."""
    hit: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not hit and not over.wait(0.2):
            if any(path.stat().st_size for path in folder.glob("*/training-*/said.txt")):
                hit.extend(_ranks(folder, 1))
                for pid in hit:
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield hit
    finally:
        over.set()
        thread.join()


def _ranks(folder: Path, rank: int) -> list[int]:
    """Process ids of the training processes of this rank that work under `folder`."""
    wanted, found = f"RANK={rank}".encode(), []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            command = (entry / "cmdline").read_bytes()
            ours = b"dynamix.models.launched" in command and str(folder).encode() in command
            if ours and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def test_a_process_that_dies_is_exit_5_and_the_alias_stays(begun: Place) -> None:
    runs = begun.private / "runs"
    with killing_a_rank(runs) as hit:
        died = begun.command("train", settings=(*TWO, "train.min_steps=1000000"))
    assert len(hit) == 1
    assert died["exit_code"] == 5 and "process 1 of 2 ended with exit code -9" in died["message"]
    assert begun.champion() == "1" and _ranks(runs, 0) == []
    assert not list(runs.glob("*/training-*/"))
    newest = max(runs.iterdir())
    assert "epoch 1 of" in (newest / "run.log").read_text(encoding="utf-8")
    assert "exitcode  : -9" in (newest / LOG).read_text(encoding="utf-8")
    assert not (newest / "evidence.json").exists()
