"""The headline table: `python -m benchmarks headline [--presets S1] [--users 3000] [--arms all] [--folder F]`.

One table, one run: every arm has the same rows, seeds, passes and the product's ranker, which knows the segment and has
the segment × stream gate; what differs is which events of the keep-all histories it sees. Arms are brought to equal
tokens: a share of keep-all's (`--share .5`), or what the product's own mask keeps (`--share ours`). NE is of the test
part, on simulated worlds expected under the planted probabilities. Finished arms stay in the folder and are not
trained again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.headline_arms import (
    Bools,
    Cut,
    last_events,
    limits_for,
    random_cells,
    stochastic_length,
    thinned,
    within,
)
from benchmarks.headline_flops import SHARES, TIMED, model_at, rate_lines
from benchmarks.headline_learned import by_budget, closed_first, learned_gates
from benchmarks.headline_masks import (
    as_decided,
    by_relevance,
    oracle,
    removal,
    removal_and_quota,
    with_boosts,
)
from benchmarks.headline_table import Result, compared, history_line, table, throughputs, worth_lines
from benchmarks.headline_world import HeadlineWorld, load, prepare
from benchmarks.worlds import SETTINGS
from dynamix.models.ranker import RankerConfig
from dynamix.models.train import ArmSpec, predict, ranker_config, train_arm

EVERYTHING, OURS, ONE, DECIDED, BOOSTED, ORACLE_OWN = "all", "ours", "one", "decided", "boosted", "oracle-own"
DEFAULT_ARMS = (EVERYTHING, "last", "thinning", "streams", "global", ONE, OURS, "quota")
CURVE_ARMS = ("last", "streams", ONE, OURS)
MAIN_ARMS = (EVERYTHING, ONE, OURS)
"""Arms that get `main_seeds`."""
PAIRS = (
    ("worth of segments, removal against one mask for all", OURS, ONE),
    ("worth of segments, with quotas", "quota", "one-quota"),
    ("worth of quotas", "quota", OURS),
    ("worth of boosts, each at its own tokens", BOOSTED, DECIDED),
)
"""Sentence, arm, and what it is set beside."""


@dataclass(frozen=True)
class Arm:
    """One line of the table: its keep-vector from (world, tokens, seed); `drawn` where the seed matters.

    `free` arms have tokens of their own; `planted` ones need a simulated world, `longer` ones a config with boosts.
    """

    says: str
    keep: Callable[[HeadlineWorld, int, int], Bools]
    drawn: bool = False
    free: bool = False
    planted: bool = False
    longer: bool = False

    def runs_in(self, world: HeadlineWorld) -> bool:
        """Whether the world has what the arm needs."""
        return not ((self.planted and world.cells is None) or (self.longer and world.collected is None))


@dataclass(frozen=True)
class Options:
    """What a run asks for; `share` None takes the tokens that the product's own mask keeps.

    `main_seeds` are the seeds of MAIN_ARMS where that is more than `seeds`; `flops` also times rankers in which the
    history is a fifth, half and four fifths of the FLOPs; `settings` are of the config, above the world's own.
    """

    arms: Sequence[str]
    seeds: int = 2
    main_seeds: int = 0
    share: float | None = 0.5
    max_rows: int = 0
    curve: Sequence[float] = ()
    flops: bool = False
    settings: Sequence[str] = SETTINGS

    def seeds_of(self, arm: str) -> int:
        return max(self.seeds, self.main_seeds) if arm in MAIN_ARMS else self.seeds


def masked(view: str, order: Callable[..., list[Cut]], *, free: bool = False) -> Callable[..., Bools]:
    """Keep-vector of a mask on the statistics and segments of a view."""

    def keep(world: HeadlineWorld, tokens: int, seed: int) -> Bools:
        cuts = order(world.decided(view), world.ids)
        segment = world.segment(view)
        return within(world.rows, segment, limits_for(world.rows, segment, cuts, None if free else tokens))

    return keep


def boosted(world: HeadlineWorld, tokens: int, seed: int) -> Bools:
    """Keep-vector over the collected events of the product's mask with its boosts."""
    rows, segment = world.rows_for(longer=True), world.segment("own")
    base = {name: world.config.declaration(name).length for name in world.ids}
    cuts = with_boosts(world.decided("own"), world.ids, base=base, segments=world.n_segments)
    return within(rows, segment, limits_for(rows, segment, cuts, None))


def by_truth(*, free: bool) -> Callable[..., Bools]:
    """Keep-vector of the oracle: planted cells and segments; `free` drops what lies under δ and no more."""

    def keep(world: HeadlineWorld, tokens: int, seed: int) -> Bools:
        segment = world.segment("planted")
        assert world.cells is not None  # `planted` arms run on simulated worlds only; for the type checker
        cuts, small = oracle(world.cells, world.rows, segment, world.ids, delta=world.config.mask.delta)
        made = cuts[:small] if free else cuts
        return within(world.rows, segment, limits_for(world.rows, segment, made, None if free else tokens))

    return keep


