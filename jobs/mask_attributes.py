"""Attributes that a mask version takes from the events of kept cells, and what the grid says of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from dynamix.config import Config
from dynamix.segmentation.attributes import Without, after_cuts, dispensable
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.masks import Verdict
from dynamix.segmentation.quota import Quota, Spent


def lost_attributes(
    config: Config, statistics: Statistics, verdicts: Sequence[Verdict], cuts: Mapping[Cell, Quota],
    *, never: Collection[Cell] = (),
) -> dict[Cell, Without]:  # fmt: skip
    """Kept cells that lose attributes under `mask.attributes: bound`, by what drops and cuts leave; none of `never`."""
    if config.mask.attributes == "off":
        return {}
    spent = after_cuts(statistics, Spent.by_drops(statistics, verdicts), cuts)
    found = dispensable(statistics, verdicts, config.mask, spent=spent, cuts=cuts, never=never)
    return {(one.segment_id, one.stream): one for one in found}


def in_every_segment(
    pooled: Mapping[Cell, Without], statistics: Statistics, cells: Collection[Cell]
) -> dict[Cell, Without]:
    """What the one mask of all users takes (under segment id 0), for each of these cells, with the cell's own tokens."""
    found = {}
    for cell in cells:
        one, sums = pooled.get((0, cell[1])), statistics.of(cell, statistics.heads[0])
        if one is not None and sums is not None:
            found[cell] = replace(one, segment_id=cell[0], tokens=sums.tokens)
    return found


def kept_attributes(config: Config, stream: str, without: Without | None) -> list[str] | None:
    """`masks.attributes`: sorted, of what the stream declares; None where the mask takes nothing."""
    if without is None:
        return None
    return sorted(set(config.declaration(stream).attributes) - set(without.attributes))
