"""In which order the headline benchmark's masks cut cells: from the product's statistics, or from planted truth.

Nothing here decides anew. Losses come from `segmentation/prior.py`, tails from `segmentation/quota.py`, verdicts from
`segmentation/masks.py`. What the verdicts certify goes first; then, to reach a number of tokens, what costs least a
token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd

from benchmarks.headline_arms import Cut, Ints, rank_counts, row_of
from dynamix.config import MaskConfig
from dynamix.features.recency import BUCKETS, EDGES
from dynamix.models.batch import ITEM_MATCH
from dynamix.models.dataset import JaggedRows
from dynamix.segmentation.boost import Boost, boosts
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.effects import curvature, effect, loss
from dynamix.segmentation.masks import Protection, Verdict, judge
from dynamix.segmentation.prior import expected_losses
from dynamix.segmentation.quota import Quota, cuts_of, tail


@dataclass(frozen=True)
class Decided:
    """What the product decides on these statistics: verdicts, kept cells that are cut to their newest events, boosts."""

    statistics: Statistics
    verdicts: Sequence[Verdict]
    quotas: Sequence[Quota]
    boosts: Mapping[Cell, Boost] = field(default_factory=dict)

    @classmethod
    def of(
        cls, statistics: Statistics, config: MaskConfig, protected: Sequence[str], *, base: int
    ) -> Decided:
        verdicts = judge(statistics, config, protection=Protection(frozenset(protected)))
        cuts = cuts_of(statistics, verdicts, config)
        longer = boosts(statistics, verdicts, cuts, config, base=base)
        return cls(statistics, verdicts, list(cuts.values()), longer)

    @property
    def dropped(self) -> set[Cell]:
        return {(v.segment_id, v.stream) for v in self.verdicts if v.verdict == "drop"}

    @property
    def protected(self) -> set[Cell]:
        failed = [v for v in self.verdicts if any(c.rule == "protected" and not c.passed for c in v.checks)]
        return {(v.segment_id, v.stream) for v in failed}

    @property
    def staying(self) -> set[Cell]:
        """Cells never dropped whole: protected ones, and the most relevant one of each segment."""
        best: dict[int, Verdict] = {}
        for v in self.verdicts:
            if v.segment_id not in best or v.effect.relevance > best[v.segment_id].effect.relevance:
                best[v.segment_id] = v
        return self.protected | {(v.segment_id, v.stream) for v in best.values()}


@dataclass(frozen=True)
class Priced:
    """A cell cut to its newest `events`: what the prior of all cells expects it to cost, and the tokens that go."""

    cell: Cell
    events: int
    loss: float
    tokens: float


def as_decided(decided: Decided, ids: Mapping[str, int]) -> list[Cut]:
    """Exactly the product's mask."""
    dropped = [Cut(g, ids[f]) for g, f in sorted(decided.dropped)]
    return dropped + [Cut(q.segment_id, ids[q.stream], q.events) for q in decided.quotas]


def with_boosts(
    decided: Decided, ids: Mapping[str, int], *, base: Mapping[str, int], segments: int
) -> list[Cut]:
    """The product's mask on collected rows: cells without a boost keep at most their `base` (stream -> events)."""
    cells = [(g, f) for g in range(segments) for f in ids if (g, f) not in decided.boosts]
    return [Cut(g, ids[f], base[f]) for g, f in cells] + as_decided(decided, ids)


def removal(decided: Decided, ids: Mapping[str, int]) -> list[Cut]:
    """Whole cells: the certified drops first, shown non-monotone cells last, each by expected loss a token."""
    stays, dropped, bent = decided.staying, decided.dropped, non_monotone(decided.statistics)
    options = [p for p in whole_cells(decided.statistics) if p.cell not in stays]
    options.sort(key=lambda p: (p.cell not in dropped, p.cell in bent, p.loss / p.tokens, p.cell))
    return [Cut(p.cell[0], ids[p.cell[1]]) for p in options]


def removal_and_quota(decided: Decided, ids: Mapping[str, int]) -> list[Cut]:
    """Cells and tails of cells: the product's own mask first, then along each cell's convex hull of loss by tokens.

    Shown non-monotone cells come last, whole: a tail's loss does not see curvature.
    """
    stays, bent = decided.staying, non_monotone(decided.statistics)
    whole = {p.cell: p for p in whole_cells(decided.statistics)}
    by_cell: dict[Cell, list[Priced]] = {c: [p] for c, p in whole.items() if c not in stays | bent}
    for p in tails(decided.statistics):
        if p.cell not in bent | decided.protected and p.tokens > 0:
            by_cell.setdefault(p.cell, []).append(p)
    steps = sorted((price, cell, p.events) for cell, own in by_cell.items() for price, p in convex_steps(own))
    last = sorted((whole[c].loss / whole[c].tokens, c, 0) for c in bent - stays if c in whole)
    return as_decided(decided, ids) + [Cut(c[0], ids[c[1]], events) for _, c, events in (*steps, *last)]


