"""Which attributes the events of a kept cell can do without: dwell, item, recency, by the channels they stand behind.

An attribute goes where its channels are negligible given what stays of the cell, on all users, and where the loss,
added to that of drops and quotas, keeps within the NE budget on users that did not choose it (docs/method.md A.8.1).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from dynamix.config import MaskConfig
from dynamix.contracts import COLD_SEGMENT
from dynamix.features.exposure import OWN
from dynamix.features.recency import BUCKETS, EDGES, SHARED, WHOLE_STREAM, RecencySums, columns_of
from dynamix.segmentation.bounds import cell_budget, of_entropy
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.effects import block_test, curvature, effect, given_rest
from dynamix.segmentation.masks import Verdict
from dynamix.segmentation.quota import Part, Quota, Spent, cross_fitted, rate_of, tail
from dynamix.segmentation.robustness import flip

Ints = npt.NDArray[np.int64]
CHANNELS_OF: Mapping[str, tuple[str, ...]] = {
    "dwell": ("dwell", "censored"), "item": ("match",), "recency": ("recency",),
}  # fmt: skip
"""Channels that are empty without the attribute, the one that speaks for it first. Category has none: it always stays."""


@dataclass(frozen=True)
class Lost(Part):
    """What some attributes of a cell tell: its positives are label-1 impressions that have the stream."""

    attributes: tuple[str, ...]


@dataclass(frozen=True)
class Without:
    """The decision on one kept cell: the attributes that its events lose, and a sentence with the loss."""

    segment_id: int
    stream: str
    attributes: tuple[str, ...]
    tokens: float
    """Kept events that lose them, of all impressions."""
    ucb: float
    budget: float
    """Upper bound of the loss and what a cell may cost, fractions of H."""
    reason: str


def lost(sums: RecencySums, attributes: Sequence[str], kept: int = BUCKETS) -> Lost:
    """Block test of the channels of `attributes`, given all others of the cell's `kept` newest buckets (1 .. 4)."""
    own = np.concatenate([_columns(channel, kept) for name in attributes for channel in CHANNELS_OF[name]])
    return _tested(sums, attributes, own, kept)


def after_cuts(statistics: Statistics, spent: Spent, cuts: Mapping[Cell, Quota]) -> Spent:
    """What drops and quotas cost together on each half of the users."""
    loss = {}
    for (head, half), (total, scale) in spent.loss.items():
        for cell, cut in sorted(cuts.items()):
            sums, kept = statistics.by_recency(cell, head, half=half), _buckets(cut)
            if sums is not None and kept < BUCKETS:
                total = total + tail(sums, kept).quadratic
        loss[head, half] = total, scale
    return Spent(loss)


def dispensable(
    statistics: Statistics, verdicts: Sequence[Verdict], config: MaskConfig, *, spent: Spent,
    cuts: Mapping[Cell, Quota], never: Collection[Cell] = (),
) -> list[Without]:  # fmt: skip
    """Attributes that kept cells lose, sorted by segment and stream; a cell that is not listed keeps all.

    `verdicts` and `cuts` are those of the keep rule and the quota rule on the same impressions, `spent` what both cost
    (`after_cuts`). A cell loses the largest set of attributes that has support and is negligible on all users, as
    far as the joint bound affords it, for every head; of segment 0, what every other segment loses or drops, too. An
    attribute whose channel holds nothing is never lost. Cells of `never` and boosted cells keep all: no channel reads
    what lies beyond the base.
    """
    kept = {cell: _buckets(cut) for cell, cut in cuts.items()}
    judged = [
        v for v in verdicts if v.verdict not in ("drop", "boost") and (v.segment_id, v.stream) not in never
    ]
    open_ = _open(statistics, judged, config, kept)
    gone = {cell: set(names) for cell, names in open_.items()}
    for head in statistics.heads:
        affordable = _affordable(statistics, head, open_, config, kept, spent)
        for cell, names in open_.items():
            sums = statistics.by_recency(cell, head)
            own = None if sums is None else _largest_set(sums, names, kept.get(cell, BUCKETS), config)
            gone[cell] &= set(affordable.get(cell, ())) & set(own.attributes if own else ())
    dropped = {(v.segment_id, v.stream) for v in verdicts if v.verdict == "drop"}
    _spare_cold(gone, dropped, statistics)
    found = [
        _say(statistics, cell, sorted(names), kept.get(cell, BUCKETS), config)
        for cell, names in sorted(gone.items())
        if names
    ]
    return [one for one in found if one.ucb <= one.budget]


def _spare_cold(gone: dict[Cell, set[str]], dropped: Collection[Cell], statistics: Statistics) -> None:
    """Leave segment 0 what another segment that has the stream keeps of it (docs/method.md A.10)."""
    head = statistics.heads[0]
    for cell in statistics.cells:
        cold = gone.get((COLD_SEGMENT, cell[1]))
        if cold and cell[0] != COLD_SEGMENT and cell not in dropped:
            sums = statistics.of(cell, head)
            if sums is not None and sums.tokens:
                cold &= gone.get(cell, set())


def _buckets(cut: Quota) -> int:
    """Buckets that stay of a cut cell."""
    return EDGES.index(cut.events) + 1 if cut.events in EDGES else BUCKETS


