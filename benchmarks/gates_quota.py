"""Quotas of a simulated world beside the planted horizons: how many newest events act, and how many the rule keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dynamix.config import MaskConfig
from dynamix.features import sim_world as W
from dynamix.features.recency import BUCKETS, EDGES
from dynamix.segmentation.bounds import cell_budget
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.masks import Verdict
from dynamix.segmentation.power import POWER, expected
from dynamix.segmentation.quota import Quota, Spent, quotas, tail

ACTING = ("strong", "weak")


@dataclass(frozen=True)
class Horizons:
    """Buckets of recency, 1 to 4 = all, of cells (M,): planted, chosen, and chosen were the total free (`alone`).

    decidable (M,): the cell is kept and acts by a slope; its tail beyond the planted horizon (of a cell that acts as a
    whole: beyond 30 events) has the tokens and the support for a cut and, were it null, would be bounded within the
    cell's budget with a chance of POWER; and a cut two buckets shorter than planted, where there is one, truly costs
    more than that budget, by the planted p on the same histories.
    """

    planted: npt.NDArray[np.int64]
    chosen: npt.NDArray[np.int64]
    alone: npt.NDArray[np.int64]
    decidable: npt.NDArray[np.bool_]

    def within_one(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether decidable cells are cut within one bucket of the planted horizon."""
        own = self.decidable
        return np.asarray(np.abs(chosen[own] - self.planted[own]) <= 1)


def horizons(
    world: W.World,
    statistics: Statistics,
    truth: Statistics,
    verdicts: Sequence[Verdict],
    config: MaskConfig,
) -> Horizons:
    """Planted and chosen horizons of every verdict's cell; `truth` is of the planted exposure and p."""
    spent = Spent.by_drops(statistics, verdicts)
    free = config.model_copy(update={"ne_budget": float("inf")})
    chosen, alone = (
        _buckets(verdicts, quotas(statistics, verdicts, way, spent=spent)) for way in (config, free)
    )
    cells = [(v.segment_id, v.stream) for v in verdicts]
    planted = [_planted(world, cell) for cell in cells]
    decidable = [
        kind in ACTING
        and v.verdict != "drop"
        and all(c.passed for c in v.checks if c.rule == "curvature")
        and is_decidable(cell, statistics, truth, bucket, _floor(verdicts, v.segment_id, config), config)
        for v, cell, (kind, bucket) in zip(verdicts, cells, planted, strict=True)
    ]
    buckets = np.array([bucket for _, bucket in planted])
    return Horizons(buckets, chosen, alone, np.array(decidable, bool))


def _planted(world: W.World, cell: Cell) -> tuple[str, int]:
    """Kind of a cell and the bucket that its horizon ends in; segment 0 has none."""
    segment, stream = cell
    if segment == 0:
        return "cold", BUCKETS
    at = segment - 1, world.streams.index(stream)
    events = int(world.horizon[at])
    return str(world.kind[at]), EDGES.index(events) + 1 if events in EDGES else BUCKETS


def _buckets(verdicts: Sequence[Verdict], cuts: Sequence[Quota]) -> npt.NDArray[np.int64]:
    """Buckets that stay of every verdict's cell (M,)."""
    kept = {(q.segment_id, q.stream): EDGES.index(q.events) + 1 for q in cuts}
    return np.array([kept.get((v.segment_id, v.stream), BUCKETS) for v in verdicts])


def _floor(verdicts: Sequence[Verdict], segment: int, config: MaskConfig) -> float:
    """Tokens an impression that a tail must have."""
    return config.min_token_share * sum(v.tokens for v in verdicts if v.segment_id == segment)


def is_decidable(
    cell: Cell,
    statistics: Statistics,
    truth: Statistics,
    horizon: int,
    floor: float,
    config: MaskConfig,
) -> bool:
    """Whether these sums can tell the horizon of a cell, as in `Horizons`; `floor`: tokens an impression of a tail."""
    sums, planted = (of.by_recency(cell, of.heads[0]) for of in (statistics, truth))
    if sums is None or planted is None:
        return False
    budget = cell_budget(sums.positives / sums.n, config.delta)
    beyond = tail(sums, min(horizon, BUCKETS - 1))
    if (
        beyond.tokens < floor * sums.n
        or beyond.positives < beyond.needed(config)
        or not beyond.quadratic.trace
    ):
        return False
    if beyond.scale * expected(beyond.quadratic, POWER).upper() > budget:
        return False
    too_short = tail(planted, horizon - 2) if horizon > 2 else None
    return too_short is None or too_short.scale * too_short.quadratic.q > budget
