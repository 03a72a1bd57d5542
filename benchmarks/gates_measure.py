"""One simulated world under one way of making the numbers: verdicts of all cells beside what was planted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from benchmarks import gates_attributes
from benchmarks.gates_boost import Lengthened, lengthened
from benchmarks.gates_broken import SOUND, Variant
from benchmarks.gates_loss import Loss, PlantedRows, true_loss
from benchmarks.gates_quota import Horizons, horizons
from benchmarks.gates_sums import Sums, planted_sums, statistics_of, world_sums
from benchmarks.gates_told import Told, told_loss, told_sums
from benchmarks.gates_world import (
    HEAD,
    START,
    histories,
    pipeline_dwells,
    planted_dwells,
    planted_logits,
    world_config,
)
from dynamix.config import Config, MaskConfig
from dynamix.features import sim_world as W
from dynamix.features.simulate import draw_in
from dynamix.segmentation import effects
from dynamix.segmentation.bounds import cell_budget
from dynamix.segmentation.cells import Statistics
from dynamix.segmentation.effects import effect
from dynamix.segmentation.masks import Verdict

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

DAYS = 42
CHUNK_USERS = 20_000
"""Users drawn at once; memory follows this number, and with more of them only what the loss needs."""
Z95 = 1.96
LEAST_POSITIVES = 50
"""Cells with fewer positives are left out of the coverage: their score is no normal variable."""


@dataclass(frozen=True)
class Sample:
    """One world: sums by variant, those of the planted exposure and p (None where not asked for), planted rows.

    told: what histories without a planted bug tell of the planted effects; base: newest events of a stream kept in them.
    """

    world: W.World
    seed: int
    users: int
    sums: dict[str, Sums]
    planted: Sums | None
    rows: PlantedRows
    told: Told
    base: int


@dataclass(frozen=True)
class Measured:
    """Cells (M,) of one world under one variant, and the figures that belong to all of them.

    kind: planted kind, `cold` in segment 0; dropped; tokens: kept events; positives and needed: of the support
    rule; shown: lower bound of the block's relevance above 0; matters: above the cell's budget; beta, se, truth:
    dwell channel in log-odds per SD, truth = 0 for null cells, else by the same functional of the planted exposure
    and p (NaN where the preset hides that exposure, or nobody asked); spread: what `se` says of beta - truth
    (`_spread`); deff: design effect of the block; copy_of (F,) as in `World`; horizons: quotas beside the planted
    ones, if asked for; loss: by the planted effects; told: of what the histories tell of them; longer: boosts, if
    asked for; attributes: what kept cells lose, under `mask.attributes: bound`.
    """

    preset: str
    seed: int
    variant: str
    users: int
    impressions: float
    all_positives: float
    segment: npt.NDArray[np.int64]
    stream: npt.NDArray[np.int64]
    kind: npt.NDArray[np.str_]
    dropped: Bools
    tokens: Floats
    positives: Floats
    needed: Floats
    shown: Bools
    matters: Bools
    beta: Floats
    se: Floats
    truth: Floats
    spread: Floats
    deff: Floats
    copy_of: npt.NDArray[np.int64]
    horizons: Horizons | None
    loss: Loss
    told: Loss
    budget: float
    longer: Lengthened | None = None
    attributes: gates_attributes.Lost | None = None

    def share(self, *kinds: str) -> float:
        """Share of the tokens of these kinds that is dropped; of all where none is named."""
        own = np.isin(self.kind, kinds) if kinds else np.ones(len(self.kind), bool)
        total = float(self.tokens[own].sum())
        return float(self.tokens[own & self.dropped].sum()) / total if total else 0.0

    @property
    def smallest(self) -> float:
        """Share of the null tokens of the smallest segment that is dropped."""
        own = (self.kind == "null") & (self.segment == self.segment.max())
        total = float(self.tokens[own].sum())
        return float(self.tokens[own & self.dropped].sum()) / total if total else 0.0

    @property
    def judged(self) -> Bools:
        """Cells whose interval is held against the truth (M,)."""
        return (self.positives >= LEAST_POSITIVES) & (self.se > 0) & ~np.isnan(self.truth)

    @property
    def covered(self) -> Bools:
        """Of these cells, whether the 95 % interval holds the truth."""
        own = self.judged
        return np.abs(self.beta[own] - self.truth[own]) <= Z95 * self.spread[own]


def sample(
    preset: str, *, seed: int, users: int, variants: Sequence[Variant] = (SOUND,), truth: bool = True,
    config: Config | None = None,
) -> Sample:  # fmt: skip
    """One world of the preset, drawn and summed CHUNK_USERS users at a time.

    Chunks are users of the same world; mean p, the scale of exposures and the prediction without history are each
    chunk's own. `truth`: with the sums of what is planted, which cells that act are held against. `config`: of the
    histories, by default that of a world.
    """
    config = config or world_config()
    world = W.draw_world(W.preset_named(preset), np.random.default_rng([seed, 0]))
    sums: dict[str, Sums] = {}
    planted: Sums | None = None
    rows: PlantedRows | None = None
    told: Told | None = None
    for chunk, first in enumerate(range(0, users, CHUNK_USERS)):
        key = (seed, chunk) if chunk else (seed,)
        n = min(CHUNK_USERS, users - first)
        drawn = draw_in(world, users=n, days=DAYS, start=START, key=key)
        made = histories(drawn, days=DAYS, config=config)
        sound = pipeline_dwells(drawn, world_config(), made.calendar)
        have: dict[tuple[object, ...], Sums] = {}
        for variant in variants:
            calendar = variant.calendar(made.calendar)
            way = (variant.settings, calendar.habit)
            if way not in have:
                plain = way == ((), made.calendar.habit)
                dwells = sound if plain else pipeline_dwells(drawn, world_config(*variant.settings), calendar)
                have[way] = world_sums(made, dwells)
            before = sums.get(variant.name)
            sums[variant.name] = have[way] if before is None else before + have[way]
        if truth:
            own = planted_sums(made, planted_dwells(drawn))
            planted = own if planted is None else planted + own
        parts, by_copy = planted_logits(made, days=DAYS)
        seen = told_sums(made, sound, parts)
        told = seen if told is None else told + seen
        more = PlantedRows(
            made.rows.given, made.rows.fixed, made.rows.expected, parts, by_copy, world.copy_of
        )
        more = more.of(made.rows.expected > 0)  # the first impression of a path never converts
        rows = more if rows is None else rows + more
    if rows is None or told is None:
        raise ValueError(f"users is {users}; allowed: 1 or more")
    return Sample(world, seed, users, sums, planted, rows, told, config.history.per_stream)


def measured(found: Sample, variant: Variant, config: MaskConfig) -> Measured:
    """Verdicts of the variant's rule on the sample, cell by cell beside the truth."""
    streams = found.world.streams
    statistics = statistics_of(found.sums[variant.name], streams)
    truth = None if found.planted is None else statistics_of(found.planted, streams)
    with patch.object(effects, "moments", variant.moments):
        verdicts = variant.rule(statistics, config)
        cuts = None
        if truth is not None:
            cuts = horizons(found.world, statistics, truth, verdicts, config)
        longer = None
        if config.boost_to:
            longer = lengthened(found.world, statistics, verdicts, config, base=found.base)
        without = None
        if config.attributes == "bound":
            without = gates_attributes.lost(statistics, verdicts, config, told=found.told, streams=streams)
    place = {name: f for f, name in enumerate(streams)}
    dropped = np.zeros((W.N_SEGMENTS + 1, W.N_STREAMS), bool)
    for v in verdicts:
        dropped[v.segment_id, place[v.stream]] = v.verdict == "drop"
    checks = [{c.rule: c for c in v.checks} for v in verdicts]
    by_cell = statistics.by_cell(HEAD)
    sums = [by_cell[v.segment_id, v.stream] for v in verdicts]
    n, positives = _population(statistics)
    return Measured(
        preset=found.world.preset.name, seed=found.seed, variant=variant.name, users=found.users,
        impressions=n, all_positives=positives,
        segment=np.array([v.segment_id for v in verdicts]),
        stream=np.array([place[v.stream] for v in verdicts]),
        kind=np.array([_kind(found.world, v.segment_id, place[v.stream]) for v in verdicts]),
        dropped=np.array([v.verdict == "drop" for v in verdicts]),
        tokens=np.array([s.tokens for s in sums]),
        positives=np.array([c["support"].value for c in checks]),
        needed=np.array([c["support"].limit for c in checks]),
        shown=np.array([v.effect.lcb > 0 for v in verdicts]),
        matters=np.array([v.effect.lcb > cell_budget(v.effect.rate, config.delta) for v in verdicts]),
        beta=np.array([v.effect.channels["dwell"].beta for v in verdicts]),
        se=np.array([v.effect.channels["dwell"].se for v in verdicts]),
        truth=_truth(found.world, verdicts, truth, place),
        spread=_spread(found.world, verdicts, truth, place),
        deff=np.array([v.effect.deff for v in verdicts]),
        copy_of=found.world.copy_of, horizons=cuts, loss=true_loss(found.rows, dropped),
        told=told_loss(found.told, dropped), budget=config.ne_budget, longer=longer, attributes=without,
    )  # fmt: skip


