"""Masks are refused where no label can teach them anything; the whole cycle without conversions is in tests/e2e."""

from __future__ import annotations

from datetime import date, datetime

import pytest
from pyspark.sql import SparkSession

from dynamix.config import Config
from dynamix.errors import GuardError
from dynamix.features.calendar import build_calendar
from dynamix.jobs.context import StepResult
from dynamix.jobs.mask import refuse_without_labels

CALENDAR = build_calendar(date(2024, 2, 12), first_event=datetime(2024, 1, 1))


@pytest.mark.spark
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no impression of .* is mature"),
        ([(1.0, 0.0), (0.0, 0.0)], "no positive label for conversion in 2 impressions"),
        ([(0.0, 0.0)], "no positive label for click, conversion in 1 impressions"),
    ],
)
def test_nothing_to_learn_from_is_exit_4_with_the_heads(
    spark: SparkSession, rows: list[tuple[float, float]], said: str
) -> None:
    frame = spark.createDataFrame(rows, "label_click double, label_conversion double")
    result = StepResult()
    with pytest.raises(GuardError, match=said) as refused:
        refuse_without_labels(frame, Config(labels=("click", "conversion")), CALENDAR, result)
    assert refused.value.exit_code == 4
    assert result.counters["rows_read"] == len(rows)


@pytest.mark.spark
def test_a_positive_of_every_head_is_enough(spark: SparkSession) -> None:
    frame = spark.createDataFrame([(1.0, 0.0), (0.0, 1.0)], "label_click double, label_conversion double")
    result = StepResult()
    refuse_without_labels(frame, Config(labels=("click", "conversion")), CALENDAR, result)
    assert result.counters == {"rows_read": 2, "positives_click": 1, "positives_conversion": 1}
