"""Which kept cells get a longer history: what lies beyond the base has to tell, and other cells have to pay for it.

A boost keeps the newest `mask.boost_to` events of a stream where the base keeps `history.per_stream`. Its worth is the
relevance of the events in between, given the base by buckets of recency and all that stays known; its price is their
tokens, which drops and cuts must have freed (docs/method.md A.8).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dynamix.config import MaskConfig
from dynamix.features.recency import BUCKETS
from dynamix.segmentation.bounds import ALPHA
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.masks import Check, Verdict
from dynamix.segmentation.quota import Quota, Tail, tail


@dataclass(frozen=True)
class Candidate:
    """A cell with the support to decide on its events beyond the base, under the head where they are worth most."""

    cell: Cell
    head: str
    beyond: Tail
    nats: float
    """Lower bound of the log loss that they save, at the level that the family of all candidates shares; 0: not shown."""

    @property
    def lcb(self) -> float:
        """The lower bound as a fraction of H."""
        return 2.0 * self.nats * self.beyond.scale

    @property
    def price(self) -> float:
        """Nats a token."""
        return self.nats / self.beyond.tokens


@dataclass(frozen=True)
class Boost:
    """The decision on one cell: its newest `events`, the tokens that adds, and the whole mask's share with them."""

    candidate: Candidate
    events: int
    tokens: float
    """Kept events more, of all impressions."""
    share: float
    """Tokens under the mask with this boost and those before it, of all tokens without a mask."""
    checks: tuple[Check, ...]
    reason: str


def candidates(statistics: Statistics, config: MaskConfig) -> list[Candidate]:
    """Every cell with positives enough that have an event beyond the base, sorted by segment and stream.

    All of them share the level of 5 % evenly, over heads as well (Bonferroni), whatever becomes of the cell: so the
    bounds hold together, and a choice among them by their size needs no second sample. Support and tokens read no
    effect (A.7 rule 2).
    """
    found = {
        (cell, head): beyond
        for head in statistics.heads
        for cell in statistics.cells
        if (sums := statistics.beyond_base(cell, head)) is not None
        and (beyond := tail(sums, BUCKETS)).tokens > 0
        and beyond.quadratic.trace > 0
        and beyond.positives >= beyond.needed(config)
    }
    alpha = ALPHA / max(len(found), 1)
    best: dict[Cell, Candidate] = {}
    for (cell, head), beyond in found.items():
        own = Candidate(cell, head, beyond, beyond.quadratic.lower(alpha=alpha) / 2.0)
        if cell not in best or own.nats > best[cell].nats:
            best[cell] = own
    return [best[cell] for cell in sorted(best)]


def boosts(
    statistics: Statistics, verdicts: Sequence[Verdict], cuts: Mapping[Cell, Quota], config: MaskConfig, *,
    base: int, never: Collection[Cell] = (),
) -> dict[Cell, Boost]:  # fmt: skip
    """Cells that are lengthened from `base` to `config.boost_to` events; none where that is 0.

    Open are kept cells that are whole, not protected and not among `never`, whose events beyond the base are shown to
    tell. They are taken by what they are worth a token, the best first, as long as the tokens of the whole mask stay
    within `config.token_budget` of those without a mask; one that does not fit is passed over.
    """
    if not config.boost_to:
        return {}
    tokens = {c: s.tokens for c, s in statistics.by_cell(statistics.heads[0]).items()}
    every = sum(tokens.values())
    now = every - sum(cut.tokens for cut in cuts.values())
    now -= sum(tokens[v.segment_id, v.stream] for v in verdicts if v.verdict == "drop")
    open_ = {
        (v.segment_id, v.stream)
        for v in verdicts
        if v.verdict != "drop" and all(c.passed for c in v.checks if c.rule == "protected")
    }
    open_ -= cuts.keys() | set(never)
    shown = [c for c in candidates(statistics, config) if c.cell in open_ and c.nats > 0]
    taken: dict[Cell, Boost] = {}
    for one in sorted(shown, key=lambda c: (-c.price, c.cell)):
        if now + one.beyond.tokens <= config.token_budget * every:
            now += one.beyond.tokens
            taken[one.cell] = _boost(one, now / every, config, base)
    return taken


def boosted(verdicts: Sequence[Verdict], taken: Mapping[Cell, Boost]) -> list[Verdict]:
    """The verdicts with `boost` for these cells: reason and checks say why, then why the cell is kept."""
    return [
        v
        if (boost := taken.get((v.segment_id, v.stream))) is None
        else replace(
            v, verdict="boost", reason=f"{boost.reason}; {v.reason}", checks=(*v.checks, *boost.checks)
        )
        for v in verdicts
    ]


def _boost(one: Candidate, share: float, config: MaskConfig, base: int) -> Boost:
    beyond, needed = one.beyond, one.beyond.needed(config)
    reason = (
        f"boost: its newest {config.boost_to}: events beyond {base} explain at least {100 * one.lcb:.3f} % of H for "
        f"{one.head} ({beyond.positives:.0f} positives have one), the mask with them keeps {share:.1%} of the tokens"
    )
    checks = (
        Check("beyond", one.lcb, 0.0, one.lcb > 0),
        Check("beyond_support", beyond.positives, needed, beyond.positives >= needed),
        Check("token_budget", share, config.token_budget, share <= config.token_budget),
    )
    return Boost(one, config.boost_to, beyond.tokens, share, checks, reason)
