"""What the registry is told of a training: kept in the run's folder first, registered then, or later from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dynamix.errors import ConfigError, EnvironmentTrouble
from dynamix.jobs.files import write_whole
from dynamix.models.registry import (
    CHALLENGER,
    CHAMPION,
    RANKER,
    ChildRun,
    Registry,
    Version,
    find,
    log_training,
    move_alias,
    register_ranker,
)
from dynamix.models.spec import promotes

EVIDENCE, MODEL = "evidence.json", "model"
PREDECESSOR = "dynamix.predecessor"
"""Tag of a version: the champion that it was held against, which it takes over from if its gate passes; or none."""
_FILE = "registration.json"


@dataclass(frozen=True)
class Registration:
    """Runs, tags and example of a version, and the champion that its gate read. Whether it passed stands in the evidence.

    `example` is a frame of one raw request, whose only instant is `request_ts`.
    """

    parent: str
    children: tuple[ChildRun, ...]
    params: Mapping[str, object]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    example: pd.DataFrame
    champion: str | None

    def store(self, folder: Path) -> None:
        """Write it beside the model, whole or not at all."""
        plain = {name: value for name, value in vars(self).items() if name not in ("children", "example")}
        plain["children"] = [asdict(child) for child in self.children]
        plain["example"] = json.loads(self.example.to_json(orient="records", date_format="iso"))
        write_whole(folder / _FILE, json.dumps(plain, default=str))

    @classmethod
    def load(cls, runs: Path, run_id: str) -> Registration:
        """That of `runs/<run_id>`. ConfigError where no such run has trained to its end."""
        known = sorted(path.parent.name for path in runs.glob(f"*/{_FILE}"))
        if run_id not in known:
            raise ConfigError.unknown_version("a trained run", run_id, known)
        plain: dict[str, Any] = json.loads((runs / run_id / _FILE).read_text(encoding="utf-8"))
        example = pd.DataFrame(plain.pop("example"))
        example["request_ts"] = pd.to_datetime(example["request_ts"])
        children = tuple(ChildRun(**child) for child in plain.pop("children"))
        plain.pop("passed", None)  # kept beside the evidence until the gate read the evidence alone
        return cls(children=children, example=example, **plain)

    def register(self, registry: Registry, folder: Path) -> tuple[Version, str]:
        """Log the runs, register the model in `folder`, move the aliases that its evidence allows: version and alias.

        EnvironmentTrouble (exit 5) where the store fails, with the way to go on; GuardError (exit 4) where another
        training moved an alias meanwhile, or the evidence lacks what a gate reads (`promotes`).
        """
        evidence = folder / EVIDENCE
        passed = promotes(json.loads(evidence.read_text(encoding="utf-8")))
        try:
            run_id = log_training(
                registry, parent=self.parent, children=list(self.children), params=self.params,
                metrics=self.metrics, tags=self.tags, evidence=evidence,
            )  # fmt: skip
            challenger = find(registry, RANKER, CHALLENGER)
            version = register_ranker(
                registry, folder=folder / MODEL, run_id=run_id, metrics=self.metrics,
                tags={**self.tags, PREDECESSOR: self.champion or "none"},
                example=self.example, evidence=evidence,
            )  # fmt: skip
            before = challenger.version if challenger else None
            move_alias(registry, RANKER, CHALLENGER, version.version, expected=before)
            if not passed:
                return version, CHALLENGER
            move_alias(registry, RANKER, CHAMPION, version.version, expected=self.champion)
        except EnvironmentTrouble as trouble:
            raise EnvironmentTrouble(
                f"{trouble.message} or register the model kept in runs/{folder.name}/{MODEL} with "
                f"`dynamix train --register-from {folder.name}`"
            ) from trouble
        return version, CHAMPION
