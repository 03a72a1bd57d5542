"""Spec of an arm as JSON, what its ranker costs, and the one rule that lets a ranker take `champion`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from dynamix.config import TrainConfig
from dynamix.errors import GuardError
from dynamix.models.dataset import JaggedRows
from dynamix.models.ranker import Ranker, RankerConfig
from dynamix.models.train import ArmSpec, TrainedArm

DELTA = ("delta_ne_pct", "low", "high", "upper95", "rows")
COST = ("parameters", "flops_per_row", "tokens_per_row", "train_rows_s", "infer_rows_s")
_COST_ROWS = 256


@dataclass(frozen=True)
class Spec:
    """Everything beside the rows that an arm is made of: the same spec on the same rows gives the same weights.

    `ranker` is a RankerConfig as a tree, `train` a TrainConfig; `plugins` are named, `start` is the address of the
    ranker that a warm start began from.
    """

    arm: str
    mask_version: str
    seeds: tuple[int, ...]
    ranker: Mapping[str, Any]
    train: Mapping[str, Any]
    plugins: tuple[str, ...] = ()
    start: str | None = None

    @classmethod
    def of(cls, trained: tuple[TrainedArm, ...], config: TrainConfig, *, start: str | None = None) -> Spec:
        """That of an arm's trainings, one a seed."""
        first = trained[0]
        return cls(
            first.spec.arm, first.spec.mask_version, tuple(t.spec.seed for t in trained), asdict(first.model.config),
            config.model_dump(mode="json"), first.plugins, start,
        )  # fmt: skip

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Spec:
        """From what JSON gives back."""
        return cls(**{**tree, "seeds": tuple(tree["seeds"]), "plugins": tuple(tree["plugins"])})

    def ranker_config(self) -> RankerConfig:
        """The ranker's configuration."""
        return RankerConfig.from_tree(self.ranker)

    def train_config(self) -> TrainConfig:
        """The training's configuration."""
        return TrainConfig.model_validate(self.train)

    def trainings(self) -> list[ArmSpec]:
        """One a seed."""
        return [ArmSpec(self.arm, self.mask_version, seed) for seed in self.seeds]


def size_of(ranker: Ranker, rows: JaggedRows) -> dict[str, float]:
    """Parameters, FLOPs of a forward pass a row, and tokens a row, on a sample of the rows.

    FLOPs are those of matrix products, as torch counts them; look-ups and elementwise work are not in it.
    """
    some = np.random.default_rng(0).permutation(len(rows))[:_COST_ROWS]
    batch = rows.batch(some)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        ranker.eval()(batch)
    return {
        "parameters": float(sum(w.numel() for w in ranker.parameters())),
        "flops_per_row": flops.get_total_flops() / max(batch.rows, 1),
        "tokens_per_row": rows.tokens_per_row,
    }


def promotes(evidence: Mapping[str, Any]) -> bool:
    """Whether the content of an evidence.json lets its ranker take `champion`; nothing else is read.

    True iff every check of its ranker gate passed and the paired difference could be worked out (not null). GuardError
    (exit 4) where it lacks the spec of the arm, its cost, or that difference with interval and rows; where it holds no
    check; or where check and verdict disagree.
    """
    gate = evidence.get("ranker_gate") or {}
    parts: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
        "ranker_gate.delta": (gate.get("delta") or {}, DELTA),
        "cost": (evidence.get("cost") or {}, COST),
        "spec": (evidence.get("spec") or {}, ("arm", "mask_version", "seeds", "ranker", "train")),
    }
    lacking = [
        f"{part}.{name}" for part, (tree, names) in parts.items() for name in names if name not in tree
    ]
    checks = gate.get("checks") or []
    if lacking or not checks:
        what = ", ".join(lacking) or "ranker_gate.checks"
        raise GuardError(f"evidence lacks {what}; no alias moves without it: run `dynamix train` again")
    passed: bool = all(check["passed"] is True for check in checks)
    if passed != gate.get("passed"):
        raise GuardError(
            f"evidence contradicts itself: its ranker gate says passed={gate.get('passed')}, its checks say {passed}; "
            "no alias moves: run `dynamix train` again"
        )
    return passed and all(gate["delta"][name] is not None for name in DELTA)
