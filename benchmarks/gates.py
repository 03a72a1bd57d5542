"""Gates of the statistics on simulated worlds, without Spark: `python -m benchmarks gates [--presets S0]`.

Every seed of a preset is one world with its true segments: sums, effects and verdicts by the product's own code, held
against what was planted (docs/method.md C.4). A broken variant goes through the same gate and has to fail it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from benchmarks.gates_broken import BROKEN, SOUND, Variant
from benchmarks.gates_loss import Loss, PlantedRows, true_loss
from benchmarks.gates_world import (
    HEAD,
    START,
    Dwells,
    cell_array,
    histories,
    pipeline_dwells,
    planted_dwells,
    planted_logits,
    statistics_of,
    world_config,
)
from dynamix.config import MaskConfig
from dynamix.errors import ConfigError
from dynamix.features import sim_world as W
from dynamix.features.simulate import draw_in
from dynamix.segmentation import effects
from dynamix.segmentation.effects import effect
from dynamix.segmentation.masks import Statistics, Verdict

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

DAYS = 42
CHUNK_USERS = 20_000
"""Users drawn at once; memory follows this number, and with more of them only what the loss needs."""
SETTINGS = ("mask.ne_budget=0.005", "mask.delta=0.20")
"""What 20,000 users can decide, as in benchmarks/worlds.py."""
Z95 = 1.96
LEAST_POSITIVES = 50
"""Cells with fewer positives are left out of the coverage: their score is no normal variable."""
NULL_POSITIVES = 80_000
"""From here on the share of null tokens dropped has a bar (docs/method.md C.4)."""
WEAK_POSITIVES = 4_000
"""Weak cells count from here on."""
STRONG = ("strong", "match")


@dataclass(frozen=True)
class Sample:
    """One world: sums (variant -> packed, see `cell_array`), those of the planted exposure and p, planted rows."""

    world: W.World
    seed: int
    users: int
    sums: dict[str, Floats]
    planted: Floats
    rows: PlantedRows


@dataclass(frozen=True)
class Measured:
    """Cells (M,) of one world under one variant, and the figures that belong to all of them.

    kind: planted kind, `cold` in segment 0; dropped; tokens: kept events; positives and needed: of the support
    rule; shown: lower bound of the block's relevance above 0; beta, se, truth: dwell channel in log-odds per SD,
    truth = 0 for null cells, else by the same functional of the planted exposure and p (NaN where the preset
    hides that exposure); spread: what `se` says of beta - truth (`_spread`); deff: design effect of the block;
    copy_of (F,) as in `World`.
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
    beta: Floats
    se: Floats
    truth: Floats
    spread: Floats
    deff: Floats
    copy_of: npt.NDArray[np.int64]
    loss: Loss
    budget: float

    def share(self, *kinds: str) -> float:
        """Share of the tokens of these kinds that is dropped; of all where none is named."""
        own = np.isin(self.kind, kinds) if kinds else np.ones(len(self.kind), bool)
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


@dataclass(frozen=True)
class Gate:
    """Result of one gate: passed (None: not enough data to judge), and the figures in words."""

    name: str
    passed: bool | None
    said: str


# --- gates


def null_drops(m: Measured) -> Gate:
    """≥ .9 of the null tokens dropped, ≥ .5 in the smallest segment; judged from NULL_POSITIVES on."""
    null, last = m.kind == "null", m.segment == m.segment.max()
    smallest = float(m.tokens[null & last & m.dropped].sum() / max(m.tokens[null & last].sum(), 1e-12))
    enough = m.all_positives >= NULL_POSITIVES
    passed = m.share("null") >= 0.9 and smallest >= 0.5
    return Gate("null", passed if enough else None, f"{m.share('null'):.3f}, smallest {smallest:.3f}")


def strong_drops(m: Measured) -> Gate:
    """No strong and no match cell is dropped; an original whose near-copy stays is no loss."""
    gone = {(int(g), int(f)) for g, f in zip(m.segment[m.dropped], m.stream[m.dropped], strict=True)}
    copy = {int(o): c for c, o in enumerate(m.copy_of) if o >= 0}
    cells = m.dropped & np.isin(m.kind, STRONG)
    lost = [
        (int(g), int(f))
        for g, f in zip(m.segment[cells], m.stream[cells], strict=True)
        if int(f) not in copy or (int(g), copy[int(f)]) in gone
    ]
    return Gate("strong", not lost, f"{len(lost)} of {int(np.isin(m.kind, STRONG).sum())} cells")


