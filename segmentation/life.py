"""The life of a published mask: what it drops comes back once it is shown to matter; a harmful or old mask is retired.

The watch reads the newest two windows. Whatever depends on the mask by then, the log among it, leaves the hold-out
users whole (docs/method.md A.7, E4), so they are read apart from everyone together. Pure: no Spark, no clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import reduce
from operator import add
from typing import Protocol

from dynamix.config import MaskConfig
from dynamix.contracts import COLD_SEGMENT
from dynamix.features.relevance import CellSums
from dynamix.segmentation.bounds import cell_budget, entropy
from dynamix.segmentation.cells import BOTH, Cell, Statistics, population
from dynamix.segmentation.effects import loss
from dynamix.segmentation.masks import COLD, Verdict

UNDER_THE_MASK, HOLD_OUT = 0, 1
"""Halves of the statistics of a watch."""
LEVEL = 0.05
"""Chance that a watch brings back anything at all where nothing that is dropped matters."""
MIN_POSITIVES = 50
"""Positives that have the stream, below which nothing is tested: their score is no normal variable."""
READERS = {HOLD_OUT: "hold-out", BOTH: "everyone"}
"""Whose statistics may bring a cell back."""
IN_FORCE, HARMFUL, EXPIRED = "in force", "harmful", "expired"


@dataclass(frozen=True)
class Shown:
    """A dropped cell, or a stream over the segments that drop it, that is shown to matter.

    relevance and budget: of the entropy of these impressions; chance: of a statistic as large where nothing acts;
    cost: what dropping it costs, relative NE over all impressions.
    """

    head: str
    by: str
    cells: tuple[Cell, ...]
    positives: float
    relevance: float
    budget: float
    chance: float
    cost: float

    def sentence(self) -> str:
        """What was seen, with the figures."""
        segments = ", ".join(str(g) for g, _ in self.cells)
        return (
            f"{self.cells[0][1]} in segment{'s' if len(self.cells) > 1 else ''} {segments}: {self.by} "
            f"({self.positives:.0f} positives) show{'s' if self.by == READERS[BOTH] else ''} a relevance of "
            f"{self.relevance:.3%} of H, budget {self.budget:.3%}"
        )


@dataclass(frozen=True)
class Watch:
    """What the watch over a mask says: `state`, the cells that come back, what their drop costs, in words."""

    state: str
    reason: str
    cost: float
    restored: Mapping[Cell, Shown] = field(default_factory=dict)

    @property
    def obsolete(self) -> bool:
        """Whether the mask has to be retired."""
        return self.state != IN_FORCE


def watch(statistics: Statistics, dropped: Collection[Cell], *, age_days: int, config: MaskConfig) -> Watch:
    """Which dropped cells come back, and whether the mask is still in force.

    statistics: of the newest windows, with halves UNDER_THE_MASK and HOLD_OUT; dropped: cells of the mask; age_days
    since its run date. A mask is harmful where what it drops, as far as that is shown to matter, costs more than
    `ne_budget`, and expired from `ttl_days` on. No statistics, no harm: age counts all the same.
    """
    shown = shown_to_matter(statistics, dropped, config)
    restored: dict[Cell, Shown] = {}
    for one in sorted(shown, key=lambda s: s.chance):
        restored = dict.fromkeys(one.cells, one) | restored
    cost = _cost(shown)
    if cost > config.ne_budget:
        first = min(shown, key=lambda s: s.chance)
        text = f"what it drops costs {cost:.3%} NE, budget {config.ne_budget:.3%}; {first.sentence()}"
        return Watch(HARMFUL, f"harmful: {text}", cost, restored)
    if age_days >= config.ttl_days:
        text = f"expired: {age_days} days old, retired from {config.ttl_days} on"
        return Watch(EXPIRED, text, cost, restored)
    text = (
        f"in force: {age_days} days old, {len(restored)} of {len(set(dropped))} dropped cells shown to matter"
    )
    return Watch(IN_FORCE, text, cost, restored)


def shown_to_matter(statistics: Statistics, dropped: Collection[Cell], config: MaskConfig) -> list[Shown]:
    """Cells and streams whose relevance is shown and estimated above the budget of a cell.

    Four families for every head: hold-out users or everyone, cell by cell or a stream over the segments that drop
    it. LEVEL is split evenly over the families, and in a family over the tests that have the positives (Bonferroni).
    A relevance that is shown but within the budget is what the keep rule let go on purpose: it stays dropped.
    """
    families = [
        (reader, _Population.of(statistics, head), groups)
        for head in statistics.heads
        for reader in READERS
        for groups in _groups(statistics, sorted(set(dropped)), head, reader)
    ]
    found = []
    for reader, everyone, groups in families:
        tested = {cells: s for cells, s in groups.items() if s.with_stream >= MIN_POSITIVES}
        for cells, sums in tested.items():
            one = everyone.test(reader, cells, sums, delta=config.delta)
            if one.chance * len(tested) <= LEVEL / len(families) and one.relevance > one.budget:
                found.append(one)
    return found


def _groups(
    statistics: Statistics, cells: Sequence[Cell], head: str, reader: int
) -> Iterator[dict[tuple[Cell, ...], CellSums]]:
    """The sums cell by cell, then stream by stream over the cells given, where there are several."""
    own = {c: s for c in cells if (s := statistics.of(c, head, half=reader)) is not None}
    yield {(c,): s for c, s in own.items()}
    streams: dict[str, list[Cell]] = {}
    for cell in own:
        streams.setdefault(cell[1], []).append(cell)
    several = [group for group in streams.values() if len(group) > 1]
    yield {tuple(group): reduce(add, [own[c] for c in group]) for group in several}


@dataclass(frozen=True)
class _Population:
    """Impressions by segment under one head, and the entropy of all of them together."""

    head: str
    impressions: Mapping[int, float]
    entropy: float

    @classmethod
    def of(cls, statistics: Statistics, head: str) -> _Population:
        cells = statistics.by_cell(head)
        return cls(head, {g: s.n for (g, _), s in cells.items()}, entropy(population(cells)[1]))

    def test(self, reader: int, cells: tuple[Cell, ...], sums: CellSums, *, delta: float) -> Shown:
        """The block test of these cells' sums, and what dropping them costs all impressions."""
        block = loss(sums)
        rate = sums.positives / sums.n
        h = entropy(rate)
        nats = block.estimate / (2.0 * sums.n)  # an impression of these segments
        share = sum(self.impressions[g] for g, _ in cells) / sum(self.impressions.values())
        return Shown(
            head=self.head, by=READERS[reader], cells=cells, positives=sums.with_stream,
            relevance=nats / h if h else 0.0, budget=cell_budget(rate, delta), chance=block.chance(),
            cost=nats * share / self.entropy if h else 0.0,
        )  # fmt: skip


