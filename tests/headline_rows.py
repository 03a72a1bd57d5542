"""Small jagged rows and sums for the headline benchmark, without Spark: histories in plain lists, effects as planted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dynamix.contracts import CHANNELS, PARTS
from dynamix.features.recency import BUCKETS, SHARED, WHOLE_STREAM, WIDTH, RecencySums, columns_of
from dynamix.features.relevance import FINE_BINS, WHOLE, CellSums, D, bin_centres
from dynamix.models.batch import stream_rank
from dynamix.models.dataset import JaggedRows
from dynamix.segmentation.cells import Cell, Statistics

HEAD = "conversion"
RATE = 0.05
PLENTY = 2_000_000.0


def rows_of(
    histories: Sequence[Sequence[int]], *, segment: Sequence[int] | None = None, z: Sequence[float] | None = None,
    y: Sequence[float] | None = None, on_item: Sequence[int] = (),
) -> JaggedRows:  # fmt: skip
    """One row a list of stream ids, oldest event first; four rows a user, parts in turn: train, train, validate, test.

    `on_item` are places of events on the candidate's item.
    """
    r, lengths = len(histories), [len(h) for h in histories]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    stream = np.array([f for h in histories for f in h], np.int16)
    n, place = len(stream), np.arange(r)
    match = np.zeros(n, np.int8)
    match[list(on_item)] = 1
    values = np.zeros(n, np.float32) if z is None else np.asarray(z, np.float32)
    return JaggedRows(
        offsets=offsets, impression=np.array([f"i{i:05d}" for i in place]), impression_hash=place + 1,
        user=place // 4 + 1, event_us=place * 1_000_000, request=np.zeros(r, np.int64),
        segment=np.zeros(r, np.int64) if segment is None else np.asarray(segment, np.int64), tier=place % 2,
        surface=np.ones(r, np.int64), item_id=np.ones(r, np.int32), item_hash=np.ones(r, np.int64),
        dense=np.zeros((r, 4), np.float32), weight=np.ones(r, np.float32),
        part=np.array([PARTS.index(p) for p in ("train", "train", "validate", "test")], np.int8)[place % 4],
        holdout=np.zeros(r, bool), stream=stream, item=np.ones(n, np.int32), dwell_bin=np.zeros(n, np.int8), z=values,
        usable=np.ones(n, bool), log_age=np.ones(n, np.float32), match=match,
        rank=stream_rank(offsets, stream).astype(np.int16),
        labels={HEAD: np.asarray(np.zeros(r) if y is None else y, np.float32)}, surfaces=("feed",),
    )  # fmt: skip


def acting_rows(rows: int, *, effect: float, streams: int = 3, events: int = 8, seed: int = 0) -> JaggedRows:
    """Rows whose label has `effect` log-odds per SD of the mean z of stream 0; the other streams do nothing."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(streams, size=(rows, events))
    z = rng.normal(size=(rows, events))
    n = (drawn == 0).sum(axis=1)
    x = np.where(drawn == 0, z, 0).sum(axis=1) / (n + 1)
    y = rng.random(rows) < 1 / (1 + np.exp(-effect * (x - x.mean()) / x.std()))
    return rows_of(drawn.tolist(), z=z.ravel().tolist(), y=y.astype(float).tolist())


def cell_sums(n: float, *, dwell: float = 0.0, bend: float = 0.0, tokens: float = 3.0) -> CellSums:
    """Sums of n impressions with independent channels of variance 1 and no noise: score = effect, spread = model's."""
    w = n * RATE * (1 - RATE)
    a = np.zeros(D + 1)
    a[CHANNELS.index("dwell")] = w * dwell
    normal = np.exp(-(bin_centres() ** 2) / 2)
    share = w * normal / normal.sum()
    hist = np.zeros((4, FINE_BINS + 1))
    hist[0, :-1], hist[3, :-1] = n * normal / normal.sum(), share
    hist[2, :-1] = share * (dwell * bin_centres() + bend * (bin_centres() ** 2 - 1))
    return CellSums(
        n=n, positives=n * RATE, with_stream=n * RATE, present=n, tokens=n * tokens, censored=0.0, w=w,
        wx=np.zeros(D), wxx=w * np.eye(D), a=a, aa=w * np.eye(D + 1), hist=hist,
    )  # fmt: skip


def recent_sums(n: float, *, dwell: Sequence[float], tokens: Sequence[float]) -> RecencySums:
    """The same by bucket of recency: `dwell` effects and `tokens` an impression of the four buckets, newest first."""
    w = n * RATE * (1 - RATE)
    a = np.zeros(WIDTH + 1)
    for bucket in range(BUCKETS):
        a[columns_of(bucket)[0]] = w * dwell[bucket]
    assert columns_of(0)[0] == SHARED + len(WHOLE_STREAM)
    return RecencySums(
        n=n, positives=n * RATE, w=w, with_bucket=np.full(BUCKETS, n * RATE), tokens=n * np.asarray(tokens, float),
        wx=np.zeros(WIDTH), wxx=w * np.eye(WIDTH), a=a, aa=w * np.eye(WIDTH + 1),
    )  # fmt: skip


def sums_of(
    cells: Mapping[Cell, Mapping[str, float]],
    *,
    tails: Mapping[Cell, Sequence[float]] | None = None,
    n: float = PLENTY,
) -> Statistics:
    """Statistics of cells with `cell_sums`' options; `tails` are dwell effects by bucket, by default all in the newest.

    Tokens are spread evenly over the buckets.
    """
    whole, recent = {}, {}
    for cell, options in cells.items():
        tokens = options.get("tokens", 3.0)
        by_bucket = (tails or {}).get(cell, (options.get("dwell", 0.0), 0.0, 0.0, 0.0))
        for half in (0, 1):
            for window, part in ((WHOLE, 2), (0, 6), (1, 6), (2, 6)):
                whole[*cell, HEAD, half, window] = cell_sums(n / part, **options)
            recent[*cell, HEAD, half] = recent_sums(n / 2, dwell=by_bucket, tokens=[tokens / 4] * 4)
    return Statistics(whole, (HEAD,), recency=recent)
