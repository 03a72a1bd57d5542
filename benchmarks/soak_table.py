"""What a day of a soak was, the table of all days, and whether they grow."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

DAILY, WEEKLY = ("ingest", "features"), ("segment", "mask", "train", "score")
WEEK = 7
_READINGS = {
    "no events stored yet": "everything, the first time",
    "rows first seen since": "what is new",
    "the baseline of": "everything, for the refit",
    "the source has": "everything, rows came behind",
    "a copy of a stored event": "everything, an earlier copy came",
    "the table holds everything": "everything, again",
}
"""What the reason of an ingest begins with, and how the table says it."""


@dataclass
class Day:
    """One day of a life; seconds by verb, those of a backfill and a crash apart."""

    number: int
    run_date: str
    reading: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_s: float = 0.0
    """Of `ingest` and `features`, this process and all below it; NaN where the machine does not tell."""
    added_bytes: int = 0
    replaced_days: int = -1
    """Days of `events` that were replaced, -1 for all of them."""
    rows_read: int = 0
    crash: str = ""
    warm: bool = True
    """False for the first day of a process, whose code is not compiled yet."""
    commits: int = 0
    log_files: int = 0
    log_bytes: int = 0
    warnings: list[str] = field(default_factory=list)
    contents: dict[str, str] = field(default_factory=dict)
    apart: dict[str, str] | None = None
    """What differs from a build of everything at once, by table; None on days that were not held against one."""

    @property
    def daily_s(self) -> float:
        """Wall seconds of `ingest` and `features`."""
        return sum(self.seconds[verb] for verb in DAILY)

    @property
    def is_plain(self) -> bool:
        """True for a day like the others: an increment, by a warm process, without a backfill or a crash."""
        increment = self.reading.startswith("rows first seen since")
        return increment and self.warm and not self.seconds.keys() & {"backfill", "crash"}


@dataclass(frozen=True)
class Growth:
    """Plain days of a life: medians of the first and the last week, and the line through all of them."""

    first_s: float
    last_s: float
    slope_s: float
    """Seconds by which a day is longer than the one before."""
    days: int

    @property
    def ratio(self) -> float:
        return self.last_s / self.first_s


def growth(days: Sequence[Day], *, cpu: bool = False) -> Growth | None:
    """Of wall seconds, or of CPU seconds; None where a week has no plain day or there are fewer than three."""
    plain = [day for day in days if day.is_plain]
    values = {day.number: day.cpu_s if cpu else day.daily_s for day in plain}
    last = len(days) - 1
    first_week = [value for number, value in values.items() if 1 <= number <= WEEK]
    last_week = [value for number, value in values.items() if number > last - WEEK]
    if len(values) < 3 or not first_week or not last_week:
        return None
    slope, _ = np.polyfit(list(values), list(values.values()), 1)
    return Growth(statistics.median(first_week), statistics.median(last_week), float(slope), len(values))


def report(lives: Mapping[str, Sequence[Day]], *, quarantine: Mapping[str, int]) -> Iterator[str]:
    """Tables of days and weeks of both lives, growth, warnings and what lies in quarantine."""
    names = list(lives)
    first, second = (lives[name] for name in names)
    yield f"seconds of `ingest` + `features`, {names[0]} / {names[1]}\n"
    yield (
        "| day | reads | rows read | ingest s | features s | CPU s | days replaced | MB added | commits | "
        "files, MB of logs | besides |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for one, other in zip_longest(first, second):  # the second life may not have come as far
        yield _row(one, other)
    yield "\nseconds of the weekly steps\n"
    yield f"| day | {' | '.join(WEEKLY)} |\n|---|{'---|' * len(WEEKLY)}"
    for one, other in zip_longest(first, second):
        if WEEKLY[0] in one.seconds:
            yield f"| {one.number} | {' | '.join(_seconds(one, other, verb) for verb in WEEKLY)} |"
    yield ""
    for name, days in lives.items():
        yield from _growth_lines(name, days)
    yield from _warning_lines(first)
    if quarantine:
        yield f"in quarantine at the end: {', '.join(f'{n} {reason}' for reason, n in quarantine.items())}"
    yield ""


def _warning_lines(days: Sequence[Day]) -> Iterator[str]:
    """Warnings of ingest with their days; those of drift are many and only counted."""
    told: dict[str, list[int]] = {}
    for day in days:
        for text in day.warnings:
            told.setdefault("drift" if text.startswith("drift: ") else text, []).append(day.number)
    yield "\nwarnings of ingest:"
    for text, numbers in told.items():
        yield f"  days {', '.join(map(str, dict.fromkeys(numbers)))}: {text} ({len(numbers)})"


def _row(one: Day, other: Day | None) -> str:
    besides = [f"{name} {one.seconds[name]:.0f} s" for name in ("backfill", "crash") if name in one.seconds]
    besides += [f"killed {one.crash}"] if one.crash else []
    besides += [] if one.warm and (other is None or other.warm) else ["cold"]
    besides += [] if one.apart is None else [f"one build: {', '.join(one.apart) or 'equal'}"]
    reads = next((text for start, text in _READINGS.items() if one.reading.startswith(start)), one.reading)
    ingest, features = (_seconds(one, other, verb) for verb in DAILY)
    spent = _pair(one.cpu_s, other.cpu_s if other else None)
    replaced = "all" if one.replaced_days < 0 else str(one.replaced_days)
    return (
        f"| {one.number} | {reads} | {one.rows_read:,} | {ingest} | {features} | {spent} | "
        f"{replaced} | {one.added_bytes / 1e6:.1f} | {one.commits} | {one.log_files}, {one.log_bytes / 1e6:.1f} | "
        f"{', '.join(besides)} |"
    )


def _seconds(one: Day, other: Day | None, verb: str) -> str:
    return _pair(one.seconds[verb], other.seconds[verb] if other else None)


def _pair(one: float, other: float | None) -> str:
    return f"{one:.1f} / {'-' if other is None else f'{other:.1f}'}"


def _growth_lines(name: str, days: Sequence[Day]) -> Iterator[str]:
    for what, cpu in (("wall", False), ("CPU", True)):
        found = growth(days, cpu=cpu)
        if found is None:
            yield f"{name}: too few plain days for a slope of {what} seconds"
            continue
        yield (
            f"{name}, {what} seconds of the {found.days} plain days: median of the first week "
            f"{found.first_s:.1f}, of the last {found.last_s:.1f}, ratio {found.ratio:.2f}; "
            f"slope {found.slope_s:+.3f} s a day"
        )
