"""The joint cross-fitted bound: a set of cells whose total loss keeps the NE budget on users that did not choose it.

Cells of a segment stand in an order, and each counts with what it adds to those before it. The cells that go are the
last of that order, so their losses add up to what leaving all of them out costs beside the streams that stay; of two
copies the second is free and the first is not (docs/method.md A.7 rule 3, E16).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from dynamix.config import MaskConfig
from dynamix.features.relevance import CellSums
from dynamix.segmentation.bounds import Quadratic, cell_budget, entropy
from dynamix.segmentation.cells import BOTH, Cell, Statistics, population
from dynamix.segmentation.effects import loss
from dynamix.segmentation.power import expected
from dynamix.segmentation.prior import expected_losses
from dynamix.segmentation.selection import along, greedy

SHOWN_SHARE = 0.25
"""An effect shown by the ordering half counts from this share of the cell's budget on; below it may go."""
LEAST_CHANCE = 0.2
"""A cell counts towards the total if, were it null, its own bound would hold with at least this chance."""
Order = Mapping[int, tuple[str, ...]]
"""Streams of each segment, the first to stay first; segments that are judged cell by cell are not in it."""


@dataclass(frozen=True)
class Joint:
    """What the joint bound certifies: cells, the upper bound of their total loss by head (fraction of H), the order."""

    cells: frozenset[Cell]
    loss: Mapping[str, float]
    order: Order


Wanted = Callable[[Joint], Collection[Cell]]
"""Cells of a certified set that their own evidence lets go as well."""


def joint_bound(
    statistics: Statistics, config: MaskConfig, *, eligible: frozenset[Cell], wanted: Wanted,
    first: Collection[Cell] = (),
) -> Joint:  # fmt: skip
    """A set of cells whose total loss is bounded by the budget, for every head, on users that did not choose them.

    One half of the users leaves out the cells whose effect it shows to be of weight, and orders the others by expected
    loss per token, the cheapest first (segmentation/prior.py); effects are those beside the cells before (`losses`),
    after a greedy choice of maximum relevance. On the other half the quadratic statistics are added along that
    fixed order; the upper bound of their sum over 2·N·H of that half must stay within the budget, up to the
    first failure. The halves swap, and the set with fewer `wanted` tokens is published.
    `eligible` may rest only on rules that read no effect: a cell that entered because all users together show
    little of it would carry that luck into the half that bounds (docs/method.md A.7 rule 3). Cells of `first` stand
    before all others of their segment.
    """
    sets = [_certified(statistics, config, eligible, first, order_on=half) for half in (0, 1)]
    return min(sets, key=lambda joint: (_tokens(statistics, wanted(joint)), -max(joint.loss.values())))


def losses(statistics: Statistics, head: str, *, half: int, order: Order) -> dict[Cell, Quadratic]:
    """What each cell adds to those before it in its segment's order, or alone where the segment is not in `order`."""
    found: dict[Cell, Quadratic] = {}
    for segment, streams in order.items():
        sums = statistics.all_streams(segment, head, half=half)
        if sums is not None:
            added = along(sums, [statistics.place[stream] for stream in streams])
            found |= {(segment, stream): q for stream, q in zip(streams, added, strict=True)}
    alone = statistics.by_cell(head, half=half)
    return found | {cell: loss(sums) for cell, sums in alone.items() if cell[0] not in order}


@dataclass(frozen=True)
class _Side:
    """One half of the users: sums by head and cell, and 2NH by head."""

    statistics: Statistics
    half: int
    sums: Mapping[str, Mapping[Cell, CellSums]]
    scale: Mapping[str, float]

    @classmethod
    def of(cls, statistics: Statistics, half: int) -> _Side:
        sums = {head: statistics.by_cell(head, half=half) for head in statistics.heads}
        return cls(statistics, half, sums, {head: _scale(own) for head, own in sums.items()})

    def losses(self, head: str, order: Order) -> dict[Cell, Quadratic]:
        return losses(self.statistics, head, half=self.half, order=order)


def _certified(
    statistics: Statistics, config: MaskConfig, eligible: frozenset[Cell], first: Collection[Cell], *, order_on: int
) -> Joint:  # fmt: skip
    ordering, bounding = (_Side.of(statistics, half) for half in (order_on, 1 - order_on))
    cells = sorted(eligible.intersection(*ordering.sums.values(), *bounding.sums.values()))
    price, order = _priced(ordering, config, cells, first)
    own = {head: bounding.losses(head, order) for head in statistics.heads}
    total = dict.fromkeys(own, Quadratic())
    bound = dict.fromkeys(own, 0.0)
    taken: list[Cell] = []
    for cell in sorted(price, key=lambda c: (price[c], c)):
        total = {head: total[head] + own[head][cell] for head in own}
        upper = {
            h: total[h].upper() / scale if scale else float("inf") for h, scale in bounding.scale.items()
        }
        if max(upper.values()) > config.ne_budget:
            break
        taken.append(cell)
        bound = upper
    return Joint(frozenset(taken), bound, order)


