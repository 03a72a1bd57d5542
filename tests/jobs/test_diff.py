"""`dynamix diff`: cells that two mask versions treat differently, under names that may be shown."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from dynamix.config import load_config
from dynamix.contracts import MASKS
from dynamix.errors import ConfigError, GuardError
from dynamix.features.tables import Warehouse
from dynamix.jobs.context import Run
from dynamix.jobs.diff import _treated, changes, diff
from dynamix.jobs.frames import table_frame
from dynamix.jobs.report_data import Cell

OLD, NEW = "m20260101-aaaaaaaa", "m20260108-bbbbbbbb"


def cell(
    segment: int, stream: str, quota: int, *, tier: str = "*", boost: float = 0.0,
    attributes: tuple[str, ...] | None = None,
) -> Cell:  # fmt: skip
    return Cell(
        segment, f"name {segment}", tier, stream, quota > 0, "keep", quota=quota, boost=boost, tokens=2.0,
        attributes=attributes,
    )  # fmt: skip


def keys(one: list[Cell], other: list[Cell]) -> list[tuple[int, str, str]]:
    return [change.key for change in changes(one, other, whole=lambda stream: 50)]


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ([cell(1, "a", 50)], [cell(1, "a", 50)], []),
        ([cell(1, "a", 50)], [cell(1, "a", 10)], [(1, "*", "a")]),
        ([cell(1, "a", 50)], [cell(1, "a", 50, boost=0.7)], [(1, "*", "a")]),
        ([cell(1, "a", 50)], [cell(1, "a", 100)], [(1, "*", "a")]),  # a boosted cell
        ([cell(1, "a", 50)], [cell(1, "a", 50, attributes=("dwell",))], [(1, "*", "a")]),
        ([cell(1, "a", 50, attributes=("dwell",))], [cell(1, "a", 50, attributes=("dwell",))], []),
        ([], [cell(1, "a", 50, attributes=("dwell",))], [(1, "*", "a")]),
        ([], [cell(1, "a", 50)], []),  # not listed is whole
        ([cell(1, "a", 0)], [], [(1, "*", "a")]),
        ([cell(1, "a", 0)], [cell(1, "a", 0, tier="active"), cell(1, "a", 9, tier="passive")], [(1, "passive", "a")]),
        ([cell(1, "a", 9, tier="active"), cell(1, "a", 9, tier="passive")], [cell(1, "a", 9)], []),
        ([cell(1, "a", 9, tier="active")], [], [(1, "active", "a")]),
        ([cell(2, "a", 0), cell(1, "b", 0)], [], [(1, "*", "b"), (2, "*", "a")]),
    ],
)  # fmt: skip
def test_a_cell_differs_where_quota_or_boost_does(
    one: list[Cell], other: list[Cell], differ: list[tuple[int, str, str]]
) -> None:
    assert keys(one, other) == differ
    assert keys(other, one) == differ


@pytest.mark.parametrize(
    ("quota", "told"), [(0, "dropped"), (10, "newest 10"), (50, "whole"), (100, "newest 100")]
)
def test_a_quota_is_told_in_words_a_boosted_one_too(quota: int, told: str) -> None:
    assert _treated(cell(1, "a", quota), 50) == told


def test_both_rows_of_a_changed_cell_come_with_it() -> None:
    before, after = cell(1, "a", 50), cell(1, "a", 0)
    (change,) = changes([before], [after], whole=lambda stream: 50)
    assert (change.before, change.after) == (before, after)
    (gone,) = changes([replace(before, quota=3)], [], whole=lambda stream: 50)
    assert gone.after is None


@pytest.fixture(scope="module")
def run(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = load_config(settings=["streams={clinic/view: {sensitive: true}}"])
    place = Warehouse(tmp_path_factory.mktemp("diff") / "W")
    run = Run(spark, place, config, date(2026, 2, 1), "r1", quiet=True)
    whole = config.declaration("shop/view").length
    cells = (
        (OLD, "published", "shop/view", whole, 3.0), (OLD, "published", "clinic/view", whole, 1.0),
        (OLD, "published", "feed/view", whole, 4.0), (NEW, "proposed", "feed/view", whole, 4.0),
        (NEW, "proposed", "shop/view", 10, 3.0), (NEW, "proposed", "clinic/view", 0, 1.0),
    )  # fmt: skip
    rows = [
        {
            "mask_version": version, "seq": 1, "segment_version": "s1", "segment_id": 1, "segment_name": "clinic/view",
            "tier": "*", "stream": stream, "keep": quota > 0, "quota": quota, "boost": 0.0, "positives": 12,
            "attributes": ["category", "dwell"] if (version, stream) == (NEW, "feed/view") else None,
            "tokens": tokens, "verdict": "keep" if quota else "drop", "reason": f"bounds of {stream}",
            "status": status, "run_date": date(2026, 1, 8), "run_id": "r",
        }
        for version, status, stream, quota, tokens in cells
    ]  # fmt: skip
    place.replace(spark, MASKS, table_frame(spark, MASKS, rows))
    return run


@pytest.mark.spark
def test_changes_are_told_with_their_reasons_and_without_sensitive_names(run: Run) -> None:
    result = diff(run, OLD, NEW)
    assert result.counters == {"cells_changed": 3}
    hidden, less, cut = result.facts["changes"]
    assert (less["before"], less["after"]) == ("whole", "whole, of each category, dwell")
    assert (hidden["stream"], hidden["before"], hidden["after"]) == ("sensitive stream 1", "whole", "dropped")
    assert (cut["stream"], cut["before"], cut["after"]) == ("shop/view", "whole", "newest 10")
    assert cut["reason"] == "bounds of shop/view"
    assert result.facts["dropped"] == {1: (0.0, 0.125)}
    text = result.facts["text"]
    assert "clinic" not in text and f"{OLD} (published) -> {NEW} (proposed): 3 cells differ" in text
    assert "tokens in dropped streams 0.0% -> 12.5%" in text
    assert diff(run, OLD, OLD).facts["changes"] == []


@pytest.mark.spark
def test_a_version_that_is_not_there_is_named_with_those_that_are(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"mask version 'm1' does not exist; known: {OLD}, {NEW}"):
        diff(run, OLD, "m1")
    empty = replace(run, warehouse=Warehouse(tmp_path / "none"))
    with pytest.raises(GuardError, match="run `dynamix mask`"):
        diff(empty, OLD, NEW)