def weak_drops(m: Measured) -> Gate:
    """At most .02 of the weak cells with WEAK_POSITIVES or more are dropped."""
    own = (m.kind == "weak") & (m.positives >= WEAK_POSITIVES)
    if not own.any():
        return Gate("weak", None, f"no weak cell with {WEAK_POSITIVES} positives")
    return Gate("weak", float(m.dropped[own].mean()) <= 0.02, f"{m.dropped[own].sum()} of {own.sum()} cells")


def total_loss(m: Measured) -> Gate:
    """The drops truly cost no more than the budget."""
    return Gate("loss", m.loss.total <= m.budget, f"{m.loss.total:.3%} of {m.budget:.3%}")


def coverage(m: Measured) -> Gate:
    """95 % intervals of beta hold the truth in .93 to .97 of the cells, give or take two errors of that share."""
    n = int(m.judged.sum())
    held = float(m.covered.mean()) if n else 0.0
    slack = 2 * (0.95 * 0.05 / max(n, 1)) ** 0.5
    return Gate("coverage", 0.93 - slack <= held <= 0.97 + slack, f"{held:.3f} of {n}")


def centred(m: Measured) -> Gate:
    """Estimates of the null cells lie about 0: their mean, in standard errors, is within three errors of that mean."""
    own = m.judged & (m.kind == "null")
    n = int(own.sum())
    mean = float((m.beta[own] / m.se[own]).mean()) if n else 0.0
    return Gate("centre", bool(abs(mean) <= 3 / max(n, 1) ** 0.5), f"{mean:+.2f} se of {n}")


def type_one(m: Measured) -> Gate:
    """Where nothing acts, relevance is shown in at most .05 of the cells, give or take three errors of that share."""
    own = m.positives >= LEAST_POSITIVES
    n = int(own.sum())
    found = float(m.shown[own].mean()) if n else 0.0
    limit = 0.05 + 3 * (0.95 * 0.05 / max(n, 1)) ** 0.5
    return Gate("type-I", found <= limit, f"{found:.3f} of {n}, deff {np.median(m.deff[own]):.2f}")


def support_floor(m: Measured) -> Gate:
    """No cell is dropped below the positives that the support rule asks for."""
    own = m.dropped
    least = float((m.positives[own] / m.needed[own]).min()) if own.any() else float("inf")
    return Gate("support", least >= 1.0, f"{own.sum()} drops, least {least:.2f} of the floor")


def copies(m: Measured) -> Gate:
    """Of each near-copy and its original, one is dropped, in every segment where both have the support."""
    one = both = pairs = 0
    for copy in np.flatnonzero(m.copy_of >= 0):
        for g in np.unique(m.segment[m.segment > 0]):
            here = [np.flatnonzero((m.segment == g) & (m.stream == f)) for f in (copy, m.copy_of[copy])]
            cells = np.concatenate(here)
            if len(cells) < 2 or (m.positives[cells] < m.needed[cells]).any():
                continue
            gone = int(m.dropped[cells].sum())
            pairs, one, both = pairs + 1, one + (gone == 1), both + (gone == 2)
    return Gate("copies", one == pairs if pairs else None, f"one of {one}, both of {both}, {pairs} pairs")


def cold_loss(m: Measured) -> Gate:
    """The mask of segment 0 costs its impressions at most .02 % NE."""
    lost = float(m.loss.by_segment[0])
    return Gate("cold", lost <= 0.0002, f"{lost:.3%}, {m.share('cold'):.3f} of its tokens dropped")