def by_relevance(decided: Decided, ids: Mapping[str, int]) -> list[Cut]:
    """Whole cells, the least relevant first, whatever they cost in tokens: maximum relevance on the same statistics."""
    order = sorted(decided.verdicts, key=lambda v: (v.effect.relevance, v.stream))
    stays = decided.staying
    return [Cut(v.segment_id, ids[v.stream]) for v in order if (v.segment_id, v.stream) not in stays]


def whole_cells(statistics: Statistics) -> list[Priced]:
    """Every cell with tokens, at its expected loss under the head for which it is greatest."""
    found: dict[Cell, Priced] = {}
    for head in statistics.heads:
        sums = {c: s for c, s in sorted(statistics.by_cell(head).items()) if s.tokens > 0}
        means = expected_losses([loss(s) for s in sums.values()], [s.w for s in sums.values()])[0]
        for (cell, own), mean in zip(sums.items(), means, strict=True):
            if cell not in found or mean > found[cell].loss:
                found[cell] = Priced(cell, 0, float(mean), own.tokens)
    return [found[c] for c in sorted(found)]


def tails(statistics: Statistics) -> list[Priced]:
    """Every cell cut to its newest 3, 10 or 30 events, at its expected loss under the head for which it is greatest."""
    found: dict[tuple[Cell, int], Priced] = {}
    for head in statistics.heads:
        found_sums = ((c, statistics.by_recency(c, head)) for c in statistics.cells)
        own = [(c, k, s) for c, s in found_sums if s is not None for k in range(1, BUCKETS)]
        cut = [tail(s, k) for _, k, s in own]
        means = expected_losses([t.quadratic for t in cut], [s.w for _, _, s in own])[0]
        for (cell, k, _), t, mean in zip(own, cut, means, strict=True):
            if (cell, k) not in found or mean > found[cell, k].loss:
                found[cell, k] = Priced(cell, EDGES[k - 1], float(mean), t.tokens)
    return [found[key] for key in sorted(found)]


def convex_steps(options: Sequence[Priced]) -> list[tuple[float, Priced]]:
    """Cuts of one cell on the lower convex hull of loss by tokens, each with the loss it adds a token, cheapest first."""
    start = Priced(options[0].cell, EDGES[-1], 0.0, 0.0)
    path = [start]
    for option in sorted(options, key=lambda p: (p.tokens, p.loss)):
        if option.tokens <= path[-1].tokens:
            continue
        while len(path) > 1 and _slope(path[-2], path[-1]) >= _slope(path[-1], option):
            path.pop()
        path.append(option)
    return [(_slope(a, b), b) for a, b in pairwise(path)]


def _slope(a: Priced, b: Priced) -> float:
    return (b.loss - a.loss) / (b.tokens - a.tokens)


def non_monotone(statistics: Statistics) -> set[Cell]:
    """Cells whose squared dwell is shown to matter, which no expected loss sees."""
    found = set()
    for head in statistics.heads:
        for cell, sums in statistics.by_cell(head).items():
            if curvature(sums, deff=effect(sums).deff).lcb > 0:
                found.add(cell)
    return found


def oracle(
    cells: pd.DataFrame, rows: JaggedRows, segment: Ints, ids: Mapping[str, int], *, delta: float
) -> tuple[list[Cut], int]:
    """Cells of the planted segments by true loss a token, and how many of the first lie under δ.

    `cells` is truth_cells, `segment` (R,) the planted segment of each row. A size is in log-odds per SD: of the
    dwell over the planted horizon, of its square, or of having an event on the candidate's item. The loss of a
    cell is half its squared size in each row of its segment, up to a factor that all cells share.
    """
    held = rank_counts(rows, segment).sum(axis=2)
    size = np.bincount(segment, minlength=len(held))
    hit = match_rates(rows, segment)
    found = []
    for c in cells.itertuples():
        g, f = int(c.segment), ids.get(str(c.stream), -1)
        if f < 0 or g >= held.shape[0] or f >= held.shape[1] or not held[g, f]:
            continue
        q = hit[g, f]
        square = float(c.beta) ** 2 + float(c.u) ** 2 + float(c.match) ** 2 * q * (1 - q)
        found.append((square >= delta**2, square * size[g] / held[g, f], Cut(g, f)))
    found.sort(key=lambda one: (one[0], one[1], one[2].segment, one[2].stream))
    return [cut for _, _, cut in found], sum(not large for large, _, _ in found)


def match_rates(rows: JaggedRows, segment: Ints) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Share of a segment's rows that have an event of the stream on the candidate's item (G, F)."""
    shape = (1 + int(segment.max(initial=0)), 1 + int(rows.stream.max(initial=0)))
    on_item = np.flatnonzero(rows.match & ITEM_MATCH)
    pairs = np.unique(row_of(rows)[on_item] * shape[1] + rows.stream[on_item])
    cell = segment[pairs // shape[1]] * shape[1] + pairs % shape[1]
    hits = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    return hits / np.maximum(np.bincount(segment, minlength=shape[0]), 1)[:, None]
