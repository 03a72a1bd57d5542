"""Charts as inline SVG text: pure functions of plain values, no script, no outside reference.

Every drawing is 360 units wide, so its letters stay readable on a phone; colours are CSS classes of the
page (`c0`, `c1` ...), so light and dark both work, and shape or text carries whatever colour says.
All names are escaped. Lengths are SVG units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dynamix.jobs import svg

Z95 = 1.959964
Z90 = 1.644854
"""Half widths of two-sided 95 % and 90 % normal intervals, in standard errors."""


@dataclass(frozen=True)
class ForestRow:
    """An effect with its standard error (log-odds per SD) and the verdict that it led to."""

    name: str
    beta: float
    se: float
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class Dot:
    """A value with an interval that may be absent."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: int = 0
    text: str = ""


@dataclass(frozen=True)
class Bar:
    """A value >= 0 of something that has a name; `text` stands behind the bar, by default the value."""

    name: str
    value: float
    text: str = ""


@dataclass(frozen=True)
class Point:
    """A place in a plane; low and high are the interval of y."""

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Rate:
    """A bin with its label rate and interval, all as fractions; `n` is the impressions behind it."""

    name: str
    rate: float
    low: float
    high: float
    n: int


def wilson(positives: float, n: float, *, z: float = Z95) -> tuple[float, float]:
    """Wilson interval of a share; (0, 1) when n is 0. Source: Wilson 1927, in its closed form.

    It takes rows as independent: users who appear often make the true interval wider.

    >>> [round(v, 4) for v in wilson(5, 100)]
    [0.0215, 0.1118]
    """
    if n <= 0:
        return 0.0, 1.0
    p = positives / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def forest(rows: Sequence[ForestRow], *, delta: float, title: str) -> str:
    """Effects with 95 % intervals (thin) and 90 % (thick) against the band ±delta; one line a row.

    The thick bar inside the band is what lets one cell alone be called negligible; a bar that crosses the
    band's edge is why a cell is undecided. Bars that leave the drawing end in an arrow.
    """
    if not rows:
        return svg.empty(title, "no effects were measured")
    left, right, top, pitch = 142, 302, 22, 17
    reach = max(2.5 * delta, *(min(abs(r.beta) + Z95 * r.se, 8 * delta) for r in rows))
    height = top + pitch * len(rows) + 30

    def x(value: float) -> float:
        return left + (min(max(value, -reach), reach) + reach) / (2 * reach) * (right - left)

    base = top + pitch * len(rows)
    parts = [
        f'<rect class="band" x="{x(-delta):.1f}" y="{top - 4}" width="{x(delta) - x(-delta):.1f}" '
        f'height="{base - top + 4}"/>',
        f'<text class="small" x="{x(0):.1f}" y="12" text-anchor="middle">±{delta:g} is negligible</text>',
    ]
    parts += [svg.vertical(x(edge), top - 4, base, "edge") for edge in (-delta, delta)]
    parts.append(svg.vertical(x(0), top - 4, base, "axis"))
    for i, row in enumerate(rows):
        parts.append(_forest_row(row, y=top + pitch * i + pitch / 2, x=x, reach=reach))
    marks = [tick for tick in svg.ticks(-reach, reach) if abs(tick) <= reach]
    parts += [svg.tick(x(tick), base, f"{tick:g}") for tick in marks]
    parts.append(svg.label(f"log-odds per SD ({len(rows)} rows)", (left + right) / 2, height - 2))
    return svg.drawing(parts, height, title)


