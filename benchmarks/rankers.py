"""Rankers beside simpler models: `python -m benchmarks rankers [--presets S0,S1] [--users 4000] [--folder F]`.

Each model learns from the training days, is tuned on the validation days and judged on the test days after them
(docs/method.md C.3), all on the same keep-all rows outside the hold-out. NE is of the main label; on simulated worlds it
is expected under the planted probabilities, with NE of the drawn labels beside it. Intervals are over users (and seeds),
differences are paired by row. The best baseline is the one with the least NE on validation rows. Rows per second are of
processor time with one thread, from jagged rows to probabilities. `--presets` also takes folders of events as `dynamix
import` writes them. What was fitted stays in the folder. FuxiCTR's DIN is one of the arms where two variables name an
environment that has it (benchmarks/rankers_fuxictr.py); it runs there and is not timed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import rankers_fuxictr
from benchmarks import rankers_tabular as tabular
from benchmarks.headline import model_of
from benchmarks.headline_table import interval, scored
from benchmarks.headline_world import HeadlineWorld, load, prepare
from dynamix.models.contest import Floats, scored_rows
from dynamix.models.dataset import JaggedRows
from dynamix.models.evidence import calibration_interval, compare, ne_interval
from dynamix.models.plugins import TrainerPlugin
from dynamix.models.ranker import Ranker
from dynamix.models.train import ArmSpec, predict, train_arm
from dynamix.models.trunks.build import TRUNKS

BATCH = 4096
TIMED = 3


@dataclass(frozen=True)
class Trained:
    """A ranker as one of the models that predict the main label."""

    ranker: Ranker
    head: str

    def predict(self, rows: JaggedRows) -> Floats:
        """Probabilities (R,)."""
        return predict(self.ranker, rows, batch_size=BATCH)[self.head]


Fit = Callable[[HeadlineWorld, int], tabular.Model]


@dataclass(frozen=True)
class Arm:
    """One line of the table: how it is fitted, and whether the seed matters."""

    says: str
    fit: Fit
    drawn: bool = False
    baseline: bool = True
    timed: bool = True
    """False where another process predicts, whose time is not ours to compare."""


class NoTrunk(TrainerPlugin):
    """Holds the heads' weights on the trunk at zero: what is left is linear in the summaries, by segment."""

    name = "no-trunk"

    def after_step(self, ranker: Ranker, step: int) -> None:
        with torch.no_grad():
            ranker.heads.out.weight.zero_()


def trunk_of(kind: str, *plugins: TrainerPlugin) -> Fit:
    """Fit the product's ranker with this trunk, everything else as in the config."""

    def fit(world: HeadlineWorld, seed: int) -> tabular.Model:
        config = world.config.train.model_copy(update={"threads": 1, "device": "cpu", "trunk": kind})
        base = model_of(world)
        shape = replace(base, trunk=replace(base.trunk, kind=kind))
        spec = ArmSpec(kind, "keep-all", seed)
        trained = train_arm(
            spec, world.rows, model_config=shape, config=config, progress=say, plugins=plugins
        )
        return Trained(trained.model, world.head)

    return fit


ARMS: Mapping[str, Arm] = {
    "constant": Arm("constant", lambda w, s: tabular.fit_constant(w.rows, w.head)),
    "logistic": Arm(
        "logistic regression, the product's baseline",
        lambda w, s: tabular.fit_product(w.rows, w.head, n_streams=streams_of(w)),
    ),
    "ridge": Arm(
        "logistic regression on the summaries",
        lambda w, s: tabular.fit_ridge(w.rows, w.head, n_streams=streams_of(w), n_segments=w.n_segments),
    ),
    "lightgbm": Arm(
        "LightGBM on the summaries",
        lambda w, s: tabular.fit_trees(
            w.rows, w.head, n_streams=streams_of(w), n_segments=w.n_segments, seed=s
        ),
        drawn=True,
    ),
    "linear": Arm("ranker without a trunk", trunk_of("din", NoTrunk()), drawn=True, baseline=False),
    **{kind: Arm(f"ranker, {kind}", trunk_of(kind), drawn=True, baseline=False) for kind in TRUNKS},
    "fuxictr": Arm(
        "FuxiCTR's DIN",
        lambda w, s: rankers_fuxictr.fit(w.rows, w.head, items=w.config.train.item_buckets, seed=s),
        drawn=True,
        baseline=False,
        timed=False,
    ),
}


@dataclass(frozen=True)
class Fitted:
    """Predictions of one arm: test and validate (S, R); seconds of processor time to fit, rows a second to predict."""

    test: Floats
    validate: Floats
    seconds: float
    rows_per_s: float


def streams_of(world: HeadlineWorld) -> int:
    """Number of stream ids."""
    return 1 + max(world.ids.values())


