"""RankBatch: impressions with their ragged histories as values + offsets, never padded.

offsets [0, 2, 2, 5]      rows   0: e0 e1 | 1: (no history) | 2: e2 e3 e4       oldest event first
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamix.contracts import N_DWELL_BINS
from dynamix.errors import InputError

RANK_EDGES = (3, 10, 30)
"""Recency buckets of a stream: the newest 3, 10, 30 and all kept events."""
ITEM_MATCH, CATEGORY_MATCH = 1, 2

EVENT_FIELDS = ("stream", "item", "dwell_bin", "z", "usable", "log_age", "match", "rank")
ROW_FIELDS = ("segment", "tier", "surface", "item_id", "dense")


@dataclass(frozen=True)
class RankBatch:
    """B impressions and the N kept events of their histories; a token is one kept event.

    Rows: `segment`, `tier` (0 passive, 1 active), `surface` (0 = unknown), `item_id` (hash bucket of the
    candidate, 0 = none), all (B,) long; `dense` (B, 4) float: log1p(position), position missing,
    signed log1p(value), value missing. Events, oldest first: `stream`, `item` (bucket), `dwell_bin`,
    `match` (bit 1 item, bit 2 category equal the candidate's by 64-bit hash), `rank` (0 = newest of its
    stream in its row, among kept events), all (N,) long; `z`, `log_age` (N,) float, `usable` (N,) bool.
    `keep` (N,) bool and `log_boost` (N,) float stand only where events are masked, not removed.
    """

    offsets: Tensor  # (B+1,) int64
    segment: Tensor
    tier: Tensor
    surface: Tensor
    item_id: Tensor
    dense: Tensor
    stream: Tensor
    item: Tensor
    dwell_bin: Tensor
    z: Tensor
    usable: Tensor
    log_age: Tensor
    match: Tensor
    rank: Tensor
    keep: Tensor | None = None
    log_boost: Tensor | None = None
    labels: Mapping[str, Tensor] = field(default_factory=dict)  # {head: (B,) float, NaN = unknown}
    weight: Tensor | None = None  # (B,)
    user: Tensor | None = None  # (B,) int64 hash

    @property
    def rows(self) -> int:
        return int(self.offsets.shape[0]) - 1

    @property
    def tokens(self) -> int:
        return int(self.stream.shape[0])

    def check(self) -> RankBatch:
        """Itself, or InputError naming every shape and range that does not fit."""
        trouble = [
            f"{name} has {getattr(self, name).shape[0]} of {n}"
            for names, n in ((ROW_FIELDS, self.rows), (EVENT_FIELDS, self.tokens))
            for name in names
            if getattr(self, name).shape[0] != n
        ]
        if self.offsets.dtype != torch.int64:
            trouble.append(f"offsets are {self.offsets.dtype}, not int64")
        if int(self.offsets[-1]) != self.tokens or bool((self.offsets.diff() < 0).any()):
            trouble.append(f"offsets end at {int(self.offsets[-1])} for {self.tokens} events, or fall")
        if self.tokens and int(self.dwell_bin.max()) >= N_DWELL_BINS:
            trouble.append(f"dwell_bin {int(self.dwell_bin.max())}; allowed: 0..{N_DWELL_BINS - 1}")
        if trouble:
            raise InputError(f"RankBatch: {'; '.join(trouble)}; build it with models.dataset")
        return self

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> RankBatch:
        """The same batch elsewhere; `dtype` converts the floating fields (labels and weights too)."""

        def move(t: Tensor) -> Tensor:
            return t.to(device, dtype) if dtype is not None and t.is_floating_point() else t.to(device)

        moved = {k: move(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved, labels={k: move(v) for k, v in self.labels.items()})

    def masked(self, keep: Tensor) -> RankBatch:
        """Events stay stored but take no part where `keep` (N,) is False; ranks count kept events only."""
        rank = stream_rank(self.offsets.cpu().numpy(), self.stream.cpu().numpy(), keep=keep.cpu().numpy())
        return replace(self, keep=keep, rank=torch.from_numpy(rank).to(self.rank.device))

    def removed(self, keep: Tensor) -> RankBatch:
        """Events are gone where `keep` (N,) is False: the physically shorter batch."""
        marked = self.masked(keep)
        index = keep.nonzero().squeeze(1)
        sums = torch.cat([torch.zeros(1, dtype=torch.int64), keep.cpu().long().cumsum(0)]).to(keep.device)
        events = {name: getattr(marked, name).index_select(0, index) for name in EVENT_FIELDS}
        boost = None if self.log_boost is None else self.log_boost.index_select(0, index)
        return replace(marked, **events, keep=None, log_boost=boost, offsets=sums[self.offsets])


def stream_rank(
    offsets: NDArray[np.int64], stream: NDArray[np.integer], *, keep: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Rank of each event among the kept events of its row and stream, (N,) int64, 0 = newest.

    Events are stored oldest first, so storage order breaks ties. Events not kept get the rank they
    would have in front of the next newer kept one; nothing reads it.
    """
    n = len(stream)
    if n == 0:
        return np.zeros(0, np.int64)
    width = np.int64(int(stream.max()) + 1)
    key = np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets)) * width + stream
    order = np.argsort(key, kind="stable")
    counted = np.ones(n, np.int64) if keep is None else keep.astype(np.int64)
    seen = np.cumsum(counted[order])
    ordered = key[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    total = np.repeat(seen[last], np.diff(np.concatenate([[-1], last])))
    rank = np.empty(n, np.int64)
    rank[order] = total - seen
    return rank


def ragged_take(
    offsets: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets (R+1,) of the chosen rows, in that order, and the index (M,) of their events."""
    lengths = np.diff(offsets)[rows]
    new = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=new[1:])
    index = np.repeat(offsets[rows] - new[:-1], lengths) + np.arange(new[-1], dtype=np.int64)
    return new, index
