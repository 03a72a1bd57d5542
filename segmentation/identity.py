"""Stable segment ids and names over refits (docs/method.md A.4.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from dynamix.contracts import COLD_SEGMENT
from dynamix.segmentation.mixture import Floats, Mixture

COLD_NAME = "cold"
MIN_OVERLAP = 0.1
"""Jaccard overlap of users below which a component is a new segment, not an old one moved."""
_NAMED_SHARE = 0.02


@dataclass(frozen=True)
class Previous:
    """Segments of the version before: ids (S,), emission (S, J), and the largest id ever given."""

    ids: tuple[int, ...]
    emission: Floats
    largest: int


@dataclass(frozen=True)
class Identity:
    """Stable id of each component (K,), what happened to it, and the ids that ended."""

    ids: tuple[int, ...]
    events: tuple[str, ...]
    dead: tuple[int, ...]


def first_ids(mixture: Mixture) -> Identity:
    """Ids 1..K by falling share, ties by component."""
    order = np.argsort(-mixture.log_pi, kind="stable")
    ids = np.empty(mixture.k, np.int64)
    ids[order] = np.arange(1, mixture.k + 1)
    return Identity(tuple(int(i) for i in ids), ("birth",) * mixture.k, ())


def match_ids(mixture: Mixture, previous: Previous, overlap: Floats) -> Identity:
    """Hungarian matching on the Jaccard overlap of users; ties go to the nearer emission.

    overlap (K, S) counts users of component k that were in the s-th previous segment. A component whose best
    match shares less than a tenth of their users gets a new id; ids are never given twice.
    """
    union = overlap.sum(axis=1, keepdims=True) + overlap.sum(axis=0, keepdims=True) - overlap
    jaccard = overlap / np.maximum(union, 1.0)
    gain = jaccard - 1e-3 * _distances(np.exp(mixture.log_p), previous.emission)
    rows, columns = linear_sum_assignment(-gain)
    found = {int(r): int(c) for r, c in zip(rows, columns, strict=True) if jaccard[r, c] >= MIN_OVERLAP}
    ids, events, largest = [], [], previous.largest
    for component in range(mixture.k):
        if component in found:
            ids.append(previous.ids[found[component]])
            events.append("keep")
        else:
            largest += 1
            ids.append(largest)
            events.append("birth")
    dead = tuple(i for place, i in enumerate(previous.ids) if place not in set(found.values()))
    return Identity(tuple(ids), tuple(events), dead)


def _distances(new: Floats, old: Floats) -> Floats:
    """Jensen-Shannon divergence (K, S) in nats between rows; cells beyond the shorter one count as empty."""
    width = max(new.shape[1], old.shape[1])
    p, q = (np.pad(x, ((0, 0), (0, width - x.shape[1]))) + 1e-12 for x in (new, old))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    middle = (p[:, None, :] + q[None, :, :]) / 2.0
    left = (p[:, None, :] * np.log(p[:, None, :] / middle)).sum(axis=2)
    right = (q[None, :, :] * np.log(q[None, :, :] / middle)).sum(axis=2)
    return np.asarray((left + right) / 2.0)


def names(mixture: Mixture, streams: Mapping[int, str], *, cells_per_stream: int) -> tuple[str, ...]:
    """A name per component: its two streams of the greatest lift over all users, e.g. `news/view 3.1x, …`.

    Streams that make up less than 2 % of the component's events are not named. One component: `everyone`.
    """
    if mixture.k == 1:
        return ("everyone",)
    p = np.exp(mixture.log_p).reshape(mixture.k, -1, cells_per_stream).sum(axis=2)
    overall = np.exp(mixture.log_pi) @ p
    found = []
    for row in p:
        lift = np.where(row >= _NAMED_SHARE, row / np.maximum(overall, 1e-12), 0.0)
        top = [int(f) for f in np.argsort(-lift, kind="stable")[:2] if lift[f] > 0]
        found.append(", ".join(f"{streams.get(f, f'stream {f}')} {lift[f]:.1f}x" for f in top))
    return tuple(found)


def id_map(identity: Identity) -> dict[int, int]:
    """Component -> segment id, with −1 -> the cold segment."""
    return {-1: COLD_SEGMENT} | dict(enumerate(identity.ids))


def overlap_matrix(pairs: Sequence[tuple[int, int, int]], k: int, ids: tuple[int, ...]) -> Floats:
    """Users by (component, previous segment) from (component, segment_id, users) triples; others are ignored."""
    place = {segment: s for s, segment in enumerate(ids)}
    matrix = np.zeros((k, len(ids)))
    for component, segment, users in pairs:
        if component >= 0 and segment in place:
            matrix[component, place[segment]] += users
    return matrix
