"""What the headline benchmark says of its arms: stored results, paired comparisons, rows per second, the table."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.headline_arms import Bools
from benchmarks.headline_world import HeadlineWorld
from dynamix.contracts import PARTS
from dynamix.models.batch import ragged_take
from dynamix.models.contest import Floats
from dynamix.models.dataset import JaggedRows
from dynamix.models.evidence import Delta, Scored, compare, ne_interval
from dynamix.models.ranker import Ranker, RankerConfig
from dynamix.models.throughput import measure, time_by_tokens

BATCHES, ROUNDS = 6, 5


@dataclass(frozen=True)
class Result:
    """An arm's rankers of S seeds: p (S, R) of the test part, keep (N,) of the first, and what each kept and learned.

    `kept`: tokens a row of all rows and of the test part; `passes`: the pass that was kept, of how many.
    """

    name: str
    p: Floats
    keep: Bools
    kept: Sequence[tuple[float, float]]
    passes: Sequence[tuple[int, int]]

    def save(self, path: Path, key: Mapping[str, object], *, seconds: float) -> None:
        """The arm's JSON with its arrays beside it; the JSON is written last, so it stands for a whole result."""
        np.savez_compressed(path.with_suffix(".npz"), p=self.p, keep=np.packbits(self.keep))
        content = {"key": key, "kept": self.kept, "passes": self.passes, "seconds": round(seconds, 1)}
        path.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def together(cls, seeds: Sequence[Result]) -> Result:
        """Results of one seed each as one; `keep` is that of the first."""
        first = seeds[0]
        p = np.concatenate([s.p for s in seeds])
        kept, passes = ([x for s in seeds for x in own(s)] for own in (lambda s: s.kept, lambda s: s.passes))
        return cls(first.name, p, first.keep, kept, passes)

    @classmethod
    def load(cls, path: Path, stored: Mapping[str, Any], events: int) -> Result:
        """What `save` has written; `events` is the length of the keep-vector."""
        with np.load(path.with_suffix(".npz")) as found:
            keep = np.unpackbits(found["keep"], count=events).astype(bool)
            kept = [tuple(x) for x in stored["kept"]]
            return cls(stored["key"]["arm"], found["p"], keep, kept, [tuple(x) for x in stored["passes"]])


def scored(world: HeadlineWorld, p: Floats) -> Scored:
    """Predictions (S, R) of the test part against the planted probabilities, or the labels where there are none."""
    at = world.rows.part == PARTS.index("test")
    test = world.rows.take(np.flatnonzero(at))
    y = test.labels[world.head].astype(float)
    known = np.isfinite(y)
    if world.true_p is not None:
        y = world.true_p[at]
    return Scored(
        p[:, known], y[known], test.user[known], test.request[known], test.weight[known].astype(float)
    )


def compared(
    world: HeadlineWorld, results: Sequence[Result], *, base: str, ours: str | None
) -> list[dict[str, Any]]:
    """NE of every arm with its interval over users, paired against `base` and, where given, `ours` against it."""
    replicates = world.config.train.bootstrap
    all_scored = {r.name: scored(world, r.p) for r in results}
    found = []
    for r in results:
        own = all_scored[r.name]
        delta = compare(own, all_scored[base], replicates=replicates)
        ne, low, high = ne_interval(own, replicates=replicates)
        line: dict[str, Any] = {
            "arm": r.name, "ne": ne, "ne_low": low, "ne_high": high, "tokens": float(np.mean([k for k, _ in r.kept])),
            "tokens_test": float(np.mean([k for _, k in r.kept])), "passes": list(r.passes),
            "delta": delta.delta_ne_pct, "low": delta.low, "high": delta.high, "seed_sd": delta.seed_sd,
        }  # fmt: skip
        if ours is not None and r.name != ours:
            line["ours_against"] = asdict(compare(all_scored[ours], own, replicates=replicates))
        found.append(line)
    return found


