"""A stored segmenter in NumPy: a request's segment by the rule that wrote `segments` (docs/method.md A.4.4).

Mixtures are here, segmenters that read events themselves in models/event_segmenter.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynamix.contracts import COLD_SEGMENT, N_DWELL_BINS
from dynamix.segmentation.midnights import TIER_DAYS, Rule, decide

if TYPE_CHECKING:
    from dynamix.models.event_segmenter import EventSegmenter

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_STATES = 4_000_000
"""Posteriors (request × day × component) held at once; the result does not depend on it."""


@dataclass(frozen=True)
class Segmenter:
    """Mixture over streams × dwell bins: log emission (K, F·13), log prior (K,), and when a user stays cold.

    `ids` are the stable segment ids of the K components; `active_from` the usable events of the last seven
    days from which on a user is active; `since_us` the first instant whose events count. With `group` (K₀,) several of
    the K₀ components make one of the K segments (mix-merge); empty: each makes its own.
    """

    ids: tuple[int, ...]
    log_emission: Floats
    log_prior: Floats
    confidence: float
    min_events: int
    active_from: float
    dwell_bins: bool = True
    since_us: int = 0
    group: tuple[int, ...] = ()

    @property
    def rule(self) -> Rule:
        return Rule(self.confidence, self.min_events, self.active_from)

    def to_tree(self) -> dict[str, Any]:
        """Plain data for JSON."""
        arrays = {name: getattr(self, name).tolist() for name in ("log_emission", "log_prior")}
        tree = {**vars(self), **arrays, "ids": list(self.ids), "group": list(self.group)}
        return tree if self.group else {name: value for name, value in tree.items() if name != "group"}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Segmenter:
        """The inverse of `to_tree`; `method`, which a registered one carries, is passed over."""
        arrays = {name: np.asarray(tree[name], np.float64) for name in ("log_emission", "log_prior")}
        plain = {name: value for name, value in tree.items() if name != "method"}
        return cls(**{**plain, **arrays, "ids": tuple(tree["ids"]), "group": tuple(tree.get("group", ()))})

    def posterior(self, score: Floats) -> Floats:
        """q (..., K) of the segments from joint log densities (..., K₀) of the components."""
        weight = np.exp(score - score.max(axis=-1, keepdims=True))
        q = weight / weight.sum(axis=-1, keepdims=True)
        return np.asarray(q @ np.eye(len(self.ids))[list(self.group)] if self.group else q)


@dataclass(frozen=True)
class Past:
    """N usable events before 00:00 of their request's day: row (N,), stream id, dwell bin, and `ago` in whole days.

    ago 0 is the day before the request's. ts_s (N,), seconds on one clock, and z (N,), NaN without a usable dwell, are
    read by segmenters of events alone.
    """

    row: Ints
    stream: Ints
    dwell_bin: Ints
    ago: Ints
    ts_s: Floats | None = None
    z: Floats | None = None


def stored_segmenter(tree: Mapping[str, Any]) -> Segmenter | EventSegmenter:
    """The segmenter of a stored tree, by whether it holds a mixture's emission."""
    if "log_emission" in tree:
        return Segmenter.from_tree(tree)
    from dynamix.models.event_segmenter import EventSegmenter  # imports SciPy, and torch for a network

    return EventSegmenter.from_tree(tree)


def assign(past: Past, n: int, segmenter: Segmenter | EventSegmenter) -> Ints:
    """Segment (n,) at 00:00 of each request's day, from the events given alone; 0 without any.

    Every midnight since the first event is gone through, as in `segments`: a user who has once been sure of a
    segment stays there until another one leads. Events of streams younger than the segmenter say nothing.
    """
    if not isinstance(segmenter, Segmenter):
        return segmenter.assign(past, n)
    symbol = past.stream * N_DWELL_BINS + past.dwell_bin if segmenter.dwell_bins else past.stream
    known = symbol < segmenter.log_emission.shape[1]
    row, symbol, ago = past.row[known], symbol[known], past.ago[known]
    n_days = int(ago.max(initial=-1)) + 1
    found = np.full(n, COLD_SEGMENT, np.int64)
    size = max(1, _STATES // max(1, n_days * len(segmenter.log_prior)))
    for start in range(0, n if n_days else 0, size):
        part = (row >= start) & (row < start + size)
        count = min(size, n - start)
        slot = (row[part] - start) * n_days + (n_days - 1 - ago[part])
        component = _last(slot, symbol[part], (count, n_days), segmenter)
        found[start : start + count] = np.array([*segmenter.ids, COLD_SEGMENT])[component]
    return found


def _last(slot: Ints, symbol: Ints, shape: tuple[int, int], segmenter: Segmenter) -> Ints:
    """Component (B,) at the last of D midnights, −1 = cold; slot (N,) = request · D + day."""
    cells = shape[0] * shape[1]
    gains = [np.bincount(slot, weights=log_p[symbol], minlength=cells) for log_p in segmenter.log_emission]
    score = np.cumsum(np.stack(gains, axis=1).reshape(*shape, -1), axis=1) + segmenter.log_prior  # (B, D, K)
    events = np.cumsum(np.bincount(slot, minlength=cells).reshape(shape), axis=1)
    return decide(segmenter.posterior(score), events, segmenter.rule)[:, -1]


def recent_events(past: Past, n: int) -> Ints:
    """Usable events (n,) of the seven days before each request's day, which settle its tier."""
    return np.bincount(past.row[past.ago < TIER_DAYS], minlength=n)


def segment_users(tree: Mapping[str, Any], users: Any) -> dict[str, Any]:
    """segment_id of each user by a stored segmenter, without hysteresis.

    A mixture reads `counts` (F·13 event counts by stream and dwell bin), any other `events`.
    """
    segmenter = stored_segmenter(tree)
    if not isinstance(segmenter, Segmenter):
        return segmenter.segment_users(users)
    counts = np.stack([np.asarray(c, np.float64) for c in users["counts"]])
    posterior = segmenter.posterior(
        counts[:, : segmenter.log_emission.shape[1]] @ segmenter.log_emission.T + segmenter.log_prior
    )
    sure = (posterior.max(axis=1) >= segmenter.confidence) & (counts.sum(axis=1) >= segmenter.min_events)
    found = np.where(sure, np.asarray(segmenter.ids)[posterior.argmax(axis=1)], COLD_SEGMENT)
    return {"user_id": list(users["user_id"]), "segment_id": found.tolist()}
