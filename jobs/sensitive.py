"""Streams that the config marks `sensitive`: a report shows them under a number instead of their name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from dynamix.config import Config
from dynamix.jobs.report_data import Cell, ReportData


def shown_names(config: Config, streams: Iterable[str]) -> dict[str, str]:
    """Sensitive stream -> `sensitive stream 1`, `2`, … in the order of their names; others are left out."""
    found = sorted({stream for stream in streams if config.declaration(stream).sensitive})
    return {stream: f"sensitive stream {number}" for number, stream in enumerate(found, start=1)}


def hidden_cells(cells: Iterable[Cell], config: Config) -> tuple[Cell, ...]:
    """Cells with sensitive streams under their numbers, in names of segments and reasons as well."""
    listed = tuple(cells)
    shown = shown_names(config, (cell.stream for cell in listed))
    return tuple(_hidden_cell(cell, shown) for cell in listed) if shown else listed


def hidden_names(data: ReportData, config: Config) -> ReportData:
    """What a report shows, without the name of any sensitive stream."""
    streams = {one.stream for group in (data.cells, data.channels, data.curves) for one in group}
    shown = shown_names(config, streams | {stream for _, stream in data.truth})
    if not shown:
        return data
    return replace(
        data,
        cells=tuple(_hidden_cell(cell, shown) for cell in data.cells),
        channels=tuple(replace(one, stream=shown.get(one.stream, one.stream)) for one in data.channels),
        curves=tuple(replace(one, stream=shown.get(one.stream, one.stream)) for one in data.curves),
        segments=tuple(replace(one, name=_hidden(one.name, shown)) for one in data.segments),
        truth={(segment, shown.get(stream, stream)): kind for (segment, stream), kind in data.truth.items()},
    )


def _hidden_cell(cell: Cell, shown: Mapping[str, str]) -> Cell:
    return replace(
        cell,
        stream=shown.get(cell.stream, cell.stream),
        segment_name=_hidden(cell.segment_name, shown),
        reason=_hidden(cell.reason, shown),
    )


def _hidden(text: str, shown: Mapping[str, str]) -> str:
    """The text with each sensitive name replaced, longer names first: one may begin another."""
    for stream in sorted(shown, key=len, reverse=True):
        text = text.replace(stream, shown[stream])
    return text
