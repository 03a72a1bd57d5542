"""Contest of the segmenters without Spark: `python -m benchmarks segmenters [--users 20000] [--seeds 2] [--events 50]`.

Per world and method: ARI of the argmax posterior over all users beside the Bayes-optimal ARI on the same events, coverage
(posterior of .9 or more and 15 events) and ARI there, users per second. On the orthogonal world: the cross-fitted gain in
NE of slopes per segment over pooled ones, as a share of what the true slope types gain.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from benchmarks.segment_worlds import BEHAVIOURS, Later, SegmentWorld, orthogonal, thinned
from dynamix.config import SegmentationConfig
from dynamix.features.sim_world import N_SEGMENTS
from dynamix.segmentation.em import user_half
from dynamix.segmentation.jagged import Floats, Ints, Jagged
from dynamix.segmentation.methods import segmenter
from dynamix.segmentation.segmenters import Segmenter

CONFIG = SegmentationConfig()
BY_RULE = ("mix", "neural", "mix-merge", "paper2")


@dataclass
class Line:
    """What one method did on one world, a list entry per seed."""

    k: list[int] = field(default_factory=list)
    ari: list[float] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)
    sure_ari: list[float] = field(default_factory=list)
    fit_s: list[float] = field(default_factory=list)
    apply_s: list[float] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)
    captured: list[float] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """Posterior (U, K) of a method, its reason, seconds to fit and to apply."""

    q: Floats
    reason: str
    fit_s: float
    apply_s: float


def asked(recipe: Segmenter) -> Callable[[SegmentWorld], Answer]:
    """Fit on the world, apply to all its users."""

    def answer(world: SegmentWorld) -> Answer:
        began = time.perf_counter()
        fitted = recipe.fit(world.inputs, world.evidence)
        between = time.perf_counter()
        q = fitted.posterior(world.inputs)
        return Answer(q, fitted.reason, between - began, time.perf_counter() - between)

    return answer


def features_of(inputs: Jagged, *, clr: bool) -> Floats:
    """ln(1 + events) per stream (U, F), or the centred log ratio with .5 added."""
    counts = np.zeros((inputs.n_users, inputs.n_streams))
    np.add.at(counts, (inputs.user_of_event, inputs.stream), 1.0)
    if not clr:
        return np.log1p(counts)
    logs = np.log(counts + 0.5)
    return np.asarray(logs - logs.mean(axis=1, keepdims=True))


def k_means(k: int, *, clr: bool) -> Callable[[SegmentWorld], Answer]:
    """Hard labels of k-means as posteriors of 0 and 1."""

    def answer(world: SegmentWorld) -> Answer:
        began = time.perf_counter()
        labels = KMeans(n_clusters=k, n_init=3, random_state=0).fit_predict(
            features_of(world.inputs, clr=clr)
        )
        return Answer(np.eye(k)[labels], "", time.perf_counter() - began, 0.0)

    return answer


def gaussian(k: int) -> Callable[[SegmentWorld], Answer]:
    """A Gaussian mixture with full covariances on the centred log ratio."""

    def answer(world: SegmentWorld) -> Answer:
        x = features_of(world.inputs, clr=True)[:, :-1]  # rows sum to 0: the last column is redundant
        began = time.perf_counter()
        model = GaussianMixture(k, reg_covar=1e-3, random_state=0).fit(x)
        between = time.perf_counter()
        return Answer(model.predict_proba(x), "", between - began, time.perf_counter() - between)

    return answer


def methods(k: int, *, by_rule: bool) -> dict[str, Callable[[SegmentWorld], Answer]]:
    """Every contestant: those with a rule for K, then the same with K given, then the plain clusterings."""
    own = {name: asked(segmenter(name, CONFIG)) for name in (BY_RULE if by_rule else BY_RULE[2:])}
    given = {f"{name}, K={k}": asked(segmenter(name, CONFIG, k=k)) for name in ("mix", "neural", "mix-merge")}
    plain = {
        f"k-means log counts, K={k}": k_means(k, clr=False),
        f"k-means CLR, K={k}": k_means(k, clr=True),
        f"Gaussian mixture CLR, K={k}": gaussian(k),
    }
    return own | given | plain


def score(line: Line, world: SegmentWorld, answer: Answer) -> None:
    """Add one seed's figures."""
    label = answer.q.argmax(axis=1)
    best = adjusted_rand_score(world.truth, world.optimal)
    sure = (answer.q.max(axis=1) >= CONFIG.confidence) & (world.inputs.events >= CONFIG.min_events)
    line.k.append(answer.q.shape[1])
    line.ari.append(adjusted_rand_score(world.truth, label))
    line.ratio.append(line.ari[-1] / best)
    line.coverage.append(float(sure.mean()))
    line.sure_ari.append(adjusted_rand_score(world.truth[sure], label[sure]) if sure.any() else float("nan"))
    line.fit_s.append(answer.fit_s)
    line.apply_s.append(answer.apply_s)
    line.reasons.append(answer.reason)


