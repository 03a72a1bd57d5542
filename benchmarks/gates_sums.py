"""Sums over the histories of a simulated world by the product's own kernel, as the rules read them, without Spark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.gates_world import EXPECTED, HEAD, Block, Dwells, F, Floats, G, Histories, event_block
from dynamix.features import recency
from dynamix.features.exposure import exposure_block
from dynamix.features.gram import GramSums, size_of
from dynamix.features.history import EventBlock
from dynamix.features.recency import BeyondSums, RecencySums, recency_block, recency_sums
from dynamix.features.relevance import (
    BEYOND,
    BY_RECENCY,
    SIZE,
    TOGETHER,
    WHOLE,
    CellSums,
    history_values,
    logit,
    relevance_kernel,
    thirds,
)
from dynamix.segmentation.cells import Statistics


@dataclass(frozen=True)
class Sums:
    """Packed sums by the product's kernel.

    cells (G + 1, F, 2 halves, 4 windows, SIZE), window 0 is WHOLE, then the thirds; together (G + 1, 2 halves, size) over
    all streams at once; recency (G + 1, F, 2 halves, size), and beyond with the bucket beyond the base, 0 without boosts.
    """

    cells: Floats
    together: Floats
    recency: Floats
    beyond: Floats

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def world_sums(made: Histories, dwells: Dwells) -> Sums:
    """Sums of every segment, half and window of the world's blocks under the drawn labels."""
    return _sums(made, dwells, heads=(HEAD,))


def planted_sums(made: Histories, dwells: Dwells) -> Sums:
    """Sums under the planted p in place of labels: of single cells over all days and by recency, all others 0."""
    total = _sums(made, dwells, others=(EXPECTED,))
    for block in made.blocks:
        _add_recency(total, event_block(made.drawn, block.events, dwells), block, made)
    return total


def _sums(
    made: Histories, dwells: Dwells, *, heads: tuple[str, ...] = (), others: tuple[str, ...] = ()
) -> Sums:
    total = Sums(
        np.zeros((G + 1, F, 2, 4, SIZE)),
        np.zeros((G + 1, 2, size_of(F))),
        np.zeros((G + 1, F, 2, recency.SIZE)),
        np.zeros((G + 1, F, 2, BeyondSums.size())),
    )
    kernel = relevance_kernel(made.prediction, heads, F, thirds(made.calendar), others=others, base=made.base)
    for block in made.blocks:
        events = event_block(made.drawn, block.events, dwells)
        _add(total, kernel(events, block.asked, *block.collected))
    return total


def _add(total: Sums, table: pa.Table) -> None:
    """Add the kernel's rows of one block of users in place."""
    window = table.column("window")
    cells = table.filter(pc.greater_equal(window, WHOLE))
    segment, stream, half, days = (
        cells.column(name).to_numpy() for name in ("segment_id", "stream_id", "half", "window")
    )
    total.cells[segment, stream, half, days - WHOLE] += _vectors(cells)
    for kind, own in ((BY_RECENCY, total.recency), (BEYOND, total.beyond)):
        parts = table.filter(pc.equal(window, kind))
        segment, stream, half = (
            parts.column(name).to_numpy() for name in ("segment_id", "stream_id", "half")
        )
        own[segment, stream, half] += _vectors(parts)
    together = table.filter(pc.equal(window, TOGETHER))
    segment, half = (together.column(name).to_numpy() for name in ("segment_id", "half"))
    total.together[segment, half] += _vectors(together)


def _add_recency(total: Sums, events: EventBlock, block: Block, made: Histories) -> None:
    """Add the sums by recency of one block under the planted p, which the kernel makes for served heads alone."""
    asked, of = block.asked, (block.offsets, block.index)
    x = exposure_block(events, asked, *of, n_streams=F)
    parts, tokens = recency_block(events, asked, *of, n_streams=F)
    p = made.prediction.of(asked.frame, EXPECTED)
    shared = np.column_stack([history_values(events, asked, *of), logit(p)])
    y, segment, half = (
        asked.frame.column(name).to_numpy() for name in (f"label_{EXPECTED}", "segment_id", "half")
    )
    for own, side in np.unique(np.stack([segment, half]), axis=1).T:
        mine = np.flatnonzero((segment == own) & (half == side))
        total.recency[own, :, side] += recency_sums(
            x[mine], parts[mine], tokens[mine], shared[mine], y[mine], p[mine], asked.user[mine]
        )


def _vectors(table: pa.Table) -> Floats:
    """Packed sums of rows of equal length (rows, length)."""
    if not table.num_rows:
        return np.zeros((0, 1))
    flat = np.asarray(table.column("sums").combine_chunks().flatten(), np.float64)
    return flat.reshape(table.num_rows, -1)


def statistics_of(total: Sums, streams: tuple[str, ...]) -> Statistics:
    """The sums as `judge` reads them; cells without an impression are left out."""
    found: dict[tuple[int, str, str, int, int], CellSums] = {}
    for segment, stream, half, window in np.argwhere(total.cells[..., 0] > 0).tolist():
        key = (segment, streams[stream], HEAD, half, window + WHOLE)
        found[key] = CellSums.unpack(total.cells[segment, stream, half, window])
    together = {
        (segment, HEAD, half): GramSums.unpack(total.together[segment, half])
        for segment, half in np.argwhere(total.together[..., 0] > 0).tolist()
    }
    place = {name: f for f, name in enumerate(streams)}
    by_recency = {
        (segment, streams[stream], HEAD, half): RecencySums.unpack(total.recency[segment, stream, half])
        for segment, stream, half in np.argwhere(total.recency[..., 0] > 0).tolist()
    }
    beyond = {
        (segment, streams[stream], HEAD, half): BeyondSums.unpack(total.beyond[segment, stream, half])
        for segment, stream, half in np.argwhere(total.beyond[..., 0] > 0).tolist()
    }
    return Statistics(found, (HEAD,), together, place, recency=by_recency, beyond=beyond)