def _population(statistics: Statistics) -> tuple[float, float]:
    """Impressions and positives over the segments."""
    own = {g: s for (g, _), s in statistics.by_cell(HEAD).items()}
    return sum(s.n for s in own.values()), sum(s.positives for s in own.values())


def _kind(world: W.World, segment: int, stream: int) -> str:
    """Planted kind of a cell; `cold` for segment 0, `swap` for streams that change at mid-world, `intent` in S10."""
    if segment == 0:
        return "cold"
    if stream in world.intent:
        return "intent"
    return "swap" if stream in world.swap else str(world.kind[segment - 1, stream])


def _truth(
    world: W.World, verdicts: Sequence[Verdict], planted: Statistics | None, place: dict[str, int]
) -> Floats:
    """Log-odds per SD that the dwell channel has to find (M,)."""
    hidden = planted is None or world.preset.habit_sd > 0 or world.preset.censored_acts
    sums = planted.by_cell(HEAD) if planted is not None else {}
    found = []
    for v in verdicts:
        if _kind(world, v.segment_id, place[v.stream]) == "null":
            found.append(0.0)
        elif hidden:
            found.append(np.nan)
        else:
            found.append(effect(sums[v.segment_id, v.stream]).channels["dwell"].beta)
    return np.array(found)


def _spread(
    world: W.World, verdicts: Sequence[Verdict], planted: Statistics | None, place: dict[str, int]
) -> Floats:
    """Standard error of beta - truth (M,) that the cell's own error implies.

    The truth of a null cell is fixed. That of another cell comes from the same histories as its estimate, so what
    users' histories add to the variance is in both: V = E Var(s_u | x_u) + Var E(s_u | x_u), and the second term is
    the clustered variance of the planted score, which has no noise of labels. It is taken off, down to the model's
    own variance, which is that of the labels.
    """
    sums = planted.by_cell(HEAD) if planted is not None else {}
    found = []
    for v in verdicts:
        cell, se = sums.get((v.segment_id, v.stream)), v.effect.channels["dwell"].se
        if cell is None or _kind(world, v.segment_id, place[v.stream]) == "null":
            found.append(se)
            continue
        _, information, variance = effects.moments(cell)
        if information[0, 0] <= 0:
            found.append(se)
        else:
            shared = float(variance[0, 0] / (information[0, 0] * cell.w))
            found.append(max(se**2 - shared, min(se**2, 1 / cell.w)) ** 0.5)
    return np.array(found)