def slope_gain(label: Ints, later: Later, half: Ints) -> float:
    """NE in % that slopes per segment gain over pooled ones, both with an offset per segment, on users not fitted on.

    Expected log loss under the true p over the entropy of its mean, on the other half; averaged over both directions.
    """
    rows, p = later.rows, later.p
    own, side = label[rows.user], half[rows.user]
    segments = np.unique(label)
    offset = (own[:, None] == segments).astype(np.float64)
    apart = np.concatenate([offset, (offset[:, :, None] * rows.x[:, None, :]).reshape(len(p), -1)], axis=1)
    together = np.concatenate([offset, rows.x], axis=1)
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


def composition(
    users: int, events: float, seeds: int, *, by_rule: bool
) -> tuple[dict[str, Line], list[float]]:
    """All methods on thinned S0 worlds, and the Bayes-optimal ARI of each seed."""
    lines: dict[str, Line] = {}
    best: list[float] = []
    for seed in range(seeds):
        world = thinned(users, events, seed)
        best.append(adjusted_rand_score(world.truth, world.optimal))
        for name, answer in methods(N_SEGMENTS, by_rule=by_rule).items():
            score(lines.setdefault(name, Line()), world, answer(world))
            say(f"S0 {events:g} events, seed {seed}, {name}", lines[name])
    return lines, best


def heterogeneity(users: int, events: float, seeds: int, *, by_rule: bool) -> dict[str, Line]:
    """All methods on orthogonal worlds; truth and the best labels from the same events come first."""
    lines: dict[str, Line] = {}
    for seed in range(seeds):
        world, later = orthogonal(users, events, seed)
        half = user_half(world.inputs.users)
        whole = slope_gain(world.truth, later, half)
        answers = {
            "true slope types": lambda w: Answer(np.eye(2)[w.truth], "", 0.0, 0.0),
            "Bayes-optimal labels": lambda w: Answer(np.eye(2)[w.optimal], "", 0.0, 0.0),
        } | methods(2 * BEHAVIOURS, by_rule=by_rule)
        for name, answer in answers.items():
            found, line = answer(world), lines.setdefault(name, Line())
            score(line, world, found)
            line.gain.append(slope_gain(found.q.argmax(axis=1), later, half))
            line.captured.append(line.gain[-1] / whole)
            say(f"orthogonal, seed {seed}, {name}", line)
    return lines


def say(what: str, line: Line) -> None:
    """Progress on standard error."""
    more = f", gain {line.gain[-1]:.2f} %" if line.gain else ""
    print(
        f"{what}: K {line.k[-1]}, ARI {line.ari[-1]:.3f}, {line.fit_s[-1]:.1f} s{more}; {line.reasons[-1]}",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def mean(values: list[float]) -> float:
    """Mean of the seeds, NaN left out."""
    known = [v for v in values if np.isfinite(v)]
    return float(np.mean(known)) if known else float("nan")


def main(*, users: int, seeds: int, events: list[float], by_rule: bool) -> None:
    """Print the tables; without `by_rule` mix and neural are only given their K."""
    for level in events:
        lines, best = composition(users, level, seeds, by_rule=by_rule)
        print(
            f"\nS0, {users:,} users, {level:g} events a user, {seeds} seeds: Bayes-optimal ARI {mean(best):.3f}"
        )
        print("| method | K | ARI | of Bayes | coverage | ARI there | fit users/s | apply users/s |")
        print("|---|---|---|---|---|---|---|---|")
        for name, line in lines.items():
            speed = f"{users / mean(line.apply_s):,.0f}" if mean(line.apply_s) > 0 else ""
            print(
                f"| {name} | {', '.join(map(str, line.k))} | {mean(line.ari):.3f} | {mean(line.ratio):.2f} | "
                f"{mean(line.coverage):.3f} | {mean(line.sure_ari):.3f} | {users / mean(line.fit_s):,.0f} | {speed} |",
                flush=True,
            )
    found = heterogeneity(users, events[0], seeds, by_rule=by_rule)
    print(f"\nOrthogonal world, {users:,} users, {events[0]:g} events a user, {seeds} seeds")
    print("| segments | K | ARI to slope type | NE gain % | of attainable |")
    print("|---|---|---|---|---|")
    for name, line in found.items():
        print(
            f"| {name} | {', '.join(map(str, line.k))} | {mean(line.ari):.3f} | {mean(line.gain):.2f} | "
            f"{mean(line.captured):.2f} |"
        )
