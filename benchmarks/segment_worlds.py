"""Worlds for the contest of segmenters, drawn in memory: S0 and S9 of the simulator thinned, and an orthogonal one.

Days 0-14 are the evidence window, 14-28 the segmenter's input, 28-42 the next window. Posterior, Bayes-optimal labels and
event counts all refer to the same events: those of the last two windows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from dynamix.contracts import DWELL_BIN_EDGES_S, NO_DWELL_BIN
from dynamix.features import sim_events, sim_labels
from dynamix.features import sim_world as W
from dynamix.features.simulate import bayes_segments
from dynamix.segmentation.blocks import INPUT, NEXT, OTHER
from dynamix.segmentation.jagged import FlatEvents, Floats, Ints, Jagged, jagged
from dynamix.segmentation.slopes import Evidence

DAYS, EVIDENCE_END, INPUT_END = 42, 14, 28
SEEN_SHARE = (DAYS - EVIDENCE_END) / DAYS
MATURITY_DAYS = 1
BEHAVIOURS, STREAMS = 4, 12
TILT, SLOPE_SD, BASE_LOGIT = 0.35, 1.2, -2.2
"""Orthogonal world: log tilt of the mix by slope type, sd of the slopes, logit of the base rate (10 %)."""
ROWS_A_USER, HISTORY = 10, 25.0


@dataclass(frozen=True)
class SegmentWorld:
    """Inputs of U users, who is what (U,), the best possible labels from the same events (U,), labelled evidence."""

    inputs: Jagged
    truth: Ints
    optimal: Ints
    evidence: Evidence

    def permuted(self, order: Ints) -> SegmentWorld:
        """The same users in another order; `order` (U,) names who comes where."""
        place = np.argsort(order)
        evidence = replace(self.evidence, user=place[self.evidence.user])
        return SegmentWorld(self.inputs.take(order), self.truth[order], self.optimal[order], evidence)


@dataclass(frozen=True)
class Later:
    """Labelled impressions after the fit, as evidence, and the true p (B,)."""

    rows: Evidence
    p: Floats


@dataclass(frozen=True)
class _Drawn:
    """A thinned world of the simulator, and what the segmenters see of it."""

    world: W.World
    segment: Ints
    content: sim_events.Content
    imps: sim_labels.Impressions
    truth: sim_labels.Truth
    inputs: Jagged

    @property
    def counts(self) -> Ints:
        """Events (U, F) of the two windows."""
        found = np.zeros((self.inputs.n_users, W.N_STREAMS), np.int64)
        np.add.at(found, (self.inputs.user_of_event, self.inputs.stream), 1)
        return found


def thinned(users: int, events: float, seed: int) -> SegmentWorld:
    """S0 with planned events thinned at random, so that input and next window hold `events` a user in the mean."""
    drawn = _draw("S0", users, events, seed)
    optimal, _ = bayes_segments(drawn.world.mix, np.asarray(W.SEGMENT_SHARES), drawn.counts)
    evidence = _rows_of(drawn, _mature(drawn)).rows
    return SegmentWorld(drawn.inputs, drawn.segment, optimal, evidence)


def slope_types(users: int, events: float, seed: int) -> tuple[SegmentWorld, Later]:
    """S9 thinned as S0 is: three compositions × two slope types that composition hardly shows; truth is the slope type.

    Best labels add up the true posteriors of a slope type's segments. `Later` are the impressions after the input
    window; p is the planted one, with horizons, curves and user effects that no slope of a segment can follow.
    """
    drawn = _draw("S9", users, events, seed)
    kind = drawn.world.types[:, 1]
    _, posterior = bayes_segments(drawn.world.mix, np.asarray(W.SEGMENT_SHARES), drawn.counts)
    optimal = (posterior @ np.eye(int(kind.max()) + 1)[kind]).argmax(axis=1)
    evidence = _rows_of(drawn, _mature(drawn)).rows
    later = _rows_of(drawn, np.flatnonzero(drawn.imps.ts_us >= INPUT_END * W.DAY_MS * 1000))
    return SegmentWorld(drawn.inputs, kind[drawn.segment], optimal, evidence), later


def dwell_bins(content: sim_events.Content) -> Ints:
    """Dwell bin (N,) of every event, NO_DWELL_BIN where it is censored."""
    seconds = np.where(content.censored, 0.0, content.dwell_ms / 1000.0)
    binned = np.searchsorted(DWELL_BIN_EDGES_S, seconds, side="left")
    return np.where(content.censored, NO_DWELL_BIN, binned)


def _draw(preset: str, users: int, events: float, seed: int) -> _Drawn:
    stage = [np.random.default_rng([seed, number]) for number in range(7)]
    world = W.draw_world(W.preset_named(preset), stage[0])
    people = sim_events.draw_users(world, users, DAYS, stage[1])
    keep = min(1.0, events / SEEN_SHARE / float(people.planned.mean()))
    people = replace(people, planned=stage[6].binomial(people.planned, keep))
    content = sim_events.draw_content(world, people, DAYS, 0, stage[2])
    imps = sim_labels.draw_impressions(world, content, DAYS, stage[3])
    truth = sim_labels.draw_truth(world, people, content, imps, stage[4], days=DAYS)
    day = content.ts_ms / W.DAY_MS
    flat = FlatEvents(
        content.user, content.ts_ms / 1000.0, content.stream, dwell_bins(content),
        np.where(content.censored, np.nan, content.z), _part(day),
    )  # fmt: skip
    inputs = jagged(flat, users=_ids(users), n_streams=W.N_STREAMS)
    return _Drawn(world, people.segment, content, imps, truth, inputs)


def _mature(drawn: _Drawn) -> Ints:
    """Impressions whose labels are final before the input window begins."""
    return np.flatnonzero(drawn.imps.ts_us < (EVIDENCE_END - MATURITY_DAYS) * W.DAY_MS * 1000)


def _rows_of(drawn: _Drawn, chosen: Ints) -> Later:
    """These impressions with whole-history exposures, labels and true p."""
    own = sim_labels.Impressions(*(value[chosen] for value in vars(drawn.imps).values()))
    index = sim_labels.StreamIndex(drawn.content, sim_labels.acting_events(drawn.world, drawn.content))
    x = np.zeros((len(chosen), W.N_STREAMS))
    for stream in range(W.N_STREAMS):
        low, high = index.bounds(own.user, stream, own.cutoff_ms)
        x[:, stream] = index.exposure(low, high, high - low)
    y = drawn.truth.label[chosen].astype(np.float64)
    rows = Evidence(own.user, x, y, np.full(len(y), y.mean() if len(y) else W.BASE_RATE))
    return Later(rows, drawn.truth.p[chosen])


def orthogonal(users: int, events: float, seed: int) -> tuple[SegmentWorld, Later]:
    """Four behaviours that mean the same, two slope types that composition hardly shows; truth is the slope type.

    Every user has a behaviour (equal shares) and, independently, a slope type; half of the streams turn their slope
    around between the types. A type tilts the mix by e^±TILT per stream. Exposures are means of normal dwells.
    """
    rng = np.random.default_rng([seed, 9])
    behaviour, kind = rng.integers(BEHAVIOURS, size=users), rng.integers(2, size=users)
    mixes = W.MIX_WEIGHT * rng.dirichlet(np.full(STREAMS, W.MIX_CONCENTRATION), size=BEHAVIOURS)
    mixes += (1 - W.MIX_WEIGHT) / STREAMS
    sign = rng.permutation(np.repeat([1.0, -1.0], STREAMS // 2))
    table = mixes[:, None, :] * np.exp(TILT * np.array([1.0, -1.0])[:, None] * sign)
    table = (table / table.sum(axis=2, keepdims=True)).reshape(BEHAVIOURS * 2, STREAMS)
    own = table[behaviour * 2 + kind]
    n = rng.poisson(events * np.exp(0.8 * rng.normal(size=users) - 0.32))
    user = np.repeat(np.arange(users), n)
    stream = np.minimum(
        (rng.random(len(user))[:, None] > np.cumsum(own, axis=1)[user]).sum(axis=1), STREAMS - 1
    )
    day = EVIDENCE_END + rng.random(len(user)) * (DAYS - EVIDENCE_END)
    z = rng.normal(size=len(user))
    flat = FlatEvents(user, day * 86_400.0, stream, np.clip(z * 2 + 6, 0, 11).astype(np.int64), z, _part(day))
    inputs = jagged(flat, users=_ids(users), n_streams=STREAMS)
    counts = np.zeros((users, STREAMS))
    np.add.at(counts, (inputs.user_of_event, inputs.stream), 1.0)
    scores = counts @ np.log(table).T
    likelihood = np.exp(scores - scores.max(axis=1, keepdims=True)).reshape(users, BEHAVIOURS, 2).sum(axis=1)
    slopes = np.stack([rng.normal(scale=SLOPE_SD, size=STREAMS)] * 2)
    slopes[1, rng.permutation(STREAMS)[: STREAMS // 2]] *= -1
    before, after = (_rows(own, kind, slopes, rng) for _ in range(2))
    return SegmentWorld(inputs, kind, likelihood.argmax(axis=1), before.rows), after


def _rows(mix: Floats, kind: Ints, slopes: Floats, rng: np.random.Generator) -> Later:
    user = np.repeat(np.arange(len(kind)), ROWS_A_USER)
    n = rng.poisson(HISTORY * mix[user])
    x = np.sqrt(n) / (n + 1.0) * rng.normal(size=n.shape)
    p = 1.0 / (1.0 + np.exp(-(BASE_LOGIT + (x * slopes[kind[user]]).sum(axis=1))))
    y = (rng.random(len(p)) < p).astype(np.float64)
    return Later(Evidence(user, x, y, np.full(len(p), y.mean())), p)


def _part(day: Floats) -> Ints:
    return np.where(day < EVIDENCE_END, OTHER, np.where(day < INPUT_END, INPUT, NEXT)).astype(np.int64)


def _ids(users: int) -> pa.Array:
    return pa.array([f"u{i:07d}" for i in range(users)])