def _cost(shown: Sequence[Shown]) -> float:
    """Sum over streams of what is shown of the stream: by hold-out users where they show it, else by everyone.

    Of one reader and head the greater counts, the stream as a whole or the sum of its cells; of the heads the greatest.
    """
    sums: dict[tuple[str, str, str, bool], float] = {}
    for one in shown:
        key = (one.cells[0][1], one.by, one.head, len(one.cells) > 1)
        sums[key] = sums.get(key, 0.0) + one.cost
    total = 0.0
    for stream in sorted({key[0] for key in sums}):
        readers = [r for r in READERS.values() if any(key[:2] == (stream, r) for key in sums)]
        total += max(cost for key, cost in sums.items() if key[:2] == (stream, readers[0]))
    return total


# --- what came back stays for a while


@dataclass(frozen=True)
class Restoration:
    """A cell that a watch brought back: on which day, what was shown by whom, and the day until which it stays."""

    day: date
    by: str
    relevance: float
    budget: float
    until: date

    def sentence(self) -> str:
        """The same words whenever they are asked for."""
        return (
            f"restored on {self.day}: {self.by} showed a relevance of {self.relevance:.3%} of H, budget "
            f"{self.budget:.3%}; kept until {self.until}, when every window of a cycle begins after it"
        )


def restorations(found: Watch, *, day: date, days: int) -> dict[Cell, Restoration]:
    """The cells that this day's watch brings back; they stay for the `days` that a cycle looks back on.

    Until then the statistics of a refit still show the world in which they did not matter.
    """
    until = day + timedelta(days=days)
    return {
        cell: Restoration(day, one.by, one.relevance, one.budget, until)
        for cell, one in found.restored.items()
    }


class Stay(Protocol):
    """Why a cell stays for a while whatever the statistics say."""

    def sentence(self) -> str:
        """The same words whenever they are asked for."""


def keep_restored(verdicts: Sequence[Verdict], stays: Mapping[Cell, Stay]) -> list[Verdict]:
    """The same verdicts, but a drop of a cell that stays is a keep that says so.

    So is one of segment 0 whose stream stays in another segment: the cold drop what all others drop (A.10).
    """
    elsewhere = {
        stream: segment for segment, stream in sorted(stays, reverse=True) if segment != COLD_SEGMENT
    }
    found = []
    for v in verdicts:
        cell, other = (v.segment_id, v.stream), elsewhere.get(v.stream)
        if v.verdict == "drop" and cell in stays:
            v = replace(v, verdict="keep", reason=f"{stays[cell].sentence()}; by the statistics: {v.reason}")
        elif v.verdict == "drop" and v.segment_id == COLD_SEGMENT and other is not None:
            reason = f"{COLD}segment {other} keeps the stream; by the statistics: {v.reason}"
            v = replace(v, verdict="keep", reason=reason)
        found.append(v)
    return found
