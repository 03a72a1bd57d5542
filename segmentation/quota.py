"""How long a history each kept cell needs: the older part of a stream goes where its loss is bounded.

A quota of q keeps the newest q events of a stream. What lies beyond is judged as a cell is: its exposures by bucket
of recency, given the newer buckets and all that stays known, must be negligible on all users, and together
with everything dropped within the NE budget on users that did not choose it (docs/method.md A.8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dynamix.config import MaskConfig
from dynamix.features.recency import BUCKETS, EDGES, SHARED, WHOLE_STREAM, RecencySums, columns_of
from dynamix.features.relevance import CellSums
from dynamix.segmentation.bounds import Quadratic, cell_budget, entropy, of_entropy, support_needed
from dynamix.segmentation.cells import Cell, Statistics, population
from dynamix.segmentation.certify import judged_together, losses
from dynamix.segmentation.effects import block_test, given_rest
from dynamix.segmentation.masks import Verdict
from dynamix.segmentation.prior import expected_losses

_ALWAYS = SHARED + len(WHOLE_STREAM)


@dataclass(frozen=True)
class Part:
    """What a part of a cell tells, given all that stays of it: loss with its upper bound as fractions of H."""

    positives: float
    """Label-1 impressions that have it."""
    tokens: float
    quadratic: Quadratic
    deff: float
    scale: float
    """From the quadratic to a fraction of H: 1/(2nH)."""

    @property
    def relevance(self) -> float:
        return self.scale * self.quadratic.estimate

    @property
    def ucb(self) -> float:
        return self.scale * self.quadratic.upper()

    def needed(self, config: MaskConfig) -> float:
        """Positives that a decision on it takes (A.7 rule 2)."""
        return support_needed(config.delta, self.deff, support=config.support)

    def may_go(self, config: MaskConfig, budget: float, *, bounded: bool) -> bool:
        """Whether it has support and tells at most `budget`, a fraction of H.

        `bounded` asks for the upper bound of the loss and full support, otherwise for its estimate and half of it.
        """
        supported = self.positives >= self.needed(config) * (1.0 if bounded else 0.5)
        return supported and (self.ucb if bounded else self.relevance) <= budget


@dataclass(frozen=True)
class Tail(Part):
    """What is older than the newest buckets of a cell: its positives are label-1 impressions that have an event in it."""

    kept: int
    """Buckets that stay."""


P = TypeVar("P", bound=Part)


@dataclass(frozen=True)
class Spent:
    """What the dropped cells cost on each half of the users: by (head, half) their quadratic and 1/(2nH)."""

    loss: Mapping[tuple[str, int], tuple[Quadratic, float]]

    def of(self, head: str, half: int) -> tuple[Quadratic, float]:
        """(quadratic of all drops, scale to a fraction of H) on that half."""
        return self.loss[head, half]

    @classmethod
    def by_drops(cls, statistics: Statistics, verdicts: Sequence[Verdict]) -> Spent:
        """From the verdicts of the keep rule and the statistics they rest on: beside the streams that stay."""
        gone = {(v.segment_id, v.stream) for v in verdicts if v.verdict == "drop"}
        order = {
            segment: tuple(sorted(streams, key=lambda f: ((segment, f) in gone, f)))
            for segment, streams in judged_together(statistics).items()
        }
        spent = {}
        for head in statistics.heads:
            for half in (0, 1):
                sums = statistics.by_cell(head, half=half)
                n, rate = population(sums)
                scale = 2.0 * n * entropy(rate)
                own = losses(statistics, head, half=half, order=order)
                costs = (own[cell] for cell in sorted(gone) if cell in own)
                spent[head, half] = sum(costs, Quadratic()), 1.0 / scale if scale else float("inf")
        return cls(spent)


@dataclass(frozen=True)
class Quota:
    """The decision on one kept cell: its newest `events`, and a sentence with the loss."""

    segment_id: int
    stream: str
    events: int
    tokens: float
    """Kept events that go, of all impressions."""
    ucb: float
    budget: float
    """Upper bound of the loss and what a cell may cost, fractions of H."""
    reason: str
    an_impression: float = 0.0
    """Kept events that go, of an impression of the segment."""


def tail(sums: RecencySums, kept: int) -> Tail:
    """Block test of all buckets beyond the `kept` newest (1 .. 3), given those and what all streams share.

    4 of `BeyondSums`: of what lies beyond the base.
    """
    near = np.concatenate([np.arange(_ALWAYS), *(columns_of(b) for b in range(kept))])
    own = np.concatenate([columns_of(b) for b in range(kept, len(sums.tokens))])
    quadratic, dof = block_test(*given_rest(sums, own, near), sums.w)
    return Tail(
        kept=kept,
        # an event of a farther bucket implies one of the nearest beyond
        positives=float(sums.with_bucket[kept]),
        tokens=float(sums.tokens[kept:].sum()),
        quadratic=quadratic,
        deff=quadratic.trace / dof if dof else 1.0,
        scale=of_entropy(sums.n, sums.positives),
    )


def older(statistics: Statistics, cell: Cell, events: int) -> float:
    """Kept events of a cell beyond its newest `events`, a number among EDGES."""
    sums = statistics.by_recency(cell, statistics.heads[0])
    return float(sums.tokens[EDGES.index(events) + 1 :].sum()) if sums is not None else 0.0


def rate_of(sums: RecencySums | CellSums) -> float:
    """Share of positives among the impressions of a cell's segment."""
    return sums.positives / sums.n if sums.n else 0.0


