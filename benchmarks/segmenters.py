"""Contest of the segmenters without Spark: `python -m benchmarks segmenters [--users 6000] [--seeds 3] [--folder F]`.

Per world and method: ARI of the argmax posterior over all users beside the Bayes-optimal ARI on the same events, coverage
(posterior of .9 or more and 15 events) and ARI there, churn of ids on a refit of the same users in another order from
other starts (by argmax, and as assigned: 0 below that confidence), users per second of one processor. On S9 and the
orthogonal world: the cross-fitted gain in NE of slopes per segment over pooled ones, as a share of what the true slope
types gain, and of what the Bayes-optimal labels from the same events gain. Lines that the folder holds for the same
question are not measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from benchmarks.segment_methods import CONFIG, Answer, Method, methods
from benchmarks.segment_worlds import BEHAVIOURS, Later, SegmentWorld, orthogonal, slope_types, thinned
from dynamix.features.sim_world import N_SEGMENTS
from dynamix.segmentation.em import user_half
from dynamix.segmentation.identity import Previous, first_ids, match_ids
from dynamix.segmentation.jagged import Bools, Floats, Ints
from dynamix.segmentation.mixture import Mixture

Line = dict[str, Any]
"""What one method did on one world of one seed, by name of the figure."""
Draw = Callable[[], tuple[SegmentWorld, Later | None]]
PRESETS = ("S0", "S9", "orthogonal")
GIVEN = {"S0": N_SEGMENTS, "S9": N_SEGMENTS, "orthogonal": 2 * BEHAVIOURS}
"""K that is given: the planted segments."""


@dataclass(frozen=True)
class Options:
    """Users of a world, seeds 0.. of each, mean events a user, method names (all where empty), where lines are kept."""

    users: int
    seeds: int
    events: Sequence[float]
    folder: Path
    by_rule: bool = True
    arms: Sequence[str] = ()
    lifestream: Path | None = None


def score(world: SegmentWorld, answer: Answer) -> Line:
    """Agreement with the truth, over all users and over the confident ones."""
    label = answer.q.argmax(axis=1)
    best = adjusted_rand_score(world.truth, world.optimal)
    sure = confident(world, answer.q)
    ari = adjusted_rand_score(world.truth, label)
    return {
        "k": answer.q.shape[1], "ari": ari, "best": best, "ratio": ari / best, "coverage": float(sure.mean()),
        "sure_ari": adjusted_rand_score(world.truth[sure], label[sure]) if sure.any() else float("nan"),
        "fit_s": answer.fit_s, "apply_s": answer.apply_s, "reason": answer.reason,
    }  # fmt: skip


def confident(world: SegmentWorld, q: Floats) -> Bools:
    """Users (U,) whom the product would assign: posterior and events as the config asks."""
    return np.asarray((q.max(axis=1) >= CONFIG.confidence) & (world.inputs.events >= CONFIG.min_events))


def churn(world: SegmentWorld, first: Floats, again: Floats) -> Line:
    """Share of the users whose stable id differs between two posteriors (U, K) and (U, K') of the same users.

    The second has its ids from the product's matching on the overlap of users.
    """
    old, new = first.argmax(axis=1), again.argmax(axis=1)
    own = _described(world, old, first.shape[1])
    before = first_ids(own)
    overlap = np.zeros((again.shape[1], first.shape[1]))
    np.add.at(overlap, (new, old), 1.0)
    previous = Previous(before.ids, np.exp(own.log_p), max(before.ids))
    after = match_ids(_described(world, new, again.shape[1]), previous, overlap)
    ids = (np.asarray(before.ids)[old], np.asarray(after.ids)[new])
    sure = (confident(world, first), confident(world, again))
    assigned = [np.where(s, i, 0) for s, i in zip(sure, ids, strict=True)]
    return {
        "churn": float((ids[0] != ids[1]).mean()),
        "assigned_churn": float((assigned[0] != assigned[1]).mean()),
    }


def _described(world: SegmentWorld, label: Ints, k: int) -> Mixture:
    """Shares and stream shares of hard labels: what the matching reads of a segmenter."""
    cells = np.full((k, world.inputs.n_streams), 0.5)
    np.add.at(cells, (label[world.inputs.user_of_event], world.inputs.stream), 1.0)
    users = np.bincount(label, minlength=k) + 1.0
    return Mixture(np.log(cells / cells.sum(axis=1, keepdims=True)), np.log(users / users.sum()))


def slope_gain(label: Ints, later: Later, half: Ints) -> float:
    """NE in % that slopes per segment gain over pooled ones, both with an offset per segment, on users not fitted on.

    Expected log loss under the true p over the entropy of its mean, on the other half; averaged over both directions.
    Own slopes are the pooled ones and a deviation, both under a ridge: without heterogeneity they cost next to nothing.
    """
    rows, p = later.rows, later.p
    own, side = label[rows.user], half[rows.user]
    segments = np.unique(label)
    offset = (own[:, None] == segments).astype(np.float64)
    together = np.concatenate([offset, rows.x], axis=1)
    deviation = (offset[:, :, None] * rows.x[:, None, :]).reshape(len(p), -1)
    apart = np.concatenate([together, deviation], axis=1)
    losses = {"apart": 0.0, "together": 0.0}
    for fitted_on in (0, 1):
        fit, held = side == fitted_on, side != fitted_on
        for name, x in (("apart", apart), ("together", together)):
            model = LogisticRegression(C=1.0, fit_intercept=False, max_iter=200).fit(x[fit], rows.y[fit])
            logs = model.predict_log_proba(x[held])
            losses[name] -= float((p[held] * logs[:, 1] + (1 - p[held]) * logs[:, 0]).sum())
    mean = float(p.mean())
    entropy = -(mean * np.log(mean) + (1 - mean) * np.log(1 - mean)) * len(p)
    return 100.0 * (losses["together"] - losses["apart"]) / entropy


def measured(world: SegmentWorld, later: Later | None, method: Method) -> Line:
    """One line: fit, score, slopes where there are labels after the fit, and a second fit for the churn."""
    found = method.fit(world, 0)
    line = score(world, found)
    if later is not None:
        half = user_half(world.inputs.users)
        line["gain"] = slope_gain(found.q.argmax(axis=1), later, half)
        line["of_true"] = line["gain"] / slope_gain(world.truth, later, half)
        line["of_best"] = line["gain"] / slope_gain(world.optimal, later, half)
    if method.refit:
        order = np.random.default_rng(1).permutation(world.inputs.n_users)
        again = method.fit(world.permuted(order), 1).q[np.argsort(order)]
        line |= churn(world, found.q, again)
    return line


def contestants(preset: str, options: Options) -> dict[str, Method]:
    """All methods, and where the truth is two slope types these and the best labels before them."""
    found = methods(GIVEN[preset], by_rule=options.by_rule, lifestream=options.lifestream)
    if preset != "S0":
        known = {
            "true slope types": Method(lambda w, _: Answer(np.eye(2)[w.truth], "", 0.0, 0.0), refit=False),
            "Bayes-optimal labels": Method(
                lambda w, _: Answer(np.eye(2)[w.optimal], "", 0.0, 0.0), refit=False
            ),
        }
        found = known | found
    unknown = sorted(set(options.arms) - set(found))
    if unknown:
        raise SystemExit(f"--arms {','.join(unknown)}; allowed: all, {', '.join(found)}")
    return {name: found[name] for name in found if not options.arms or name in options.arms}


def drawn(preset: str, users: int, events: float, seed: int) -> tuple[SegmentWorld, Later | None]:
    """The world of that name, with labels after the fit where slopes are at stake."""
    if preset == "S0":
        return thinned(users, events, seed), None
    return (slope_types if preset == "S9" else orthogonal)(users, events, seed)


def lines_of(preset: str, events: float, options: Options) -> dict[str, list[Line]]:
    """Of every method one line a seed; a line in the folder is taken from there."""
    found: dict[str, list[Line]] = {}
    for seed in range(options.seeds):
        draw = cache(lambda seed=seed: drawn(preset, options.users, events, seed))
        place = options.folder / f"{preset}-{events:g}-{options.users}-{seed}"
        for name, method in contestants(preset, options).items():
            line = kept(place / f"{name.replace(' ', '-')}.json", draw, method)
            found.setdefault(name, []).append(line)
            say(f"{place.name}, {name}", line)
    return found


def kept(path: Path, draw: Draw, method: Method) -> Line:
    """The line that this file holds under the same config, else measured and written there."""
    config = CONFIG.model_dump(mode="json")
    if path.is_file() and (stored := json.loads(path.read_text(encoding="utf-8")))["config"] == config:
        return dict(stored["line"])
    with threadpool_limits(1):
        line = measured(*draw(), method)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"config": config, "line": line}, indent=1), encoding="utf-8")
    return line


def say(what: str, line: Line) -> None:
    """Progress on standard error."""
    more = f", gain {line['gain']:.2f} %" if "gain" in line else ""
    print(
        f"{what}: K {line['k']}, ARI {line['ari']:.3f} of {line['best']:.3f}, {line['fit_s']:.1f} s{more}; "
        f"{line['reason']}",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def mean(lines: Sequence[Line], name: str) -> float:
    """Mean over the seeds that have this figure, NaN where none has."""
    known = [line[name] for line in lines if name in line and np.isfinite(line[name])]
    return float(np.mean(known)) if known else float("nan")


def shown(lines: Sequence[Line], name: str, *, digits: int = 3) -> str:
    """Mean over the seeds with the least and the largest, empty without any."""
    known = [line[name] for line in lines if name in line and np.isfinite(line[name])]
    if not known:
        return ""
    spread = f" [{min(known):.{digits}f}, {max(known):.{digits}f}]" if len(known) > 1 else ""
    return f"{np.mean(known):.{digits}f}{spread}"


def table(preset: str, events: float, options: Options, found: Mapping[str, Sequence[Line]]) -> list[str]:
    """Markdown: one row a method; means of the seeds, with the least and the largest."""
    best = mean([line for lines in found.values() for line in lines], "best")
    slopes = preset != "S0"
    rows = [
        f"\n{preset}, {options.users:,} users, {events:g} events a user, {options.seeds} seeds; "
        f"Bayes-optimal ARI {'to the slope type ' if slopes else ''}{best:.3f}\n",
        "| method | K | ARI | of Bayes | coverage | ARI there | "
        + ("NE gain of own slopes % | of the true types' | of the best labels' | " if slopes else "")
        + "churn, argmax | churn, assigned | fit users/s | apply users/s |",
        "|---" * (13 if slopes else 10) + "|",
    ]
    for name, lines in found.items():
        cells = [
            name,
            ", ".join(str(line["k"]) for line in lines),
            f"{mean(lines, 'ari'):.3f}",
            shown(lines, "ratio"),
        ]
        cells += [f"{mean(lines, figure):.3f}" for figure in ("coverage", "sure_ari")]
        if slopes:
            cells += [
                shown(lines, "gain", digits=2),
                shown(lines, "of_true", digits=2),
                shown(lines, "of_best", digits=2),
            ]
        cells += [
            f"{100 * mean(lines, c):.1f} %" if "churn" in lines[0] else ""
            for c in ("churn", "assigned_churn")
        ]
        seconds = (mean(lines, "fit_s"), mean(lines, "apply_s"))
        cells += [f"{options.users / s:,.0f}" if s > 0 else "" for s in seconds]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main(presets: Sequence[str], options: Options) -> None:
    """Print a table a world and level of events; slopes are measured at the first level alone."""
    unknown = sorted(set(presets) - set(PRESETS))
    if unknown:
        raise SystemExit(f"--presets {','.join(unknown)}; allowed: {', '.join(PRESETS)}")
    torch.set_num_threads(1)
    for preset in presets:
        for events in options.events if preset == "S0" else options.events[:1]:
            print("\n".join(table(preset, events, options, lines_of(preset, events, options))), flush=True)
