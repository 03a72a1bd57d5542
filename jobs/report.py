"""`report`: one self-contained HTML page with the receipt, the heat map, the evidence and the lineage.

No request leaves the page and it needs no script. What was not measured is named so.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dynamix.contracts import RUN_LOG, TABLES
from dynamix.jobs import heatmap, page_figures
from dynamix.jobs.artefacts import log_report_figures
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.files import write_whole
from dynamix.jobs.numbers import pct
from dynamix.jobs.receipt import one_mask_would_do, receipt
from dynamix.jobs.report_data import ReportData
from dynamix.jobs.report_load import gather
from dynamix.jobs.run_log import source_hash
from dynamix.jobs.savings import side_by_side
from dynamix.jobs.sensitive import hidden_names
from dynamix.jobs.story_data import by_stream, percent, points, summary


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
    warnings = log_report_figures(run, data)
    write_whole(_note(target), json.dumps(note, indent=1))
    return StepResult(verdicts=verdicts, facts=facts, warnings=warnings)


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
    environment.filters.update(pct=pct, shown=shown, percent=percent, points=points)
    return environment.get_template("report.html.j2").render(
        data=data,
        receipt=receipt(data),
        counts=heatmap.faces(data.cells),
        meaning=heatmap.MEANING,
        letters=heatmap.LETTERS,
        symbols=heatmap.SYMBOLS,
        heat=Markup(heatmap.html(data.cells, truth=data.truth)) if data.cells else "",
        heats=[(at, page_figures.heat_at(data, at)) for at in data.budgets],
        forests=page_figures.forests(data),
        curves=page_figures.curves(data),
        arms=page_figures.arm_figure(data),
        plane=page_figures.ne_over_tokens(data),
        arm_rows=page_figures.arm_rows(data),
        segment_ne=page_figures.segment_ne(data),
        tops={s.segment_id: page_figures.top_streams(data, s.segment_id) for s in data.segments},
        savings=side_by_side(data),
        one_mask_would_do=one_mask_would_do(data),
        story=page_figures.story_figures(data),
        story_counts=by_stream(data.story) if data.story else [],
        story_said=summary(data.story) if data.story else "",
        drift=page_figures.drift_figure(data),
        watch=page_figures.watch_figure(data),
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
