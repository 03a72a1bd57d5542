"""Gates of the statistics on simulated worlds, without Spark: `python -m benchmarks gates [--presets S0]`.

Every seed of a preset is one world with its true segments: sums, effects and verdicts by the product's own code, held
against what was planted (docs/method.md C.4). A broken variant goes through the same gate and has to fail it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from benchmarks import gates_attributes
from benchmarks.gates_broken import BROKEN, SOUND
from benchmarks.gates_measure import DAYS, LEAST_POSITIVES, Measured, measured, sample
from benchmarks.gates_world import world_config
from dynamix.errors import ConfigError

SETTINGS = ("mask.ne_budget=0.005", "mask.delta=0.20")
"""What 20,000 users can decide, as in benchmarks/worlds.py."""
NULL_POSITIVES = 80_000
"""From here on the share of null tokens dropped has a bar (docs/method.md C.4)."""
WEAK_POSITIVES = 4_000
"""Weak cells count from here on."""
STRONG = ("strong", "match")


@dataclass(frozen=True)
class Gate:
    """Result of one gate: passed (None: not enough data to judge), and the figures in words."""

    name: str
    passed: bool | None
    said: str


# --- gates


def null_drops(m: Measured) -> Gate:
    """≥ .9 of the null tokens dropped, ≥ .5 in the smallest segment; judged from NULL_POSITIVES on."""
    enough = m.all_positives >= NULL_POSITIVES
    passed = m.share("null") >= 0.9 and m.smallest >= 0.5
    return Gate("null", passed if enough else None, f"{m.share('null'):.3f}, smallest {m.smallest:.3f}")


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


def told_loss(m: Measured) -> Gate:
    """The drops cost a model that reads the log no more than the budget."""
    return Gate("told", m.told.total <= m.budget, f"{m.told.total:.3%} of {m.budget:.3%}")


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


def nothing_matters(m: Measured) -> Gate:
    """Where nothing acts, nothing is boosted, nor would be were all tokens free.

    Without `mask.boost_to`: no cell with the support of a decision is shown to exceed its budget.
    """
    if (x := m.longer) is not None:
        said = f"{x.taken.sum()} boosted, {x.shown.sum()} of {x.supported.sum()} cells shown"
        return Gate("boost", not x.shown.any(), said)
    own = m.matters & (m.positives >= m.needed)
    return Gate("boost", not own.any(), f"{own.sum()} of {(m.positives >= m.needed).sum()} cells")


def quota_horizon(m: Measured) -> Gate:
    """Of the cells whose horizon these data can tell, at least .8 keep a history within one bucket of it."""
    h = m.horizons
    if h is None:
        return Gate("horizon", None, "not asked for")
    near, alone, n = h.within_one(h.chosen), h.within_one(h.alone), int(h.decidable.sum())
    said = f"{near.sum()} of {n}, {alone.sum()} were the total free"
    return Gate("horizon", float(near.mean()) >= 0.8 if n else None, said)


def boosted_horizon(m: Measured) -> Gate:
    """Of the boosted cells, at least .9 act beyond the base; as of a family at 5 % a world, with some to spare."""
    if (x := m.longer) is None:
        return Gate("longer", None, "no boosts asked for")
    n, may = int(x.taken.sum()), int((x.reaches & x.supported).sum())
    said = (
        f"{x.right} of {n} boosted, {(x.shown & x.reaches).sum()} of {x.shown.sum()} shown; {may} of {x.supported.sum()} "
        f"supported cells act beyond; {x.share:.3f} of the tokens"
    )
    return Gate("longer", x.right >= 0.9 * n if n else None, said)


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


def attributes(m: Measured) -> Gate:
    """No match cell loses its item, no strong and no U-shaped cell its dwell; what goes tells within the budget.

    Judged where `mask.attributes` is `bound`.
    """
    own = m.attributes
    if own is None:
        return Gate("attributes", None, "not asked for")
    items = own.of("item") & (m.kind == "match")
    dwells = own.of("dwell") & np.isin(m.kind, ("strong", "u"))
    wrong, kept = int(items.sum() + dwells.sum()), ~m.dropped
    total = float(m.tokens[kept].sum())
    shares = ", ".join(
        f"{name} {m.tokens[own.of(name)].sum() / total if total else 0.0:.3f}"
        for name in gates_attributes.NAMES
    )
    said = (
        f"{wrong} wrong; of the kept tokens lose {shares}; cells {own.chosen.any(axis=1).sum()} of {kept.sum()}, "
        f"{own.alone.any(axis=1).sum()} were the total free; weak without dwell "
        f"{(own.of('dwell') & (m.kind == 'weak')).sum()} of {(kept & (m.kind == 'weak')).sum()}; told "
        f"{own.told:.3%}, {m.told.total + own.told:.3%} with the drops"
    )
    return Gate("attributes", wrong == 0 and m.told.total + own.told <= m.budget, said)


def cold_loss(m: Measured) -> Gate:
    """The mask of segment 0 costs its impressions at most .02 % NE."""
    lost = float(m.loss.by_segment[0])
    return Gate("cold", lost <= 0.0002, f"{lost:.3%}, {m.share('cold'):.3f} of its tokens dropped")


CLEAN = (null_drops, strong_drops, weak_drops, total_loss, told_loss, coverage, centred)
GATES: dict[str, tuple[Callable[[Measured], Gate], ...]] = {
    "S0": (*CLEAN, quota_horizon, boosted_horizon),
    "S1": CLEAN,
    "S1-late": (strong_drops, coverage, centred),
    "S2": (support_floor, strong_drops, total_loss, told_loss),
    "S3": (copies, strong_drops, total_loss, told_loss),
    "S3-exact": (copies, strong_drops, total_loss, told_loss),
    "S6": (cold_loss, strong_drops, total_loss, told_loss),
    "S7": (),
    "S8": (strong_drops, total_loss, told_loss),
    "S9": (*CLEAN, quota_horizon, boosted_horizon),
    "S10": (strong_drops,),
    "null": (type_one, coverage, nothing_matters),
    "null-clustered": (type_one, coverage, nothing_matters),
}
"""S1-late asks for unbiased habits alone: its early events dilute every exposure, so weak effects look smaller than
they are. S7 is reported and has no gate, and in S10 what tells the intent of a session is reported; S4 and S5 are
watched over week by week in benchmarks/drift.py."""
PLANTED = ("S0", "S9")
"""Presets whose gates hold cells that act against the planted effect."""


# --- the table


def main(
    presets: Sequence[str], *, seeds: Sequence[int], users: int, settings: Sequence[str] = SETTINGS
) -> None:
    """Print figures and gates of every preset and seed, then which broken variants were noticed."""
    for name in presets:
        if name not in GATES:
            raise ConfigError.unknown_version("preset with gates", name, list(GATES))
    whole = world_config(*settings)
    config = whole.mask
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
            truth = preset in PLANTED
            found = sample(preset, seed=seed, users=users, variants=variants, truth=truth, config=whole)
            for variant in variants:
                m = measured(found, variant, config)
                results = [gate(m) for gate in GATES[preset]]
                if m.attributes is not None:
                    results.append(attributes(m))
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
    print(f"true loss over the budget: {over_budget(cells)}")
    print("broken variants noticed, seeds")
    for variant in BROKEN:
        if variant.name in noticed:
            flags = noticed[variant.name]
            print(f"  {variant.name:26} {variant.gate} on {variant.world}: {sum(flags)} of {len(flags)}")


def _line(m: Measured, results: Sequence[Gate], seconds: float) -> str:
    kinds = ("null", "trace", "weak", "u", "strong", "match", "copy", "intent", "cold")
    there = [k for k in kinds if (m.kind == k).any()]
    shares = (
        " ".join(f"{k} {m.share(k):.3f}" for k in there) + f"; null of the smallest segment {m.smallest:.3f}"
    )
    words = {True: "pass", False: "FAIL", None: "not judged"}
    gates = "; ".join(f"{r.name} {words[r.passed]} ({r.said})" for r in results) or "no gate"
    held = f", covered {m.covered.mean():.3f} of {m.judged.sum()}" if m.judged.any() else ""
    return (
        f"{m.preset} seed {m.seed}, {m.variant}: {m.impressions:,.0f} impressions, {m.all_positives:,.0f} positives; "
        f"tokens dropped {m.share():.3f} ({shares}), {m.dropped.sum()} cells; loss {m.loss.total:.3%}{held}; "
        f"{gates}; {seconds:.0f} s"
    )


def over_budget(cells: Mapping[str, Sequence[Measured]]) -> str:
    """How many runs of the presets with that gate truly cost more than the budget."""
    own = [m for preset, runs in cells.items() if total_loss in GATES[preset] for m in runs]
    told = sum(m.told.total > m.budget for m in own)
    return (
        f"{sum(m.loss.total > m.budget for m in own)} of {len(own)} runs; of what the histories tell: {told}"
    )


def _pooled(name: str, runs: Sequence[Measured]) -> str:
    """Figures over all seeds for gates on shares of cells."""
    if name == "coverage":
        held = np.concatenate([m.covered for m in runs])
        return f"; {held.mean():.4f} of {len(held):,} cells"
    if name == "weak":
        own = [(m.kind == "weak") & (m.positives >= WEAK_POSITIVES) for m in runs]
        gone = sum(int(m.dropped[w].sum()) for m, w in zip(runs, own, strict=True))
        return f"; {gone} of {sum(int(w.sum()) for w in own)} cells"
    if name == "horizon":
        asked = [m.horizons for m in runs if m.horizons is not None]
        near = np.concatenate([h.within_one(h.chosen) for h in asked])
        alone = np.concatenate([h.within_one(h.alone) for h in asked])
        return f"; {near.mean():.3f} of {len(near):,} cells, {alone.mean():.3f} were the total free"
    if name == "longer":
        own_boosts = [m.longer for m in runs if m.longer is not None]
        return f"; {sum(x.right for x in own_boosts)} of {sum(int(x.taken.sum()) for x in own_boosts)} boosted cells"
    if name == "boost" and runs[0].longer is not None:
        taken = sum(bool(m.longer and m.longer.taken.any()) for m in runs)
        return f"; a boost in {taken} of {len(runs)}"
    if name == "type-I":
        shown = np.concatenate([m.shown[m.positives >= LEAST_POSITIVES] for m in runs])
        return f"; {shown.mean():.4f} of {len(shown):,} cells"
    return ""
