"""The sums that verdicts rest on: by cell, head, user half and window, and over all streams of a segment at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar

from dynamix.features.gram import GramSums
from dynamix.features.recency import BeyondSums, RecencySums
from dynamix.features.relevance import WHOLE, CellSums

Cell = tuple[int, str]
"""(segment_id, stream)"""
BOTH = 2
ROWS_PER_VALUE = 10
"""Impressions that each value takes in every half before streams are judged beside each other: with W values given, a
share of W/n of a stream's own information would be gone by chance."""


class Mergeable(Protocol):
    """Sums that add up."""

    def __add__(self, other: Self) -> Self: ...


Sums = TypeVar("Sums", bound=Mergeable)


def of_halves(half: int, of: Callable[[int], Sums | None]) -> Sums | None:
    """Sums of one half, or of both added where `half` is BOTH; None where there are none."""
    found = [sums for h in ((0, 1) if half == BOTH else (half,)) if (sums := of(h)) is not None]
    if not found:
        return None
    return found[0] if len(found) == 1 else found[0] + found[1]


def in_one_segment(cells: Mapping[Any, Sums]) -> dict[Any, Sums]:
    """Sums by keys that begin with the segment id, added up over the segments under id 0."""
    pool: dict[Any, Sums] = {}
    for key in sorted(cells):
        one = (0, *key[1:])
        pool[one] = pool[one] + cells[key] if one in pool else cells[key]
    return pool


@dataclass(frozen=True)
class Statistics:
    """Everything the rule reads.

    sums: by (segment, stream), label, half (0, 1) and window (WHOLE, 0, 1, 2, WITHIN, BETWEEN); labels are the heads
    and, of WHOLE, their `settings`. together: by segment, head and half, over all streams; place: stream -> its id there.
    recency: by (segment, stream), head and half, of a stream's events by bucket of recency; beyond: the same with the
    bucket beyond the base, where histories are collected that far.
    """

    sums: Mapping[tuple[int, str, str, int, int], CellSums]
    heads: tuple[str, ...]
    together: Mapping[tuple[int, str, int], GramSums] = field(default_factory=dict)
    place: Mapping[str, int] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    recency: Mapping[tuple[int, str, str, int], RecencySums] = field(default_factory=dict)
    beyond: Mapping[tuple[int, str, str, int], BeyondSums] = field(default_factory=dict)

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(sorted({(g, f) for g, f, *_ in self.sums}))

    def of(self, cell: Cell, head: str, *, half: int = BOTH, window: int = WHOLE) -> CellSums | None:
        """Sums of one cell; both halves added when `half` is BOTH. None where there is no impression."""
        return of_halves(half, lambda h: self.sums.get((*cell, head, h, window)))

    def by_recency(self, cell: Cell, head: str, *, half: int = BOTH) -> RecencySums | None:
        """Sums of one cell by bucket of recency; both halves added when `half` is BOTH. None where there are none."""
        return of_halves(half, lambda h: self.recency.get((*cell, head, h)))

    def beyond_base(self, cell: Cell, head: str) -> BeyondSums | None:
        """Sums of one cell by bucket of recency and beyond the base; None where histories are not collected that far."""
        return of_halves(BOTH, lambda h: self.beyond.get((*cell, head, h)))

    def by_cell(self, head: str, *, half: int = BOTH) -> dict[Cell, CellSums]:
        """Sums of every cell that has any under this head."""
        return {c: s for c in self.cells if (s := self.of(c, head, half=half)) is not None}

    def all_streams(self, segment: int, head: str, *, half: int = BOTH) -> GramSums | None:
        """Sums of a segment over all streams; None where a half or head has less than ROWS_PER_VALUE impressions a value.

        Asked of every half and head alike, so that a segment's streams are judged beside each other in all of them
        or in none.
        """
        every = [self.together.get((segment, h, part)) for h in self.heads for part in (0, 1)]
        if any(sums is None or sums.n < ROWS_PER_VALUE * len(sums.wx) for sums in every):
            return None
        return of_halves(half, lambda h: self.together[segment, head, h])

    def pooled(self) -> Statistics:
        """The same with all segments as one (segment id 0): for the control `global`.

        A user who changed segment counts as one cluster per segment, which leaves the variance a little low.
        """
        return Statistics(
            in_one_segment(self.sums),
            self.heads,
            in_one_segment(self.together),
            self.place,
            self.settings,
            in_one_segment(self.recency),
            in_one_segment(self.beyond),
        )


def population(sums: Mapping[Cell, CellSums]) -> tuple[float, float]:
    """Impressions and base rate over all segments; the cells of a segment share its impressions."""
    segments: dict[int, CellSums] = {}
    for (segment, _), own in sorted(sums.items(), key=lambda item: item[0]):
        segments.setdefault(segment, own)
    n = sum(s.n for s in segments.values())
    return n, sum(s.positives for s in segments.values()) / n if n else 0.0