def main(sources: Sequence[str], folder: Path, *, users: int, seeds: int, arms: Sequence[str]) -> None:
    """Print one table a world and write rankers.json into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for source in sources:
        world = load(prepare(source, folder, users=users, seed=0), max_rows=0)
        fitted = {name: of_seeds(world, name, seeds) for name in arms}
        found[world.name] = lines = compared(world, fitted)
        print("\n".join(table(world, lines, seeds)), flush=True)
        if {"din", "fuxictr"} <= fitted.keys():
            print(twins(world, fitted["din"], fitted["fuxictr"]), flush=True)
        (folder / "rankers.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def chosen(text: str | None) -> list[str]:
    """Arms of a command line, None takes all. SystemExit names those that exist."""
    there = [name for name in ARMS if name != "fuxictr" or rankers_fuxictr.is_there()]
    names = there if text in (None, "all") else str(text).split(",")
    unknown = sorted(set(names) - set(ARMS))
    if unknown:
        raise SystemExit(f"--arms {','.join(unknown)}; allowed: all, {', '.join(ARMS)}")
    return names


def of_seeds(world: HeadlineWorld, name: str, seeds: int) -> Fitted:
    """One fit a seed, or one alone where nothing is drawn."""
    each = [fitted(world, name, seed) for seed in range(seeds if ARMS[name].drawn else 1)]
    return Fitted(
        np.concatenate([f.test for f in each]), np.concatenate([f.validate for f in each]),
        float(np.mean([f.seconds for f in each])), median(f.rows_per_s for f in each),
    )  # fmt: skip


def fitted(world: HeadlineWorld, name: str, seed: int) -> Fitted:
    """One fit: from the folder where it was made of the same rows and config, else now."""
    key = {
        "rows": len(world.rows),
        "tokens": world.rows.tokens,
        "config": world.config.digest("train", "labels"),
    }
    path = world.folder / f"ranker-{name}-{seed}.npz"
    if path.is_file():
        with np.load(path) as stored:
            if json.loads(str(stored["key"])) == key:
                rate = float(stored["rows_per_s"])
                return Fitted(stored["test"], stored["validate"], float(stored["seconds"]), rate)
    say(f"rankers: {world.name}, {name} seed {seed}")
    started = time.process_time()
    model = ARMS[name].fit(world, seed)
    seconds = time.process_time() - started
    test, validate = (world.rows.select(part) for part in ("test", "validate"))
    result = Fitted(
        model.predict(test)[None],
        model.predict(validate)[None],
        seconds,
        rate_of(model, test.take(np.arange(min(BATCH, len(test))))) if ARMS[name].timed else 0.0,
    )
    np.savez_compressed(path, key=json.dumps(key), **vars(result))
    return result


def rate_of(model: tabular.Model, rows: JaggedRows) -> float:
    """Rows predicted a second of processor time, the median of a few."""
    seen = []
    for _ in range(TIMED):
        started = time.process_time()
        model.predict(rows)
        seen.append(len(rows) / max(time.process_time() - started, 1e-6))
    return median(seen)


def compared(world: HeadlineWorld, arms: Mapping[str, Fitted]) -> list[dict[str, Any]]:
    """NE, calibration and paired differences of every arm on the test rows."""
    replicates, head = world.config.train.bootstrap, world.head
    test, validate = (world.rows.select(part) for part in ("test", "validate"))
    judged = {name: scored(world, f.test) for name, f in arms.items()}
    tuned = {
        name: ne_interval(scored_rows(validate, head, f.validate), replicates=1)[0]
        for name, f in arms.items()
    }
    best = min((n for n in arms if ARMS[n].baseline), key=lambda n: tuned[n])
    found = []
    for name, f in arms.items():
        labels = scored_rows(test, head, f.test)
        ne, low, high = ne_interval(judged[name], replicates=replicates)
        delta = compare(judged[name], judged[best], replicates=replicates)
        calibration = calibration_interval(labels, replicates=replicates)
        found.append({
            "arm": name, "says": ARMS[name].says, "ne": ne, "ne_low": low, "ne_high": high,
            "ne_labels": ne_interval(labels, replicates=replicates)[0], "ne_validate": tuned[name],
            "calibration": calibration[0], "calibration_low": calibration[1], "calibration_high": calibration[2],
            "best": best, "delta": delta.delta_ne_pct, "low": delta.low, "high": delta.high,
            "seeds": len(f.test), "fit_seconds": f.seconds, "rows_per_s": f.rows_per_s,
        })  # fmt: skip
    return found


def twins(world: HeadlineWorld, own: Fitted, other: Fitted) -> str:
    """Our DIN-type ranker against FuxiCTR's, paired by row."""
    found = compare(
        scored(world, own.test), scored(world, other.test), replicates=world.config.train.bootstrap
    )
    return f"\ndin to FuxiCTR's DIN: ΔNE % {interval(found.delta_ne_pct, found.low, found.high)}"


def table(world: HeadlineWorld, lines: Sequence[Mapping[str, Any]], seeds: int) -> list[str]:
    """Markdown: one line an arm."""
    rows = world.rows
    sizes = ", ".join(f"{len(rows.select(p)):,} {p}" for p in ("train", "validate", "test"))
    best = next(x["says"] for x in lines if x["arm"] == x["best"])
    kind = "expected under the planted p" if world.true_p is not None else "of the labels"
    found = [
        f"\n### {world.name}: {sizes} rows of {len(np.unique(rows.user)):,} users, "
        f"{rows.tokens_per_row:.1f} tokens a row, label {world.head}, {seeds} seeds; NE {kind}; "
        f"best baseline on validation rows: {best}\n",
        "| model | NE [95 %] | NE of labels | ΔNE % to the best baseline [95 %] | Σp/Σy [95 %] | rows/s to predict "
        "| s to fit |",
        "|---|---|---|---|---|---|---|",
    ]
    for x in lines:
        delta = "0" if x["arm"] == x["best"] else interval(x["delta"], x["low"], x["high"])
        rate = f"{x['rows_per_s']:,.0f}" if x["arm"] != "constant" and x["rows_per_s"] else ""
        calibrated = f"{x['calibration']:.3f} [{x['calibration_low']:.3f}, {x['calibration_high']:.3f}]"
        found.append(
            f"| {x['says']} | {x['ne']:.4f} [{x['ne_low']:.4f}, {x['ne_high']:.4f}] | {x['ne_labels']:.4f} | {delta} "
            f"| {calibrated} | {rate} | {x['fit_seconds']:,.0f} |"
        )
    return found


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
