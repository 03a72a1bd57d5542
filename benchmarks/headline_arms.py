"""Arms of the headline benchmark: which events of the keep-all histories each one keeps, in NumPy.

Every arm is a boolean vector over the N events of the same jagged rows, so rows, labels and rankers are equal and the
histories alone differ. `tokens` is the number of events to keep of all; an arm comes within one event a row of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dynamix.models.dataset import JaggedRows

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """Histories of one segment keep the newest `events` of one stream; 0 drops the cell. All are ids or counts."""

    segment: int
    stream: int
    events: int = 0


def row_of(rows: JaggedRows) -> Ints:
    """Row of every event (N,)."""
    return np.repeat(np.arange(len(rows), dtype=np.int64), np.diff(rows.offsets))


def in_line(rows: JaggedRows) -> JaggedRows:
    """The same rows as if all events were of one stream: ranks count from the newest event of the row."""
    from_newest = rows.offsets[row_of(rows) + 1] - 1 - np.arange(rows.tokens)
    return replace(rows, stream=np.zeros_like(rows.stream), rank=from_newest.astype(np.int16))


def last_events(rows: JaggedRows, tokens: int) -> Bools:
    """The newest L events of every row over all streams, one L for all."""
    lengths = np.diff(rows.offsets)
    length = nearest(lambda n: int(np.minimum(lengths, n).sum()), tokens, top=int(lengths.max(initial=0)))
    return np.asarray(in_line(rows).rank < length)


def thinned(rows: JaggedRows, tokens: int, *, seed: int) -> Bools:
    """Exactly `tokens` events, drawn from all with equal chances."""
    return np.asarray(np.random.default_rng(seed).permutation(rows.tokens) < tokens)


def stochastic_length(rows: JaggedRows, tokens: int, *, seed: int) -> Bools:
    """Rows longer than L keep L random events, or everything with probability (L/n)²; shorter ones keep everything.

    The rule of HSTU's stochastic length (arXiv 2402.17152), L = N^(α/2); there it serves training alone, here every
    row, so that tokens are equal in inference too.
    """
    rng = np.random.default_rng(seed)
    lengths = np.diff(rows.offsets)
    luck, key = rng.random(len(rows)), rng.random(rows.tokens)

    def whole(n: int) -> Bools:
        return np.asarray((lengths <= n) | (luck * lengths.astype(float) ** 2 < n**2))

    def kept(n: int) -> int:
        return int(np.where(whole(n), lengths, n).sum())

    length = nearest(kept, tokens, top=int(lengths.max(initial=0)))
    row = row_of(rows)
    place = np.empty(rows.tokens, np.int64)
    place[np.lexsort((key, row))] = np.arange(rows.tokens) - rows.offsets[row]
    return np.asarray(whole(length)[row] | (place < length))


def nearest(count: Callable[[int], int], tokens: int, *, top: int) -> int:
    """The n in 0..top whose count(n), which never falls in n, is nearest to `tokens`."""
    low, high = 0, top
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= tokens else (middle + 1, high)
    below = max(low - 1, 0)
    return below if tokens - count(below) < count(low) - tokens else low


def within(rows: JaggedRows, segment: Ints, limits: Ints) -> Bools:
    """Events whose rank in their stream, 0 = newest, is below limits[segment, stream]; segment (R,), limits (G, F)."""
    return np.asarray(rows.rank < limits[segment[row_of(rows)], rows.stream])


def limits_for(rows: JaggedRows, segment: Ints, cuts: Sequence[Cut], tokens: int | None) -> Ints:
    """Newest events that each segment and stream keeps (G, F): the cuts in their order until `tokens` are left.

    The last cut goes as deep as the tokens ask for; None makes all cuts. A cut of a cell without events, or to
    more than an earlier one left, changes nothing. ValueError where all cuts together leave too many tokens.
    """
    held = rank_counts(rows, segment)
    segments, streams, longest = held.shape
    limits = np.full((segments, streams), longest, np.int64)
    left = rows.tokens
    for cut in cuts:
        if cut.segment >= segments or cut.stream >= streams:
            continue
        now = int(limits[cut.segment, cut.stream])
        own = held[cut.segment, cut.stream, cut.events : now]
        gone = int(own.sum())
        if tokens is not None and left - gone < tokens:
            removed = np.append(np.cumsum(own[::-1])[::-1], 0)  # by the quota: cut.events .. now
            limits[cut.segment, cut.stream] = cut.events + int(np.abs(left - removed - tokens).argmin())
            return limits
        limits[cut.segment, cut.stream] = min(now, cut.events)
        left -= gone
    if tokens is not None and left - tokens > len(rows):
        raise ValueError(
            f"all {len(cuts)} cuts leave {left} of {rows.tokens} events; {tokens} were asked for"
        )
    return limits


def rank_counts(rows: JaggedRows, segment: Ints) -> Ints:
    """Events of each segment, stream and rank in the stream (G, F, ranks)."""
    shape = tuple(1 + int(x.max(initial=0)) for x in (segment, rows.stream, rows.rank))
    cell = np.ravel_multi_index((segment[row_of(rows)], rows.stream, rows.rank), shape)
    return np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape).astype(np.int64)


def random_cells(rows: JaggedRows, segment: Ints, *, seed: int) -> list[Cut]:
    """All cells with events in random order, dropped whole; of every segment the one drawn last stays."""
    cells = np.argwhere(rank_counts(rows, segment).any(axis=2))
    drawn = [(int(g), int(f)) for g, f in np.random.default_rng(seed).permutation(cells)]
    stays = {g: (g, f) for g, f in drawn}
    return [Cut(g, f) for g, f in drawn if stays[g] != (g, f)]
