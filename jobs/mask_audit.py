"""Rows of `mask_audit`: those of the keep rule, and those of the gate, from whose refusal the next `mask` backs off.

`train` notes the gate's checks. Nothing else is remembered: what a refused version took away stands in `masks` and
`mask_audit`, so the same tables give the same back-off on every run, and it ends `calendar.days` after the refused mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from pyspark.sql import functions as F

from dynamix.contracts import COLD_SEGMENT, MASK_AUDIT, MASKS
from dynamix.features.sql_text import begins_with, equals
from dynamix.jobs.cell_stats import TIER
from dynamix.jobs.context import Run
from dynamix.jobs.decide import Decision
from dynamix.jobs.frames import table_frame
from dynamix.jobs.life import Noted
from dynamix.models import evidence
from dynamix.segmentation.back_off import BackOff, Refusal, Removal, back_off
from dynamix.segmentation.cells import Cell
from dynamix.segmentation.masks import REDUNDANT, Check

GATE = "gate: "
"""Begins the rules of `mask_audit` that a gate checked; value and limit in its own unit, mostly percent of NE."""
GATE_RULES = begins_with("rule", GATE)
ATTRIBUTES = "attributes"
"""Rule of `mask_audit`: the loss of the attributes that kept events no longer carry."""
OLDER_TOKENS = "older tokens"
"""Rule of `mask_audit`: kept events of an impression that a cut takes away."""
_LESS = "less"
"""The bound of ATTRIBUTES beside the columns of `masks`, one of which has its name."""
_OTHER_RULES = "rule |one mask for all"
"""Begin the reasons of masks that are not of the keep rule: their refusal says nothing of its cells."""


def audit_rows(decision: Decision, version: str, more: Sequence[Noted] = ()) -> list[dict[str, Any]]:
    """One row a rule and cell; `older` is the loss of what a cut cell no longer keeps, `attributes` of what it lost."""
    checks = [(v.segment_id, v.stream, c) for v in decision.verdicts for c in v.checks]
    checks += [(*cell, Check(ATTRIBUTES, w.ucb, w.budget, True)) for cell, w in decision.without.items()]
    for cell, cut in decision.cuts.items():
        checks.append((*cell, Check("older", cut.ucb, cut.budget, True)))
        checks.append((*cell, Check(OLDER_TOKENS, cut.an_impression, 0.0, True)))
    checks += more
    return [
        {"mask_version": version, "segment_id": segment_id, "tier": TIER, "stream": stream, "rule": c.rule,
         "value": float(c.value), "limit": float(c.limit), "passed": bool(c.passed)}
        for segment_id, stream, c in checks
    ]  # fmt: skip


def write_gate(run: Run, version: str, verdicts: Mapping[str, evidence.Verdict], *, head: str) -> int | None:
    """Note every check of the heads whose gate decided, in place of those before; None where none did.

    Rows of all users together are of segment 0, tier and stream `*`. Checks of another than the main `head` name it.
    """
    rows = [
        _audit_row(version, check, "" if own == head else f" for {own}")
        for own, verdict in sorted(verdicts.items())
        if verdict.status != "proposed"
        for check in verdict.checks
    ]
    if not rows:
        return None
    where = f"{equals(mask_version=version)} AND {GATE_RULES}"
    return run.warehouse.replace(run.spark, MASK_AUDIT, table_frame(run.spark, MASK_AUDIT, rows), where=where)


def _audit_row(version: str, check: evidence.Check, head: str) -> dict[str, Any]:
    return {
        "mask_version": version, "segment_id": COLD_SEGMENT if check.segment_id is None else check.segment_id,
        "tier": check.tier, "stream": check.stream, "rule": f"{GATE}{check.rule}{head}",
        "value": check.value, "limit": check.allowed, "passed": check.passed,
    }  # fmt: skip


def backed_off(run: Run) -> dict[Cell, BackOff]:
    """Cells that stay whole since a gate refused a mask for them in the last `calendar.days` days, this date included."""
    found = back_off(_refusals(run), days=run.config.calendar.days)
    if found:
        versions = sorted({one.version for one in found.values()})
        run.note(f"mask: {len(found)} cells stay after the gate refused {', '.join(versions)}")
    return found


def _refusals(run: Run) -> list[Refusal]:
    """Versions retired by their gate, oldest first, with what they took away."""
    if not run.warehouse.exists(run.spark, MASK_AUDIT.name):
        return []
    audit = run.warehouse.read(run.spark, MASK_AUDIT.name)
    masks = run.warehouse.read(run.spark, MASKS.name).where(
        (F.col("status") == "retired")
        & (F.col("run_date") > F.lit(run.run_date - timedelta(days=run.config.calendar.days)))
        & (F.col("run_date") <= F.lit(run.run_date))
    )
    days = masks.select("mask_version", "run_date", "seq").distinct()
    failed = audit.where(F.col("rule").startswith(GATE) & ~F.col("passed")).join(days, "mask_version")
    rows = failed.orderBy("run_date", "seq", "mask_version", "rule", "segment_id", "tier", "stream").collect()
    if not rows:
        return []
    versions: dict[str, tuple[date, list[Any]]] = {}
    for row in rows:
        versions.setdefault(str(row["mask_version"]), (row["run_date"], []))[1].append(row)
    keys = ["mask_version", "segment_id", "stream"]
    named = {"beside": "beside", "older": "older", OLDER_TOKENS: OLDER_TOKENS, ATTRIBUTES: _LESS}
    values = [F.max(F.when(F.col("rule") == rule, F.col("value"))).alias(n) for rule, n in named.items()]
    noted = audit.where(F.col("mask_version").isin(list(versions))).groupBy(*keys).agg(*values)
    taken = masks.join(noted, keys).where(
        ~F.col("keep") | F.col("older").isNotNull() | F.col(_LESS).isNotNull()
    )
    taken = taken.where(~F.col("reason").rlike(f"^({_OTHER_RULES})"))
    removals: dict[str, list[Removal]] = {}
    for row in taken.orderBy(*keys).collect():
        removals.setdefault(str(row["mask_version"]), []).append(_removal(row))
    return [
        _refusal(version, day, tuple(removals.get(version, ())), checks)
        for version, (day, checks) in versions.items()
    ]


def _removal(row: Any) -> Removal:
    cell = (int(row["segment_id"]), str(row["stream"]))
    if row["keep"]:
        ucb = float(row["older"] or 0.0) + float(row[_LESS] or 0.0)
        return Removal(cell, ucb, float(row[OLDER_TOKENS] or 0.0))
    carried = str(row["reason"]).startswith(REDUNDANT)
    return Removal(cell, float(row["beside" if carried else "relevance_ucb"]), float(row["tokens"]))


def _refusal(version: str, day: date, removals: tuple[Removal, ...], failed: list[Any]) -> Refusal:
    overall: list[str] = []
    segments: dict[int, str] = {}
    cells: dict[Cell, str] = {}
    for row in failed:
        rule, segment, stream = (
            str(row["rule"]).removeprefix(GATE),
            int(row["segment_id"]),
            str(row["stream"]),
        )
        of_one = row["tier"] == evidence.EVERY and (stream != evidence.EVERY or rule.startswith("floor"))
        limit = "1 in its interval" if row["limit"] is None else f"{row['limit']:.4f}"
        place = (segment if of_one else None, str(row["tier"]), stream)
        text = evidence.Check(rule, float(row["value"]), limit, False, None, *place).told()
        if not of_one:
            overall.append(text)
        elif stream == evidence.EVERY:
            segments[segment] = text
        else:
            cells[segment, stream] = text
    return Refusal(version, day, removals, tuple(overall), segments, cells)
