"""Back-off: what a mask that its gate refused took away comes back, until a mask passes or nothing is left to go.

A segment or cell that the gate names comes back whole. Where it names none, since all users together lose too much, the
half comes back that costs most for the tokens it saves. Pure: no Spark, no clock (docs/method.md A.7).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta

from dynamix.segmentation.cells import Cell
from dynamix.segmentation.life import Stay
from dynamix.segmentation.masks import Verdict


@dataclass(frozen=True)
class Removal:
    """What a mask takes from a cell, whole, its older part or attributes: upper bound of the loss as a fraction of H, and
    tokens, 0 where attributes alone go.

    Both are of an impression of the segment, so their ratio compares between segments.
    """

    cell: Cell
    ucb: float
    tokens: float

    @property
    def price(self) -> float:
        """Loss per token saved; what saves nothing costs most."""
        return self.ucb / self.tokens if self.tokens > 0 else float("inf")


@dataclass(frozen=True)
class Refusal:
    """A mask version that its gate refused: what it takes away, and which checks failed, in words.

    overall: of all users together; segments and cells: of one of them.
    """

    version: str
    day: date
    removals: tuple[Removal, ...]
    overall: tuple[str, ...] = ()
    segments: Mapping[int, str] = field(default_factory=dict)
    cells: Mapping[Cell, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BackOff:
    """Why a cell stays: the version whose gate was refused, the check that failed, and until when that counts."""

    version: str
    why: str
    until: date

    def sentence(self) -> str:
        """The same words whenever they are asked for."""
        return f"backed off: gate of {self.version} refused, {self.why}; kept until {self.until}"


def back_off(refusals: Sequence[Refusal], *, days: int) -> dict[Cell, BackOff]:
    """Cells that stay whole after these refusals, oldest first, each for `days` days after the refused mask.

    Per refusal: the cells that the second opinion names and everything taken from a segment below its floor; where that
    is nothing, the half of all removals with the greatest price, rounded up. So each refusal leaves less to take away:
    of n removals, halved, nothing is left after at most log₂ n + 1 refusals.
    """
    found: dict[Cell, BackOff] = {}
    for one in refusals:
        named = {r.cell: one.cells.get(r.cell) or one.segments.get(r.cell[0]) for r in one.removals}
        why = {cell: text for cell, text in named.items() if text}
        if not why:
            dearest = sorted(one.removals, key=lambda r: (-r.price, r.cell))[: (len(one.removals) + 1) // 2]
            text = "; ".join([*one.overall, *one.segments.values()])
            why = {removal.cell: text for removal in dearest}
        until = one.day + timedelta(days=days)
        found |= {cell: BackOff(one.version, text, until) for cell, text in why.items()}
    return found


def say_whole(
    verdicts: Sequence[Verdict], cells: Collection[Cell], stays: Mapping[Cell, Stay]
) -> list[Verdict]:
    """The same verdicts; that of one of `cells` (it could be cut or lose attributes) which stays whole says why, once."""
    return [
        replace(v, reason=f"{stays[cell].sentence()}; {v.reason}")
        if (cell := (v.segment_id, v.stream)) in cells
        and cell in stays
        and not v.reason.startswith(stays[cell].sentence())
        else v
        for v in verdicts
    ]
