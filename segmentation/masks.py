"""The keep rule: which cells may go under the NE budget, with every rule's number beside its limit.

A cell (segment × stream) is dropped iff for every head its own rules hold and it lies in the set that the
joint cross-fitted bound certifies; otherwise it stays, as `keep` where relevance is shown and as `undecided` where
neither can be shown. Source: docs/method.md A.7 with its amendments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from dynamix.config import MaskConfig
from dynamix.features.clustered import PackedSums
from dynamix.features.relevance import WHOLE, CellSums
from dynamix.segmentation.bounds import Quadratic, cell_budget, entropy, support_needed
from dynamix.segmentation.effects import Curvature, Effect, curvature, effect, loss, shrink
from dynamix.segmentation.prior import expected_losses

Cell = tuple[int, str]
"""(segment_id, stream)"""
BOTH = 2
Z95 = 1.645
EFFECT_RULES = ("block", "equivalence", "curvature", "windows")
SHOWN_SHARE = 0.25
"""An effect shown by the ordering half counts from this share of the cell's budget on; below it may go."""
MIN_STREAMS = 1
"""k_min: the most relevant streams of a segment that always stay."""


Sums = TypeVar("Sums", bound=PackedSums)


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
    """Everything the rule reads: sums by (segment, stream), head, half (0, 1) and window (WHOLE, 0, 1, 2)."""

    sums: Mapping[tuple[int, str, str, int, int], CellSums]
    heads: tuple[str, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(sorted({(g, f) for g, f, *_ in self.sums}))

    def of(self, cell: Cell, head: str, *, half: int = BOTH, window: int = WHOLE) -> CellSums | None:
        """Sums of one cell; both halves added when `half` is BOTH. None where there is no impression."""
        return of_halves(half, lambda h: self.sums.get((*cell, head, h, window)))

    def by_cell(self, head: str, *, half: int = BOTH) -> dict[Cell, CellSums]:
        """Sums of every cell that has any under this head."""
        return {c: s for c in self.cells if (s := self.of(c, head, half=half)) is not None}

    def pooled(self) -> Statistics:
        """The same with all segments as one (segment id 0): for the control `global`.

        A user who changed segment counts as one cluster per segment, which leaves the variance a little low.
        """
        return Statistics(in_one_segment(self.sums), self.heads)


@dataclass(frozen=True)
class Check:
    """One rule of one cell: the value, the limit it must keep, and whether it does."""

    rule: str
    value: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class Evidence:
    """A cell under one head: block test, curvature, shrunken dwell effect and the rules it was held to."""

    effect: Effect
    curvature: Curvature
    dwell_mean: float
    dwell_sd: float
    checks: tuple[Check, ...]

    def failed(self) -> list[Check]:
        return [c for c in self.checks if not c.passed]

    @property
    def effect_decides(self) -> bool:
        """True where every rule that does not read the effect is kept."""
        return not any(c.rule not in EFFECT_RULES for c in self.failed())


@dataclass(frozen=True)
class Verdict:
    """The decision on a cell with its sentence; `evidence` is that of the head that decided."""

    segment_id: int
    stream: str
    verdict: str
    reason: str
    head: str
    effect: Effect
    tokens: float
    checks: tuple[Check, ...] = field(default=())


@dataclass(frozen=True)
class Protection:
    """Streams that may never be dropped, whatever the numbers say."""

    protected: frozenset[str] = frozenset()


def judge(
    statistics: Statistics, config: MaskConfig, *, protection: Protection = Protection()
) -> list[Verdict]:
    """One verdict per cell, sorted by segment and stream."""
    evidence = {head: examine(statistics, head, config, protection) for head in statistics.heads}
    passing = {c for c in statistics.cells if all(c in e and not e[c].failed() for e in evidence.values())}
    open_ = {c for c in statistics.cells if all(c in e and e[c].effect_decides for e in evidence.values())}
    bounds: dict[str, Joint] = {}
    for head in statistics.heads:
        bounds[head] = joint_bound(statistics, head, config, eligible=frozenset(open_), wanted=passing)
        passing &= bounds[head].cells
    dropped = passing - _most_relevant(evidence)
    return [
        _verdict(cell, statistics, {h: e[cell] for h, e in evidence.items()}, bounds, cell in dropped,
                 cell in passing, config)
        for cell in statistics.cells
    ]  # fmt: skip


def examine(
    statistics: Statistics, head: str, config: MaskConfig, protection: Protection
) -> dict[Cell, Evidence]:
    """Effects and rules of every cell under one head."""
    sums = statistics.by_cell(head)
    effects = {c: effect(s) for c, s in sums.items()}
    cells = sorted(effects)
    beta = np.array([effects[c].channels["dwell"].beta for c in cells])
    se = np.array([effects[c].channels["dwell"].se for c in cells])
    means, sds = shrink(beta, se)
    tokens: dict[int, float] = {}
    for (segment, _), s in sums.items():
        tokens[segment] = tokens.get(segment, 0.0) + s.tokens
    found = {}
    for cell, mean, sd in zip(cells, means, sds, strict=True):
        bend = curvature(sums[cell], deff=effects[cell].deff)
        share = sums[cell].tokens / tokens[cell[0]] if tokens[cell[0]] else 0.0
        limit = cell_budget(effects[cell].rate, config.delta)
        checks = _checks(
            effects[cell], bend, float(mean), float(sd), sums[cell], share, config,
            contradictions(statistics, cell, head, limit), cell[1] in protection.protected,
        )  # fmt: skip
        found[cell] = Evidence(effects[cell], bend, float(mean), float(sd), checks)
    return found


def _checks(
    e: Effect, bend: Curvature, mean: float, sd: float, sums: CellSums, share: float, config: MaskConfig,
    against: int, protected: bool,
) -> tuple[Check, ...]:  # fmt: skip
    budget = cell_budget(e.rate, config.delta)
    needed = support_needed(config.delta, e.deff, support=config.support)
    censored = sums.censored / sums.tokens if sums.tokens else 0.0
    worst = abs(mean) + Z95 * sd
    return (
        Check("protected", float(protected), 0.0, not protected),
        Check("tokens", share, config.min_token_share, share >= config.min_token_share),
        Check("censored", censored, config.max_censored_share, censored <= config.max_censored_share),
        Check("support", e.positives, needed, e.positives >= needed),
        Check("curvature", bend.ucb, budget, bend.ucb <= budget),
        Check("block", e.ucb, budget, e.ucb <= budget),
        Check("equivalence", worst, config.delta, worst < config.delta),
        Check("windows", float(against), 1.0, against <= 1),
    )


def contradictions(statistics: Statistics, cell: Cell, head: str, limit: float) -> int:
    """Thirds of the statistics period in which the relevance is shown to exceed `limit` (fraction of H)."""
    thirds = [statistics.of(cell, head, window=w) for w in (0, 1, 2)]
    return sum(effect(s).lcb > limit for s in thirds if s is not None and s.n > 0)


@dataclass(frozen=True)
class Joint:
    """What the joint bound certifies: the cells, and the upper bound of their total loss (fraction of H)."""

    cells: frozenset[Cell]
    loss: float


def joint_bound(
    statistics: Statistics, head: str, config: MaskConfig, *, eligible: frozenset[Cell], wanted: set[Cell]
) -> Joint:
    """A set of cells whose total loss is bounded by the budget on users that did not choose them.

    One half of the users leaves out the cells whose effect it shows to be of weight, and orders the others by expected
    loss per token, the cheapest first (segmentation/prior.py). On the other half the quadratic statistics are added
    along that fixed order; the upper bound of their sum over 2·N·H of that half must stay within the budget, up to the
    first failure. The halves swap, and the set with fewer `wanted` tokens is published.
    `eligible` may rest only on rules that read no effect: a cell that entered because all users together show
    little of it would carry that luck into the half that bounds (docs/method.md A.7 rule 3).
    """
    sets = [_certified(statistics, head, config, eligible, order_on=half) for half in (0, 1)]
    return min(sets, key=lambda joint: (_tokens(statistics, head, joint.cells & wanted), -joint.loss))


def _certified(
    statistics: Statistics, head: str, config: MaskConfig, eligible: frozenset[Cell], *, order_on: int
) -> Joint:
    price: dict[Cell, float] = {}
    losses: dict[Cell, Quadratic] = {}
    ordering, bounding = (statistics.by_cell(head, half=half) for half in (order_on, 1 - order_on))
    cells = sorted(eligible & ordering.keys() & bounding.keys())
    own = [ordering[cell] for cell in cells]
    quadratics = [loss(sums) for sums in own]
    expected = expected_losses(quadratics, [sums.w for sums in own])[0]
    for cell, sums, q, mean in zip(cells, own, quadratics, expected, strict=True):
        shown = q.lower() > 0 and q.estimate > SHOWN_SHARE * _allowance(sums, config.delta)
        if sums.tokens > 0 and not shown:
            price[cell] = float(mean) / sums.tokens
            losses[cell] = loss(bounding[cell])
    n, rate = population(bounding)
    scale = 2.0 * n * entropy(rate)
    taken: list[Cell] = []
    total, bound = Quadratic(), 0.0
    for cell in sorted(price, key=lambda c: (price[c], c)):
        total = total + losses[cell]
        upper = total.upper() / scale if scale else float("inf")
        if upper > config.ne_budget:
            break
        taken.append(cell)
        bound = upper
    return Joint(frozenset(taken), bound)


def _allowance(sums: CellSums, delta: float) -> float:
    """The cell's budget in units of the quadratic statistic: ε_cell · 2nH."""
    rate = sums.positives / sums.n
    return cell_budget(rate, delta) * 2.0 * sums.n * entropy(rate)


def _tokens(statistics: Statistics, head: str, cells: frozenset[Cell]) -> float:
    found = (statistics.of(cell, head) for cell in sorted(cells))
    return sum(s.tokens for s in found if s is not None)


def population(sums: Mapping[Cell, CellSums]) -> tuple[float, float]:
    """Impressions and base rate over all segments; the cells of a segment share its impressions."""
    segments: dict[int, CellSums] = {}
    for (segment, _), own in sorted(sums.items(), key=lambda item: item[0]):
        segments.setdefault(segment, own)
    n = sum(s.n for s in segments.values())
    return n, sum(s.positives for s in segments.values()) / n if n else 0.0


def _most_relevant(evidence: Mapping[str, Mapping[Cell, Evidence]]) -> set[Cell]:
    """The `MIN_STREAMS` cells of each segment with the greatest relevance under any head."""
    best: dict[int, dict[Cell, float]] = {}
    for by_cell in evidence.values():
        for cell, e in by_cell.items():
            own = best.setdefault(cell[0], {})
            own[cell] = max(own.get(cell, -np.inf), e.effect.relevance)
    return {c for own in best.values() for c in sorted(own, key=lambda c: (-own[c], c))[:MIN_STREAMS]}


def _verdict(
    cell: Cell, statistics: Statistics, evidence: Mapping[str, Evidence], bounds: Mapping[str, Joint],
    dropped: bool, passing: bool, config: MaskConfig,
) -> Verdict:  # fmt: skip
    head = max(evidence, key=lambda h: (evidence[h].effect.lcb, evidence[h].effect.ucb))
    e = evidence[head]
    sums = statistics.of(cell, head)
    tokens = sums.tokens / sums.n if sums is not None and sums.n else 0.0
    verdict, reason = _say(head, e, evidence, bounds, dropped, passing, cell, config)
    checks = (
        *e.checks,
        Check("total", bounds[head].loss, config.ne_budget, cell in bounds[head].cells),
    )
    return Verdict(cell[0], cell[1], verdict, reason, head, e.effect, tokens, checks)


def _say(
    head: str, e: Evidence, evidence: Mapping[str, Evidence], bounds: Mapping[str, Joint], dropped: bool,
    passing: bool, cell: Cell, config: MaskConfig,
) -> tuple[str, str]:  # fmt: skip
    pct = 100.0
    x = e.effect
    numbers = f"{x.positives:.0f} positives, relevance {pct * x.relevance:.3f} % of H"
    if dropped:
        limit = cell_budget(x.rate, config.delta)
        return "drop", (
            f"negligible: {numbers}, at most {pct * x.ucb:.3f} % (budget {pct * limit:.3f} % a cell, all drops "
            f"at most {pct * bounds[head].loss:.3f} % of {pct * config.ne_budget:.3f} %)"
        )
    failed = {c.rule: c for ev in evidence.values() for c in ev.failed()}
    if "protected" in failed:
        return "keep", f"protected: {numbers}"
    if passing:
        return "keep", f"most relevant stream of its segment: {numbers}"
    if e.curvature.lcb > 0 and x.lcb <= 0:
        return "keep", (
            f"non-monotone: squared dwell explains {pct * e.curvature.relevance:.3f} % of H, at least "
            f"{pct * e.curvature.lcb:.3f} %; {numbers}"
        )
    if x.lcb > 0:
        return "keep", f"{x.leading}: {numbers}, at least {pct * x.lcb:.3f} %, for {head}"
    return "undecided", _why_not(failed, cell, bounds, numbers, config)


def _why_not(
    failed: Mapping[str, Check], cell: Cell, bounds: Mapping[str, Joint], numbers: str, config: MaskConfig
) -> str:
    """The first rule that stands in the way, in the order in which more data or another setting would help."""
    texts = {
        "tokens": "too few tokens to matter: {v:.3%} of the segment's, {limit:.3%} is the least",
        "censored": "too often censored: {v:.0%} of its events, at most {limit:.0%}",
        "support": "too little support: {v:.0f} positives have the stream, {limit:.0f} are needed",
        "curvature": "may be non-monotone: up to {v:.3%} of H by squared dwell, budget {limit:.3%}",
        "block": "may matter: up to {v:.3%} of H, budget {limit:.3%}",
        "equivalence": "dwell may matter: effect up to {v:.3f} log-odds per SD, limit {limit:.3f}",
        "windows": "relevant in {v:.0f} of 3 windows, at most {limit:.0f}",
    }
    for rule, text in texts.items():
        if rule in failed:
            return f"{text.format(v=failed[rule].value, limit=failed[rule].limit)}; {numbers}"
    outside = [h for h, b in bounds.items() if cell not in b.cells]
    return (
        f"total budget: all drops together would not stay within {100 * config.ne_budget:.3f} % for "
        f"{', '.join(outside)}; {numbers}"
    )
