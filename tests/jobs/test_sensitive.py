"""Streams marked sensitive: out of the segmenter's counts, and under a number in what a report shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from dynamix.config import load_config
from dynamix.jobs.arm_rows import stream_scales
from dynamix.jobs.drift_data import Compared, Drift, Watch
from dynamix.jobs.evidence_data import parse_evidence
from dynamix.jobs.heatmap import terminal
from dynamix.jobs.report import render
from dynamix.jobs.report_data import AtBudget, Bin, Cell, Channel, Curve, ReportData, SegmentInfo
from dynamix.jobs.sensitive import hidden_cells, hidden_names, shown_names
from dynamix.segmentation.counts import _sensitive

CONFIG = load_config(settings=["streams={health/view: {sensitive: true}, health/click: {sensitive: true}}"])


def cell(stream: str) -> Cell:
    reason = f"most relevant stream {stream}"
    return Cell(1, "health/view 3.0x, shop/view 2.0x", "*", stream, True, "keep", reason=reason)


def test_names_are_numbers_in_the_order_of_the_names() -> None:
    found = shown_names(CONFIG, ["shop/view", "health/view", "health/view#short", "health/click"])
    assert found == {
        "health/click": "sensitive stream 1",
        "health/view": "sensitive stream 2",
        "health/view#short": "sensitive stream 3",
    }


def test_no_part_of_a_report_names_a_sensitive_stream() -> None:
    streams = ("health/view", "shop/view")
    data = ReportData(
        cells=tuple(map(cell, streams)),
        channels=tuple(Channel(1, "*", stream, "click", "dwell") for stream in streams),
        curves=tuple(Curve(1, stream, "click", (Bin("0 s", 10, 1),)) for stream in streams),
        segments=(SegmentInfo(1, "health/view 3.0x"),),
        truth={(1, stream): "strong" for stream in streams},
        budgets=(AtBudget(0.01, True, {(1, stream): "drop" for stream in streams}, 0.5),),
        drift=Drift("r", tuple(Compared("dwell", s, 1.0, 2.0, False, f"dwell of {s}") for s in streams)),
        watch=Watch(
            "", "", "", (Compared("psi", "health/click", 1.0, 2.0, False, "psi of health/click"),), ()
        ),
        evidence=parse_evidence({"reason": "retired (second opinion of segment 1 × health/view +0.4)"}),
    )
    hidden = hidden_names(data, CONFIG)
    assert "health" in repr(data) and "health" not in repr(hidden)
    assert "shop/view" in repr(hidden) and "sensitive stream 1" in repr(hidden)
    assert "health" not in render(hidden)
    assert "health" not in terminal(hidden_cells(data.cells, CONFIG))


def test_without_a_sensitive_stream_nothing_changes() -> None:
    data = ReportData(cells=(cell("shop/view"),))
    assert hidden_names(data, CONFIG) is data


@pytest.mark.spark
def test_a_sensitive_stream_is_in_no_count_here_nor_in_serving(spark: SparkSession, tmp_path: Path) -> None:
    names = ["health/view", "health/view#short", "shop/view", "shop/health/view"]
    rows = [(n, name, False, False, None, None) for n, name in enumerate(names)]
    streams = spark.createDataFrame(
        rows,
        "stream_id int, stream string, is_conversion boolean, has_dwell boolean, mu double, sigma double",
    )
    kept = {row["stream"] for row in streams.where(~_sensitive(CONFIG)).collect()}
    assert kept == {"shop/view", "shop/health/view"}
    served = {
        name for name, scale in stream_scales(streams, config=CONFIG).items() if not scale.is_conversion
    }
    assert served == kept
    assert streams.where(~_sensitive(load_config())).count() == len(names)
