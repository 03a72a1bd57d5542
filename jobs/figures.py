"""Figures for notebooks: from what a report knows (`ReportData`), or from any small Spark frame. Each is a `Shown`.

The drawings are those of the report (`jobs/charts.py`, `jobs/heatmap.py`); nothing is loaded from outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from pyspark.sql import DataFrame

from dynamix.jobs import charts, heatmap, svg
from dynamix.jobs import page_figures as pages
from dynamix.jobs.context import StepResult
from dynamix.jobs.notebook import Shown
from dynamix.jobs.receipt import receipt as sentences
from dynamix.jobs.report_data import ReportData
from dynamix.jobs.story_data import lines as story_lines

MOST_ROWS = 200
"""Rows that a figure takes from a frame; more would not be legible."""
MOST_LINES = 4
"""As many shapes as tell lines apart."""


def receipt(data: ReportData) -> Shown:
    """The receipt as a list."""
    lines = sentences(data)
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return Shown(
        "Receipt", f'<div class="receipt"><ul>{items}</ul></div>', "\n".join(f"- {x}" for x in lines)
    )


def heat(data: ReportData) -> Shown:
    """Verdicts, streams × segments; a cell's numbers and reason stand in its tip."""
    key = "".join(
        f'<li><span class="box v-{v}">{heatmap.LETTERS[v]} {heatmap.SYMBOLS[v]}</span>{escape(heatmap.MEANING[v])}</li>'
        for v in heatmap.MEANING
    )
    body = f'<ul class="key">{key}</ul><div class="scroll">{heatmap.html(data.cells, truth=data.truth)}</div>'
    return Shown(f"Verdicts of {data.mask_version}", body, heatmap.terminal(data.cells, truth=data.truth))


def equivalence(data: ReportData, *, segments: Sequence[int] = ()) -> Shown:
    """Effects with intervals against the band that may be lost, one drawing a segment (all where none is named)."""
    chosen = {c.segment_id for c in data.cells if not segments or c.segment_id in segments}
    figures = [f for f in pages.forests(data) if any(f.title.startswith(f"Segment {s}:") for s in chosen)]
    return _together(f"Effects against ±{data.delta:g} log-odds per SD", figures)


def dwell_curves(data: ReportData) -> Shown:
    """Label rate by the dwell before, of each segment's most relevant streams."""
    return _together(f"Dwell → {data.label} ({data.label_meaning})", pages.curves(data))


def arms(data: ReportData) -> Shown:
    """NE of the arms on the same rows, with intervals."""
    found = pages.arm_figure(data)
    return _together("NE of the arms (lower is better)", [found] if found is not None else [])


def ne_by_tokens(data: ReportData) -> Shown:
    """NE of each arm over the events that its histories hold: what shorter histories cost."""
    found = pages.ne_over_tokens(data)
    listed = data.evidence.arms if data.evidence is not None else ()
    text = [
        f"{a.name}: NE {a.ne:.4f} at {a.tokens:.1f} tokens an impression"
        for a in listed
        if a.ne is not None and a.tokens is not None
    ]
    nothing = "not measured: no ranker was trained on this mask"
    body = _figure(found.svg) if found else svg.empty("NE over tokens", nothing)
    return Shown("NE over tokens", body, "\n".join(text) or nothing)


def story(data: ReportData) -> Shown:
    """One user's story: what became of the events before an impression, and from base rate to score."""
    found = _together("One user's story", pages.story_figures(data))
    return found if data.story is None else replace(found, text="\n".join(story_lines(data.story)))


def drift(data: ReportData) -> Shown:
    """How far the newest events are from the first write's, as shares of the limits."""
    found = pages.drift_figure(data)
    shown = _together("Drift", [found] if found is not None else [])
    text = "\n".join(one.sentence for one in data.drift.found) if data.drift else ""
    return replace(shown, text=text) if text else shown


def bars(frame: DataFrame, *, name: str, value: str, title: str, unit: str) -> Shown:
    """A bar a row; `name` and `value` are columns, NULL values are left out. One Spark job."""
    rows = [charts.Bar(_said(r[name]), float(r[value])) for r in _rows(frame, name, value)]
    text = [f"{row.name:>28}  {row.value:,.6g}" for row in rows]
    return Shown(title, _figure(charts.bars(rows, title=title, unit=unit)), "\n".join(text) or "no rows")


def lines(frame: DataFrame, *, place: str, value: str, title: str, unit: str, by: str | None = None) -> Shown:
    """Values over the places of column `place`; with `by` one line each of its four values with the largest sums.

    A place without a row has no mark. One Spark job.
    """
    rows = _rows(frame, place, value, *([by] if by else []))
    places = sorted({r[place] for r in rows})
    total: dict[str, float] = {}
    found: dict[tuple[str, Any], float] = {}
    for r in rows:
        line = _said(r[by]) if by else value
        total[line] = total.get(line, 0.0) + float(r[value])
        found[line, r[place]] = float(r[value])
    largest = sorted(total, key=lambda line: (-total[line], line))[:MOST_LINES]
    values = {line: [found.get((line, p)) for p in places] for line in largest}
    drawn = charts.series(values, [_said(p) for p in places], title=title, unit=unit)
    text = [f"{line:>28}  {total[line]:,.6g} in sum over {len(places)} places" for line in largest]
    return Shown(title, _figure(drawn), "\n".join(text) or "no rows")


def checks(found: StepResult) -> Shown:
    """What `monitor` found: every check as a share of its limit, beyond 1 a refit is due, and the sentences."""
    rows = [
        charts.Bar(
            f"{c['kind'].replace('_', ' ')} {c['name']}",
            max(c["value"] / c["limit"], 0.0),
            f"{c['value'] / c['limit']:.2f}{' DUE' if c['due'] else ''}",
        )
        for c in found.facts["checks"]
    ]
    answer, text = str(found.facts["answer"]), str(found.facts["text"])
    drawn = charts.bars(rows, title=answer, unit="value over its limit: above 1 a refit is due")
    said = "".join(f"<li>{escape(line)}</li>" for line in text.splitlines()[:-1])
    return Shown(answer, f"{_figure(drawn)}<ul>{said}</ul>", "\n".join(text.splitlines()[:-1]))


def _rows(frame: DataFrame, *columns: str) -> list[dict[str, Any]]:
    listed = (row.asDict() for row in frame.select(*columns).limit(MOST_ROWS).collect())
    return [row for row in listed if all(value is not None for value in row.values())]


def _said(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _figure(svg: str) -> str:
    return f"<figure>{svg}</figure>"


def _together(title: str, figures: Iterable[pages.Figure]) -> Shown:
    found = list(figures)
    body = "".join(
        f"<figure><figcaption>{escape(f.title)}<small>{escape(f.note)}</small></figcaption>{f.svg}</figure>"
        for f in found
    )
    if not found:
        return Shown(title, svg.empty(title, "not measured"), "not measured")
    listed = "\n".join(f"{f.title} {f.note}".rstrip() for f in found)
    return Shown(title, f'<div class="figures">{body}</div>', listed)
