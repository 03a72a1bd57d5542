"""The verdicts that other NE budgets would give, worked out once by `mask` and shown by the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dynamix.config import MaskConfig
from dynamix.jobs.files import read_object, write_whole
from dynamix.jobs.report_data import RULE, AtBudget
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.life import Stay, keep_restored
from dynamix.segmentation.masks import Protection, Verdict, judge, kept_by_rule

FILE = "budgets.json"
FACTORS = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Times the configured budget."""


def at_budgets(
    statistics: Statistics, config: MaskConfig, own: Sequence[Verdict], *, protection: Protection,
    stays: Mapping[Cell, Stay],
) -> list[AtBudget]:  # fmt: skip
    """One entry per factor of FACTORS, ascending: the keep rule of `mask` with nothing but the budget changed.

    `own` are the verdicts under the configured budget; cells of `stays` are kept under all of them.
    """
    tokens = {cell: sums.tokens for cell, sums in statistics.by_cell(statistics.heads[0]).items()}
    found = []
    for factor in FACTORS:
        budget = config.ne_budget * factor
        changed = config.model_copy(update={"ne_budget": budget})
        verdicts = (
            own if factor == 1.0 else keep_restored(judge(statistics, changed, protection=protection), stays)
        )
        found.append(_at(tokens, budget, verdicts, own=factor == 1.0))
    return found


def _at(tokens: Mapping[Cell, float], budget: float, verdicts: Sequence[Verdict], *, own: bool) -> AtBudget:
    gone = sum(tokens.get((v.segment_id, v.stream), 0.0) for v in verdicts if v.verdict == "drop")
    total = sum(tokens.values())
    found = {
        (v.segment_id, v.stream): RULE if kept_by_rule(v.verdict, v.reason) else v.verdict for v in verdicts
    }
    return AtBudget(budget, own, found, gone / total if total else 0.0)


def store_budgets(folder: Path, mask_version: str, found: Sequence[AtBudget]) -> None:
    """Write them into the run's folder, whole or not at all."""
    told = {
        "mask_version": mask_version,
        "budgets": [
            {"ne_budget": one.ne_budget, "own": one.own, "dropped_tokens": one.dropped_tokens,
             "verdicts": [[segment, stream, verdict] for (segment, stream), verdict in sorted(one.verdicts.items())]}
            for one in found
        ],
    }  # fmt: skip
    write_whole(folder / FILE, json.dumps(told))


def load_budgets(folder: Path, mask_version: str) -> tuple[AtBudget, ...]:
    """Those of this mask version; empty where the run left none or its file is of another version or damaged."""
    told = read_object(folder / FILE) or {}
    try:
        if told["mask_version"] != mask_version:
            return ()
        return tuple(
            AtBudget(
                float(one["ne_budget"]), bool(one["own"]),
                {(int(g), str(f)): str(v) for g, f, v in one["verdicts"]}, float(one["dropped_tokens"]),
            )
            for one in told["budgets"]
        )  # fmt: skip
    except (ValueError, KeyError, TypeError):
        return ()
