"""Streams that the config marks `sensitive`: a report shows them under a number instead of their name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from dynamix.config import Config
from dynamix.jobs.drift_data import Compared
from dynamix.jobs.report_data import Cell, ReportData
from dynamix.jobs.story_data import Story


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
    streams |= {stream for _, stream in data.truth} | {
        stream for at in data.budgets for _, stream in at.verdicts
    }
    checks = (*(data.drift.found if data.drift else ()), *(data.watch.checks if data.watch else ()))
    named = {stream for stream in config.streams if any(stream in check.sentence for check in checks)}
    shown = shown_names(config, streams | named)
    if not shown:
        return data
    return replace(
        data,
        cells=tuple(_hidden_cell(cell, shown) for cell in data.cells),
        channels=tuple(replace(one, stream=shown.get(one.stream, one.stream)) for one in data.channels),
        curves=tuple(replace(one, stream=shown.get(one.stream, one.stream)) for one in data.curves),
        segments=tuple(replace(one, name=_hidden(one.name, shown)) for one in data.segments),
        truth={(segment, shown.get(stream, stream)): kind for (segment, stream), kind in data.truth.items()},
        budgets=tuple(
            replace(at, verdicts={(g, shown.get(f, f)): v for (g, f), v in at.verdicts.items()})
            for at in data.budgets
        ),
        drift=data.drift and replace(data.drift, found=_hidden_checks(data.drift.found, shown)),
        watch=data.watch and replace(data.watch, checks=_hidden_checks(data.watch.checks, shown)),
        evidence=data.evidence and replace(data.evidence, reason=_hidden(data.evidence.reason, shown)),
    )


def hidden_story(story: Story, shown: Mapping[str, str]) -> Story:
    """The story with streams under the names of `shown`, in the segment's name, too."""
    score = story.score
    if score is not None:
        score = replace(score, bars=tuple(replace(b, name=shown.get(b.name, b.name)) for b in score.bars))
    events = tuple(replace(e, stream=shown.get(e.stream, e.stream)) for e in story.events)
    return replace(story, events=events, score=score, segment_name=_hidden(story.segment_name, shown))


def _hidden_checks(checks: Iterable[Compared], shown: Mapping[str, str]) -> tuple[Compared, ...]:
    return tuple(replace(c, name=_hidden(c.name, shown), sentence=_hidden(c.sentence, shown)) for c in checks)


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
