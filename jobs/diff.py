"""`dynamix diff V1 V2`: what changed between two mask versions, cell by cell and in tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.contracts import MASKS, TIERS
from dynamix.errors import ConfigError, GuardError
from dynamix.features.quotas import BOTH_TIERS
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.report_data import Cell, cells_from_rows
from dynamix.jobs.sensitive import hidden_cells

Key: TypeAlias = tuple[int, str, str]
"""Segment id, tier, stream."""
Whole: TypeAlias = Callable[[str], int]
"""Quota of a stream whose history is not cut."""


@dataclass(frozen=True)
class Change:
    """A cell that two grids treat differently, with its row in each; None where a grid does not list it."""

    key: Key
    before: Cell | None
    after: Cell | None


def changes(one: Iterable[Cell], other: Iterable[Cell], *, whole: Whole) -> list[Change]:
    """Cells whose quota, boost or attributes differ, by segment, stream and tier.

    A cell that a grid does not list is kept as a whole there: quota `whole(stream)`, no boost, all attributes. Where one
    grid tells tiers apart and the other does not, the row of both tiers stands for each.
    """
    grids = [{(c.segment_id, c.stream, c.tier): c for c in cells} for cells in (one, other)]
    found = []
    for segment, stream in sorted({key[:2] for grid in grids for key in grid}):
        apart = any((segment, stream, tier) in grid for grid in grids for tier in TIERS)
        for tier in TIERS if apart else (BOTH_TIERS,):
            rows = [g.get((segment, stream, tier), g.get((segment, stream, BOTH_TIERS))) for g in grids]
            treated = [
                (whole(stream), 0.0, None) if c is None else (c.quota, c.boost, c.attributes) for c in rows
            ]
            if treated[0] != treated[1]:
                found.append(Change((segment, tier, stream), *rows))
    return found


def diff(run: Run, first: str, second: str) -> StepResult:
    """Cells that mask version `second` treats otherwise than `first`, with its reasons, and what each drops.

    `facts["changes"]`: one object a cell; `facts["dropped"]`: segment -> share of its tokens in whole dropped streams
    under either version, each by its own statistics (None where the version lacks the segment). Sensitive streams stand
    under numbers. ConfigError (exit 2) for an unknown version, GuardError (exit 4) where no masks are.
    """
    if not run.warehouse.exists(run.spark, MASKS.name):
        raise GuardError("table 'masks' is not written yet; run `dynamix mask`")
    masks = run.warehouse.read(run.spark, MASKS.name)
    known = {str(r[0]): str(r[1]) for r in masks.select("mask_version", "status").distinct().collect()}
    for version in (first, second):
        if version not in known:
            raise ConfigError.unknown_version("mask version", version, sorted(known))

    def whole(stream: str) -> int:
        return run.config.declaration(stream).length

    listed = [_cells(masks, version, whole) for version in (first, second)]
    changed = changes(*listed, whole=whole)
    shown = dict(zip(every := (*listed[0], *listed[1]), hidden_cells(every, run.config), strict=True))
    old, new = ([shown[cell] for cell in cells] for cells in listed)
    told = [_told(change, shown, whole) for change in changed]
    names = {cell.segment_id: cell.segment_name for cell in (*old, *new)}
    dropped = {segment: (_dropped(old, segment), _dropped(new, segment)) for segment in sorted(names)}
    head = f"{first} ({known[first]}) -> {second} ({known[second]}): {len(told)} cells differ"
    facts = {"from": first, "to": second, "changes": told, "dropped": dropped}
    lines = [head, *_lines(told, names, dropped)]
    return StepResult(counters={"cells_changed": len(told)}, facts=facts | {"text": "\n".join(lines)})


def _cells(masks: DataFrame, version: str, whole: Whole) -> tuple[Cell, ...]:
    rows = masks.where(F.col("mask_version") == version).collect()
    return cells_from_rows((row.asDict() for row in rows), whole=whole)


def _told(change: Change, shown: Mapping[Cell, Cell], whole: Whole) -> dict[str, Any]:
    segment, tier, stream = change.key
    before, after = (None if cell is None else shown[cell] for cell in (change.before, change.after))
    name = next(cell.stream for cell in (after, before) if cell is not None)
    return {
        "segment": segment, "tier": tier, "stream": name, "before": _treated(before, whole(stream)),
        "after": _treated(after, whole(stream)), "reason": "" if after is None else after.reason,
    }  # fmt: skip


def _treated(cell: Cell | None, whole: int) -> str:
    """In words: dropped, whole, or its newest events; with the boost and the attributes kept where it says so."""
    if cell is None:
        return "whole (not listed)"
    if not cell.keep:
        return "dropped"
    boost = f", boost {cell.boost:+.2f}" if cell.boost else ""
    kept = "" if cell.attributes is None else f", of each {', '.join(cell.attributes) or 'no attribute'}"
    return ("whole" if cell.quota == whole else f"newest {cell.quota}") + boost + kept


def _dropped(cells: Sequence[Cell], segment: int) -> float | None:
    own = [cell for cell in cells if cell.segment_id == segment]
    total = sum(cell.tokens for cell in own)
    return sum(cell.tokens for cell in own if not cell.keep) / total if total else None


def _lines(
    told: Sequence[Mapping[str, Any]], names: Mapping[int, str],
    dropped: Mapping[int, tuple[float | None, float | None]],
) -> Iterator[str]:  # fmt: skip
    for segment, name in sorted(names.items()):
        own = [change for change in told if change["segment"] == segment]
        shares = " -> ".join("none" if x is None else f"{x:.1%}" for x in dropped[segment])
        yield f"segment {segment} ({name}): {len(own)} differ; tokens in dropped streams {shares}"
        for change in own:
            tier = "" if change["tier"] == BOTH_TIERS else f" {change['tier']}"
            why = f"; {change['reason']}" if change["reason"] else ""
            yield f"  {change['stream']}{tier}: {change['before']} -> {change['after']}{why}"
