"""Dwell exposure of impressions to every stream, on which slopes of the evidence window rest (docs/method.md A.4.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from dynamix.config import HistoryConfig
from dynamix.features.exposure import dwell_channel
from dynamix.features.history import EventBlock, ImpressionBlock, map_histories
from dynamix.features.timeline import Ints

SCHEMA = "user_id string, event_id string, surface string, position int, label double, x array<double>"


def dwell_exposures(
    events: DataFrame, impressions: DataFrame, *, history: HistoryConfig, n_streams: int, run_date_us: int
) -> DataFrame:
    """Impressions (user_id, event_id, surface, position, label) with x (F,), the dwell channel of A.3, as rows of SCHEMA.

    `events` as of features/streams.py `scaled_events`, of the streams that may count; those of others have x = 0.
    `impressions` are event rows with `label`. Grain: one row per impression.
    """

    def kernel(events: EventBlock, asked: ImpressionBlock, offsets: Ints, index: Ints) -> Any:
        n = len(asked.ts_us)
        row = np.repeat(np.arange(n, dtype=np.int64), np.diff(offsets))
        cell = row * n_streams + events.stream[index]
        x = dwell_channel(events, asked, offsets, index, cell, cells=n * n_streams)
        ends = pa.array(np.arange(n + 1, dtype=np.int32) * n_streams, pa.int32())
        columns = {
            name: asked.frame.column(name) for name in ("user_id", "event_id", "surface", "position", "label")
        }
        return pa.table(columns | {"x": pa.ListArray.from_arrays(ends, pa.array(x))})

    plain = impressions.select(
        "user_id", "event_ts", "event_id", "request_id", "item_id", "category", "surface", "position", "label"
    )
    return map_histories(
        events, plain, history=history, kernel=kernel, schema=SCHEMA, run_date_us=run_date_us
    )