def streams_at_random(world: HeadlineWorld, tokens: int, seed: int) -> Bools:
    """Keep-vector without cells that chance has drawn."""
    cuts = random_cells(world.rows, world.rows.segment, seed=seed)
    return within(world.rows, world.rows.segment, limits_for(world.rows, world.rows.segment, cuts, tokens))


def stream_gates(world: HeadlineWorld, tokens: int, seed: int) -> Bools:
    """Keep-vector without the streams whose learned gate is smallest."""
    config = world.config.train
    gates = learned_gates(world.rows, model_config=model_of(world), config=config, seed=seed)
    one = world.segment("one")
    return within(world.rows, one, limits_for(world.rows, one, closed_first(gates), tokens))


def budgets(world: HeadlineWorld, tokens: int, seed: int) -> Bools:
    """Keep-vector of a learned budget by length of history."""
    return by_budget(
        world.rows, tokens, head=world.head, model_config=model_of(world), config=world.config.train, seed=seed
    )  # fmt: skip


ARMS: dict[str, Arm] = {
    EVERYTHING: Arm("all events", lambda w, n, s: np.ones(w.rows.tokens, bool), free=True),
    "last": Arm("last L events", lambda w, n, s: last_events(w.rows, n)),
    "thinning": Arm("random thinning", lambda w, n, s: thinned(w.rows, n, seed=s), drawn=True),
    "stochastic": Arm("stochastic length", lambda w, n, s: stochastic_length(w.rows, n, seed=s), drawn=True),
    "streams": Arm("random segment × stream", streams_at_random, drawn=True),
    "global": Arm("least relevant streams, for all", masked("one", by_relevance)),
    "gate": Arm("learned gate a stream", stream_gates, drawn=True),
    "budget": Arm("learned budget by length", budgets, drawn=True),
    ONE: Arm("one segment, removal", masked("one", removal)),
    "one-quota": Arm("one segment, removal + quota", masked("one", removal_and_quota)),
    "shuffled": Arm("shuffled segments, removal", masked("shuffled", removal)),
    "tier": Arm("tier only, removal", masked("tier", removal)),
    OURS: Arm("ours, removal", masked("own", removal)),
    "quota": Arm("ours, removal + quota", masked("own", removal_and_quota)),
    "oracle": Arm("oracle, removal", by_truth(free=False), planted=True),
    DECIDED: Arm("ours as decided (own tokens)", masked("own", as_decided, free=True), free=True),
    BOOSTED: Arm("ours as decided, with boosts (own tokens)", boosted, free=True, longer=True),
    ORACLE_OWN: Arm("oracle at the same δ (own tokens)", by_truth(free=True), free=True, planted=True),
}


def model_of(world: HeadlineWorld) -> RankerConfig:
    """The one ranker of all arms."""
    return ranker_config(
        world.rows, n_streams=1 + max(world.ids.values()), n_segments=world.n_segments, config=world.config.train
    )  # fmt: skip


def chosen_arms(text: str | None) -> list[str]:
    """Arms of a command line, `all` or names; None takes a small choice. SystemExit names those that exist."""
    if text is None:
        return list(DEFAULT_ARMS)
    names = list(ARMS) if text == "all" else text.split(",")
    unknown = sorted(set(names) - set(ARMS))
    if unknown:
        raise SystemExit(f"--arms {','.join(unknown)}; allowed: all, {', '.join(ARMS)}")
    return names


