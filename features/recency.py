"""What the older part of a stream's history says beside its newer part: sums by bucket of recency, mergeable.

The kept events of a stream are cut into buckets by their rank from the newest: 1 to 3, 4 to 10, 11 to 30, 31 and
older, and where histories are collected beyond their base, what lies there. Each bucket is an exposure of its own, so
that one scan tells what a shorter history would lose and a longer one would add (docs/method.md A.8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dynamix.contracts import CHANNELS
from dynamix.features.clustered import Floats, Ints, PackedSums, Parts, clustered_sums
from dynamix.features.exposure import OWN, own_channels
from dynamix.features.history import EventBlock, ImpressionBlock
from dynamix.features.quotas import BaseQuota, from_newest

EDGES = (3, 10, 30)
"""A history may be cut to its newest 3, 10 or 30 events of a stream."""
BUCKETS = len(EDGES) + 1
WHOLE_STREAM = ("recency", "presence", "censored")
"""Channels that no bucket has for itself: those of the whole stream; OWN are those of a bucket."""
SHARED = 4
WIDTH = SHARED + len(WHOLE_STREAM) + BUCKETS * len(OWN)
"""Values of an impression: those shared by all streams, those of the stream, three of each bucket, newest first."""


def _arrays(buckets: int) -> Parts:
    width = SHARED + len(WHOLE_STREAM) + buckets * len(OWN)
    return (
        ("with_bucket", (buckets,)),
        ("tokens", (buckets,)),
        ("wx", (width,)),
        ("wxx", (width, width)),
        ("a", (width + 1,)),
        ("aa", (width + 1, width + 1)),
    )


@dataclass(frozen=True)
class RecencySums(PackedSums):
    """The mergeable state of one cell, head and user half by recency.

    n impressions of the segment, positives among them, w = Σ w; per bucket (4,) positives that have an event in
    it, and its kept events; wx, wxx, a, aa as in `CellSums` over the WIDTH values.
    """

    SCALARS: ClassVar[tuple[str, ...]] = ("n", "positives", "w")
    ARRAYS: ClassVar[Parts] = _arrays(BUCKETS)
    n: float
    positives: float
    w: float
    with_bucket: Floats
    tokens: Floats
    wx: Floats
    wxx: Floats
    a: Floats
    aa: Floats


class BeyondSums(RecencySums):
    """The same with one bucket more, the last: the events beyond the base, which only a boost would keep."""

    ARRAYS: ClassVar[Parts] = _arrays(BUCKETS + 1)


SIZE = RecencySums.size()


def columns_of(bucket: int) -> Ints:
    """Places of a bucket's three channels among the WIDTH values."""
    first = SHARED + len(WHOLE_STREAM) + bucket * len(OWN)
    return np.arange(first, first + len(OWN), dtype=np.int64)


def recency_block(
    events: EventBlock, impressions: ImpressionBlock, offsets: Ints, index: Ints, *, n_streams: int,
    base: BaseQuota | None = None,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Exposure by bucket (B, F, 4, 3), channels as in OWN, and kept events (B, F, 4).

    With `base` there are five buckets, the last of the events that lie beyond the base of their stream.
    With m told dwells among the n events of a bucket: dwell = Σ z / (m + 1), count = ln(1 + n), match = ln(1 + events
    on the impression's own item); all 0 where the bucket is empty.
    """
    rows = len(impressions.ts_us)
    row = np.repeat(np.arange(rows, dtype=np.int64), np.diff(offsets))
    cell = row * n_streams + events.stream[index]
    rank, buckets = from_newest(cell), BUCKETS
    bucket = np.searchsorted(np.asarray(EDGES), rank, side="right")
    if base is not None:
        bucket, buckets = np.where(rank < base.of(events.stream[index]), bucket, BUCKETS), BUCKETS + 1
    found, n = own_channels(
        events, impressions, offsets, index, cell * buckets + bucket, cells=rows * n_streams * buckets
    )
    return found.reshape(rows, n_streams, buckets, len(OWN)), n.reshape(rows, n_streams, buckets)


def recency_sums(
    exposure: Floats, block: Floats, tokens: Floats, shared: Floats, y: Floats, p: Floats, user: Ints
) -> Floats:
    """Packed `RecencySums` of all streams (F, SIZE) from impressions sorted by user.

    exposure (B, F, 6) as of `exposure_block`, block (B, F, 4, 3) and tokens (B, F, 4) as of `recency_block`, shared
    (B, 4), y and p (B,), user (B,) codes. Of a block with the bucket beyond the base `BeyondSums`.
    """
    rows, n_streams, _ = exposure.shape
    r, w = y - p, p * (1.0 - p)
    x = np.empty((n_streams, rows, SHARED + len(WHOLE_STREAM) + block.shape[2] * block.shape[3]))
    x[:, :, :SHARED] = shared[None, :, :]
    for place, name in enumerate(WHOLE_STREAM):
        x[:, :, SHARED + place] = exposure[:, :, CHANNELS.index(name)].T
    x[:, :, SHARED + len(WHOLE_STREAM) :] = block.reshape(rows, n_streams, -1).transpose(1, 0, 2)
    scalars = np.broadcast_to(np.array([rows, y.sum(), w.sum()]), (n_streams, 3))
    parts = (
        scalars,
        np.tensordot(y, (tokens > 0).astype(np.float64), axes=(0, 0)),
        tokens.sum(axis=0),
        *clustered_sums(x, r, w, user),
    )
    return np.concatenate([np.asarray(part).reshape(n_streams, -1) for part in parts], axis=1)
