"""Everything the report and the receipt say, as plain values: `ReportData` and how it is gathered.

The dataclasses need no Spark. A number that was not measured is None and stays so until it is printed
as "not measured"; nothing is filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from dynamix.jobs.drift_data import Drift, Watch
from dynamix.jobs.evidence_data import Evidence, number
from dynamix.jobs.story_data import Story
from dynamix.segmentation.masks import kept_by_rule

RULE = "rule"
"""In place of the verdict `keep`, where a rule keeps a cell."""


@dataclass(frozen=True)
class Cell:
    """One row of `masks`. Grain: segment x tier x stream; relevance values are fractions of H."""

    segment_id: int
    segment_name: str
    tier: str
    stream: str
    keep: bool
    verdict: str
    reason: str = ""
    quota: int = 0
    boost: float = 0.0
    relevance: float | None = None
    relevance_lcb: float | None = None
    relevance_ucb: float | None = None
    positives: int = 0
    tokens: float = 0.0
    whole: int = 0
    """Quota of a stream whose history is not cut, 0 where it is not known."""
    attributes: tuple[str, ...] | None = None
    """What its kept events carry; None = all."""

    by_rule: bool = False
    """Kept by a rule (segmentation/masks.py `kept_by_rule`), its relevance is not shown."""

    @property
    def face(self) -> str:
        """How the heat map shows it: its verdict, or `rule`."""
        return RULE if self.by_rule else self.verdict

    @property
    def cut(self) -> bool:
        """True where the cell keeps its newest events only."""
        return self.keep and 0 < self.quota < self.whole


@dataclass(frozen=True)
class Channel:
    """One row of `cell_stats` over both user halves; beta and se in log-odds per standard deviation."""

    segment_id: int
    tier: str
    stream: str
    label: str
    channel: str
    impressions: int = 0
    positives: int = 0
    beta: float | None = None
    se: float | None = None
    relevance: float | None = None
    relevance_lcb: float | None = None
    relevance_ucb: float | None = None
    information: float | None = None
    score_var: float | None = None
    dof: int = 0


@dataclass(frozen=True)
class Bin:
    """One bin of a dwell histogram: label-1 impressions of `impressions`; `name` is the bin's range."""

    name: str
    impressions: int
    positives: float


@dataclass(frozen=True)
class Curve:
    """Dwell bins of one segment and stream, from short to long."""

    segment_id: int
    stream: str
    label: str
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class SegmentInfo:
    """One segment: its users by tier (current assignment) and what the registry says of it."""

    segment_id: int
    name: str
    users: Mapping[str, int] = field(default_factory=dict)
    method: str = ""
    event: str = ""
    verdict: str = ""

    @property
    def total(self) -> int:
        return sum(self.users.values())


@dataclass(frozen=True)
class LogStep:
    """The newest `done` or `failed` row of one step in the run log."""

    step: str
    status: str
    seconds: float
    rows_read: int | None = None
    rows_kept: int | None = None
    rows_deduplicated: int | None = None
    rows_quarantined: int | None = None
    config_hash: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True)
class AtBudget:
    """Verdicts of every judged cell under one relative NE budget, and the share of tokens in dropped cells.

    `verdicts` by (segment, stream), RULE where a rule keeps the cell; `own` marks the configured budget. Cut histories
    are not in it: they share the same budget after the drops.
    """

    ne_budget: float
    own: bool
    verdicts: Mapping[tuple[int, str], str]
    dropped_tokens: float


@dataclass(frozen=True)
class ReportData:
    """One report's content. Empty `cells` means that no mask version exists yet."""

    run_id: str = ""
    run_date: date | None = None
    config_hash: str = ""
    mask_version: str = ""
    segment_version: str = ""
    mask_status: str = ""
    cells: tuple[Cell, ...] = ()
    channels: tuple[Channel, ...] = ()
    curves: tuple[Curve, ...] = ()
    segments: tuple[SegmentInfo, ...] = ()
    steps: tuple[LogStep, ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)
    evidence: Evidence | None = None
    truth: Mapping[tuple[int, str], str] = field(default_factory=dict)
    delta: float = 0.10
    ne_budget: float = 0.001
    support: float = 2.93
    statistics_days: float | None = None
    label: str = "conversion"
    label_meaning: str = "ad conversion"
    currency: str = "EUR"
    per_training_hour: float = 0.0
    per_billion_inferences: float = 0.0
    absent: tuple[str, ...] = ()
    notice: str = ""
    story: Story | None = None
    budgets: tuple[AtBudget, ...] = ()
    drift: Drift | None = None
    watch: Watch | None = None

    def impressions(self) -> dict[int, int]:
        """Impressions a segment has in the statistics window (the largest over its streams, summed over tiers)."""
        seen: dict[tuple[int, str], int] = {}
        for c in self.channels:
            key = (c.segment_id, c.tier)
            seen[key] = max(seen.get(key, 0), c.impressions)
        total: dict[int, int] = {}
        for (segment, tier), n in seen.items():
            total[segment] = max(total.get(segment, 0), n) if tier == "*" else total.get(segment, 0) + n
        return total

    def weights(self) -> dict[int, float]:
        """Weight of each segment: its impressions, else its users, else 1; sums to 1."""
        ids = sorted({c.segment_id for c in self.cells})
        by_rows = self.impressions()
        by_users = {s.segment_id: s.total for s in self.segments}
        for source in (by_rows, by_users):
            total = sum(source.get(i, 0) for i in ids)
            if total > 0:
                return {i: source.get(i, 0) / total for i in ids}
        return {i: 1 / len(ids) for i in ids} if ids else {}


def cells_from_rows(
    rows: Iterable[Mapping[str, Any]], *, whole: Callable[[str], int] | None = None
) -> tuple[Cell, ...]:
    """Cells from rows of `masks`, ordered by segment, tier and stream; `whole` gives a stream's uncut quota."""
    cells = [
        Cell(
            segment_id=int(r["segment_id"]),
            segment_name=str(r.get("segment_name") or r["segment_id"]),
            tier=str(r.get("tier") or "*"),
            stream=str(r["stream"]),
            keep=bool(r["keep"]),
            verdict=str(r["verdict"]),
            reason=str(r.get("reason") or ""),
            quota=int(r.get("quota") or 0),
            boost=float(r.get("boost") or 0.0),
            relevance=number(r.get("relevance")),
            relevance_lcb=number(r.get("relevance_lcb")),
            relevance_ucb=number(r.get("relevance_ucb")),
            positives=int(r.get("positives") or 0),
            tokens=number(r.get("tokens")) or 0.0,
            whole=whole(str(r["stream"])) if whole else 0,
            attributes=None if r.get("attributes") is None else tuple(r["attributes"]),
            by_rule=kept_by_rule(str(r["verdict"]), str(r.get("reason") or "")),
        )
        for r in rows
    ]
    return tuple(sorted(cells, key=lambda c: (c.segment_id, c.tier, c.stream)))
