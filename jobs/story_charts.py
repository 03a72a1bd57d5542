"""The two drawings of one user's story: the timeline by surface, and the waterfall from base rate to score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape

from dynamix.features.quotas import CUT, KEPT, OUTSIDE, REMOVED
from dynamix.jobs import svg
from dynamix.jobs.story_data import BASE, Past, Score, Story, ago, percent, points, said, shortened

MOST_LANES = 8
MOST_OUTSIDE = 300
"""Events outside the history that are drawn, the newest; all are counted in the table."""
_TICKS = (
    (0, "now"),
    (3600, "1 h"),
    (6 * 3600, "6 h"),
    (86400, "1 d"),
    (7 * 86400, "7 d"),
    (28 * 86400, "28 d"),
)
_TICK_APART = 24
_REST = "elsewhere"


def timeline(story: Story, *, title: str) -> str:
    """Events by surface over the square root of the time before the impression, which is at the right end.

    Above a lane's line what stays: filled circle kept, ring kept without a known dwell (censored), triangle boosted.
    Below it what goes: cross removed with its stream, stroke cut as too old. On the line, small: outside the history.
    """
    events = _drawn(story.events)
    if not events:
        return svg.empty(title, "no earlier event")
    left, right, top, pitch = 86, 350, 52, 30
    lanes = _lanes(story.events)
    place = {name: top + pitch * i + pitch / 2 for i, name in enumerate(lanes)}
    base = top + pitch * len(lanes)
    span = math.sqrt(max(e.age_s for e in events)) or 1.0

    def x(age_s: float) -> float:
        return right - math.sqrt(age_s) / span * (right - left)

    ticks = _ticks(x, left)
    parts = _key()
    parts += [svg.vertical(at, top, base, "axis") for at, _ in ticks]
    for name, y in place.items():
        parts.append(f'<text x="80" y="{y + 4:.1f}" text-anchor="end">{escape(svg.shorten(name, 13))}</text>')
        parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for event in events:
        y = place[event.lane if event.lane in place else _REST]
        tip = f"{event.stream}, {ago(event.age_s)}: {said(event)}"
        parts.append(f"<g><title>{escape(tip)}</title>{_event(event, x(event.age_s), y)}</g>")
    parts += [svg.tick(at, base, text) for at, text in ticks]
    parts.append(svg.label("time before the impression (square-root scale)", (left + right) / 2, base + 30))
    return svg.drawing(parts, base + 34, title)


def _ticks(x: Callable[[float], float], left: float) -> list[tuple[float, str]]:
    """Places and names of the times that fit beside each other; now and the oldest go before the others."""
    found: list[tuple[float, str]] = []
    for seconds, text in (_TICKS[0], *reversed(_TICKS)):
        at = x(seconds)
        if at >= left and all(abs(at - other) > _TICK_APART for other, _ in found):
            found.append((at, text))
    return found


def _drawn(events: Sequence[Past]) -> list[Past]:
    """The history, and the newest of what is outside it; these first, so that marks lie on top of dots."""
    outside = sorted((e for e in events if e.fate == OUTSIDE), key=lambda e: e.age_s)[:MOST_OUTSIDE]
    return [*outside, *(e for e in events if e.fate != OUTSIDE)]


def _lanes(events: Sequence[Past]) -> list[str]:
    """Surfaces with the most events first; what does not fit shares the last lane."""
    counted = Counter(e.lane for e in events)
    names = sorted(counted, key=lambda name: (-counted[name], name))
    return names if len(names) <= MOST_LANES else [*names[: MOST_LANES - 1], _REST]


def _event(event: Past, x: float, y: float) -> str:
    if event.fate == OUTSIDE:
        return f'<circle class="faint" cx="{x:.1f}" cy="{y:.1f}" r="1.2"/>'
    if event.fate == REMOVED:
        return _cross(x, y + 7)
    if event.fate == CUT:
        return f'<line class="cross" x1="{x - 3:.1f}" x2="{x + 3:.1f}" y1="{y + 10:.1f}" y2="{y + 4:.1f}"/>'
    if event.boosted:
        at = f"{x:.1f},{y - 12:.1f} {x - 4:.1f},{y - 4:.1f} {x + 4:.1f},{y - 4:.1f}"
        return f'<polygon class="c2" points="{at}"/>'
    css = "c0" if event.usable else "ring"
    return f'<circle class="{css}" cx="{x:.1f}" cy="{y - 7:.1f}" r="3"/>'


def _cross(x: float, y: float) -> str:
    a, b = f'x1="{x - 3:.1f}" x2="{x + 3:.1f}"', f'y1="{y - 3:.1f}" y2="{y + 3:.1f}"'
    c = f'y1="{y + 3:.1f}" y2="{y - 3:.1f}"'
    return f'<line class="cross" {a} {b}/><line class="cross" {a} {c}/>'


def _key() -> list[str]:
    shown = (
        (Past("", 1.0, KEPT), 8, 20, "kept"),
        (Past("", 1.0, KEPT, usable=False), 62, 20, "kept, dwell censored or not known"),
        (Past("", 1.0, KEPT, boosted=True), 262, 20, "boosted"),
        (Past("", 1.0, REMOVED), 8, 29, "removed: its stream is dropped"),
        (Past("", 1.0, CUT), 186, 29, "cut: older"),
        (Past("", 1.0, OUTSIDE), 262, 36, "not in history"),
    )
    parts = []
    for event, x, y, text in shown:
        row = 17 if y == 20 else 40
        parts += [_event(event, x, y), svg.key(x + 9, row, text)]
    return parts


def waterfall(score: Score, *, title: str) -> str:
    """Steps from the base rate to the score: filled bars add, hollow bars take away; each begins where the last ended."""
    bars = shortened(score)
    left, right, top, pitch = 132, 296, 8, 19
    ends = [score.base, *(bar.after for bar in bars)]
    low, high = svg.room(min(ends), max(ends))
    base = top + pitch * (len(bars) + 2)

    def x(p: float) -> float:
        return left + (p - low) / (high - low) * (right - left)

    parts = _end(BASE, score.base, top + pitch / 2, x)
    for i, bar in enumerate(bars, start=1):
        y = top + pitch * i + pitch / 2
        start, stop = sorted((x(bar.before), x(bar.after)))
        tip = f"{bar.name}: {points(bar.adds)}, from {percent(bar.before)} to {percent(bar.after)}"
        parts.append(
            f"<g><title>{escape(tip)}</title>{_name(bar.name, y)}"
            f'<rect class="{"c0" if bar.adds >= 0 else "hollow"}" x="{start:.1f}" y="{y - 6:.1f}" '
            f'width="{max(stop - start, 0.8):.1f}" height="12"/>{_value(points(bar.adds), y)}</g>'
        )
        parts.append(svg.vertical(x(bar.before), y - pitch + 6, y - 6, "edge"))
    parts += _end("score", score.score, top + pitch * (len(bars) + 1) + pitch / 2, x)
    parts += [svg.tick(x(t), base, f"{100 * t:.3g} %") for t in svg.ticks(low, high)]
    parts.append(svg.label(f"probability of {score.head}", (left + right) / 2, base + 30))
    return svg.drawing(parts, base + 34, title)


def _end(name: str, p: float, y: float, x: Callable[[float], float]) -> list[str]:
    return [_name(name, y), svg.mark(3, x(p), y), _value(percent(p), y)]


def _name(name: str, y: float) -> str:
    return f'<text x="126" y="{y + 4:.1f}" text-anchor="end">{escape(svg.shorten(name, 20))}</text>'


def _value(text: str, y: float) -> str:
    return f'<text class="small" x="358" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