def quotas(
    statistics: Statistics, verdicts: Sequence[Verdict], config: MaskConfig, *, spent: Spent
) -> list[Quota]:
    """Quotas of kept cells, sorted by segment and stream; a cell that is not listed keeps its whole history.

    `verdicts` are those of the keep rule on the same impressions, `spent` what its drops cost. A cell is cut to the
    shortest history whose tail has support, matters in tokens and is negligible on all users, and that the joint
    bound affords. For several heads the longest quota counts.
    """
    open_ = [(v.segment_id, v.stream) for v in verdicts if v.verdict != "drop" and _may_be_cut(v)]
    floor = _token_floor(statistics, verdicts, config)
    keep: dict[Cell, int] = {}
    for head in statistics.heads:
        affordable = _affordable(statistics, head, open_, config, floor, spent)
        for cell in open_:
            sums = statistics.by_recency(cell, head)
            may_go = None if sums is None else _longest_tail(sums, config, floor[cell[0]], bounded=True)
            own = BUCKETS if may_go is None else may_go.kept
            keep[cell] = max(keep.get(cell, 0), own, affordable.get(cell, BUCKETS))
    return [_say(statistics, cell, kept, config) for cell, kept in sorted(keep.items()) if kept < BUCKETS]


def cuts_of(statistics: Statistics, verdicts: Sequence[Verdict], config: MaskConfig) -> dict[Cell, Quota]:
    """Kept cells whose older part goes after the drops of these verdicts; none under `length` full."""
    if config.length == "full":
        return {}
    spent = Spent.by_drops(statistics, verdicts)
    return {(q.segment_id, q.stream): q for q in quotas(statistics, verdicts, config, spent=spent)}


def _may_be_cut(verdict: Verdict) -> bool:
    """Not protected, and its dwell is no candidate for an effect without a slope, which tails cannot show."""
    return all(c.passed for c in verdict.checks if c.rule in ("protected", "curvature"))


def _token_floor(statistics: Statistics, verdicts: Sequence[Verdict], config: MaskConfig) -> dict[int, float]:
    """Tokens that a tail must have to be worth a decision, by segment: at least one."""
    tokens: dict[int, float] = {}
    for v in verdicts:
        sums = statistics.by_recency((v.segment_id, v.stream), statistics.heads[0])
        tokens[v.segment_id] = tokens.get(v.segment_id, 0.0) + (float(sums.tokens.sum()) if sums else 0.0)
    return {segment: max(1.0, config.min_token_share * n) for segment, n in tokens.items()}


