"""The drawings of the report's page, one function a figure: plain values in, SVG with its caption out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from dynamix.jobs import charts, heatmap, story_charts
from dynamix.jobs.drift_data import Compared
from dynamix.jobs.evidence_data import Arm
from dynamix.jobs.numbers import pct
from dynamix.jobs.report_data import RULE, AtBudget, Channel, Curve, ReportData

CURVES_PER_SEGMENT = 3
CHECKS_SHOWN = 12
TOP_STREAMS = 3


@dataclass(frozen=True)
class Figure:
    """A drawing with the sentence that says how to read it."""

    title: str
    svg: Markup
    note: str = ""


def forests(data: ReportData) -> list[Figure]:
    """One equivalence drawing a segment: each stream's channel that reaches furthest from zero."""
    figures = []
    names = {c.segment_id: c.segment_name for c in data.cells}
    for segment, label in sorted(names.items()):
        rows = []
        for cell in sorted((c for c in data.cells if c.segment_id == segment), key=lambda c: c.stream):
            channel = furthest(data, segment, cell.tier, cell.stream)
            if channel is None or channel.beta is None or channel.se is None:
                continue
            tier = "" if cell.tier == "*" else f" {cell.tier}"
            row_name = f"{cell.stream}{tier} {channel.channel}"
            rows.append(charts.ForestRow(row_name, channel.beta, channel.se, cell.verdict, cell.reason))
        rows.sort(key=lambda r: (heatmap_order(r.verdict), -abs(r.beta), r.name))
        if rows:
            title = f"Segment {segment}: {label}"
            figures.append(Figure(title, Markup(charts.forest(rows, delta=data.delta, title=title))))
    return figures


def heatmap_order(verdict: str) -> int:
    """Undecided first, since the drawing is there to explain them; then drop, keep, boost."""
    return ("undecided", "drop", "keep", "boost").index(verdict)


def furthest(data: ReportData, segment: int, tier: str, stream: str) -> Channel | None:
    """The measured channel of a cell with the largest |beta| + 1.645 se for the shown label."""
    found = [
        c
        for c in data.channels
        if (c.segment_id, c.tier, c.stream, c.label) == (segment, tier, stream, data.label)
        and c.channel != "joint"
        and c.beta is not None
        and c.se is not None
        and c.se > 0
    ]
    return max(found, key=_reach, default=None)


def _reach(c: Channel) -> float:
    return abs(c.beta or 0.0) + charts.Z90 * (c.se or 0.0)


def curves(data: ReportData) -> list[Figure]:
    """Dwell → conversion curves of each segment's most relevant streams, intervals by rows (Wilson)."""
    relevance = {(c.segment_id, c.stream): c.relevance or 0.0 for c in data.cells}
    names = {c.segment_id: c.segment_name for c in data.cells}
    figures = []
    for segment in sorted(names):
        mine = [
            c for c in data.curves if c.segment_id == segment and c.label == data.label and len(c.bins) > 2
        ]
        mine.sort(key=lambda c: (-relevance.get((segment, c.stream), 0.0), c.stream))
        figures += [_curve(c, names[segment]) for c in mine[:CURVES_PER_SEGMENT]]
    return figures


def _curve(found: Curve, segment_name: str) -> Figure:
    bins = [b for b in found.bins if b.impressions > 0]
    rates = []
    for b in bins:
        low, high = charts.wilson(b.positives, b.impressions)
        rates.append(charts.Rate(b.name, b.positives / b.impressions, low, high, b.impressions))
    n = sum(b.impressions for b in bins)
    base = sum(b.positives for b in bins) / n if n else None
    title = f"{found.stream}, segment {found.segment_id} ({segment_name})"
    svg = charts.curve(
        rates, title=title, unit="mean dwell in the stream before, SD of ln(1+dwell)", base_rate=base
    )
    return Figure(title, Markup(svg), f"{n:,} impressions")


def arm_figure(data: ReportData) -> Figure | None:
    """NE of the arms with their intervals."""
    arms = [a for a in data.evidence.arms if a.ne is not None] if data.evidence is not None else []
    if not arms:
        return None
    rows = [
        charts.Dot(a.name, a.ne, a.ne_low, a.ne_high, mark=i) for i, a in enumerate(arms) if a.ne is not None
    ]
    return Figure(
        "NE of the arms", Markup(charts.dots(rows, title="NE of the arms", unit="NE (lower is better)"))
    )


