"""Launchers: torchrun and Spark give the ranker of one process; a process that fails or hangs ends the training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from dynamix.config import TrainConfig
from dynamix.errors import ConfigError, EnvironmentTrouble, GuardError
from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.handover import (
    Job,
    read_job,
    read_rows,
    read_trained,
    write_job,
    write_rows,
    write_trained,
)
from dynamix.models.launch import LOG, _trouble, train_seeds
from dynamix.models.launched import PLUGINS
from dynamix.models.metrics import NeState
from dynamix.models.plugins import TrainerPlugin
from dynamix.models.ranker import RankerConfig
from dynamix.models.stream_dropout import StreamDropout
from dynamix.models.train import ArmSpec, TrainedArm, predict, ranker_config, train_arm
from dynamix.models.warm import WarmStart

CONFIG = TrainConfig(
    device="cpu", batch_size=96, item_buckets=50, threads=1, epochs=2, min_steps=1, hidden=(16,), timeout_s=60
)  # fmt: skip
TWO = CONFIG.model_copy(update={"launcher": "torchrun", "processes": 2})
SPECS = (ArmSpec("masked", "m1", 1), ArmSpec("masked", "m1", 2))


@pytest.fixture(scope="module")
def world(table: Callable[..., pa.Table]) -> JaggedRows:
    lengths = [int(k) for k in np.random.default_rng(2).integers(0, 16, 1202)]
    return rows_from_table(table(lengths, effect=4.0), heads=("click", "conversion"), item_buckets=50)


def shape(rows: JaggedRows, config: TrainConfig = CONFIG) -> RankerConfig:
    return ranker_config(rows, n_streams=4, n_segments=3, config=config)


def dropout(spec: ArmSpec) -> list[TrainerPlugin]:
    return [StreamDropout(n_segments=3, n_streams=4, rate=0.3, seed=spec.seed)]


def compared(
    rows: JaggedRows, folder: Path, config: TrainConfig, start: WarmStart | None = None
) -> list[str]:
    """Two seeds by the launcher of `config` against the same inline: weights, losses, NE. What was said."""
    said: list[str] = []
    words: dict[str, Any] = {"model_config": shape(rows, config), "plugins": dropout, "start": start}
    inline = config.model_copy(update={"launcher": "inline", "processes": 1})
    one = train_seeds(SPECS, rows, config=inline, **words)
    two = train_seeds(SPECS, rows, config=config, progress=said.append, folder=folder, **words)
    test = rows.select("test")
    y, weight = test.labels["conversion"].astype(float), test.weight.astype(float)
    for a, b in zip(one, two, strict=True):
        assert replace(b, model=a.model, epochs=[]) == replace(a, epochs=[])
        for name, value in a.model.state_dict().items():
            torch.testing.assert_close(b.model.state_dict()[name], value, rtol=1e-5, atol=2e-6, msg=name)
        assert all(f == pytest.approx(e, rel=1e-6) for e, f in zip(a.epochs, b.epochs, strict=True))
        ne = [
            NeState.of(y, predict(arm.model, test, batch_size=512)["conversion"], weight).ne for arm in (a, b)
        ]
        assert ne[1] == pytest.approx(ne[0], rel=1e-4)
    assert [path.name for path in folder.iterdir()] == [LOG]  # the rows are gone
    return said


@pytest.mark.slow
@pytest.mark.parametrize("trunk", ["din", "dlrm", "hstu"])
def test_two_processes_of_torchrun_train_the_ranker_of_one(
    world: JaggedRows, tmp_path: Path, trunk: str
) -> None:
    """With a plugin, and from a warm start."""
    config = TWO.model_copy(update={"trunk": trunk})
    inline = config.model_copy(update={"launcher": "inline", "processes": 1})
    (begun,) = train_seeds(SPECS[:1], world, model_config=shape(world, config), config=inline)
    said = compared(world, tmp_path, config, WarmStart(begun.model, {}, "models:/dynamix-ranker/1"))
    told = [text.split(":")[0] for text in said]
    assert told == [f"masked seed {seed} epoch {epoch} of 2" for seed in (1, 2) for epoch in (1, 2)]


@pytest.mark.slow
@pytest.mark.spark
def test_two_processes_of_spark_train_the_ranker_of_one(
    world: JaggedRows, tmp_path: Path, spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    compared(world, tmp_path, TWO.model_copy(update={"launcher": "spark"}))
    assert capsys.readouterr().out == ""  # standard output stays free for --json


def processes_of(folder: Path) -> dict[int, int]:
    """Rank -> process id of the training processes that work under `folder`."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, KeyError):
            pid, command = int(entry.name), (entry / "cmdline").read_bytes().split(b"\0")
            given = dict(
                part.split(b"=", 1) for part in (entry / "environ").read_bytes().split(b"\0") if b"=" in part
            )
            if command[1:4] != [b"-u", b"-m", b"dynamix.models.launched"]:
                continue
            if Path(command[4].decode()).parent == folder:
                found[int(given[b"RANK"])] = pid
    return found


