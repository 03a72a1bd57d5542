"""Primitives of the drawings: marks, ticks, grid lines, and the frame that makes them one SVG element.

Lengths are SVG units; every drawing is WIDTH units wide. Colours are CSS classes of the page (`c0` … `c3`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH = 360
"""So that letters stay readable on a phone."""


def ticks(low: float, high: float, *, least: int = 3) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], ascending.

    The widest spacing that leaves at least `least` of them; just [low] where the range is empty.

    >>> ticks(0, 1)
    [0.0, 0.5, 1.0]
    """
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    power = math.floor(math.log10(span))
    found: list[float] = []
    for step in (m * 10.0**p for p in (power, power - 1) for m in (5, 2, 1)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        found = [round(i * step, 12) for i in range(first, last + 1)]
        if len(found) >= least:
            break
    return found


def empty(title: str, why: str) -> str:
    """A drawing that says why there is none."""
    text = f'<text x="{WIDTH / 2}" y="24" text-anchor="middle">{escape(why)}</text>'
    return drawing([text], 40, title)


def shorten(text: str, length: int) -> str:
    """`text`, or its two ends around an ellipsis so that it has at most `length` characters (>= 3).

    >>> shorten("surface_07/purchase", 11)
    'surfa…chase'
    """
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return text[:head] + "…" + text[-(length - 1 - head) :]


def room(low: float, high: float) -> tuple[float, float]:
    """Both ends of a scale with 8 % of its span to spare; a scale of one value gets a span of its own."""
    span = high - low or abs(high) * 0.01 or 1.0
    return low - 0.08 * span, high + 0.08 * span


def mark(kind: int, x: float, y: float) -> str:
    """Circle, square, triangle or diamond in the colour of the same number; kinds beyond the fourth begin again."""
    shape = kind % 4
    css = f'class="c{kind % 4}"'
    if shape == 0:
        return f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if shape == 1:
        return f'<rect {css} x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    if shape == 2:
        points = f"{x:.1f},{y - 5:.1f} {x - 5:.1f},{y + 4:.1f} {x + 5:.1f},{y + 4:.1f}"
    else:
        points = f"{x:.1f},{y - 5:.1f} {x - 5:.1f},{y:.1f} {x:.1f},{y + 5:.1f} {x + 5:.1f},{y:.1f}"
    return f'<polygon {css} points="{points}"/>'


def vertical(x: float, top: float, bottom: float, css: str) -> str:
    """A line from top to bottom."""
    return f'<line class="{css}" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'


def grid_line(left: float, right: float, y: float, text: str) -> str:
    """A line across with its value on the left."""
    return (
        f'<line class="axis" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="small" x="{left - 4}" y="{y + 3.5:.1f}" text-anchor="end">{escape(text)}</text>'
    )


def tick(x: float, y: float, text: str) -> str:
    """Text under the axis that lies at y."""
    return f'<text class="small" x="{x:.1f}" y="{y + 13:.1f}" text-anchor="middle">{escape(text)}</text>'


def short(value: float) -> str:
    """Four significant digits, whole from a thousand on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def key(x: float, y: float, text: str) -> str:
    """A line of the key, from x to the right."""
    return f'<text class="small" x="{x:.1f}" y="{y:.1f}">{escape(shorten(text, 46))}</text>'


def label(text: str, x: float, y: float) -> str:
    """Text centred on x."""
    return f'<text class="small" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'


def drawing(parts: Sequence[str], height: float, title: str) -> str:
    """One SVG element of the parts, WIDTH wide; the title is its name for screen readers."""
    name = escape(title, quote=True)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{name}">'
        f"{''.join(parts)}</svg>"
    )


def standalone(drawn: str, *, style: str) -> str:
    """A drawing as an SVG file of its own, with the style sheet that its classes are of."""
    opened = f'<svg xmlns="http://www.w3.org/2000/svg" style="background: var(--page)" width="{2 * WIDTH}" '
    return drawn.replace("<svg ", opened, 1).replace(">", f"><style>{style}</style>", 1) + "\n"