def main(sources: Sequence[str], folder: Path, *, users: int, options: Options) -> None:
    """Print one table a world, with the curve where it is asked for, and write headline.json into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for source in sources:
        place = prepare(source, folder, users=users, seed=0, settings=options.settings)
        world = load(place, max_rows=options.max_rows, settings=options.settings)
        found[world.name] = measure_world(world, options)
        (folder / "headline.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def measure_world(world: HeadlineWorld, options: Options) -> dict[str, Any]:
    """Train what is missing, print the tables; everything printed as data."""
    names = [n for n in ARMS if n in {EVERYTHING, *options.arms} and ARMS[n].runs_in(world)]
    tokens = target(world, options)
    results = [result_of(world, name, tokens, options) for name in names]
    longer = [name for name in names if ARMS[name].longer]
    speeds = throughputs(world, {r.name: r.keep for r in results}, model_of(world), longer=longer)
    rows = world.rows
    parts = ", ".join(f"{len(rows.select(p)):,} {p}" for p in ("train", "validate", "test"))
    print(
        f"\n### {world.name}: {parts} rows of {len(np.unique(rows.user)):,} users, {rows.tokens_per_row:.1f} tokens a "
        f"row, {seeds_line(options)}; arms at {tokens / rows.tokens:.1%} of the tokens\n"
    )
    against = compared(world, results, base=EVERYTHING, ours=OURS if OURS in names else None)
    lines = table(against, speeds, {n: ARMS[n].says for n in names})
    lines += ["", *worth_lines(world, {r.name: r for r in results}, pairs=PAIRS), *removed_line(against)]
    lines.append(history_line(world, model_of(world), share=tokens / rows.tokens))
    if options.flops:
        lines += flops_lines(world, {r.name: r.keep for r in results if r.name in TIMED})
    print("\n".join(lines), flush=True)
    curve = {}
    if options.curve:
        curve = curve_of(world, options, results[0])
    return {"tokens": tokens, "arms": against, "throughput": speeds, "curve": curve, "table": lines}


def seeds_line(options: Options) -> str:
    """`2 seeds`, or how many the main arms have."""
    if options.main_seeds <= options.seeds:
        return f"{options.seeds} seeds"
    return f"{options.seeds} seeds, {options.main_seeds} of {', '.join(MAIN_ARMS)}"


def flops_lines(world: HeadlineWorld, keeps: Mapping[str, Bools]) -> list[str]:
    """Rows per second of arms in rankers in which the history weighs less and more than in this one."""
    models = {share: model_at(world.rows, model_of(world), share) for share in SHARES}
    return rate_lines(world.rows, keeps, models, world.config.train)


def target(world: HeadlineWorld, options: Options) -> int:
    """Events that every arm keeps."""
    if options.share is not None:
        return round(options.share * world.rows.tokens)
    return int(ARMS[DECIDED].keep(world, 0, 0).sum())


def removed_line(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Tokens that the product's mask removes beside those of the oracle with the same δ."""
    tokens = {x["arm"]: x for x in lines}
    if not {DECIDED, ORACLE_OWN} <= tokens.keys():
        return []
    whole = tokens[EVERYTHING]["tokens"]
    own, best = (1 - tokens[name]["tokens"] / whole for name in (DECIDED, ORACLE_OWN))
    return [
        f"tokens removed: ours as decided {own:.1%}, the oracle with the same δ {best:.1%} (ratio {own / best:.2f})"
    ]


def curve_of(world: HeadlineWorld, options: Options, base: Result) -> dict[str, Any]:
    """NE against all events of four arms at several shares, printed as a table."""
    found: dict[str, Any] = {}
    print("\n| share of the tokens | " + " | ".join(ARMS[n].says for n in CURVE_ARMS) + " |")
    print("|---" * (1 + len(CURVE_ARMS)) + "|")
    for share in options.curve:
        tokens = round(share * world.rows.tokens)
        own = [base, *(result_of(world, name, tokens, options) for name in CURVE_ARMS)]
        found[str(share)] = compared(world, own, base=EVERYTHING, ours=None)
        cells = [f"{x['delta']:+.3f} [{x['low']:+.3f}, {x['high']:+.3f}]" for x in found[str(share)][1:]]
        print(f"| {share:.0%} | " + " | ".join(cells) + " |", flush=True)
    return found


def result_of(world: HeadlineWorld, name: str, tokens: int, options: Options) -> Result:
    """The arm's predictions on the test part; stored seeds of the same choices are not trained again."""
    arm, keep = ARMS[name], None
    made = []
    for seed in range(options.seeds_of(name)):
        key = {
            "arm": name, "tokens": 0 if arm.free else tokens, "seed": seed, "rows": len(world.rows),
            "all_tokens": world.rows.tokens, "config": world.config.digest("mask", "train", "labels", "history"),
        }  # fmt: skip
        path = world.folder / f"{name}{'' if arm.free else f'-{tokens}'}-seed{seed}.json"
        if path.is_file() and (stored := json.loads(path.read_text(encoding="utf-8")))["key"] == key:
            made.append(Result.load(path, stored, world.rows_for(longer=arm.longer).tokens))
            continue
        if keep is None or arm.drawn:
            keep = arm.keep(world, tokens, seed)
        started = time.monotonic()
        made.append(trained(world, name, keep, tokens, seed))
        made[-1].save(path, key, seconds=time.monotonic() - started)
    return Result.together(made)


def trained(world: HeadlineWorld, name: str, keep: Bools, tokens: int, seed: int) -> Result:
    """One ranker on what the arm keeps. ValueError where that is more than one event a row off `tokens`."""
    arm, config = ARMS[name], world.config.train
    rows = world.rows_for(longer=arm.longer).keep_events(keep)
    if not arm.free and abs(rows.tokens - tokens) > len(rows):
        raise ValueError(f"arm {name!r} keeps {rows.tokens} events, not {tokens} within one a row")
    say(f"headline: {name} seed {seed}, {rows.tokens_per_row:.1f} tokens a row")
    made = train_arm(ArmSpec(name, "headline", seed), rows, model_config=model_of(world), config=config)
    test = rows.select("test")
    p = predict(made.model, test, batch_size=4 * config.batch_size)[world.head]
    losses = [e["validate_loss"] for e in made.epochs]
    passes = (1 + int(np.argmin(losses)), len(losses))
    return Result(name, p[None, :], keep, [(rows.tokens_per_row, test.tokens_per_row)], [passes])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
