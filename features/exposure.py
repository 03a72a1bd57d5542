"""Exposure of an impression to every stream: the channel block of docs/method.md A.3.

Plain NumPy over one block of users; statistics, the ranker's inputs and `explain` share it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dynamix.contracts import CHANNELS
from dynamix.features.history import EventBlock, ImpressionBlock, dwell_told, usable_dwell

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
OWN = ("dwell", "count", "match")
"""Channels that a part of a stream's events has as well as the whole."""


def exposure_block(
    events: EventBlock, impressions: ImpressionBlock, offsets: Ints, index: Ints, *, n_streams: int
) -> Floats:
    """Exposure x (B, F, 6) of B impressions to F = `n_streams` streams, channels as in contracts.CHANNELS.

    `index[offsets[i]:offsets[i+1]]` are the kept events of impression i, oldest first. With n events of
    stream f in that history, m of them with a usable dwell that was over by then (`dwell_told`):

    dwell     m/(m+1) · mean z of the usable dwells; 0 if m = 0
    count     ln(1+n)
    recency   −ln(1 + age of the newest event in s); 0 if n = 0, so that beside `presence` the two are a
              slope among the present and an offset of the absent
    censored  share of the n events that are censored; 0 if n = 0
    presence  1 if n > 0, else 0
    match     ln(1 + events of f on the impression's own item); 0 if the impression has no item

    No entry is NaN. Source: docs/method.md A.3, match channel of amendment 1.
    """
    rows = len(impressions.ts_us)
    cells = rows * n_streams
    row = np.repeat(np.arange(rows, dtype=np.int64), np.diff(offsets))
    cell = row * n_streams + events.stream[index]
    own, n = own_channels(events, impressions, offsets, index, cell, cells=cells)
    told = dwell_told(events, impressions, offsets, index)
    censored = _per_cell(cell[events.censored[index] & told], cells)

    block = np.zeros((cells, len(CHANNELS)))
    present = n > 0
    block[:, [CHANNELS.index(name) for name in OWN]] = own
    block[:, CHANNELS.index("recency")] = _recency(events, impressions, cell, row, index, cells)
    block[present, CHANNELS.index("censored")] = censored[present] / n[present]
    block[:, CHANNELS.index("presence")] = present
    return block.reshape(rows, n_streams, len(CHANNELS))


def own_channels(
    events: EventBlock, impressions: ImpressionBlock, offsets: Ints, index: Ints, cell: Ints, *, cells: int
) -> tuple[Floats, Floats]:
    """Channels of OWN (cells, 3) as in `exposure_block`, and kept events (cells,); `cell` (M,) is where each counts."""
    row = np.repeat(np.arange(len(impressions.ts_us), dtype=np.int64), np.diff(offsets))
    item = impressions.item[row]
    n = _per_cell(cell, cells)
    matches = _per_cell(cell[(item >= 0) & (events.item[index] == item)], cells)
    dwell = dwell_channel(events, impressions, offsets, index, cell, cells=cells)
    return np.stack([dwell, np.log1p(n), np.log1p(matches)], axis=1), n


def dwell_channel(
    events: EventBlock, impressions: ImpressionBlock, offsets: Ints, index: Ints, cell: Ints, *, cells: int
) -> Floats:
    """The first channel of `own_channels` (cells,): mean z · m/(m+1), which is the sum of z / (m+1)."""
    usable = usable_dwell(events, impressions, offsets, index)
    z_sum = _per_cell(cell[usable], cells, events.z[index][usable])
    return z_sum / (_per_cell(cell[usable], cells) + 1.0)


def _per_cell(cell: Ints, cells: int, weights: Floats | None = None) -> Floats:
    return np.bincount(cell, weights=weights, minlength=cells).astype(np.float64)


def _recency(
    events: EventBlock, impressions: ImpressionBlock, cell: Ints, row: Ints, index: Ints, cells: int
) -> Floats:
    """−ln(1 + age in seconds) of each cell's newest event, 0 where the cell is empty."""
    newest = np.full(cells, -1, dtype=np.int64)
    newest[cell] = np.arange(len(cell))  # histories are oldest first: the last assignment is the newest
    found = np.flatnonzero(newest >= 0)
    pair = newest[found]
    age_s = (impressions.ts_us[row[pair]] - events.ts_us[index[pair]]) / 1e6
    recency = np.zeros(cells)
    recency[found] = -np.log1p(np.maximum(age_s, 0.0))
    return recency
