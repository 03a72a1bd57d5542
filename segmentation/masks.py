"""The keep rule: which cells may go under the NE budget, with every rule's number beside its limit.

A cell (segment × stream) is dropped iff for every head its own rules hold and it lies in the set that the
joint cross-fitted bound certifies; otherwise it stays, as `keep` where relevance is shown and as `undecided` where
neither can be shown. Source: docs/method.md A.7 with its amendments.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from dynamix.config import MaskConfig
from dynamix.contracts import COLD_SEGMENT
from dynamix.features.relevance import CellSums
from dynamix.segmentation.bounds import cell_budget, of_entropy, support_needed
from dynamix.segmentation.cells import BOTH, Cell, Statistics
from dynamix.segmentation.certify import Joint, joint_bound, losses
from dynamix.segmentation.effects import Curvature, Effect, curvature, effect, shrink
from dynamix.segmentation.robustness import Bounds, Flip, flip, lies_between_users, shown_by_recency
from dynamix.segmentation.selection import carrier

Z95 = 1.645
EFFECT_RULES = ("block", "equivalence", "curvature", "windows", "recency")
MIN_STREAMS = 1
"""k_min: the most relevant streams of a segment that always stay."""
REDUNDANT = "redundant: "
"""Begins the reason of a drop whose relevance other streams carry: alone, such a cell does tell."""
PROTECTED, COLD, MOST = "protected: ", "cold: ", "most relevant stream of its segment: "
"""Begin the reasons of cells that a rule keeps, whatever their relevance."""
CARRIED_SHARE = 0.5
"""A relevance that is shown is carried by other streams where at most this share of it is left beside them."""


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


@dataclass(frozen=True)
class Beside:
    """What a cell adds to the streams of its segment before it, under one head; fractions of H, all users together."""

    relevance: float
    ucb: float
    budget: float

    @property
    def check(self) -> Check:
        return Check("beside", self.ucb, self.budget, self.ucb <= self.budget)


Besides = Mapping[str, Mapping[Cell, Beside]]
"""By head, of the segments whose streams are judged beside each other."""


def judge(
    statistics: Statistics, config: MaskConfig, *, protection: Protection = Protection()
) -> list[Verdict]:
    """One verdict per cell, sorted by segment and stream."""
    evidence = {head: examine(statistics, head, config, protection) for head in statistics.heads}
    open_ = {c for c in statistics.cells if all(c in e and e[c].effect_decides for e in evidence.values())}
    most = _most_relevant(evidence)

    def wanted(joint: Joint) -> set[Cell]:
        return _negligible(joint.cells, evidence, beside_each_other(statistics, evidence, joint, config))

    joint = joint_bound(statistics, config, eligible=frozenset(open_), wanted=wanted, first=most)
    besides = beside_each_other(statistics, evidence, joint, config)
    passing = _negligible(joint.cells, evidence, besides)
    flips = {c: two for c in statistics.cells if (two := flip(statistics, c, config)) is not None}
    going = passing - most - flips.keys()
    spared = spared_cold(going, statistics)
    dropped = going - spared.keys()
    found = Findings(joint, besides, passing, dropped, flips, carriers(statistics, evidence, dropped), spared)
    return [
        _verdict(cell, statistics, {h: e[cell] for h, e in evidence.items()}, found, config)
        for cell in statistics.cells
    ]


@dataclass(frozen=True)
class Findings:
    """What is known of all cells together: the joint bound, relevance beside other streams, cells that pass every rule,
    those of them that go, attribution settings that contradict each other, what carries a redundant cell, and cells of
    the cold segment that another segment, named by its id, keeps."""

    joint: Joint
    besides: Besides
    passing: Collection[Cell]
    dropped: Collection[Cell]
    flips: Mapping[Cell, Flip]
    carriers: Mapping[Cell, str]
    spared: Mapping[Cell, int]

    def checks(self, cell: Cell, head: str) -> list[Check]:
        """The check beside other streams, where there is one."""
        own = self.besides[head].get(cell)
        return [own.check] if own else []


def beside_each_other(
    statistics: Statistics, evidence: Mapping[str, Mapping[Cell, Evidence]], joint: Joint, config: MaskConfig
) -> Besides:
    """Relevance of every cell beside those before it in the order of the joint bound, on all users."""
    if not joint.order:
        return {head: {} for head in evidence}
    found: dict[str, dict[Cell, Beside]] = {}
    for head, cells in evidence.items():
        own = losses(statistics, head, half=BOTH, order=joint.order)
        found[head] = {}
        for cell, e in cells.items():
            if cell[0] in joint.order:
                sums = statistics.all_streams(cell[0], head)
                scale = of_entropy(sums.n, sums.positives) if sums is not None else 0.0
                q, budget = own[cell], cell_budget(e.effect.rate, config.delta)
                found[head][cell] = Beside(scale * q.estimate, scale * q.upper(), budget)
    return found


def _negligible(
    cells: Collection[Cell], evidence: Mapping[str, Mapping[Cell, Evidence]], besides: Besides
) -> set[Cell]:
    """Cells that for every head are negligible: beside other streams, and alone unless those carry what they show."""
    return {
        cell
        for cell in cells
        if all(
            (cell not in besides[head] or besides[head][cell].check.passed)
            and (not e[cell].failed() or is_carried(e[cell], besides[head].get(cell)))
            for head, e in evidence.items()
        )
    }


def kept_by_rule(verdict: str, reason: str) -> bool:
    """Kept although its relevance is not shown: protected, cold, or the one stream that its segment has to keep."""
    return verdict == "keep" and reason.startswith((PROTECTED, COLD, MOST))


def is_carried(e: Evidence, beside: Beside | None) -> bool:
    """Relevance alone is shown, and little of it is left beside the streams before: they tell the same."""
    shown = e.effect_decides and e.effect.lcb > 0
    return shown and beside is not None and beside.relevance <= CARRIED_SHARE * e.effect.relevance


def spared_cold(going: Collection[Cell], statistics: Statistics) -> dict[Cell, int]:
    """Cells of segment 0 that would go although another segment keeps the stream: the first such segment.

    A cold user is one of another segment soon, so the own statistics of the cold are not enough (docs/method.md A.10).
    Where all users are in one segment, nothing is spared.
    """
    head = statistics.heads[0]
    held = [
        c for c in statistics.cells if c[0] != COLD_SEGMENT and (own := statistics.of(c, head)) and own.tokens
    ]
    keeping = {stream: segment for segment, stream in reversed(held) if (segment, stream) not in going}
    return {cell: keeping[cell[1]] for cell in going if cell[0] == COLD_SEGMENT and cell[1] in keeping}


def carriers(
    statistics: Statistics, evidence: Mapping[str, Mapping[Cell, Evidence]], dropped: Collection[Cell]
) -> dict[Cell, str]:
    """For each dropped cell that is not negligible alone: the kept stream beside which it says least."""
    found = {}
    for head, own in evidence.items():
        for cell in sorted(c for c in dropped if own[c].failed() and c not in found):
            sums = statistics.all_streams(cell[0], head)
            kept = [f for g, f in statistics.cells if g == cell[0] and (g, f) not in dropped]
            if sums is not None:
                place = {statistics.place[f]: f for f in kept}
                found[cell] = place[carrier(sums, statistics.place[cell[1]], list(place))]
    return found


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
        aged = statistics.by_recency(cell, head)
        checks = _checks(
            effects[cell], bend, float(mean), float(sd), sums[cell], share, config,
            contradictions(statistics, cell, head, limit), cell[1] in protection.protected,
            shown_by_recency(aged) if aged is not None else 0.0,
        )  # fmt: skip
        found[cell] = Evidence(effects[cell], bend, float(mean), float(sd), checks)
    return found


def _checks(
    e: Effect, bend: Curvature, mean: float, sd: float, sums: CellSums, share: float, config: MaskConfig,
    against: int, protected: bool, by_recency: float,
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
        Check("recency", by_recency, budget, by_recency <= budget),
    )


def contradictions(statistics: Statistics, cell: Cell, head: str, limit: float) -> int:
    """Thirds of the statistics period in which the relevance is shown to exceed `limit` (fraction of H)."""
    thirds = [statistics.of(cell, head, window=w) for w in (0, 1, 2)]
    return sum(effect(s).lcb > limit for s in thirds if s is not None and s.n > 0)


def _most_relevant(evidence: Mapping[str, Mapping[Cell, Evidence]]) -> set[Cell]:
    """The `MIN_STREAMS` cells of each segment with the greatest relevance under any head."""
    best: dict[int, dict[Cell, float]] = {}
    for by_cell in evidence.values():
        for cell, e in by_cell.items():
            own = best.setdefault(cell[0], {})
            own[cell] = max(own.get(cell, -np.inf), e.effect.relevance)
    return {c for own in best.values() for c in sorted(own, key=lambda c: (-own[c], c))[:MIN_STREAMS]}


def _verdict(
    cell: Cell, statistics: Statistics, evidence: Mapping[str, Evidence], found: Findings, config: MaskConfig
) -> Verdict:
    head = max(evidence, key=lambda h: (evidence[h].effect.lcb, evidence[h].effect.ucb))
    e = evidence[head]
    sums = statistics.of(cell, head)
    tokens = sums.tokens / sums.n if sums is not None and sums.n else 0.0
    verdict, reason = _say(head, cell, statistics, evidence, found, config)
    total = Check("total", found.joint.loss[head], config.ne_budget, cell in found.joint.cells)
    checks = (*e.checks, *found.checks(cell, head), total)
    return Verdict(cell[0], cell[1], verdict, reason, head, e.effect, tokens, checks)


def _say(
    head: str, cell: Cell, statistics: Statistics, evidence: Mapping[str, Evidence], found: Findings,
    config: MaskConfig,
) -> tuple[str, str]:  # fmt: skip
    e = evidence[head]
    x = e.effect
    numbers = f"{x.positives:.0f} positives, relevance {100 * x.relevance:.3f} % of H"
    failed = {
        c.rule: c
        for h, ev in evidence.items()
        for c in [*ev.failed(), *found.checks(cell, h)]
        if not c.passed
    }
    if cell in found.dropped:
        return "drop", _why_dropped(head, cell, x, found, numbers, config)
    if "protected" in failed:
        return "keep", f"{PROTECTED}{numbers}"
    if (flip := found.flips.get(cell)) is not None:
        return "undecided", (
            f"attribution: {flip.head} at least {100 * flip.at_least:.3f} % of H by setting {flip.matters}, at most "
            f"{100 * flip.at_most:.3f} % by {flip.negligible}; {numbers}"
        )
    if cell in found.spared:
        return "keep", f"{COLD}negligible here, but segment {found.spared[cell]} keeps the stream; {numbers}"
    if cell in found.passing:
        return "keep", f"{MOST}{numbers}"
    if e.curvature.lcb > 0 and x.lcb <= 0:
        return "keep", (
            f"non-monotone: squared dwell explains {100 * e.curvature.relevance:.3f} % of H, at least "
            f"{100 * e.curvature.lcb:.3f} %; {numbers}"
        )
    if (aged := failed.get("recency")) is not None and "block" not in failed:
        return (
            "keep",
            f"by recency: its newer and older events apart explain at least {aged.value:.3%} of H; {numbers}",
        )
    if x.lcb > 0:
        return "keep", _why_kept(x, numbers, head, lies_between_users(statistics, cell, head, config))
    return "undecided", _why_not(failed, cell, found.joint, numbers, config)


def _why_dropped(head: str, cell: Cell, x: Effect, found: Findings, numbers: str, config: MaskConfig) -> str:
    limit = 100 * cell_budget(x.rate, config.delta)
    spent = f"all drops at most {100 * found.joint.loss[head]:.3f} % of {100 * config.ne_budget:.3f} %"
    if cell in found.carriers:
        left = 100 * found.besides[head][cell].ucb
        return (
            f"{REDUNDANT}{numbers} alone, at most {left:.3f} % beside the streams that stay, most of all "
            f"{found.carriers[cell]} (budget {limit:.3f} % a cell, {spent})"
        )
    return f"negligible: {numbers}, at most {100 * x.ucb:.3f} % (budget {limit:.3f} % a cell, {spent})"


def _why_kept(x: Effect, numbers: str, head: str, within: Bounds | None) -> str:
    shown = f"{numbers}, at least {100 * x.lcb:.3f} %, for {head}"
    if within is None:
        return f"{x.leading}: {shown}"
    return f"user-level: {shown}; within users at most {100 * within.ucb:.3f} %"


def _why_not(failed: Mapping[str, Check], cell: Cell, joint: Joint, numbers: str, config: MaskConfig) -> str:
    """The first rule that stands in the way, in the order in which more data or another setting would help."""
    texts = {
        "tokens": "too few tokens to matter: {v:.3%} of the segment's, {limit:.3%} is the least",
        "censored": "too often censored: {v:.0%} of its events, at most {limit:.0%}",
        "support": "too little support: {v:.0f} positives have the stream, {limit:.0f} are needed",
        "curvature": "may be non-monotone: up to {v:.3%} of H by squared dwell, budget {limit:.3%}",
        "block": "may matter: up to {v:.3%} of H, budget {limit:.3%}",
        "equivalence": "dwell may matter: effect up to {v:.3f} log-odds per SD, limit {limit:.3f}",
        "windows": "relevant in {v:.0f} of 3 windows, at most {limit:.0f}",
        "recency": "by recency at least {v:.3%} of H, budget {limit:.3%}",
        "beside": "may matter beside other streams: up to {v:.3%} of H, budget {limit:.3%}",
    }
    for rule, text in texts.items():
        if rule in failed:
            return f"{text.format(v=failed[rule].value, limit=failed[rule].limit)}; {numbers}"
    return (
        f"total budget: all drops together would not stay within {100 * config.ne_budget:.3f} % for "
        f"{', '.join(joint.loss)}; {numbers}"
    )
