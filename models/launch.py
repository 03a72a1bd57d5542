"""The trainings of an arm in one process or in several: `train.launcher` is inline, torchrun or Spark's TorchDistributor.

Rows, weights and results go as files of one folder (models/handover.py); a process that fails ends the training.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import torch

from dynamix import errors
from dynamix.config import TrainConfig
from dynamix.errors import DynamixError, EnvironmentTrouble
from dynamix.models import launched
from dynamix.models.dataset import JaggedRows
from dynamix.models.handover import SAID, Job, plugin_options, read_trained, write_job
from dynamix.models.plugins import TrainerPlugin
from dynamix.models.ranker import RankerConfig
from dynamix.models.ranks import PeerLost
from dynamix.models.train import ArmSpec, Progress, TrainedArm, pick_device, train_arm
from dynamix.models.warm import WarmStart

LOG = "training-processes.log"
"""In the run's folder: what the processes and their starter wrote."""
_POLL_S = 0.2
_DEAD = re.compile(r"^\s*rank\s*: (\d+) .*\n\s*exitcode\s*: (-?\d+)", re.MULTILINE)
"""In torchrun's summary of the processes that failed; the one that failed first stands last."""


def train_seeds(
    specs: Sequence[ArmSpec],
    rows: JaggedRows,
    *,
    model_config: RankerConfig,
    config: TrainConfig,
    progress: Progress = lambda text: None,
    plugins: Callable[[ArmSpec], Sequence[TrainerPlugin]] = lambda spec: (),
    start: WarmStart | None = None,
    folder: Path | None = None,
    checkpoints: Path | None = None,
) -> tuple[TrainedArm, ...]:
    """`train_arm` for each spec, by the launcher of the config; `plugins` gives each training its own.

    Inline it is that call. Else `train.processes` processes share every batch, and give what one process gives that
    takes the batch in as many pieces. The rows are written once, under `folder` (default: the system's own for temporary
    files), and removed at the end. Errors are those of `train_arm`; EnvironmentTrouble (exit 5) where a process dies or
    lets the others wait, CUDA has fewer devices than processes, or Spark has no session; ConfigError (exit 2) for a
    plugin that no other process can build.
    """
    if config.launcher == "inline":
        return tuple(
            train_arm(
                spec, rows, model_config=model_config, config=config, progress=progress, plugins=plugins(spec),
                start=start, checkpoints=checkpoints,
            )
            for spec in specs
        )  # fmt: skip
    _refuse_too_few_devices(config)
    options = tuple(plugin_options(plugins(spec)) for spec in specs)
    with TemporaryDirectory(prefix="training-", dir=folder) as name:
        place = Path(name)
        write_job(place, Job(tuple(specs), model_config, config, options, rows, start, checkpoints))
        log = (folder or place) / LOG
        with log.open("a", encoding="utf-8") as out, _relayed(place / SAID, progress):
            since = out.tell()
            done = (
                _torchrun(place, config, out) if config.launcher == "torchrun" else _spark(place, config, out)
            )
        if not done:
            raise _trouble(place, config, log, since=since)
        return tuple(read_trained(place / str(number)) for number in range(len(specs)))


def _refuse_too_few_devices(config: TrainConfig) -> None:
    device = pick_device(config.device)
    if device.type == "cuda" and torch.cuda.device_count() < config.processes:
        raise EnvironmentTrouble(
            f"train.processes={config.processes}, but torch sees {torch.cuda.device_count()} CUDA devices and each "
            "process needs one; lower train.processes or set train.device=cpu"
        )


def _torchrun(place: Path, config: TrainConfig, log: IO[str]) -> bool:
    """True if every process came to its end. The processes see their standard input close if this one dies."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0",
        f"--nproc-per-node={config.processes}", "-m", launched.__name__, str(place),
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            return process.wait() == 0
        finally:
            if process.poll() is None:  # interrupted here: torchrun takes its processes with it
                process.terminate()


def _spark(place: Path, config: TrainConfig, log: IO[str]) -> bool:
    """True if every process came to its end; they run on the driver."""
    from pyspark.ml.torch.distributor import TorchDistributor

    try:
        use_gpu = pick_device(config.device).type == "cuda"
        distributor = TorchDistributor(num_processes=config.processes, local_mode=True, use_gpu=use_gpu)
    except RuntimeError as trouble:  # no active session, or no GPU in Spark's configuration
        raise EnvironmentTrouble(
            f"train.launcher=spark: {str(trouble).splitlines()[0]}; start a session, or set train.launcher=torchrun"
        ) from trouble
    try:
        with redirect_stdout(log):  # it prints what its processes print
            distributor.run(launched.main, str(place))
    except RuntimeError as trouble:  # "Command … failed with return code 1", and what is in the log already
        log.write(str(trouble).splitlines()[0] + "\n")
        return False
    return True


@contextmanager
def _relayed(said: Path, progress: Progress) -> Iterator[None]:
    """Hand every line that the processes say on to `progress`, while they work."""
    over = threading.Event()
    said.touch()

    def relay() -> None:
        with said.open(encoding="utf-8") as lines:
            last = False
            while not last:
                last = over.wait(_POLL_S)  # what was said before the end is read after it
                for line in lines:
                    progress(line.rstrip("\n"))

    thread = threading.Thread(target=relay)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _trouble(place: Path, config: TrainConfig, log: Path, *, since: int = 0) -> Exception:
    """The error of the process that failed, or that one died; a process that only lost the others says nothing new.

    `since` is where this training begins in the log, in bytes.
    """
    told = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(place.glob("trouble-*.json"))]
    own = [tree for tree in told if tree["kind"] != PeerLost.__name__]
    for tree in own:
        kind = getattr(errors, tree["kind"], None)
        if isinstance(kind, type) and issubclass(kind, DynamixError):
            return kind(tree["said"])
    if own:
        first = own[0]
        where = f"training process {first['rank']} of {config.processes}"
        return RuntimeError(f"{where}: {first['kind']}: {first['said']}\n{first['trace']}")
    dead = _DEAD.findall(log.read_bytes()[since:].decode("utf-8", errors="replace"))
    which = "a process died"
    if dead:
        which = f"process {dead[-1][0]} of {config.processes} ended with exit code {dead[-1][1]}"
    waited = f"; {told[0]['said']}" if told else ""
    return EnvironmentTrouble(
        f"training by {config.launcher}: {which}{waited}; no model was kept and no alias moved: free memory or lower "
        f"train.processes, then train again, or set train.launcher=inline (see {log.name} in the run's folder)"
    )