CLEAN = (null_drops, strong_drops, weak_drops, total_loss, coverage, centred)
GATES: dict[str, tuple[Callable[[Measured], Gate], ...]] = {
    "S0": CLEAN,
    "S1": CLEAN,
    "S1-late": CLEAN,
    "S2": (support_floor, strong_drops, total_loss),
    "S3": (copies, strong_drops, total_loss),
    "S6": (cold_loss, strong_drops, total_loss),
    "S7": (),
    "S8": (strong_drops, total_loss),
    "S9": CLEAN,
    "null": (type_one, coverage),
    "null-clustered": (type_one, coverage),
}
"""S7 is reported and has no gate; S4 needs refits in turn, which this harness does not make."""


# --- measuring


def sample(preset: str, *, seed: int, users: int, variants: Sequence[Variant] = (SOUND,)) -> Sample:
    """One world of the preset, drawn and summed CHUNK_USERS users at a time.

    Chunks are users of the same world; mean p, the scale of exposures and the prediction without history are each
    chunk's own.
    """
    world = W.draw_world(W.preset_named(preset), np.random.default_rng([seed, 0]))
    sums: dict[str, Floats] = {}
    planted: Floats | None = None
    rows: PlantedRows | None = None
    for chunk, first in enumerate(range(0, users, CHUNK_USERS)):
        key = (seed, chunk) if chunk else (seed,)
        n = min(CHUNK_USERS, users - first)
        drawn = draw_in(world, users=n, days=DAYS, start=START, key=key)
        made = histories(drawn, days=DAYS, config=world_config())
        have: dict[tuple[object, ...], Floats] = {}
        for variant in variants:
            calendar = variant.calendar(made.calendar)
            way = (variant.settings, calendar.habit)
            if way not in have:
                dwells: Dwells = pipeline_dwells(drawn, world_config(*variant.settings), calendar)
                have[way] = cell_array(made, dwells, HEAD)
            sums[variant.name] = sums.get(variant.name, 0.0) + have[way]
        own = cell_array(made, planted_dwells(drawn), "expected")
        planted = own if planted is None else planted + own
        parts, told = planted_logits(made, days=DAYS)
        more = PlantedRows(made.rows.given, made.rows.fixed, made.rows.expected, parts, told, world.copy_of)
        rows = more if rows is None else rows + more
    if planted is None or rows is None:
        raise ValueError(f"users is {users}; allowed: 1 or more")
    return Sample(world, seed, users, sums, planted, rows)


def measured(found: Sample, variant: Variant, config: MaskConfig) -> Measured:
    """Verdicts of the variant's rule on the sample, cell by cell beside the truth."""
    streams = found.world.streams
    statistics = statistics_of(found.sums[variant.name], streams)
    truth = statistics_of(found.planted, streams)
    with patch.object(effects, "moments", variant.moments):
        verdicts = variant.rule(statistics, config)
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
        beta=np.array([v.effect.channels["dwell"].beta for v in verdicts]),
        se=np.array([v.effect.channels["dwell"].se for v in verdicts]),
        truth=_truth(found.world, verdicts, truth, place),
        spread=_spread(found.world, verdicts, truth, place),
        deff=np.array([v.effect.deff for v in verdicts]),
        copy_of=found.world.copy_of, loss=true_loss(found.rows, dropped), budget=config.ne_budget,
    )  # fmt: skip


def _population(statistics: Statistics) -> tuple[float, float]:
    """Impressions and positives over the segments."""
    own = {g: s for (g, _), s in statistics.by_cell(HEAD).items()}
    return sum(s.n for s in own.values()), sum(s.positives for s in own.values())


def _kind(world: W.World, segment: int, stream: int) -> str:
    """Planted kind of a cell; `cold` for segment 0, `swap` for streams that change at mid-world."""
    if segment == 0:
        return "cold"
    return "swap" if stream in world.swap else str(world.kind[segment - 1, stream])


