"""Channels of the exposure block against a loop over each history."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamix.contracts import CHANNELS
from dynamix.features.exposure import exposure_block
from dynamix.features.history import EventBlock, ImpressionBlock

STREAMS = 3
Row = tuple[int, int, float | None, bool, int]  # ts_us, stream, z, censored, item


def build(rows: list[Row]) -> EventBlock:
    n = len(rows)
    return EventBlock(
        user=np.zeros(n, np.int64),
        ts_us=np.array([r[0] for r in rows], np.int64),
        ingest_us=np.array([r[0] for r in rows], np.int64),
        request=np.full(n, -1),
        stream=np.array([r[1] for r in rows], np.int16),
        item=np.array([r[4] for r in rows], np.int64),
        category=np.full(n, -1),
        z=np.array([math.nan if r[2] is None else r[2] for r in rows]),
        dwell_bin=np.zeros(n, np.int8),
        censored=np.array([r[3] for r in rows], bool),
        item_name=pa.nulls(n, pa.string()),
        category_name=pa.nulls(n, pa.string()),
    )


def asked(stamps: list[int], items: list[int]) -> ImpressionBlock:
    n = len(stamps)
    minus = np.full(n, -1)
    return ImpressionBlock(
        np.zeros(n, np.int64), np.array(stamps), minus, np.array(items), minus, pa.table({})
    )


def oracle(rows: list[Row], history: list[int], ts: int, item: int, stream: int) -> list[float]:
    mine = [rows[e] for e in history if rows[e][1] == stream]
    if not mine:
        return [0.0] * 6
    z = [r[2] for r in mine if r[2] is not None]
    dwell = len(z) / (len(z) + 1) * (sum(z) / len(z)) if z else 0.0
    return [
        dwell,
        math.log(1 + len(mine)),
        -math.log(1 + (ts - max(r[0] for r in mine)) / 1e6),
        sum(r[3] for r in mine) / len(mine),
        1.0,
        math.log(1 + sum(r[4] == item and item >= 0 for r in mine)),
    ]


rows_of = st.lists(
    st.tuples(
        st.integers(0, 10**9), st.integers(0, STREAMS - 1), st.none() | st.floats(-3, 3), st.booleans(),
        st.integers(-1, 2),
    ),
    max_size=20,
)  # fmt: skip


@settings(deadline=None)
@given(rows_of, st.lists(st.tuples(st.integers(-1, 2), st.sets(st.integers(0, 19))), max_size=5))
def test_every_channel_equals_a_loop_over_the_history(
    rows: list[Row], wanted: list[tuple[int, set[int]]]
) -> None:
    rows = sorted(rows, key=lambda r: r[0])
    histories = [sorted(e for e in kept if e < len(rows)) for _, kept in wanted]
    items = [item for item, _ in wanted]
    ts = 2 * 10**9
    offsets = np.cumsum([0, *map(len, histories)]).astype(np.int64)
    index = np.array([e for h in histories for e in h], dtype=np.int64)
    found = exposure_block(build(rows), asked([ts] * len(items), items), offsets, index, n_streams=STREAMS)
    assert found.shape == (len(items), STREAMS, len(CHANNELS)) and found.dtype == np.float64
    expected = [
        [oracle(rows, h, ts, item, f) for f in range(STREAMS)]
        for h, item in zip(histories, items, strict=True)
    ]
    np.testing.assert_allclose(found, np.array(expected).reshape(found.shape), rtol=1e-12, atol=1e-12)


def test_a_dwell_that_goes_on_and_a_session_that_may_go_on_are_not_known_yet() -> None:
    rows: list[Row] = [(0, 0, 1.0, False, -1), (5, 1, None, True, -1)]
    block = replace(build(rows), told_us=np.array([100, 200]))
    found = exposure_block(
        block, asked([99, 100, 199, 200], [-1] * 4), np.arange(0, 9, 2), np.tile([0, 1], 4), n_streams=STREAMS
    )
    assert found[:, 0, CHANNELS.index("dwell")].tolist() == [0.0, 0.5, 0.5, 0.5]
    assert found[:, 1, CHANNELS.index("censored")].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert found[:, :2, CHANNELS.index("presence")].all()


def test_no_history_is_zero_in_every_channel_and_a_missing_item_matches_nothing() -> None:
    rows: list[Row] = [(0, 0, 1.0, False, -1)]
    block = exposure_block(
        build(rows), asked([10, 10], [-1, -1]), np.array([0, 0, 1]), np.array([0]), n_streams=STREAMS
    )
    assert not block[0].any()
    assert block[1, 0, CHANNELS.index("match")] == 0.0
    assert block[1, 0, CHANNELS.index("dwell")] == 0.5
