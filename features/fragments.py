"""The session rule in NumPy, and fragments of it that merge exactly (docs/method.md A.2.1, docs/faults.md 13, 21).

A user's events may be cut anywhere. `spans` tells when a line of events was active; spans of any split of the
events, in time or not, merge by `merge_spans` in any order, and give each block what lies outside of it, its
`Border`. With it `mark` finds in every block the sessions that it finds in the whole line:

    events      a a a . . . a a | a a . . . . a | a      | = cut, . . . = a silence longer than the gap
    sessions    1 1 1       2 2 | 2 2         3 | 3
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynamix.features.numbers import Bools, Ints, latest_so_far

ABSENT = np.iinfo(np.int64).min
"""In place of an instant: there is none."""


@dataclass(frozen=True)
class Rule:
    """`session:` of the config in microseconds: a gap strictly longer opens, pieces are (k L, (k+1) L]."""

    gap_us: int
    length_us: int


@dataclass(frozen=True)
class Spans:
    """Stretches of lines without a silence longer than the gap, by (line, start); both ends are events."""

    line: Ints
    start: Ints
    end: Ints


@dataclass(frozen=True)
class Border:
    """What lies outside a block, one entry a line (µs, ABSENT where there is nothing)."""

    before: Ints
    """Latest event before the block."""
    first: Ints
    """First event of that event's chain: max_length counts from it."""
    after: Ints
    """First event after the block."""


@dataclass(frozen=True)
class Marks:
    """Per event of sorted lines (N,): which session it is of."""

    first: Ints
    """First event of its chain, µs: a chain is parted by the gap alone."""
    part: Ints
    """Piece of max_length within the chain, from 0."""
    begins: Bools
    """The event opens a session (a chain or a piece)."""
    until_next: Ints
    """µs to the session's next event, −1 at its last."""


def spans(line: Ints, us: Ints, *, gap_us: int) -> Spans:
    """Spans of events in any order, line (N,) and us (N,): the fragment of these events."""
    return merge_spans([Spans(line, us, us)], gap_us=gap_us)


def merge_spans(parts: list[Spans], *, gap_us: int) -> Spans:
    """Spans of all events behind the parts together: associative, commutative, exact for any split.

    Two spans belong together iff the later one starts at most the gap after the end of all earlier ones: between
    neighbouring events of one span no silence is longer than the gap.
    """
    line, start, end = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("line", "start", "end")
    )
    if not len(line):
        return Spans(line, start, end)
    order = np.lexsort((start, line))
    line, start, end = line[order], start[order], end[order]
    latest = latest_so_far(line, end)
    opens = np.concatenate([[True], (line[1:] != line[:-1]) | (start[1:] - latest[:-1] > gap_us)])
    rows = np.flatnonzero(opens)
    last = np.append(rows[1:], len(line)) - 1
    return Spans(line[rows], start[rows], latest[last])


def border(chains: Spans, line: Ints, before: Ints, after: Ints) -> Border:
    """Borders of blocks from the finished spans of their lines and the neighbouring events (ABSENT: none).

    `line` (B,) names the span line of each block; `before` must be an instant inside one of its spans.
    """
    first = np.full(len(line), ABSENT)
    for row in np.flatnonzero(before != ABSENT):
        low, high = np.searchsorted(chains.line, [line[row], line[row] + 1])
        place = low + int(np.searchsorted(chains.start[low:high], before[row], side="right")) - 1
        first[row] = chains.start[place]
    return Border(before, first, after)


def mark(
    line: Ints, us: Ints, *, rule: Rule, whole: Bools | None = None, outside: Border | None = None
) -> Marks:
    """Sessions of events sorted by (line, us): line (N,) dense codes from 0, us (N,) µs.

    A line is a user, or one of its given sessions: where `whole` (N,) is true no silence parts the line.
    `outside` holds one entry a line for lines that are cut; without it every line is complete.
    """
    n = len(us)
    if not n:
        return Marks(us, us, np.zeros(0, dtype=bool), us)
    head = np.concatenate([[True], line[1:] != line[:-1]])
    none = np.full(int(line[-1]) + 1, ABSENT)
    outside = outside or Border(none, none, none)
    before = np.concatenate([[ABSENT], us[:-1]])
    before[head] = outside.before[line[head]]
    silent = us - before > rule.gap_us
    if whole is not None:
        silent &= ~whole
    opens = silent | (before == ABSENT)
    source = np.where(head & ~opens, outside.first[line], us)
    first = source[np.maximum.accumulate(np.where(opens | head, np.arange(n), 0))]
    part = piece(us - first, rule)
    # where nothing opens, the event before has the same first one
    begins = opens.copy()
    if part.any():
        begins |= piece(np.where(opens, 0, before - first), rule) != part
    return Marks(first, part, begins, _until_next(line, us, first, part, begins, head, rule, whole, outside))


def piece(since_us: Ints, rule: Rule) -> Ints:
    """Number of max_length pieces before an event `since_us` after its chain's first one."""
    if not len(since_us) or int(since_us.max()) <= rule.length_us:
        return np.zeros(len(since_us), dtype=np.int64)
    return np.where(since_us == 0, 0, (since_us - 1) // rule.length_us)


def _until_next(
    line: Ints, us: Ints, first: Ints, part: Ints, begins: Bools, head: Bools, rule: Rule,
    whole: Bools | None, outside: Border,
) -> Ints:  # fmt: skip
    until = np.full(len(us), -1, dtype=np.int64)
    same = ~(begins[1:] | head[1:])
    until[:-1][same] = (us[1:] - us[:-1])[same]
    last = np.append(np.flatnonzero(head)[1:], len(us)) - 1
    after = outside.after[line[last]]
    last, after = last[after != ABSENT], after[after != ABSENT]
    wait = after - us[last]
    near = wait <= rule.gap_us
    if whole is not None:
        near |= whole[last]
    follows = near & (piece(after - first[last], rule) == part[last])
    until[last[follows]] = wait[follows]
    return until