def throughputs(
    world: HeadlineWorld, keeps: Mapping[str, Bools], model_config: RankerConfig, *, longer: Collection[str] = ()
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Rows per second of every arm on the same training rows, in interleaved blocks; `longer` ones of collected rows."""
    some, model = timed_rows(world), Ranker(model_config)

    def sample(name: str, keep: Bools) -> JaggedRows:
        rows = world.rows_for(longer=name in longer)
        _, index = ragged_take(rows.offsets, some)
        return rows.take(some).keep_events(keep[index])

    arms = [(name, model, sample(name, keep)) for name, keep in keeps.items()]
    return {t.arm: t.flat() for t in measure(arms, config=world.config.train, batches=BATCHES, rounds=ROUNDS)}


def timed_rows(world: HeadlineWorld) -> NDArray[np.int64]:
    """Places of the training rows that are timed."""
    train = np.flatnonzero(world.rows.part == PARTS.index("train"))
    drawn = np.random.default_rng(0).permutation(train)[: BATCHES * world.config.train.batch_size]
    return np.sort(drawn)


def history_line(world: HeadlineWorld, model_config: RankerConfig, *, share: float) -> str:
    """How much of a training step the history is here, and what that share of the tokens gives where it is more or less.

    The first is from a line through steps with thinned histories, seconds = a + b·tokens. The others are arithmetic,
    1 / (1 − h·(1 − share)) with the history at h of the step, not measurements.
    """
    size, sample = world.config.train.batch_size, world.rows.take(timed_rows(world))
    a, b = time_by_tokens(Ranker(model_config), sample, size=size, shares=(0.25, 0.5, 0.75, 1.0))
    history = b * size * sample.tokens_per_row
    rates = ", ".join(f"{1 / (1 - h * (1 - share)):.2f}x at {h:.0%}" for h in (0.2, 0.5, 0.8))
    return (
        f"the history is {history / (a + history):.0%} of a training step of all events; {share:.1%} of the tokens give "
        f"by arithmetic {rates} of the step"
    )


def table(
    lines: Sequence[Mapping[str, Any]], speeds: Mapping[str, Mapping[str, float]], says: Mapping[str, str]
) -> list[str]:
    """Markdown: ΔNE in percent with 95 % intervals over users and seeds; rates beside those of the first line."""
    first = speeds[lines[0]["arm"]]
    everything = lines[0]["tokens"]
    found = [
        "| arm | tokens a row (test) | share | NE | ΔNE % to all events | ours to it, ΔNE % | training rows/s "
        "| inference rows/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for x in lines:
        speed, other = speeds[x["arm"]], x.get("ours_against")
        rates = (
            f"{speed[f'{k}_rows_per_s']:,.0f} ({speed[f'{k}_rows_per_s'] / first[f'{k}_rows_per_s']:.2f}x)"
            for k in ("train", "infer")
        )
        beside = interval(other["delta_ne_pct"], other["low"], other["high"]) if other else ""
        delta = interval(x["delta"], x["low"], x["high"]) if x is not lines[0] else "0"
        cost = f"{x['tokens']:.1f} ({x['tokens_test']:.1f}) | {x['tokens'] / everything:.3f}"
        found.append(
            f"| {says[x['arm']]} | {cost} | {x['ne']:.5f} | {delta} | {beside} | {' | '.join(rates)} |"
        )
    return found


def interval(delta: float, low: float, high: float) -> str:
    """`-0.123 [-0.200, -0.046]`"""
    return f"{delta:+.3f} [{low:+.3f}, {high:+.3f}]"


def worth_lines(
    world: HeadlineWorld, results: Mapping[str, Result], *, pairs: Sequence[tuple[str, str, str]]
) -> list[str]:
    """A sentence a pair of arms: the first against the second, at equal tokens."""
    found = []
    for text, own, other in pairs:
        if own in results and other in results:
            a, b = (scored(world, results[n].p) for n in (own, other))
            d: Delta = compare(a, b, replicates=world.config.train.bootstrap)
            found.append(f"{text}: {interval(d.delta_ne_pct, d.low, d.high)} % NE (negative: it pays)")
    return found
