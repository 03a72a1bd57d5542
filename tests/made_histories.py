"""Made-up histories without Spark, and the sums of one segment over them as the rules read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from dynamix.features.exposure import exposure_block
from dynamix.features.history import EventBlock, ImpressionBlock
from dynamix.features.recency import RecencySums, recency_block, recency_sums
from dynamix.features.relevance import CellSums, block_sums, history_values, logit
from dynamix.segmentation.cells import Statistics

HEAD = "conversion"


def blocks(
    user: Any, z: Any, stream: Any, item: Any | None = None, *, users: int
) -> tuple[EventBlock, ImpressionBlock, Any, Any]:
    """Events a second apart in the order given, one impression a user after all of them, and whole histories."""
    n = len(user)
    items = np.full(n, -1) if item is None else np.asarray(item, np.int64)
    events = EventBlock(
        user=user, ts_us=np.arange(n) * 1_000_000, ingest_us=np.arange(n) * 1_000_000, request=np.full(n, -1),
        stream=np.asarray(stream, np.int16), item=items, category=np.full(n, -1), z=np.asarray(z, np.float64),
        dwell_bin=np.zeros(n, np.int8), censored=np.isnan(z), item_name=pa.nulls(n, pa.string()),
        category_name=pa.nulls(n, pa.string()),
    )  # fmt: skip
    own = np.arange(users)
    asked = ImpressionBlock(
        own, np.full(users, (n + 1) * 1_000_000), np.full(users, -1), np.zeros(users, np.int64),
        np.full(users, -1), pa.table({}),
    )  # fmt: skip
    offsets = np.searchsorted(user, np.arange(users + 1)).astype(np.int64)
    return events, asked, offsets, np.arange(n, dtype=np.int64)


def statistics(made: tuple[EventBlock, ImpressionBlock, Any, Any], y: Any) -> Statistics:
    """Both kinds of sums of segment 1, given the base rate; users are halved by parity."""
    events, asked, offsets, index = made
    streams = int(events.stream.max()) + 1
    base = np.full(len(y), y.mean())
    x = exposure_block(events, asked, offsets, index, n_streams=streams)
    parts, tokens = recency_block(events, asked, offsets, index, n_streams=streams)
    shared = np.column_stack([history_values(events, asked, offsets, index), logit(base)])
    whole, by_recency = {}, {}
    for half in (0, 1):
        for window in (-1, 0, 1, 2):
            take = np.flatnonzero(
                (np.arange(len(y)) % 2 == half) & ((window < 0) | (np.arange(len(y)) % 3 == window))
            )
            block = block_sums(
                x[take], shared[take], y[take], base[take], asked.user[take],
                has_dwell=np.ones((len(take), streams), bool) if window < 0 else None,
            )  # fmt: skip
            for f in range(streams):
                whole[1, f"s{f}", HEAD, half, window] = CellSums.unpack(block[f])
        take = np.flatnonzero(np.arange(len(y)) % 2 == half)
        packed = recency_sums(
            x[take], parts[take], tokens[take], shared[take], y[take], base[take], asked.user[take]
        )
        for f in range(streams):
            by_recency[1, f"s{f}", HEAD, half] = RecencySums.unpack(packed[f])
    return Statistics(whole, (HEAD,), recency=by_recency)
