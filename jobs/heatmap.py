"""The heat map of verdicts, streams x segments: as plain text for a terminal and as an HTML table.

Letter and symbol say the verdict, shade and border repeat it, so that it reads without colour.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dynamix.contracts import VERDICTS
from dynamix.jobs.report_data import RULE, Cell
from dynamix.jobs.svg import shorten

LETTERS = {"keep": "K", RULE: "k", "drop": "D", "boost": "B", "undecided": "·"}
SYMBOLS = {"keep": "■", RULE: "□", "drop": "×", "boost": "▲", "undecided": "?"}
MEANING = {
    "keep": "keep: its relevance is shown",
    RULE: "keep by rule, relevance not shown: protected, the last of its segment, or cold while another segment keeps it",
    "drop": "drop: its effect is shown to be negligible beside what stays",
    "boost": "boost: it earns more room",
    "undecided": "undecided: kept, because these rows can show neither",
}
STRONG = frozenset({"strong", "match", "weak", "u"})
"""Planted kinds that matter; dropping one is wrong. `trace`, `null` and `copy` may go."""

Truth = Mapping[tuple[int, str], str]


@dataclass(frozen=True)
class Grid:
    """Segments as columns and streams as rows; a place holds the cells of its tiers (one, or two)."""

    segments: tuple[tuple[int, str], ...]
    streams: tuple[str, ...]
    cells: Mapping[tuple[int, str], tuple[Cell, ...]]


def grid(cells: Sequence[Cell]) -> Grid:
    """Cells arranged by segment id, and by stream with the most tokens first (ties by name)."""
    names: dict[int, str] = {}
    tokens: dict[str, float] = {}
    places: dict[tuple[int, str], list[Cell]] = {}
    for cell in sorted(cells, key=lambda c: (c.segment_id, c.stream, c.tier)):
        names[cell.segment_id] = cell.segment_name
        tokens[cell.stream] = tokens.get(cell.stream, 0.0) + cell.tokens
        places.setdefault((cell.segment_id, cell.stream), []).append(cell)
    streams = tuple(sorted(tokens, key=lambda s: (-tokens[s], s)))
    return Grid(tuple(sorted(names.items())), streams, {key: tuple(found) for key, found in places.items()})


def letters(cells: Sequence[Cell]) -> str:
    """One letter, or one a tier with a stroke between them (`K|D`: active keeps, passive drops).

    A number after it is how many newest events a cut cell keeps (`K10`).
    """
    return "|".join(LETTERS.get(c.face, "?") + (str(c.quota) if c.cut else "") for c in cells)


def counts(cells: Sequence[Cell]) -> dict[str, int]:
    """Number of cells of every verdict, zeros included."""
    return {v: sum(c.verdict == v for c in cells) for v in VERDICTS}


def faces(cells: Sequence[Cell]) -> dict[str, int]:
    """Number of cells as the map shows them, in the order of MEANING, zeros included."""
    return {face: sum(c.face == face for c in cells) for face in MEANING}


def terminal(cells: Sequence[Cell], *, truth: Truth | None = None, width: int = 100) -> str:
    """The heat map as text of at most `width` (>= 40) columns, with its legend and counts.

    Streams are rows; segments that do not fit beside each other follow in a second block. With `truth`
    each letter is followed by the planted kind (`D null`), and `!` marks a drop of something that matters.
    """
    if not cells:
        return "no mask version yet: run `dynamix mask` first"
    table = grid(cells)
    truth = truth or {}
    longest = max(len(letters(c)) for c in table.cells.values())
    column = 9 + longest if truth else max(7, 2 + longest)
    left = min(max(len(s) for s in table.streams), 30, width - column)
    per_block = max(1, (width - left) // column)
    lines: list[str] = []
    for start in range(0, len(table.segments), per_block):
        block = table.segments[start : start + per_block]
        heads = [_head(i).ljust(8 if truth else 0) for i, _ in block]
        lines.append(" " * left + "".join(head.rjust(column) for head in heads))
        for stream in table.streams:
            row = [
                _text(table.cells.get((i, stream), ()), truth.get((i, stream)), planted=bool(truth))
                for i, _ in block
            ]
            lines.append(shorten(stream, left).ljust(left) + "".join(text.rjust(column) for text in row))
        lines.append("")
    return "\n".join([*lines, *_legend(table, cells, truth, width)])


def _head(segment_id: int) -> str:
    return "cold" if segment_id == 0 else f"seg {segment_id}"


def _text(cells: Sequence[Cell], kind: str | None, *, planted: bool) -> str:
    if not cells:
        return ""
    if not planted:
        return letters(cells)
    return f"{letters(cells)}{'!' if is_wrong(cells, kind) else ' '}{(kind or '')[:6]:6}"


def is_wrong(cells: Sequence[Cell], kind: str | None) -> bool:
    """True where something that matters is dropped; `kind` is what was planted."""
    return kind in STRONG and any(not c.keep for c in cells)


def _legend(table: Grid, cells: Sequence[Cell], truth: Truth, width: int) -> list[str]:
    count = counts(cells)
    lines = ["K keep   D drop   B boost   · undecided (kept: these rows can show neither)"]
    if any(c.by_rule for c in cells):
        lines.append(f"k {MEANING[RULE]}")
    if any(c.cut for c in cells):
        lines.append("K10: only the newest 10 events of the stream are kept")
    if truth:
        lines.append("after the letter: what was planted; ! marks a drop of something that matters")
    if any(len(found) > 1 for found in table.cells.values()):
        lines.append("two letters: active | passive users")
    names = "; ".join(f"{_head(i)} = {shorten(name, 40)}" for i, name in table.segments)
    lines.append(f"segments: {names}")
    lines.append(f"{len(cells)} cells: {', '.join(f'{count[v]} {v}' for v in VERDICTS)}")
    return [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="  ")]


def html(cells: Sequence[Cell], *, truth: Truth | None = None) -> str:
    """The heat map as one HTML table: a cell's numbers and reason are its title; names are escaped."""
    table = grid(cells)
    truth = truth or {}
    heads = "".join(
        f'<th scope="col" title="{escape(name, quote=True)}">{escape(_head(i))}</th>'
        for i, name in table.segments
    )
    rows = []
    for stream in table.streams:
        row = [_td(table.cells.get((i, stream), ()), truth.get((i, stream))) for i, _ in table.segments]
        name = escape(stream, quote=True)
        rows.append(f'<tr><th scope="row" title="{name}">{_breakable(stream)}</th>{"".join(row)}</tr>')
    return (
        '<table class="heat"><thead><tr><th scope="col">stream</th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _breakable(stream: str) -> str:
    """Escaped name that may wrap after a slash or underscore, for narrow screens."""
    return escape(shorten(stream, 26)).replace("/", "/<wbr>").replace("_", "_<wbr>")


def _td(cells: Sequence[Cell], kind: str | None) -> str:
    if not cells:
        return '<td class="v-none"><span class="letter">–</span></td>'
    shown = {c.face for c in cells}
    css = f"v-{shown.pop()}" if len(shown) == 1 else "v-mixed"
    symbols = "|".join(SYMBOLS.get(c.face, "?") for c in cells)
    tip = "\n".join(describe(c) for c in cells) + (f"\nplanted: {kind}" if kind else "")
    text = letters(cells)
    wrong = is_wrong(cells, kind)
    planted = f"<small>{escape(kind)}{'!' if wrong else ''}</small>" if kind else ""
    return (
        f'<td class="{escape(css, quote=True)}{" wrong" if wrong else ""}" title="{escape(tip, quote=True)}">'
        f'<span class="letter">{escape(text)}</span> <span class="symbol" aria-hidden="true">{escape(symbols)}'
        f"</span>{planted}</td>"
    )


def describe(cell: Cell) -> str:
    """A cell's numbers in one line: verdict, relevance with bounds in % of the entropy, positives, tokens."""
    tier = "" if cell.tier == "*" else f" ({cell.tier})"
    value = "relevance not measured"
    if cell.relevance is not None:
        value = f"relevance {100 * cell.relevance:.3f} % of H"
        if cell.relevance_lcb is not None and cell.relevance_ucb is not None:
            value += f" ({100 * cell.relevance_lcb:.3f} to {100 * cell.relevance_ucb:.3f})"
    return (
        f"{cell.segment_name}{tier} × {cell.stream}: {cell.verdict}; {value}; {cell.positives:,} positives; "
        f"{cell.tokens:.2f} tokens an impression; quota {cell.quota}. {cell.reason}"
    )