def _truth(world: W.World, verdicts: Sequence[Verdict], planted: Statistics, place: dict[str, int]) -> Floats:
    """Log-odds per SD that the dwell channel has to find (M,)."""
    hidden = world.preset.habit_sd > 0 or world.preset.censored_acts
    sums = planted.by_cell(HEAD)
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
    world: W.World, verdicts: Sequence[Verdict], planted: Statistics, place: dict[str, int]
) -> Floats:
    """Standard error of beta - truth (M,) that the cell's own error implies.

    The truth of a null cell is fixed. That of another cell comes from the same histories as its estimate, so what
    users' histories add to the variance is in both: V = E Var(s_u | x_u) + Var E(s_u | x_u), and the second term is
    the clustered variance of the planted score, which has no noise of labels. It is taken off, down to the model's
    own variance, which is that of the labels.
    """
    sums = planted.by_cell(HEAD)
    found = []
    for v in verdicts:
        cell, se = sums[v.segment_id, v.stream], v.effect.channels["dwell"].se
        _, information, variance = effects.moments(cell)
        if _kind(world, v.segment_id, place[v.stream]) == "null" or information[0, 0] <= 0:
            found.append(se)
        else:
            shared = float(variance[0, 0] / (information[0, 0] * cell.w))
            found.append(max(se**2 - shared, min(se**2, 1 / cell.w)) ** 0.5)
    return np.array(found)


# --- the table


def main(
    presets: Sequence[str], *, seeds: Sequence[int], users: int, settings: Sequence[str] = SETTINGS
) -> None:
    """Print figures and gates of every preset and seed, then which broken variants were noticed."""
    for name in presets:
        if name not in GATES:
            raise ConfigError.unknown_version("preset with gates", name, list(GATES))
    config = world_config(*settings).mask
    print(
        f"{users:,} users, {DAYS} days, true segments, delta {config.delta:g}, budget {config.ne_budget:.2%}"
    )
    noticed: dict[str, list[bool]] = {}
    passed: dict[tuple[str, str], list[bool]] = {}
    cells: dict[str, list[Measured]] = {}
    for preset in presets:
        for seed in seeds:
            start = perf_counter()
            variants = [SOUND, *(v for v in BROKEN if v.world == preset)]
            found = sample(preset, seed=seed, users=users, variants=variants)
            for variant in variants:
                m = measured(found, variant, config)
                results = [gate(m) for gate in GATES[preset]]
                print(_line(m, results, perf_counter() - start), flush=True)
                if variant is SOUND:
                    cells.setdefault(preset, []).append(m)
                    for r in results:
                        if r.passed is not None:
                            passed.setdefault((preset, r.name), []).append(r.passed)
                else:
                    own = next(r for r in results if r.name == variant.gate)
                    noticed.setdefault(variant.name, []).append(own.passed is False)
    print("\ngates passed as it is, seeds")
    for (preset, name), flags in passed.items():
        print(f"  {preset:15} {name:9} {sum(flags)} of {len(flags)}{_pooled(name, cells[preset])}")
    print("broken variants noticed, seeds")
    for variant in BROKEN:
        if variant.name in noticed:
            flags = noticed[variant.name]
            print(f"  {variant.name:26} {variant.gate} on {variant.world}: {sum(flags)} of {len(flags)}")


def _line(m: Measured, results: Sequence[Gate], seconds: float) -> str:
    kinds = ("null", "trace", "weak", "u", "strong", "match", "copy", "cold")
    there = [k for k in kinds if (m.kind == k).any()]
    shares = " ".join(f"{k} {m.share(k):.3f}" for k in there)
    words = {True: "pass", False: "FAIL", None: "not judged"}
    gates = "; ".join(f"{r.name} {words[r.passed]} ({r.said})" for r in results) or "no gate"
    held = f", covered {m.covered.mean():.3f} of {m.judged.sum()}" if m.judged.any() else ""
    return (
        f"{m.preset} seed {m.seed}, {m.variant}: {m.impressions:,.0f} impressions, {m.all_positives:,.0f} positives; "
        f"tokens dropped {m.share():.3f} ({shares}), {m.dropped.sum()} cells; loss {m.loss.total:.3%}{held}; "
        f"{gates}; {seconds:.0f} s"
    )


def _pooled(name: str, runs: Sequence[Measured]) -> str:
    """Figures over all seeds for gates on shares of cells."""
    if name == "coverage":
        held = np.concatenate([m.covered for m in runs])
        return f"; {held.mean():.4f} of {len(held):,} cells"
    if name == "type-I":
        shown = np.concatenate([m.shown[m.positives >= LEAST_POSITIVES] for m in runs])
        return f"; {shown.mean():.4f} of {len(shown):,} cells"
    return ""