LONG = TWO.model_copy(update={"min_steps": 100_000, "epochs": 1})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "timeout_s", "said"),
    [
        (signal.SIGKILL, 600, "process 1 of 2 ended with exit code -9"),
        (signal.SIGSTOP, 30, "training process 0 of 2 lost the others"),
    ],
)
def test_a_process_that_dies_or_hangs_ends_the_training(
    world: JaggedRows, tmp_path: Path, sent: signal.Signals, timeout_s: float, said: str
) -> None:
    hit: list[int] = []

    def strike(text: str) -> None:
        if not hit:
            hit.append(processes_of(tmp_path)[1])
            os.kill(hit[0], sent)

    config = LONG.model_copy(update={"timeout_s": timeout_s})
    with pytest.raises(EnvironmentTrouble, match=said) as refused:
        train_seeds(
            SPECS[:1], world, model_config=shape(world), config=config, progress=strike, folder=tmp_path
        )
    assert hit and refused.value.exit_code == 5
    assert "no alias moved" in refused.value.message and "train.launcher=inline" in refused.value.message
    assert processes_of(tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == [LOG]


PARENT = """
import sys
from pathlib import Path
from dynamix.models.handover import read_job
from dynamix.models.launch import train_seeds
job = read_job(Path(sys.argv[1]))
train_seeds(job.specs, job.rows, model_config=job.model_config, config=job.config, folder=Path(sys.argv[2]),
            progress=lambda text: print(text, flush=True))
"""


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(world: JaggedRows, tmp_path: Path) -> None:
    given, place = tmp_path / "job", tmp_path / "run"
    given.mkdir(), place.mkdir()
    write_job(given, Job(SPECS[:1], shape(world), LONG, ((),), world))
    parent = subprocess.Popen([sys.executable, "-c", PARENT, given, place], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()  # the first pass is over
    assert set(processes_of(place)) == {0, 1}
    parent.kill(), parent.wait()
    parent.stdout.close()
    ends = time.monotonic() + 60
    while processes_of(place) and time.monotonic() < ends:
        time.sleep(0.1)
    assert processes_of(place) == {}


@pytest.mark.slow
def test_an_error_of_a_process_is_the_error_of_the_training(world: JaggedRows, tmp_path: Path) -> None:
    broken = replace(world, dense=np.full_like(world.dense, np.nan))
    with pytest.raises(GuardError, match=r"train\.learning_rate") as refused:
        train_seeds(SPECS[:1], broken, model_config=shape(world), config=TWO, folder=tmp_path)
    assert refused.value.exit_code == 4


def told(place: Path, rank: int, kind: str, said: str) -> None:
    tree = {"rank": rank, "kind": kind, "said": said, "trace": f"Traceback of {kind}"}
    (place / f"trouble-{rank}.json").write_text(json.dumps(tree))


def test_what_the_processes_told_decides_the_error(tmp_path: Path) -> None:
    """Who only lost the others comes last, a mistake in the program is none of the user's environment."""
    log = tmp_path / LOG
    died = "  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 77)  (SIGKILL)\n"
    log.write_text(died + died.replace("1 (", "0 (").replace("-9", "-11"))
    assert "process 0 of 2 ended with exit code -11;" in str(
        _trouble(tmp_path, TWO, log)
    )  # the root cause stands last
    log.write_text("nothing that can be read\n")
    assert "a process died;" in str(_trouble(tmp_path, TWO, log))
    log.write_text(died)
    assert "a process died;" in str(_trouble(tmp_path, TWO, log, since=len(died)))  # of an earlier training
    told(tmp_path, 0, "PeerLost", "training process 0 of 2 lost the others: Timed out")
    lost = _trouble(tmp_path, TWO, log)
    assert isinstance(
        lost, EnvironmentTrouble
    ) and "ended with exit code -9; training process 0 of 2 lost" in str(lost)
    told(tmp_path, 1, "KeyError", "'z'")
    mistake = _trouble(tmp_path, TWO, log)
    assert type(mistake) is RuntimeError and "training process 1 of 2: KeyError: 'z'" in str(mistake)
    assert "Traceback of KeyError" in str(mistake)
    told(tmp_path, 0, "EnvironmentTrouble", "out of memory with 8 rows at once")
    assert type(_trouble(tmp_path, TWO, log)) is EnvironmentTrouble
    told(tmp_path, 0, "GuardError", "train_loss became nan")
    guard = _trouble(tmp_path, TWO, log)
    assert type(guard) is GuardError and guard.message == "train_loss became nan"


def test_the_job_goes_and_the_result_comes_back_as_they_were(world: JaggedRows, tmp_path: Path) -> None:
    config = TWO.model_copy(update={"learning_rate": 0.1 + 0.2})
    trained = train_arm(SPECS[0], world, model_config=shape(world), config=CONFIG, plugins=dropout(SPECS[0]))
    start = WarmStart(trained.model, {"s": 1}, "models:/dynamix-ranker/1")
    options = (("stream-dropout", {"n_segments": 3, "n_streams": 4, "rate": 0.3, "seed": 1}),)
    write_job(tmp_path, Job(SPECS[:1], shape(world), config, (options,), world, start))
    job = read_job(tmp_path)
    assert (job.specs, job.model_config, job.config, job.plugins) == (
        SPECS[:1],
        shape(world),
        config,
        (options,),
    )
    assert job.start is not None and (job.start.streams, job.start.address) == (start.streams, start.address)
    for model in (job.start.model, _through(tmp_path / "0", trained).model):
        for name, value in trained.model.state_dict().items():
            assert torch.equal(model.state_dict()[name], value)
    assert replace(_through(tmp_path / "1", trained), model=trained.model) == trained
    assert len(job.rows.select("test")) == 0 and len(world.select("test")) > 0
    for part in ("train", "validate"):
        own, there = world.select(part), job.rows.select(part)
        assert np.array_equal(own.user, there.user) and np.array_equal(
            own.labels["click"], there.labels["click"]
        )
        assert torch.equal(own.batch(np.arange(9)).z, there.batch(np.arange(9)).z)
    assert world.impression[0].startswith("i") and set(job.rows.impression.tolist()) == {""}


def _through(folder: Path, trained: TrainedArm) -> TrainedArm:
    write_trained(folder, trained)
    return read_trained(folder)


def test_rows_without_events_go_too(table: Callable[..., pa.Table], tmp_path: Path) -> None:
    rows = rows_from_table(table([0, 0, 0]), heads=("click",), item_buckets=50)
    write_rows(tmp_path / "rows", rows)
    found = read_rows(tmp_path / "rows")
    assert (len(found), found.tokens, found.surfaces) == (3, 0, rows.surfaces)


def test_a_plugin_that_cannot_go_is_refused_before_anything_starts(world: JaggedRows, tmp_path: Path) -> None:
    class Own(TrainerPlugin):
        name = "own"

    with pytest.raises(ConfigError, match=r"plugin 'own' .* train\.launcher=inline"):
        train_seeds(
            SPECS, world, model_config=shape(world), config=TWO, plugins=lambda s: [Own()], folder=tmp_path
        )
    assert list(tmp_path.iterdir()) == []


def test_every_plugin_with_options_can_be_built_from_them() -> None:
    (plugin,) = dropout(SPECS[0])
    assert plugin.options is not None
    again = PLUGINS[plugin.name](**plugin.options)
    assert isinstance(plugin, StreamDropout) and isinstance(again, StreamDropout)
    assert torch.equal(again.kept, plugin.kept) and again.options == plugin.options


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("launcher", ["torchrun", "spark"])
def test_cuda_that_is_absent_is_said_before_anything_starts(
    world: JaggedRows, tmp_path: Path, launcher: str
) -> None:
    config = TWO.model_copy(update={"device": "cuda", "launcher": launcher})
    with pytest.raises(EnvironmentTrouble, match=r"train\.device=cuda, but torch sees no CUDA device"):
        train_seeds(SPECS, world, model_config=shape(world), config=config, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_spark_that_cannot_start_processes_is_said(
    world: JaggedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: TorchDistributor, **options: object) -> None:
        assert options == {"num_processes": 2, "local_mode": True, "use_gpu": False}
        raise RuntimeError("An active SparkSession is required.")

    monkeypatch.setattr(TorchDistributor, "__init__", refuse)
    config = TWO.model_copy(update={"launcher": "spark"})
    with pytest.raises(
        EnvironmentTrouble, match=r"train\.launcher=spark: An active .* train\.launcher=torchrun"
    ):
        train_seeds(SPECS, world, model_config=shape(world), config=config, folder=tmp_path)


def test_fewer_devices_than_processes_are_refused(
    world: JaggedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = TWO.model_copy(update={"device": "auto"})
    with pytest.raises(EnvironmentTrouble, match=r"train\.processes=2, but torch sees 1 CUDA devices"):
        train_seeds(SPECS, world, model_config=shape(world), config=config, folder=tmp_path)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"processes": 2}, "train.processes is 2, and train.launcher inline is one process"),
        (
            {"launcher": "torchrun", "processes": 9, "batch_size": 8},
            "train.batch_size is 8; allowed: train.processes",
        ),
    ],
)
def test_processes_and_launcher_have_to_fit(train: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainConfig.model_validate(train)
    assert TrainConfig.model_validate({"launcher": "torchrun", "processes": 2}).processes == 2
