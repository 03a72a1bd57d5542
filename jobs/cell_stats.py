"""Rows of the statistics' scan as the rule reads them, and as rows of `cell_stats`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from pyspark.sql import Row

from dynamix.contracts import CHANNELS
from dynamix.features.gram import GramSums
from dynamix.features.recency import BeyondSums, RecencySums
from dynamix.features.relevance import BEYOND, BY_RECENCY, TOGETHER, CellSums
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.effects import effect
from dynamix.segmentation.robustness import slopes_apart

TIER = "*"


@dataclass(frozen=True)
class Measured:
    """Statistics of one segment version with names beside the ids."""

    statistics: Statistics
    segment_version: str
    names: Mapping[int, str]
    streams: tuple[str, ...]
    window_end: date


def unpacked(
    rows: Sequence[Row], listed: Mapping[int, str], *, heads: tuple[str, ...], settings: tuple[str, ...]
) -> Statistics:
    """Statistics from rows of `cell_sums`; streams whose id is not `listed` (id -> stream) are left out."""
    sums, by_recency, together, beyond = {}, {}, {}, {}
    for r in rows:
        segment, stream, label, half = (
            int(r["segment_id"]),
            int(r["stream_id"]),
            str(r["label"]),
            int(r["half"]),
        )
        if int(r["window"]) == TOGETHER:
            together[segment, label, half] = GramSums.unpack(r["sums"])
        elif stream in listed and int(r["window"]) == BY_RECENCY:
            by_recency[segment, listed[stream], label, half] = RecencySums.unpack(r["sums"])
        elif stream in listed and int(r["window"]) == BEYOND:
            beyond[segment, listed[stream], label, half] = BeyondSums.unpack(r["sums"])
        elif stream in listed:
            sums[segment, listed[stream], label, half, int(r["window"])] = CellSums.unpack(r["sums"])
    place = {name: i for i, name in listed.items()}
    return Statistics(sums, heads, together, place, settings, by_recency, beyond)


def stat_rows(measured: Measured, given: str) -> list[dict[str, Any]]:
    """Every cell's joint row with the mergeable state, and one row per channel."""
    return [
        row
        for cell in measured.statistics.cells
        for head in measured.statistics.heads
        for row in _of_cell(measured, cell, head, given)
    ]


def _of_cell(measured: Measured, cell: Cell, head: str, given: str) -> list[dict[str, Any]]:
    sums = measured.statistics.of(cell, head)
    if sums is None:
        return []
    e = effect(sums)
    shared = {
        "segment_version": measured.segment_version, "segment_id": cell[0], "tier": TIER, "stream": cell[1],
        "label": head, "window_end": measured.window_end, "given": given, "half": -1,
        "impressions": int(sums.n), "positives": int(sums.with_stream), "tokens": sums.tokens / sums.n,
    }  # fmt: skip
    bounds = {"relevance": e.relevance, "relevance_lcb": e.lcb, "relevance_ucb": e.ucb, "dof": e.dof}
    rows = [{**shared, "channel": "joint", **bounds, "sums": sums.pack()}]
    apart = slopes_apart(measured.statistics, cell, head)
    for name in CHANNELS:
        c, own = e.channels[name], apart[name]
        rows.append({
            **shared, "channel": name, "score": c.score, "information": c.information, "score_var": c.variance,
            "beta": c.beta, "se": c.se, "relevance": c.relevance, "relevance_lcb": c.lcb, "relevance_ucb": c.ucb,
            "beta_within": own.within, "se_within": own.within_se,
            "beta_between": own.between, "se_between": own.between_se,
            "dof": int(c.information > 0), "sums": [],
        })  # fmt: skip
    return rows
