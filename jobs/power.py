"""`dynamix power`: which cells this data can decide at which NE budget, and how many more days the rest needs."""

from __future__ import annotations

import math

from pyspark.sql import functions as F

from dynamix.errors import GuardError
from dynamix.features.relevance import CellSums
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.features import cycle_calendar, seen_events
from dynamix.segmentation.cells import Cell
from dynamix.segmentation.power import Power, power_of

BUDGETS = (0.005, 0.001, 0.0002)
_SHOWN = 8


def power(run: Run) -> StepResult:
    """A table of budgets in facts["text"] and the share of decidable tokens in the metrics; writes nothing."""
    result = StepResult()
    config = run.config.mask
    days = cycle_calendar(run, seen_events(run)).statistics.days
    lines: list[str] = []
    for head, sums in _newest_sums(run).items():
        found = [
            power_of(sums, budget, config, delta=config.delta if budget == config.ne_budget else None)
            for budget in sorted({config.ne_budget, *BUDGETS}, reverse=True)
        ]
        lines += _table(run, head, found, days)
        for p in found:
            result.metrics[f"power_tokens_{head}_at_{100 * p.budget:g}_pct"] = p.token_share
    result.facts["text"] = "\n".join(lines)
    return result


def _newest_sums(run: Run) -> dict[str, dict[Cell, CellSums]]:
    stats = run.warehouse.read(run.spark, "cell_stats").where(F.col("channel") == "joint")
    newest = stats.agg(F.max(F.struct("window_end", "segment_version")).alias("v")).collect()[0]["v"]
    if newest is None:
        raise GuardError("cell_stats is empty; run `dynamix mask` first")
    rows = stats.where(
        (F.col("window_end") == newest["window_end"])
        & (F.col("segment_version") == newest["segment_version"])
    )
    found: dict[str, dict[Cell, CellSums]] = {}
    for r in rows.select("segment_id", "stream", "label", "sums").collect():
        cell = (int(r["segment_id"]), str(r["stream"]))
        found.setdefault(str(r["label"]), {})[cell] = CellSums.unpack(r["sums"])
    return found


def _table(run: Run, head: str, found: list[Power], days: float) -> list[str]:
    lines = [
        f"{head} ({run.config.meaning(head)}): what {days:.0f} days of statistics can decide, were the cells null",
        "  NE budget   delta/SD   cells decidable   share of tokens   more days until 90 % of tokens",
    ]
    for p in found:
        own = "  <- this config" if p.budget == run.config.mask.ne_budget else ""
        lines.append(
            f"  {100 * p.budget:7.3f} %   {p.delta:8.3f}   {p.decidable:4d} of {p.cells:<8d}   {p.token_share:15.1%}"
            f"   {_more_days(p.factor_90, days)}{own}"
        )
    own_budget = next(p for p in found if p.budget == run.config.mask.ne_budget)
    short = sorted((x for x in own_budget.needs if not x.decidable), key=lambda x: (-x.tokens, x.cell))
    for need in short[:_SHOWN]:
        segment, stream = need.cell
        lines.append(f"    segment {segment} x {stream}: {need.limit}, {_more_days(need.factor, days)}")
    if len(short) > _SHOWN:
        lines.append(f"    … and {len(short) - _SHOWN} more cells with fewer tokens")
    return lines


def _more_days(factor: float, days: float) -> str:
    if not math.isfinite(factor):
        return "not by more days: no positive"
    return "none" if factor <= 1 else f"{math.ceil((factor - 1) * days):,} more days"