def _priced(
    side: _Side, config: MaskConfig, cells: list[Cell], first: Collection[Cell]
) -> tuple[dict[Cell, float], Order]:
    """Expected loss per token of the cells that the half does not show to matter, and the order that follows.

    Judged twice: in the order of the greedy choice, then with those shown to matter in the reverse of it. Where a copy
    was chosen before its original by chance, the little that the original says more would keep both.
    """
    order = _greedy_order(side, cells, first)
    price = _prices(side, config, cells, order)
    if order:
        shown = [c for c in cells if c not in price and c not in first]
        price = _prices(side, config, cells, _turned(order, shown))
    price = _within_reach(side.statistics, config, price, _by_price(side.statistics, price, first))
    return price, _by_price(side.statistics, price, first)


def _within_reach(
    statistics: Statistics, config: MaskConfig, price: Mapping[Cell, float], order: Order
) -> dict[Cell, float]:
    """Without cells whose own bound on all users would hold with a chance below LEAST_CHANCE were they null.

    They hardly ever go, and their spread would use up the total before those that can. Of the quadratics only
    the spread is read, as by the support rule, so no luck of an effect gets into the half that bounds.
    """
    left = dict(price)
    for head in statistics.heads:
        found, sums = losses(statistics, head, half=BOTH, order=order), statistics.by_cell(head)
        for cell in price:
            q = found[cell]
            if q.trace > 0 and expected(q, LEAST_CHANCE).upper() > _allowance(sums[cell], config.delta):
                left.pop(cell, None)
    return left


def _prices(side: _Side, config: MaskConfig, cells: list[Cell], order: Order) -> dict[Cell, float]:
    """Expected loss per token, summed over heads as fractions of H, of cells that the half does not show to matter."""
    price = dict.fromkeys(cells, 0.0)
    for head, sums in side.sums.items():
        found, scale = side.losses(head, order), side.scale[head]
        expected = expected_losses([found[c] for c in cells], [sums[c].w for c in cells])[0]
        for cell, mean in zip(cells, expected, strict=True):
            q, tokens = found[cell], sums[cell].tokens
            shown = q.lower() > 0 and q.estimate > SHOWN_SHARE * _allowance(sums[cell], config.delta)
            if shown or tokens <= 0 or not scale:
                price.pop(cell, None)
            elif cell in price:
                price[cell] += float(mean) / scale / tokens
    return price


def _greedy_order(side: _Side, cells: list[Cell], first: Collection[Cell]) -> Order:
    """By segment: `first`, what is not among `cells`, then these by what each adds to those taken."""
    order, statistics = {}, side.statistics
    for segment, streams in judged_together(statistics).items():
        mine = {f for g, f in cells if g == segment and (g, f) not in first}
        fixed = sorted((f for f in streams if f not in mine), key=lambda f: ((segment, f) not in first, f))
        sums = [statistics.all_streams(segment, head, half=side.half) for head in statistics.heads]
        place = {f: statistics.place[f] for f in streams}
        names = {i: f for f, i in place.items()}
        taken = greedy(
            [own for own in sums if own is not None],
            sorted(place[f] for f in mine),
            start=[place[f] for f in fixed],
        )
        order[segment] = (*fixed, *[names[f] for f in taken])
    return order


def _turned(order: Order, shown: Collection[Cell]) -> Order:
    """The order with its cells among `shown` turned around, where the first of them stands."""
    turned = {}
    for segment, streams in order.items():
        own = [f for f in streams if (segment, f) in shown]
        rest = [f for f in streams if (segment, f) not in shown]
        fixed = next((i for i, f in enumerate(streams) if f in own), len(rest))
        turned[segment] = (*rest[:fixed], *own[::-1], *rest[fixed:])
    return turned


def _by_price(statistics: Statistics, price: Mapping[Cell, float], first: Collection[Cell]) -> Order:
    """By segment: `first`, what has no price, then the dearest first."""

    def rank(cell: Cell) -> tuple[bool, bool, float]:
        return cell not in first, cell in price, -price.get(cell, 0.0)

    return {
        segment: tuple(f for _, f in sorted(sorted(((segment, f) for f in streams), reverse=True), key=rank))
        for segment, streams in judged_together(statistics).items()
    }


def judged_together(statistics: Statistics) -> dict[int, list[str]]:
    """Streams of each segment whose streams are judged beside each other."""
    found: dict[int, list[str]] = {}
    for segment, stream in statistics.cells:
        found.setdefault(segment, []).append(stream)
    head = statistics.heads[0]
    return {g: streams for g, streams in found.items() if statistics.all_streams(g, head, half=0) is not None}


def _scale(sums: Mapping[Cell, CellSums]) -> float:
    """2NH over all segments."""
    n, rate = population(sums)
    return 2.0 * n * entropy(rate)


def _allowance(sums: CellSums, delta: float) -> float:
    """The cell's budget in units of the quadratic statistic: ε_cell · 2nH."""
    rate = sums.positives / sums.n
    return cell_budget(rate, delta) * 2.0 * sums.n * entropy(rate)


def _tokens(statistics: Statistics, cells: Collection[Cell]) -> float:
    found = (statistics.of(cell, statistics.heads[0]) for cell in sorted(cells))
    return sum(s.tokens for s in found if s is not None)
