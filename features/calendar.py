"""The one-shot calendar: which days serve habit, evidence, segmenter, statistics and ranker.

Instants are naive UTC, periods half-open. The shares are those of a 42 day span; other spans scale
them, and spans too short for an earlier window say which guarantee is lost (docs/method.md A.4.1, C.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

from dynamix.errors import ConfigError

FULL_DAYS = 42
SHORT_SPAN_DAYS = 10
"""Below it there is no room for a habit and an evidence window."""

_DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)
_LONG = {
    "habit": (0 / 42, 7 / 42),
    "evidence": (7 / 42, 14 / 42),
    "segment_input": (14 / 42, 21 / 42),
    "next_window": (21 / 42, 26 / 42),
    "statistics": (7 / 42, 28 / 42),
    "train": (7 / 42, 30 / 42),
    "validate": (30 / 42, 35 / 42),
    "test": (35 / 42, 42 / 42),
}
_SHORT = {
    "segment_input": (0.0, 0.25),
    "next_window": (0.25, 0.45),
    "statistics": (0.0, 0.50),
    "train": (0.0, 0.55),
    "validate": (0.55, 0.70),
    "test": (0.70, 1.0),
}


DAY_US = 86_400_000_000
"""Microseconds of a UTC day."""


def days_since_1970(day: date) -> int:
    """Whole days from 1970-01-01 to the day."""
    return (day - date(1970, 1, 1)).days


def midnight(day: date) -> datetime:
    """00:00 of the day, naive UTC."""
    return datetime.combine(day, time())


def since_1970(instant: datetime) -> int:
    """Microseconds from 1970 to a naive UTC instant."""
    return (instant - datetime(1970, 1, 1)) // timedelta(microseconds=1)


def instant_sql(instant: datetime) -> str:
    """Spark SQL literal of a naive UTC instant, whatever the session's time zone is."""
    return f"timestamp'{instant}Z'"


@dataclass(frozen=True)
class Period:
    """Half-open stretch of time [start, end), naive UTC."""

    start: datetime
    end: datetime

    def __contains__(self, instant: object) -> bool:
        return isinstance(instant, datetime) and self.start <= instant < self.end

    @property
    def days(self) -> float:
        return (self.end - self.start) / _DAY

    def sql(self, column: str) -> str:
        """Spark SQL condition `column` in [start, end)."""
        return f"{column} >= {instant_sql(self.start)} AND {column} < {instant_sql(self.end)}"


@dataclass(frozen=True)
class Calendar:
    """The periods of one cycle. `habit` and `evidence` are None on spans under ten days.

    `baseline` is where mu, sigma and caps are fitted: the habit window, else the statistics period.
    `lost` holds one sentence per guarantee that a short span cannot give.
    """

    run_date: date
    first: datetime
    habit: Period | None
    evidence: Period | None
    segment_input: Period
    next_window: Period
    statistics: Period
    train: Period
    validate: Period
    test: Period
    lost: tuple[str, ...]
    baseline: Period
    baseline_version: str

    @property
    def parts(self) -> dict[str, Period]:
        """Train, validate and test in time order; a row is of a part only if mature by its end."""
        return {"train": self.train, "validate": self.validate, "test": self.test}


def build_calendar(run_date: date, *, first_event: datetime, days: int = FULL_DAYS) -> Calendar:
    """Periods of the at most `days` days before `run_date` 00:00 that hold events.

    Day 1 is the day of `first_event`, or `days` days before the run date if that is later. Borders are
    rounded to whole hours (halves up). ConfigError when no event lies before the run date.

    >>> build_calendar(date(2024, 2, 12), first_event=datetime(2023, 1, 1)).test.start
    datetime.datetime(2024, 2, 5, 0, 0)
    """
    end = midnight(run_date)
    if first_event >= end:
        raise ConfigError(
            f"run date {run_date}: the first event is at {first_event:%Y-%m-%d %H:%M}, so the run would see "
            f"nothing; allowed: --run-date {first_event.date() + _DAY} or later"
        )
    first = max(midnight(first_event.date()), end - days * _DAY)
    span_days = (end - first) // _DAY
    short = span_days < SHORT_SPAN_DAYS
    periods = {
        name: Period(_border(first, end, low), _border(first, end, high))
        for name, (low, high) in (_SHORT if short else _LONG).items()
    }
    habit = periods.get("habit")
    baseline = habit or periods["statistics"]
    return Calendar(
        run_date=run_date,
        first=first,
        habit=habit,
        evidence=periods.get("evidence"),
        segment_input=periods["segment_input"],
        next_window=periods["next_window"],
        statistics=periods["statistics"],
        train=periods["train"],
        validate=periods["validate"],
        test=periods["test"],
        lost=_lost(span_days),
        baseline=baseline,
        baseline_version=f"b{baseline.start:%Y%m%d%H}-{baseline.end:%Y%m%d%H}",
    )


def _border(first: datetime, end: datetime, share: float) -> datetime:
    hours = (end - first) / _HOUR
    # the small term keeps e.g. 7/42 of 15 days, exactly 60 h, from becoming 59.999…; halves go up
    return first + int(hours * share + 0.5 + 1e-9) * _HOUR


def _lost(span_days: int) -> tuple[str, ...]:
    if span_days < SHORT_SPAN_DAYS:
        span = f"the span of {span_days} day{'s' if span_days != 1 else ''} is under {SHORT_SPAN_DAYS}"
        return (
            f"{span}: no earlier window for habits: each habit is 0, a user's own pace stays in the dwell",
            f"{span}: no earlier evidence for the segmenter (evidence none)",
            f"{span}: mu and sigma come from the statistics period itself",
            f"{span}: the segmenter's windows lie inside the statistics period from its first day on",
        )
    if span_days < FULL_DAYS:
        return (
            f"the span of {span_days} days is under {FULL_DAYS}: every window is shortened in proportion",
        )
    return ()
