"""What became of each event before an impression: in its history or not, kept by the mask or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame

from dynamix.config import HistoryConfig
from dynamix.features.history import (
    EventBlock,
    ImpressionBlock,
    Kernel,
    dwell_told,
    map_histories,
    there,
    usable_dwell,
)
from dynamix.features.quotas import CUT, KEPT, OUTSIDE, REMOVED, BaseQuota, apply_quotas
from dynamix.features.timeline import Bools, Ints
from dynamix.features.training import row_limits

_SCHEMA = (
    "impression_id string, stream_id smallint, age_s double, fate string, beyond boolean, usable boolean, "
    "censored boolean, dwell_bin tinyint"
)


def event_fates(
    events: DataFrame, impressions: DataFrame, *, quotas: npt.NDArray[np.int32] | None, history: HistoryConfig,
    lengths: Mapping[int, int] | None = None, boost_to: int = 0,
) -> DataFrame:  # fmt: skip
    """One row per impression and earlier event of its user, with its fate (one of FATES) under a mask.

    The histories are those of `training_rows` (features/training.py): the same kernel, the same quotas (G, 2, F; None
    keeps all), hold-out users included. `events` carries `event_columns`; `impressions` are rows of `training_rows`.
    `beyond`: kept by a boost alone (`boost_to`), in no row under keep-all. `age_s` is t_i − t in seconds, `usable`
    whether the dwell enters a statistic at t_i, `censored` whether it is known by then that its session ended with it.
    An impression without an earlier event gives no row.
    """
    return map_histories(
        events, impressions, history=history, kernel=_kernel(quotas, BaseQuota(history.per_stream, lengths or {})),
        schema=_SCHEMA, lengths=lengths, boost_to=0 if quotas is None else boost_to,
    )  # fmt: skip


def _kernel(quotas: npt.NDArray[np.int32] | None, base: BaseQuota) -> Kernel:
    def kernel(events: EventBlock, asked: ImpressionBlock, offsets: Ints, index: Ints) -> Any:
        past_offsets, past = _past(events, asked)
        row = np.repeat(np.arange(len(asked.ts_us), dtype=np.int64), np.diff(past_offsets))
        ids = asked.frame.column("impression_id")
        fates, beyond = _fates(events, asked, (offsets, index), (row, past), quotas, base)
        return pa.table(
            {
                "impression_id": ids.take(pa.array(row)),
                "stream_id": pa.array(events.stream[past], pa.int16()),
                "age_s": pa.array((asked.ts_us[row] - events.ts_us[past]) / 1e6),
                "fate": pa.array(fates, pa.string()),
                "beyond": pa.array(beyond),
                "usable": pa.array(usable_dwell(events, asked, past_offsets, past)),
                "censored": pa.array(events.censored[past] & dwell_told(events, asked, past_offsets, past)),
                "dwell_bin": pa.array(events.dwell_bin[past], pa.int8()),
            }
        )

    return kernel


def _past(events: EventBlock, asked: ImpressionBlock) -> tuple[Ints, Ints]:
    """Every event of the impression's user before it: offsets (B+1,) and index (M,), oldest first."""
    found = []
    for i in range(len(asked.ts_us)):
        position = np.flatnonzero((events.user == asked.user[i]) & (events.ts_us < asked.ts_us[i]))
        found.append(position[there(events, asked, position, np.full(len(position), i))])
    offsets = np.cumsum([0, *map(len, found)]).astype(np.int64)
    return offsets, np.concatenate([np.empty(0, np.int64), *found])


def _fates(
    events: EventBlock,
    asked: ImpressionBlock,
    history: tuple[Ints, Ints],
    past: tuple[Ints, Ints],
    quotas: npt.NDArray[np.int32] | None,
    base: BaseQuota,
) -> tuple[list[str], Bools]:
    """Fate of each (impression, event) of `past`, by history and mask, and whether it lies beyond the base."""
    n = len(events.ts_us) + 1

    def pairs(offsets: Ints, index: Ints) -> Ints:
        return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets)) * n + index

    row, position = past
    inside = np.isin(row * n + position, pairs(*base.part(*history, events.stream)))
    if quotas is None:
        return [KEPT if one else OUTSIDE for one in inside], np.zeros(len(inside), bool)
    limits = row_limits(asked.frame, quotas, base)
    kept = np.isin(row * n + position, pairs(*apply_quotas(*history, events.stream, limits)))
    stream = events.stream[position].astype(np.int64)
    listed = stream < limits.shape[1]
    limit = base.of(stream)
    limit[listed] = limits[row[listed], stream[listed]]
    fates = np.select([kept, inside & (limit == 0), inside], [KEPT, REMOVED, CUT], OUTSIDE)
    return [str(one) for one in fates], kept & ~inside