def _longest_tail(sums: RecencySums, config: MaskConfig, floor: float, *, bounded: bool) -> Tail | None:
    """The longest tail that has tokens, support and a negligible effect; None where none has. `bounded` as in `Part`."""
    budget = cell_budget(rate_of(sums), config.delta)
    for kept in range(1, BUCKETS):
        found = tail(sums, kept)
        if found.tokens >= floor and found.may_go(config, budget, bounded=bounded):
            return found
    return None


def _affordable(
    statistics: Statistics, head: str, cells: Sequence[Cell], config: MaskConfig, floor: Mapping[int, float],
    spent: Spent,
) -> dict[Cell, int]:  # fmt: skip
    """Buckets that stay in the cuts whose loss, added to that of the drops, keeps within the budget."""
    taken = cross_fitted(
        statistics, head, cells, config, spent,
        name=lambda cell, sums: _longest_tail(sums, config, floor[cell[0]] / 2, bounded=False),
        same=lambda cell, sums, named: tail(sums, named.kept),
        saves=lambda found: found.tokens,
    )  # fmt: skip
    return {cell: found.kept for cell, found in taken.items()}


def cross_fitted(
    statistics: Statistics, head: str, cells: Iterable[Cell], config: MaskConfig, spent: Spent, *,
    name: Callable[[Cell, RecencySums], P | None], same: Callable[[Cell, RecencySums, P], P], saves: Callable[[P], float],
) -> dict[Cell, P]:  # fmt: skip
    """Parts of cells whose loss, added to what is `spent`, keeps within the budget.

    One half of the users names a part of each cell (`name`; None: nothing of it) and orders them by loss per what they
    save, the other bounds the `same` ones in that order up to the first failure; then the halves swap, and the set that
    `saves` less counts (as in `joint_bound`).
    """
    found = []
    for order_on in (0, 1):
        own: dict[Cell, P] = {}
        named: dict[Cell, P] = {}
        weight: list[float] = []
        for cell in cells:
            ordering, bounding = (
                statistics.by_recency(cell, head, half=half) for half in (order_on, 1 - order_on)
            )
            if ordering is None or bounding is None:
                continue
            may_go = name(cell, ordering)
            if may_go is not None:
                own[cell] = may_go
                named[cell] = same(cell, bounding, may_go)
                weight.append(ordering.w)
        expected = expected_losses([part.quadratic for part in own.values()], weight)[0]
        price = {
            cell: float(mean) / max(saves(named[cell]), 1.0) for cell, mean in zip(own, expected, strict=True)
        }
        total, scale = spent.of(head, 1 - order_on)
        taken: dict[Cell, P] = {}
        for cell in sorted(price, key=lambda c: (price[c], c)):
            total = total + named[cell].quadratic
            if total.upper() * scale > config.ne_budget:
                break
            taken[cell] = named[cell]
        found.append((sum(saves(part) for part in taken.values()), taken))
    return min(found, key=lambda pair: pair[0])[1]


def _say(statistics: Statistics, cell: Cell, kept: int, config: MaskConfig) -> Quota:
    sums = statistics.by_recency(cell, statistics.heads[0])
    assert sums is not None  # a quota comes from these sums
    found = tail(sums, kept)
    return Quota(
        cell[0], cell[1], EDGES[kept - 1], found.tokens, found.ucb, cell_budget(rate_of(sums), config.delta),
        f"its newest {EDGES[kept - 1]}: older ones, {found.tokens / sums.n:.2f} an impression, explain at most "
        f"{100 * found.ucb:.3f} % of H", found.tokens / sums.n,
    )  # fmt: skip