def arm_rows(data: ReportData) -> list[tuple[Arm, str]]:
    """Each arm with the share of tokens it removes against keep-all, or that it was not measured."""
    if data.evidence is None:
        return []
    full = data.evidence.keep_all
    rows = []
    for arm in data.evidence.arms:
        known = full is not None and full.tokens and arm.tokens is not None
        removed = (
            pct(1 - arm.tokens / full.tokens)
            if known and full and full.tokens and arm.tokens is not None
            else ""
        )
        rows.append((arm, removed))
    return rows


def segment_ne(data: ReportData) -> tuple[Sequence[str], list[tuple[str, list[float | None]]]]:
    """Arm names, and per segment the NE of each arm in that order (None where not measured)."""
    arms = [a for a in data.evidence.arms if a.per_segment] if data.evidence is not None else []
    names = {str(s.segment_id): f"{s.segment_id} ({s.name})" for s in data.segments}
    segments = sorted({k for a in arms for k in a.per_segment}, key=lambda k: (len(k), k))
    return [a.name for a in arms], [(names.get(s, s), [a.per_segment.get(s) for a in arms]) for s in segments]


def ne_over_tokens(data: ReportData) -> Figure | None:
    """NE of each arm over the events that its histories hold: what shorter histories cost."""
    listed = data.evidence.arms if data.evidence is not None else ()
    points = [
        charts.Point(a.name, a.tokens, a.ne, a.ne_low, a.ne_high)
        for a in listed
        if a.ne is not None and a.tokens is not None
    ]
    if not points:
        return None
    svg = charts.plane(points, title="NE over tokens", across="tokens an impression", up="NE")
    return Figure("NE over tokens", Markup(svg), "left is shorter, lower is better; bars: 95 % intervals")


def checks_figure(checks: Sequence[Compared], *, title: str, beyond: str) -> Figure | None:
    """The worst comparisons as shares of their limits; above 1 the limit is passed, which the text says as well."""
    rows = [
        charts.Bar(
            f"{c.what} {c.name}", max(c.of_limit, 0.0), f"{c.of_limit:.2f}{f' {beyond}' if c.beyond else ''}"
        )
        for c in checks[:CHECKS_SHOWN]
    ]
    if not rows:
        return None
    more = f"the {len(rows)} largest of {len(checks)}" if len(checks) > len(rows) else ""
    return Figure(title, Markup(charts.bars(rows, title=title, unit="value over its limit")), more)


def drift_figure(data: ReportData) -> Figure | None:
    """How far the newest events are from the first write's."""
    return checks_figure(data.drift.found if data.drift else (), title="Drift", beyond="DRIFT")


def watch_figure(data: ReportData) -> Figure | None:
    """What the newest `monitor` found."""
    return checks_figure(data.watch.checks if data.watch else (), title="Watch", beyond="DUE")


def story_figures(data: ReportData) -> list[Figure]:
    """Timeline of the story, and its waterfall where a model told one."""
    story = data.story
    if story is None:
        return []
    found = [
        Figure("Before the impression", Markup(story_charts.timeline(story, title="Before the impression")))
    ]
    if story.score is not None:
        title = "From base rate to score"
        svg = story_charts.waterfall(story.score, title=title)
        found.append(
            Figure(title, Markup(svg), f"probability of “{story.score.head}”, in percentage points (pp)")
        )
    return found


def heat_at(data: ReportData, at: AtBudget) -> Markup:
    """The heat map under one budget; the configured one is the mask itself, others show their verdict alone."""
    if at.own:
        return Markup(heatmap.html(data.cells, truth=data.truth))
    cells = []
    for cell in data.cells:
        face = at.verdicts.get((cell.segment_id, cell.stream), cell.face)
        verdict, keep = "keep" if face == RULE else face, face != "drop"
        tip = f"under this budget: {verdict}; in the mask: {cell.verdict}"
        quota = cell.whole if keep else 0
        cells.append(replace(cell, verdict=verdict, keep=keep, quota=quota, reason=tip, by_rule=face == RULE))
    return Markup(heatmap.html(cells, truth=data.truth))


def top_streams(data: ReportData, segment_id: int) -> str:
    """The streams with the most events of a segment's histories, with their share of them."""
    mine = [c for c in data.cells if c.segment_id == segment_id]
    total = sum(c.tokens for c in mine)
    if not total:
        return "not measured"
    tokens: dict[str, float] = {}
    for c in mine:
        tokens[c.stream] = tokens.get(c.stream, 0.0) + c.tokens
    largest = sorted(tokens, key=lambda s: (-tokens[s], s))[:TOP_STREAMS]
    return ", ".join(f"{s} {pct(tokens[s] / total)}" for s in largest)
