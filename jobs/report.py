"""`report`: one self-contained HTML page with the receipt, the heat map, the evidence and the lineage.

No request leaves the page and it needs no script. What was not measured is named so.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dynamix.contracts import RUN_LOG, TABLES
from dynamix.jobs import charts, heatmap
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.evidence_data import Arm
from dynamix.jobs.files import write_whole
from dynamix.jobs.numbers import pct
from dynamix.jobs.receipt import receipt
from dynamix.jobs.report_data import Channel, Curve, ReportData
from dynamix.jobs.report_load import gather
from dynamix.jobs.run_log import source_hash
from dynamix.jobs.sensitive import hidden_names

CURVES_PER_SEGMENT = 3


@dataclass(frozen=True)
class Figure:
    """A drawing with the sentence that says how to read it."""

    title: str
    svg: Markup
    note: str = ""


def report(
    run: Run, *, out: Path | None = None, truth: Path | None = None, unless_current: bool = False
) -> StepResult:
    """Write `W/_dynamix/report.html` (or `out`) and a copy in the run's folder; whole or not at all.

    `truth` is the folder of a simulated world, whose planted kinds then stand beside the verdicts. With
    `unless_current` a page of the same tables, config and code stays, and its facts are given back.
    An empty warehouse gives a page that says so. `facts`: `report` (path), `receipt`, `text`, `heatmap`.
    """
    target = (out or run.warehouse.private / "report.html").absolute()
    key = _inputs(run, truth)
    if unless_current and (found := _current(target, key)) is not None:
        run.note("report: skipped, the page shows these tables")
        return found
    data = hidden_names(gather(run, truth=truth), run.config)
    write_whole(target, render(data))
    copy = run.folder / "report.html"
    if copy != target:
        shutil.copyfile(target, copy)
    lines = receipt(data)
    facts = {"report": str(target), "receipt": "\n".join(lines)}
    if data.cells:
        facts["heatmap"] = heatmap.terminal(data.cells, truth=data.truth)
    model = [f"model: {data.evidence.model}"] if data.evidence is not None and data.evidence.model else []
    facts["text"] = "\n".join(
        ["", "RECEIPT", *[f"- {line}" for line in lines], "", f"report: {target}", *model]
    )
    verdicts = heatmap.counts(data.cells) if data.cells else {}
    note = {"inputs": key, "verdicts": verdicts, "facts": facts}
    write_whole(_note(target), json.dumps(note, indent=1))
    return StepResult(verdicts=verdicts, facts=facts)


def _inputs(run: Run, truth: Path | None) -> str:
    """Hash of what the page depends on; the run log, which each run writes, is left out."""
    names = sorted(set(TABLES) - {RUN_LOG.name})
    versions = {name: run.warehouse.version(run.spark, name) for name in names}
    parts = [versions, run.config.digest(), str(run.run_date), source_hash(), str(truth)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _note(page: Path) -> Path:
    """What stands beside a page: its inputs and facts."""
    return page.with_suffix(".json")


def _current(page: Path, key: str) -> StepResult | None:
    """The facts of a page with these inputs; None where there is no such page."""
    if not page.is_file() or not _note(page).is_file():
        return None
    note = json.loads(_note(page).read_text(encoding="utf-8"))
    if note["inputs"] != key:
        return None
    return StepResult(verdicts=note["verdicts"], facts=note["facts"])


def render(data: ReportData) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("dynamix.jobs", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(pct=pct, shown=shown)
    return environment.get_template("report.html.j2").render(
        data=data,
        receipt=receipt(data),
        counts=heatmap.counts(data.cells),
        meaning=heatmap.MEANING,
        letters=heatmap.LETTERS,
        symbols=heatmap.SYMBOLS,
        heat=Markup(heatmap.html(data.cells, truth=data.truth)) if data.cells else "",
        forests=forests(data),
        curves=curves(data),
        arms=arm_figure(data),
        arm_rows=arm_rows(data),
        segment_ne=segment_ne(data),
        users=sum(s.total for s in data.segments),
    )


def shown(value: object, digits: int = 4) -> str:
    """A number for a table; None is "not measured"."""
    if value is None or value == "":
        return "not measured"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}f}"


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
