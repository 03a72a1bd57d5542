"""Where a training stands after a pass, on disk: a training that was killed goes on from there, to the same bits.

A file belongs to one training alone: its name is the hash of rows, labels, spec, config, start and version of the code.
It holds tensors and numbers and is read as nothing else. It may be lost at any time: then the training begins anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamix import __version__
from dynamix.config import TrainConfig
from dynamix.models.dataset import JaggedRows
from dynamix.models.memory import RowsAtOnce
from dynamix.models.plugins import Training
from dynamix.models.ranker import Ranker, RankerConfig

_NO_ARRAY = ("impression", "labels", "surfaces")


def training_key(
    spec: object, rows: JaggedRows, model_config: RankerConfig, config: TrainConfig, start: Ranker | None
) -> str:
    """Hash of everything that decides the bits of a training on these rows; `spec` is a dataclass."""
    told = {
        "spec": asdict(spec),  # type: ignore[call-overload]  # any dataclass
        "model": asdict(model_config),
        "config": config.model_dump(mode="json"),
        "surfaces": rows.surfaces,
        "versions": [__version__, torch.__version__],
    }
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16)
    arrays: dict[str, NDArray[Any]] = {
        f.name: getattr(rows, f.name) for f in fields(rows) if f.name not in _NO_ARRAY
    }
    arrays |= {f"label {head}": values for head, values in rows.labels.items()}
    if start is not None:
        arrays |= {f"start {name}": value.numpy() for name, value in start.state_dict().items()}
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


@dataclass
class Checkpoint:
    """The file of one training; written at most every `every_s` seconds, its end where the training took that long."""

    path: Path
    every_s: float
    say: Callable[[str], None] = lambda text: None
    _began: float = field(default_factory=time.monotonic)
    _since: float = field(default_factory=time.monotonic)

    def load(self) -> dict[str, Any] | None:
        """What was stored; None where nothing is, or what is there is torn, which is said."""
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except (UnpicklingError, RuntimeError, EOFError, OSError) as trouble:
            self.say(
                f"checkpoint {self.path.name} cannot be read ({type(trouble).__name__}); the training begins anew"
            )
            return None
        return dict(found)

    def is_due(self, *, ended: bool) -> bool:
        """Whether the last one, or for the end of a training its beginning, is `every_s` seconds ago."""
        return time.monotonic() - (self._began if ended else self._since) >= self.every_s

    def store(self, content: Mapping[str, Any]) -> None:
        """Put the content in place of what is there; a disk that is full is said and costs no training."""
        draft = self.path.with_suffix(".draft")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(dict(content), draft)
            draft.replace(self.path)
        except (OSError, RuntimeError) as trouble:
            self.say(
                f"no checkpoint was written ({str(trouble).splitlines()[0][:120]}); the training goes on"
            )
            draft.unlink(missing_ok=True)
        self._since = time.monotonic()


@dataclass
class Standing:
    """Where a training stands: what a checkpoint holds of it, and what takes it up again."""

    training: Training
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator
    memory: RowsAtOnce
    best: dict[str, Tensor] = field(default_factory=dict)
    best_loss: float = math.inf
    epochs: list[dict[str, float]] = field(default_factory=list)

    def better(self, loss: float) -> None:
        """The weights of now are the best so far, with this validation loss."""
        self.best = {name: value.detach().cpu().clone() for name, value in self.training.state_dict().items()}
        self.best_loss = loss

    def content(self) -> dict[str, Any]:
        """All of it, for `Checkpoint.store`."""
        return {
            "training": self.training.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best,
            "schedule": self.schedule.state_dict(), "generator": self.generator.get_state(),
            "best_loss": self.best_loss, "epochs": self.epochs, "rows_at_once": self.memory.rows,
        }  # fmt: skip

    def take_up(self, found: Mapping[str, Any]) -> None:
        """Go on from what `content` gave."""
        self.training.load_state_dict(found["training"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.schedule.load_state_dict(found["schedule"])
        self.generator.set_state(found["generator"])
        self.best, self.best_loss, self.epochs = found["best"], found["best_loss"], found["epochs"]
        self.memory.rows = found["rows_at_once"]
