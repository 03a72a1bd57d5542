"""What goes to the processes of a training and comes back: files of arrays, weights and JSON in one folder, no pickle.

    job.json  rows/*.npy  start/  ->  said.txt  <place>/{ranker.json, state.pt, trained.json}  trouble-<pid>.json

The arrays are mapped, not read: all processes of a machine share their pages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamix.config import TrainConfig
from dynamix.contracts import PARTS
from dynamix.errors import ConfigError
from dynamix.models.dataset import JaggedRows
from dynamix.models.plugins import TrainerPlugin
from dynamix.models.ranker import RankerConfig
from dynamix.models.service import load_ranker, write_ranker
from dynamix.models.train import ArmSpec, TrainedArm
from dynamix.models.warm import WarmStart

_JOB, _ROWS, _START, _TRAINED, SAID = "job.json", "rows", "start", "trained.json", "said.txt"
_NO_ARRAY = ("impression", "labels", "surfaces")
"""Fields of JaggedRows that are no plain array; a training never reads the ids of impressions."""


@dataclass(frozen=True)
class Job:
    """The trainings of one arm, one a seed, on the same rows; plugins by name and options, one list a training."""

    specs: tuple[ArmSpec, ...]
    model_config: RankerConfig
    config: TrainConfig
    plugins: tuple[tuple[tuple[str, Mapping[str, float]], ...], ...]
    rows: JaggedRows
    start: WarmStart | None = None
    checkpoints: Path | None = None


def plugin_options(plugins: Sequence[TrainerPlugin]) -> tuple[tuple[str, Mapping[str, float]], ...]:
    """Name and options of each. ConfigError (exit 2) for a plugin that no other process can build."""
    found = []
    for plugin in plugins:
        if plugin.options is None:
            raise ConfigError(
                f"plugin {plugin.name!r} has no options to build it from in another process; set train.launcher=inline"
            )
        found.append((plugin.name, dict(plugin.options)))
    return tuple(found)


def write_job(folder: Path, job: Job) -> None:
    """Everything the processes read. Test rows stay out: they are of no training."""
    of_training = np.flatnonzero(np.isin(job.rows.part, [PARTS.index(p) for p in ("train", "validate")]))
    write_rows(folder / _ROWS, job.rows.take(of_training))
    if job.start is not None:
        write_ranker(folder / _START, job.start.model)
    tree = {
        "specs": [asdict(spec) for spec in job.specs], "model": asdict(job.model_config),
        "train": job.config.model_dump(mode="json"), "plugins": job.plugins,
        "checkpoints": None if job.checkpoints is None else str(job.checkpoints),
        "start": None if job.start is None else {"streams": job.start.streams, "address": job.start.address},
    }  # fmt: skip
    (folder / _JOB).write_text(json.dumps(tree), encoding="utf-8")


def read_job(folder: Path) -> Job:
    """What `write_job` wrote, the rows mapped into memory."""
    tree = json.loads((folder / _JOB).read_text(encoding="utf-8"))
    start = None if tree["start"] is None else WarmStart(load_ranker(folder / _START), **tree["start"])
    return Job(
        specs=tuple(ArmSpec(**spec) for spec in tree["specs"]), model_config=RankerConfig.from_tree(tree["model"]),
        config=TrainConfig.model_validate(tree["train"]),
        plugins=tuple(tuple((name, options) for name, options in each) for each in tree["plugins"]),
        rows=read_rows(folder / _ROWS), start=start,
        checkpoints=None if tree["checkpoints"] is None else Path(tree["checkpoints"]),
    )  # fmt: skip


def write_rows(folder: Path, rows: JaggedRows) -> None:
    """One .npy file an array, without the ids of impressions."""
    folder.mkdir(parents=True)
    for name in _array_names():
        np.save(folder / f"{name}.npy", getattr(rows, name), allow_pickle=False)
    for place, y in enumerate(rows.labels.values()):
        np.save(folder / f"label-{place}.npy", y, allow_pickle=False)
    tree = {"labels": list(rows.labels), "surfaces": rows.surfaces}
    (folder / "rows.json").write_text(json.dumps(tree), encoding="utf-8")


def read_rows(folder: Path) -> JaggedRows:
    """Rows whose arrays are mapped read-only; their ids of impressions are empty."""
    tree = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    arrays: dict[str, Any] = {name: _mapped(folder / f"{name}.npy") for name in _array_names()}
    labels = {head: _mapped(folder / f"label-{place}.npy") for place, head in enumerate(tree["labels"])}
    no_ids = np.broadcast_to(np.array(""), len(arrays["offsets"]) - 1)
    return JaggedRows(impression=no_ids, labels=labels, surfaces=tuple(tree["surfaces"]), **arrays)


def write_trained(folder: Path, trained: TrainedArm) -> None:
    """Weights and what happened on the way."""
    write_ranker(folder, trained.model)
    tree = {
        "spec": asdict(trained.spec), "base_rates": trained.base_rates, "device": trained.device,
        "rows_at_once": trained.rows_at_once, "epochs": trained.epochs, "plugins": trained.plugins,
    }  # fmt: skip
    (folder / _TRAINED).write_text(json.dumps(tree), encoding="utf-8")


def read_trained(folder: Path) -> TrainedArm:
    """What `write_trained` wrote; every number as it was, to the bit."""
    tree = json.loads((folder / _TRAINED).read_text(encoding="utf-8"))
    spec, plugins = ArmSpec(**tree.pop("spec")), tuple(tree.pop("plugins"))
    return TrainedArm(spec, load_ranker(folder), plugins=plugins, **tree)


def _array_names() -> list[str]:
    return [field.name for field in fields(JaggedRows) if field.name not in _NO_ARRAY]


def _mapped(path: Path) -> NDArray[Any]:
    """The array of a file, mapped."""
    found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return found
