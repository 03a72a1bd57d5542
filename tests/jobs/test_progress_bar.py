"""The bar of Spark's tasks: drawn on a terminal alone, gone when the work is done."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace

import pytest
from pyspark.sql import SparkSession

from dynamix.jobs import progress_bar
from dynamix.jobs.progress_bar import CLEAR, bar, shown_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def session(stages: list[dict[int, tuple[int, int]]]) -> SimpleNamespace:
    """A session whose tracker goes through these looks: stage -> (tasks done, tasks); then nothing runs."""
    looks = iter(stages)
    now: dict[int, tuple[int, int]] = {}

    def active() -> list[int]:
        now.clear()
        now.update(next(looks, {}))
        return list(now)

    def info(stage: int) -> SimpleNamespace | None:
        if stage == 99:
            return None  # ended between the two questions
        return SimpleNamespace(numCompletedTasks=now[stage][0], numTasks=now[stage][1])

    tracker = SimpleNamespace(getActiveStageIds=active, getStageInfo=info)
    return SimpleNamespace(_sc=SimpleNamespace(statusTracker=lambda: tracker))


def test_stages_are_added_up_drawn_over_and_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "_EVERY_S", 0.01)
    out = Terminal()
    looks = [{1: (0, 4)}, {1: (2, 4), 2: (1, 8)}, {99: (0, 1)}, {}, {3: (1, 2)}]
    with shown_progress(session(looks), quiet=False, stream=out):  # type: ignore[arg-type]
        time.sleep(0.3)
    drawn = out.getvalue().split(CLEAR)
    texts = [text.rpartition(",")[0] for text in drawn if text]
    assert texts == [
        "  [........................] 0 of 4 tasks",
        "  [######..................] 3 of 12 tasks of 2 stages",
        "  [############............] 1 of 2 tasks",
    ]
    assert out.getvalue().endswith(CLEAR)


@pytest.mark.parametrize("quiet", [True, False])
def test_nothing_is_drawn_into_a_file_or_where_it_is_not_wanted(quiet: bool) -> None:
    out = Terminal() if quiet else io.StringIO()
    with shown_progress(session([{1: (0, 4)}] * 9), quiet=quiet, stream=out):  # type: ignore[arg-type]
        time.sleep(0.05)
    with shown_progress(SimpleNamespace(), quiet=False, stream=Terminal()):  # type: ignore[arg-type]
        pass  # a Connect session has no tracker
    assert out.getvalue() == ""


def test_a_bar_is_full_at_the_end() -> None:
    assert bar(5, 5, seconds=61, stages=1) == f"  [{'#' * 24}] 5 of 5 tasks, 61 s"
    assert bar(0, 0, seconds=0, stages=0).count(".") == 24


@pytest.mark.spark
def test_a_real_session_is_asked(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "_EVERY_S", 0.02)
    out = Terminal()
    with shown_progress(spark, quiet=False, stream=out):
        spark.range(4, numPartitions=4).selectExpr("java_method('java.lang.Thread', 'sleep', 300L)").collect()
    assert "of 4 tasks" in out.getvalue()
