"""The calendar at 42 days, in between, and too short for an earlier window."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamix.errors import ConfigError
from dynamix.features.calendar import Calendar, Period, build_calendar

RUN = date(2024, 3, 1)
END = datetime(2024, 3, 1)
FIRST = END - timedelta(days=42)


def day(n: int) -> datetime:
    """Start of day n, counted from 1."""
    return FIRST + timedelta(days=n - 1)


def test_full_span_takes_the_days_of_the_table() -> None:
    calendar = build_calendar(RUN, first_event=datetime(2020, 1, 1, 7))
    expected = {
        "habit": (1, 7), "evidence": (8, 14), "segment_input": (15, 21), "next_window": (22, 26),
        "statistics": (8, 28), "train": (8, 30), "validate": (31, 35), "test": (36, 42),
    }  # fmt: skip
    for name, (first, last) in expected.items():
        assert getattr(calendar, name) == Period(day(first), day(last + 1)), name
    assert calendar.first == FIRST and calendar.lost == () and calendar.baseline == calendar.habit


def test_a_span_of_twenty_one_days_halves_every_window() -> None:
    calendar = build_calendar(RUN, first_event=END - timedelta(days=21) + timedelta(hours=3))
    start = END - timedelta(days=21)
    assert calendar.first == start
    assert calendar.habit == Period(start, start + timedelta(hours=84))
    assert calendar.validate.end == calendar.test.start == END - timedelta(hours=84)
    assert len(calendar.lost) == 1 and "21 days" in calendar.lost[0]


def test_two_days_have_no_earlier_windows_and_say_so() -> None:
    start = END - timedelta(days=2)
    calendar = build_calendar(RUN, first_event=start + timedelta(minutes=2))

    def hours(low: int, high: int) -> Period:
        return Period(start + timedelta(hours=low), start + timedelta(hours=high))

    assert calendar.habit is None and calendar.evidence is None
    assert calendar.segment_input == hours(0, 12)
    assert calendar.next_window == hours(12, 22)  # .45 of 48 h is 21.6 h
    assert calendar.statistics == calendar.baseline == hours(0, 24)
    assert calendar.train == hours(0, 26)
    assert calendar.validate == hours(26, 34)  # .70 of 48 h is 33.6 h
    assert calendar.test == hours(34, 48)
    assert any("habit" in line for line in calendar.lost)
    assert any("mu and sigma" in line for line in calendar.lost)


@given(st.integers(1, 60), st.integers(0, 23))
def test_windows_are_ordered_whole_hours_inside_the_span(days: int, hour: int) -> None:
    calendar = build_calendar(RUN, first_event=END - timedelta(days=days) + timedelta(hours=hour))
    chain = [calendar.train.start, calendar.train.end, calendar.validate.end, calendar.test.end]
    assert chain == sorted(chain) and chain[1:3] == [calendar.validate.start, calendar.test.start]
    assert calendar.test.end == END and calendar.statistics.end <= calendar.train.end
    assert all(border.minute == 0 for border in chain)
    assert (calendar.habit is None) == (days < 10)
    if calendar.habit:
        assert calendar.habit.end <= calendar.statistics.start


def test_a_run_before_all_events_is_refused_with_the_first_date_that_works() -> None:
    with pytest.raises(ConfigError, match="2024-03-02 or later"):
        build_calendar(RUN, first_event=datetime(2024, 3, 1, 0, 0))


def test_baseline_version_names_the_window_and_nothing_else() -> None:
    one = build_calendar(RUN, first_event=datetime(2020, 1, 1))
    two = build_calendar(RUN, first_event=datetime(2021, 5, 5))
    assert one.baseline_version == two.baseline_version == "b2024011900-2024012600"


def test_a_period_contains_its_start_and_not_its_end() -> None:
    period = Period(datetime(2024, 1, 1), datetime(2024, 1, 2))
    assert datetime(2024, 1, 1) in period and datetime(2024, 1, 2) not in period
    assert period.sql("t") == "t >= timestamp'2024-01-01 00:00:00Z' AND t < timestamp'2024-01-02 00:00:00Z'"
    assert isinstance(build_calendar(RUN, first_event=FIRST), Calendar)