def _columns(channel: str, kept: int) -> Ints:
    """Places of a channel among the values of `RecencySums`: one of the whole stream, or one in each kept bucket."""
    if channel in WHOLE_STREAM:
        return np.array([SHARED + WHOLE_STREAM.index(channel)])
    return np.array([columns_of(bucket)[OWN.index(channel)] for bucket in range(kept)])


def _tested(sums: RecencySums, attributes: Sequence[str], own: Ints, kept: int) -> Lost:
    near = np.arange(SHARED + len(WHOLE_STREAM) + kept * len(OWN))
    quadratic, dof = block_test(*given_rest(sums, own, np.setdiff1d(near, own)), sums.w)
    return Lost(
        float(sums.with_bucket[0]), float(sums.tokens[:kept].sum()), quadratic,
        quadratic.trace / dof if dof else 1.0, of_entropy(sums.n, sums.positives), tuple(attributes),
    )  # fmt: skip


def _open(
    statistics: Statistics, verdicts: Sequence[Verdict], config: MaskConfig, kept: Mapping[Cell, int]
) -> dict[Cell, tuple[str, ...]]:
    """Attributes that may be judged, of cells that are not protected, worth it, and without contradictions."""
    found = {}
    for v in verdicts:
        cell = v.segment_id, v.stream
        barred = any(not c.passed for c in v.checks if c.rule in ("protected", "tokens"))
        if barred or flip(statistics, cell, config) is not None:
            continue
        names = [
            name for name in CHANNELS_OF
            if all(_is_told(statistics, cell, head, name, kept.get(cell, BUCKETS)) for head in statistics.heads)
            and not (name == "dwell" and _may_bend(statistics, cell, config))
        ]  # fmt: skip
        if names:
            found[cell] = tuple(names)
    return found


def _is_told(statistics: Statistics, cell: Cell, head: str, name: str, kept: int) -> bool:
    """Whether the attribute's own channel holds anything beside the rest of the cell, in both halves of the users.

    Where it does not, the attribute may still say what no channel reads: dwells without a scale, items that never recur.
    """
    halves = (statistics.by_recency(cell, head, half=half) for half in (0, 1))
    own = _columns(CHANNELS_OF[name][0], kept)
    return all(sums is not None and _tested(sums, (name,), own, kept).quadratic.trace > 0 for sums in halves)


def _may_bend(statistics: Statistics, cell: Cell, config: MaskConfig) -> bool:
    """Whether the squared dwell may matter under any head; the channels by recency are linear."""
    for head in statistics.heads:
        sums = statistics.of(cell, head)
        if sums is not None:
            bend = curvature(sums, deff=effect(sums).deff)
            if bend.ucb > cell_budget(rate_of(sums), config.delta):
                return True
    return False


def _largest_set(
    sums: RecencySums, names: Sequence[str], kept: int, config: MaskConfig, *, bounded: bool = True
) -> Lost | None:
    """The largest set among `names` that has support and a negligible loss, of equal ones the least; None without one.

    `bounded` as in `Part`.
    """
    budget = cell_budget(rate_of(sums), config.delta)
    for number in range(len(names), 0, -1):
        found = [lost(sums, some, kept) for some in combinations(names, number)]
        fits = [x for x in found if x.may_go(config, budget, bounded=bounded)]
        if fits:
            return min(fits, key=lambda x: (x.ucb if bounded else x.relevance, x.attributes))
    return None


def _affordable(
    statistics: Statistics, head: str, open_: Mapping[Cell, tuple[str, ...]], config: MaskConfig,
    kept: Mapping[Cell, int], spent: Spent,
) -> dict[Cell, Collection[str]]:  # fmt: skip
    """Attributes by cell whose loss, added to that of drops and quotas, keeps within the budget."""
    taken = cross_fitted(
        statistics, head, open_, config, spent,
        name=lambda cell, sums: _largest_set(sums, open_[cell], kept.get(cell, BUCKETS), config, bounded=False),
        same=lambda cell, sums, named: lost(sums, named.attributes, kept.get(cell, BUCKETS)),
        saves=lambda found: max(found.tokens, 1.0) * len(found.attributes),
    )  # fmt: skip
    return {cell: found.attributes for cell, found in taken.items()}


def _say(statistics: Statistics, cell: Cell, names: Sequence[str], kept: int, config: MaskConfig) -> Without:
    """The sentence of the head under which what goes may cost most of the cell's budget."""
    by_head = {
        head: sums for head in statistics.heads if (sums := statistics.by_recency(cell, head)) is not None
    }
    own = {head: lost(sums, names, kept) for head, sums in by_head.items()}
    budgets = {h: cell_budget(rate_of(s), config.delta) for h, s in by_head.items()}
    head = max(own, key=lambda h: own[h].ucb - budgets[h])
    unmeasured = "; what single items tell beyond a match is not measured" if "item" in names else ""
    return Without(
        cell[0], cell[1], tuple(names), own[head].tokens, own[head].ucb, budgets[head],
        f"without {' and '.join(names)}: beside what stays they explain at most {100 * own[head].ucb:.3f} % of H "
        f"(budget {100 * budgets[head]:.3f} % a cell){unmeasured}",
    )  # fmt: skip
