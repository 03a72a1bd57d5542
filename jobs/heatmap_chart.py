"""The heat map of verdicts as a drawing, for pages that show pictures only (a README, a registry)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dynamix.jobs import heatmap
from dynamix.jobs.report_data import Cell
from dynamix.jobs.svg import WIDTH, drawing, key, shorten

_LEFT, _ROW, _TOP = 118.0, 15.0, 18.0
_NAMED = 22
"""Characters of a stream's name that fit left of the cells."""


def picture(cells: Sequence[Cell], *, truth: heatmap.Truth | None = None, title: str) -> str:
    """One SVG: a row a stream (most tokens first), a column a segment, the letters of `heatmap.letters` in each place.

    With `truth` a `!` follows the letter where something that matters is dropped. Empty cells give an empty drawing.
    """
    table, planted = heatmap.grid(cells), truth or {}
    width = (WIDTH - _LEFT) / max(1, len(table.segments))
    parts = [
        f'<text class="small" x="{_LEFT + (i + 0.5) * width:.1f}" y="12" text-anchor="middle">'
        f"{'cold' if segment == 0 else segment}</text>"
        for i, (segment, _) in enumerate(table.segments)
    ]
    for row, stream in enumerate(table.streams):
        y = _TOP + row * _ROW
        name = escape(shorten(stream, _NAMED))
        parts.append(f'<text class="small" x="{_LEFT - 5}" y="{y + 11:.1f}" text-anchor="end">{name}</text>')
        for column, (segment, _) in enumerate(table.segments):
            found = table.cells.get((segment, stream), ())
            wrong = heatmap.is_wrong(found, planted.get((segment, stream)))
            parts.append(_place(found, _LEFT + column * width, y, width, wrong=wrong))
    bottom = _TOP + len(table.streams) * _ROW
    count = heatmap.faces(cells)
    said = ", ".join(f"{n} {v} ({heatmap.LETTERS[v]})" for v, n in count.items() if n)
    parts += [key(4, bottom + 14, said), key(4, bottom + 28, "columns: segments; K10 = newest 10 kept")]
    return drawing(parts, bottom + 34, title)


def _place(cells: Sequence[Cell], x: float, y: float, width: float, *, wrong: bool) -> str:
    shown = {cell.face for cell in cells}
    css = shown.pop() if len(shown) == 1 else "mixed" if shown else "none"
    text = heatmap.letters(cells) + ("!" if wrong else "") if cells else "–"
    return (
        f'<rect class="b-{escape(css, quote=True)}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" '
        f'height="{_ROW - 2:.1f}"/><text class="small on-{escape(css, quote=True)}" x="{x + width / 2:.1f}" '
        f'y="{y + 11:.1f}" text-anchor="middle">{escape(text)}</text>'
    )