def _forest_row(row: ForestRow, *, y: float, x: Callable[[float], float], reach: float) -> str:
    thin = (row.beta - Z95 * row.se, row.beta + Z95 * row.se)
    thick = (row.beta - Z90 * row.se, row.beta + Z90 * row.se)
    tip = (
        f"{row.name}: {row.beta:+.3f}, 95 % {thin[0]:+.3f} to {thin[1]:+.3f}, {row.verdict}"
        f"{'; ' + row.note if row.note else ''}"
    )
    parts = [f"<g><title>{escape(tip)}</title>"]
    parts.append(
        f'<text x="138" y="{y + 4:.1f}" text-anchor="end">{escape(svg.shorten(row.name, 22))}</text>'
    )
    parts.append(
        f'<line class="thin" x1="{x(thin[0]):.1f}" x2="{x(thin[1]):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    )
    parts.append(
        f'<line class="thick" x1="{x(thick[0]):.1f}" x2="{x(thick[1]):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    )
    if abs(row.beta) <= reach:
        parts.append(f'<circle class="c0" cx="{x(row.beta):.1f}" cy="{y:.1f}" r="2.2"/>')
    if thin[1] > reach:
        parts.append(f'<text class="small" x="{x(reach):.1f}" y="{y + 3.5:.1f}">›</text>')
    if thin[0] < -reach:
        parts.append(f'<text class="small" x="{x(-reach):.1f}" y="{y + 3.5:.1f}" text-anchor="end">‹</text>')
    parts.append(
        f'<text class="small" x="358" y="{y + 4:.1f}" text-anchor="end">{escape(row.verdict)}</text></g>'
    )
    return "".join(parts)


def dots(rows: Sequence[Dot], *, title: str, unit: str, reference: float | None = None) -> str:
    """Values with intervals, one a line; marks differ in shape (circle, square, triangle, diamond)."""
    if not rows:
        return svg.empty(title, "not measured")
    left, right, top, pitch = 112, 300, 16, 24
    seen = [v for r in rows for v in (r.value, r.low, r.high) if v is not None]
    seen += [] if reference is None else [reference]
    low, high = svg.room(min(seen), max(seen))
    base = top + pitch * len(rows)
    height = base + 32

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = [svg.vertical(x(reference), top - 6, base, "edge")] if reference is not None else []
    for i, row in enumerate(rows):
        y = top + pitch * i + pitch / 2
        tip = f"{row.name}: {row.value:.5g}" + (
            f", 95 % {row.low:.5g} to {row.high:.5g}" if row.low is not None and row.high is not None else ""
        )
        parts.append(f"<g><title>{escape(tip)}</title>")
        parts.append(
            f'<text x="106" y="{y + 4:.1f}" text-anchor="end">{escape(svg.shorten(row.name, 17))}</text>'
        )
        if row.low is not None and row.high is not None:
            parts.append(
                f'<line class="thick" x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        parts.append(svg.mark(row.mark, x(row.value), y))
        text = row.text or f"{row.value:.4f}"
        parts.append(
            f'<text class="small" x="358" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text></g>'
        )
    parts += [svg.tick(x(tick), base, f"{tick:g}") for tick in svg.ticks(low, high)]
    parts.append(svg.label(unit, (left + right) / 2, height - 2))
    return svg.drawing(parts, height, title)


def curve(rates: Sequence[Rate], *, title: str, unit: str, base_rate: float | None = None) -> str:
    """Label rate per bin with its interval, in the order given; the dashed line is the base rate."""
    if not rates:
        return svg.empty(title, "no bin holds an impression")
    left, right, top, bottom = 46, 350, 14, 150
    # an almost empty bin would flatten the rest: the scale follows the rates and the well filled bins
    crowded = [r.high for r in rates if r.n >= 30] or [r.high for r in rates]
    high = max(max(crowded), max(r.rate for r in rates), base_rate or 0.0) * 1.05 or 1.0
    step = (right - left) / len(rates)

    def y(value: float) -> float:
        return bottom - min(value, high) / high * (bottom - top)

    parts = [svg.grid_line(left, right, y(t), f"{100 * t:.3g} %") for t in svg.ticks(0, high)]
    if base_rate is not None:
        parts.append(
            f'<line class="edge" x1="{left}" x2="{right}" y1="{y(base_rate):.1f}" y2="{y(base_rate):.1f}"/>'
        )
    centres = [left + step * (i + 0.5) for i in range(len(rates))]
    path = " ".join(f"{cx:.1f},{y(r.rate):.1f}" for cx, r in zip(centres, rates, strict=True))
    parts.append(f'<polyline class="path" points="{path}"/>')
    every = max(1, math.ceil(len(rates) / 8))
    for i, (cx, r) in enumerate(zip(centres, rates, strict=True)):
        tip = f"{r.name}: {100 * r.rate:.2f} %, 95 % {100 * r.low:.2f} to {100 * r.high:.2f} %, {r.n:,} impressions"
        parts.append(
            f'<g><title>{escape(tip)}</title><line class="thick" x1="{cx:.1f}" x2="{cx:.1f}" '
            f'y1="{y(r.low):.1f}" y2="{y(r.high):.1f}"/>{svg.mark(0, cx, y(r.rate))}</g>'
        )
        if i % every == 0:
            parts.append(svg.tick(cx, bottom, r.name))
    parts.append(svg.label(unit, (left + right) / 2, bottom + 32))
    return svg.drawing(parts, bottom + 36, title)


def bars(rows: Sequence[Bar], *, title: str, unit: str) -> str:
    """Values as bars from zero, one a line, in the order given."""
    if not rows:
        return svg.empty(title, "nothing was counted")
    left, right, top, pitch = 142, 300, 8, 17
    base = top + pitch * len(rows)
    high = max(r.value for r in rows) or 1.0
    parts = []
    for i, row in enumerate(rows):
        y = top + pitch * i
        text = row.text or svg.short(row.value)
        parts.append(
            f"<g><title>{escape(f'{row.name}: {text}')}</title>"
            f'<text x="138" y="{y + 12}" text-anchor="end">{escape(svg.shorten(row.name, 20))}</text>'
            f'<rect class="c0" x="{left}" y="{y + 3}" width="{row.value / high * (right - left):.1f}" height="11"/>'
            f'<text class="small" x="358" y="{y + 12}" text-anchor="end">{escape(text)}</text></g>'
        )
    parts.append(svg.vertical(left, top, base, "axis"))
    parts += [
        svg.tick(left + t / high * (right - left), base, svg.short(t)) for t in svg.ticks(0, high, least=2)
    ]
    parts.append(svg.label(unit, (left + right) / 2, base + 30))
    return svg.drawing(parts, base + 34, title)


def series(
    values: Mapping[str, Sequence[float | None]], places: Sequence[str], *, title: str, unit: str
) -> str:
    """Up to four lines over the same named places, in order; marks differ in shape, None has no mark."""
    known = [v for line in values.values() for v in line if v is not None]
    if not known:
        return svg.empty(title, "nothing was counted")
    left, right, top, bottom = 56, 330, 12 + 15 * len(values), 150 + 15 * len(values)
    low, high = min(0.0, *known), max(known) or 1.0
    step = (right - left) / max(1, len(places) - 1)

    def y(value: float) -> float:
        return bottom - (value - low) / ((high - low) or 1.0) * (bottom - top)

    parts = [svg.grid_line(left, right, y(t), svg.short(t)) for t in svg.ticks(low, high)]
    for i, (name, line) in enumerate(values.items()):
        parts += [svg.mark(i, left + 6, 15 * i + 8), svg.key(left + 16, 15 * i + 12, name)]
        seen = [(left + step * at, v, places[at]) for at, v in enumerate(line) if v is not None]
        path = " ".join(f"{x:.1f},{y(v):.1f}" for x, v, _ in seen)
        parts.append(f'<polyline class="path" points="{path}"/>')
        parts += [
            f"<g><title>{escape(f'{name}, {place}: {svg.short(v)}')}</title>{svg.mark(i, x, y(v))}</g>"
            for x, v, place in seen
        ]
    every = max(1, math.ceil(len(places) / 4))
    parts += [svg.tick(left + step * i, bottom, name) for i, name in enumerate(places) if i % every == 0]
    parts.append(svg.label(unit, (left + right) / 2, bottom + 30))
    return svg.drawing(parts, bottom + 34, title)


def plane(points: Sequence[Point], *, title: str, across: str, up: str) -> str:
    """Named points with intervals; shapes tell them apart. `across` and `up` name the axes with their units."""
    if not points:
        return svg.empty(title, "not measured")
    left, right, top, bottom = 52, 346, 20 + 15 * len(points), 170 + 15 * len(points)
    xs = svg.room(min(p.x for p in points), max(p.x for p in points))
    ys = svg.room(*(f(v for p in points for v in (p.y, p.low, p.high) if v is not None) for f in (min, max)))

    def at(p: Point, value: float) -> tuple[float, float]:
        across_share, up_share = (p.x - xs[0]) / (xs[1] - xs[0]), (value - ys[0]) / (ys[1] - ys[0])
        return left + across_share * (right - left), bottom - up_share * (bottom - top)

    parts = [svg.grid_line(left, right, at(points[0], t)[1], f"{t:.6g}") for t in svg.ticks(*ys)]
    for i, p in enumerate(points):
        x, y = at(p, p.y)
        between = "" if p.low is None or p.high is None else f", 95 % {p.low:.5g} to {p.high:.5g}"
        parts += [
            svg.mark(i, left + 6, 15 * i + 8),
            svg.key(left + 16, 15 * i + 12, f"{p.name}: {p.y:.4f} at {p.x:.1f}"),
        ]
        parts.append(f"<g><title>{escape(f'{p.name}: {p.y:.5g} at {p.x:.5g}{between}')}</title>")
        if p.low is not None and p.high is not None:
            parts.append(svg.vertical(x, at(p, p.high)[1], at(p, p.low)[1], "thin"))
        parts.append(f"{svg.mark(i, x, y)}</g>")
    parts += [
        svg.tick(left + (t - xs[0]) / (xs[1] - xs[0]) * (right - left), bottom, f"{t:.6g}")
        for t in svg.ticks(*xs)
    ]
    parts.append(svg.label(f"{up}, over {across}", (left + right) / 2, bottom + 30))
    return svg.drawing(parts, bottom + 34, title)
