"""Additive statistics of relevance: per segment × stream, one scan over histories, clustered by user.

Every labelled impression has a residual r = y − p and a weight w = p(1−p), p being what is predicted without
the history. For the exposure block x (6 channels) the sums below give score, information and user-clustered
variance of every cell without a second scan (docs/method.md A.3); they add up over users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.config import HistoryConfig
from dynamix.contracts import CHANNELS
from dynamix.features.calendar import Calendar, instant_sql, since_1970
from dynamix.features.clustered import PackedSums, Parts, clustered_sums
from dynamix.features.conversions import served_head
from dynamix.features.exposure import exposure_block
from dynamix.features.gram import gram_sums
from dynamix.features.history import EventBlock, ImpressionBlock, Kernel, map_histories, usable_dwell
from dynamix.features.quotas import BaseQuota
from dynamix.features.recency import BUCKETS, recency_block, recency_sums
from dynamix.features.sum_rows import SCHEMA, add_up, sums_table
from dynamix.features.timeline import codes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

C = len(CHANNELS)
NUISANCE = ("activity", "freshness", "history", "given")
"""Shared by all streams of an impression: ln(1 + kept events), −ln(1 + age of the newest one in s), 1 if any, and
the logit of what is predicted without the history."""
D = C + len(NUISANCE)
FINE_BINS = 64
"""Equal bins of the dwell exposure over [−3, 3]; one more bin for impressions without a usable dwell."""
WHOLE = -1
"""Window of all days; 0, 1, 2 are the thirds of the statistics period."""
BY_RECENCY = -2
"""In place of a window: `RecencySums` of all days, where `sums` has their length."""
WITHIN, BETWEEN = -3, -4
"""In place of a window: `CellSums` of all days over each value's deviation from its user's mean, and over that mean."""
TOGETHER = -5
"""In place of a window: `GramSums` of all days over all streams, with stream id ALL_STREAMS."""
BEYOND = -6
"""In place of a window: `BeyondSums` of all days, where histories are collected beyond their base."""
ALL_STREAMS = -1
MAX_POSITION = 50


@dataclass(frozen=True)
class CellSums(PackedSums):
    """The mergeable state of one cell, head, user half and window.

    x stacks the 6 channels of the stream and the 4 nuisance values of the impression (10,). n impressions of the
    segment, positives among them, with_stream = positives that have the stream, present = impressions that have
    it, tokens and censored = its kept events; w = Σ w, wx = Σ w x (10,), wxx = Σ w x xᵀ (10, 10); per user
    a_u = (Σ x r, Σ r): a = Σ_u a_u (11,), aa = Σ_u a_u a_uᵀ (11, 11); hist (4, 65) = n, y, r, w by fine bin of the
    dwell exposure, the last bin being impressions without one (window WHOLE only).
    """

    SCALARS: ClassVar[tuple[str, ...]] = (
        "n", "positives", "with_stream", "present", "tokens", "censored", "w",
    )  # fmt: skip
    ARRAYS: ClassVar[Parts] = (
        ("wx", (D,)),
        ("wxx", (D, D)),
        ("a", (D + 1,)),
        ("aa", (D + 1, D + 1)),
        ("hist", (4, FINE_BINS + 1)),
    )
    n: float
    positives: float
    with_stream: float
    present: float
    tokens: float
    censored: float
    w: float
    wx: Floats
    wxx: Floats
    a: Floats
    aa: Floats
    hist: Floats


SIZE = CellSums.size()


@dataclass(frozen=True)
class Prediction:
    """p without history per head: logit = cell (surface × position) + segment offset; or one logged per impression.

    `surfaces` names the first axis of `cell[head]` (S+1, 52): positions 0 = none, 1..50, 51 = lower; the last
    surface row serves unknown ones. `offset[head]` (G+1,) is indexed by segment id. With `column` the
    impression's own column of that name (per served head) is taken as p.
    """

    surfaces: tuple[str, ...] = ()
    cell: Mapping[str, Floats] = field(default_factory=dict)
    offset: Mapping[str, Floats] = field(default_factory=dict)
    column: str = ""

    def of(self, frame: Any, head: str) -> Floats:
        """p (B,) of the impressions in a pyarrow.Table with surface, position and segment_id."""
        if self.column:
            return np.asarray(frame.column(f"{self.column}_{served_head(head)}").to_numpy(), np.float64)
        place = {name: i for i, name in enumerate(self.surfaces)}
        code, names = codes(frame.column("surface"))
        lookup = np.array([place.get(s, len(self.surfaces)) for s in names.to_pylist()], np.int64)
        surface = lookup[code]
        segment = np.asarray(frame.column("segment_id").to_numpy(), np.int64)
        logit = self.cell[head][surface, position_code(frame)] + self.offset[head][segment]
        return np.asarray(1.0 / (1.0 + np.exp(-logit)))


def position_code(frame: Any) -> Ints:
    """0 = no position, 1..50 as they are, 51 = lower."""
    position = frame.column("position").to_pandas().fillna(0).to_numpy(np.int64)
    return np.asarray(np.clip(position, 0, MAX_POSITION + 1), np.int64)


def rate_table(impressions: DataFrame, heads: Sequence[str]) -> DataFrame:
    """Impressions and positives by surface, position code and segment_id: what `Prediction` is fitted on."""
    position = F.coalesce(F.least(F.greatest("position", F.lit(0)), F.lit(MAX_POSITION + 1)), F.lit(0))
    return impressions.groupBy("surface", position.alias("position"), "segment_id").agg(
        F.count(F.lit(1)).alias("n"), *[F.sum(f"label_{head}").alias(head) for head in heads]
    )


def statistics_rows(impressions: DataFrame, calendar: Calendar) -> DataFrame:
    """Labelled impressions of the statistics period that are mature by its end, with the user's half.

    Halves are by hash of the user, for cross-fitting; a user is in one half only.
    """
    end = F.expr(instant_sql(calendar.statistics.end))
    inside = impressions.where(calendar.statistics.sql("event_ts")).where(F.col("label_mature_ts") <= end)
    half = F.pmod(F.xxhash64(F.lit("half"), F.col("user_id")), F.lit(2)).cast("int")
    return inside.withColumn("half", half)


def cell_sums(
    events: DataFrame, impressions: DataFrame, *, history: HistoryConfig, heads: Sequence[str], n_streams: int,
    given: Prediction, thirds_us: tuple[int, int], run_date_us: int | None = None,
    lengths: Mapping[int, int] | None = None, untimed: Sequence[int] = (), others: Sequence[str] = (),
    together: bool = True, boost_to: int = 0, parcels: int = 1,
) -> DataFrame:  # fmt: skip
    """Sums of every segment × stream × head × half × window (SCHEMA), one row each.

    events as in features/streams.py `event_columns`, impressions as in `statistics_rows` with segment_id.
    `thirds_us` are the two inner borders of the windows, µs since 1970 UTC. Users without events count. `lengths`
    as in `map_histories`; the recency channel of the streams in `untimed` is 0, as their events carry no recency.
    `others` are further labels (columns label_<name>) of which only the sums of all days are made; `together` adds
    those over all streams at once, `boost_to` the `BeyondSums` of histories up to that length. `parcels` as in
    `map_histories`: the sums are the same bit by bit for the same number of them, whatever the cores and partitions;
    timeline.py `parcels_of` says how many are of a good size.
    """
    asked = impressions.select(
        "user_id", "event_ts", "event_id", "request_id", "item_id", "surface", "position", "segment_id", "half",
        *[f"label_{head}" for head in (*heads, *others)],
        *([f"{given.column}_{head}" for head in heads] if given.column else []),
    )  # fmt: skip
    kernel = relevance_kernel(
        given,
        tuple(heads),
        n_streams,
        thirds_us,
        untimed=tuple(untimed),
        others=tuple(others),
        together=together,
        base=BaseQuota(history.per_stream, lengths or {}) if boost_to else None,
    )
    parts = map_histories(
        events,
        asked,
        history=history,
        kernel=kernel,
        schema=f"block string, {SCHEMA}",
        run_date_us=run_date_us,
        lengths=lengths,
        boost_to=boost_to,
        parcels=parcels,
    )
    return parts.groupBy("segment_id", "stream_id").applyInArrow(add_up, SCHEMA)


def relevance_kernel(
    given: Prediction, heads: tuple[str, ...], n_streams: int, thirds_us: tuple[int, int], *,
    untimed: tuple[int, ...] = (), others: tuple[str, ...] = (), together: bool = True, base: BaseQuota | None = None,
) -> Kernel:  # fmt: skip
    """Kernel for `map_histories`: the sums of one block of users, with `block` = its first user.

    Where `base` is given, all sums but those of kind BEYOND are over that part of the histories.
    """

    def kernel(events: EventBlock, asked: ImpressionBlock, offsets: Ints, index: Ints) -> Any:
        parts, tokens = longer = recency_block(events, asked, offsets, index, n_streams=n_streams, base=base)
        if base is not None:
            offsets, index = base.part(offsets, index, events.stream)
            parts, tokens = parts[:, :, :BUCKETS], tokens[:, :, :BUCKETS]  # without what lies beyond
        x = exposure_block(events, asked, offsets, index, n_streams=n_streams)
        x[:, list(untimed), CHANNELS.index("recency")] = 0.0
        frame = asked.frame
        segment = np.asarray(frame.column("segment_id").to_numpy(), np.int64)
        half = np.asarray(frame.column("half").to_numpy(), np.int64)
        third = np.searchsorted(np.asarray(thirds_us), asked.ts_us, side="right")
        usable = _has_dwell(events, asked, offsets, index, n_streams)
        past = history_values(events, asked, offsets, index)
        groups = [
            (int(own), side, rows)
            for own in np.unique(segment)
            for side in (0, 1)
            if len(rows := np.flatnonzero((segment == own) & (half == side)))
        ]
        keys: list[tuple[int, int, str, int, int]] = []
        sums: list[Floats] = []
        for label in (*heads, *others):
            y = np.asarray(frame.column(f"label_{label}").to_numpy(), np.float64)
            p = given.of(frame, label)
            shared = np.column_stack([past, logit(p)])

            def add(kind: int, found: Floats, key: tuple[int, int], label: str = label) -> None:
                streams = range(n_streams) if kind != TOGETHER else (ALL_STREAMS,)
                keys.extend((key[0], f, label, key[1], kind) for f in streams)
                sums.extend(found)

            for own, side, mine in groups:
                key, user = (own, side), asked.user[mine]
                rest = (shared[mine], y[mine], p[mine], user)
                own_dwell = usable[mine] if label in heads else None
                add(WHOLE, block_sums(x[mine], *rest, has_dwell=own_dwell), key)
                if label in others:
                    continue
                for window in (0, 1, 2):
                    take = mine[third[mine] == window]
                    if len(take):
                        add(
                            window, block_sums(x[take], shared[take], y[take], p[take], asked.user[take]), key
                        )
                for kind, found in zip((WITHIN, BETWEEN), user_sums(x[mine], *rest), strict=True):
                    add(kind, found, key)
                add(BY_RECENCY, recency_sums(x[mine], parts[mine], tokens[mine], *rest), key)
                if base is not None:
                    add(BEYOND, recency_sums(x[mine], longer[0][mine], longer[1][mine], *rest), key)
                if together:
                    add(TOGETHER, gram_sums(x[mine], *rest)[None], key)
        first = [str(frame.column("user_id")[0])] * len(keys)
        return sums_table(keys, sums, block=pa.array(first, pa.string()))

    return kernel


def logit(p: Floats) -> Floats:
    """ln(p / (1 − p)), p kept within 1e-7 of its ends."""
    inside = np.clip(p, 1e-7, 1 - 1e-7)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def history_values(events: EventBlock, asked: ImpressionBlock, offsets: Ints, index: Ints) -> Floats:
    """Activity, freshness and presence of the whole history (B, 3): what remains known when one stream goes.

    Without them a stream without any effect looks relevant, because active users have more of everything
    (docs/method.md E6).
    """
    length = np.diff(offsets)
    some = np.flatnonzero(length > 0)
    result = np.zeros((len(length), len(NUISANCE) - 1))
    result[:, 0] = np.log1p(length)
    newest = index[offsets[1:][some] - 1]
    result[some, 1] = -np.log1p((asked.ts_us[some] - events.ts_us[newest]) / 1e6)
    result[some, 2] = 1.0
    return result


def _has_dwell(
    events: EventBlock, asked: ImpressionBlock, offsets: Ints, index: Ints, n_streams: int
) -> npt.NDArray[np.bool_]:
    """True where the history of an impression has a usable dwell of the stream that was over by then (B, F)."""
    rows = len(offsets) - 1
    row = np.repeat(np.arange(rows, dtype=np.int64), np.diff(offsets))
    found = np.zeros(rows * n_streams, bool)
    known = usable_dwell(events, asked, offsets, index)
    found[(row * n_streams + events.stream[index])[known]] = True
    return found.reshape(rows, n_streams)


def block_sums(
    x: Floats, shared: Floats, y: Floats, p: Floats, user: Ints, *,
    has_dwell: npt.NDArray[np.bool_] | None = None,
) -> Floats:  # fmt: skip
    """Packed `CellSums` of all streams (F, SIZE) from impressions sorted by user.

    x (B, F, 6), shared (B, 4), y and p (B,), user (B,) codes, has_dwell (B, F) or None to leave the histogram empty.
    """
    r, w = y - p, p * (1.0 - p)
    histogram = _histogram(x[:, :, CHANNELS.index("dwell")], y, r, w, has_dwell)
    return _packed(_scalars(x, y, w), clustered_sums(_by_stream(x, shared), r, w, user), histogram)


def user_sums(x: Floats, shared: Floats, y: Floats, p: Floats, user: Ints) -> tuple[Floats, Floats]:
    """Packed `CellSums` (F, SIZE) over deviations from the user's own weighted mean, and over that mean.

    Arguments as in `block_sums`. Weighted sums of squares of the two add up to those of the values themselves, so a
    slope within users and one between them are told apart; a user's impressions of another block would be a user
    of their own. Counts are those of the values, histograms empty.
    """
    r, w = y - p, p * (1.0 - p)
    values = _by_stream(x, shared)
    starts = np.flatnonzero(np.append(True, user[1:] != user[:-1]))
    weight = np.maximum(np.add.reduceat(w, starts), 1e-300)
    own = np.add.reduceat(values * w[None, :, None], starts, axis=1) / weight[None, :, None]
    mean = np.repeat(own, np.diff(np.append(starts, len(user))), axis=1)
    scalars, empty = _scalars(x, y, w), np.zeros((x.shape[1], 4, FINE_BINS + 1))
    within, between = (clustered_sums(part, r, w, user) for part in (values - mean, mean))
    return _packed(scalars, within, empty), _packed(scalars, between, empty)


def _by_stream(x: Floats, shared: Floats) -> Floats:
    """Channels and shared values of each stream (F, B, D)."""
    rows, n_streams, _ = x.shape
    values = np.empty((n_streams, rows, D))
    values[:, :, :C] = x.transpose(1, 0, 2)
    values[:, :, C:] = shared[None, :, :]
    return values


def _scalars(x: Floats, y: Floats, w: Floats) -> Floats:
    """SCALARS of `CellSums` (F, 7)."""
    n_streams = x.shape[1]
    presence = x[:, :, CHANNELS.index("presence")]
    tokens = np.expm1(x[:, :, CHANNELS.index("count")])
    return np.stack(
        [
            np.full(n_streams, float(len(y))),
            np.full(n_streams, y.sum()),
            presence.T @ y,
            presence.sum(axis=0),
            tokens.sum(axis=0),
            (tokens * x[:, :, CHANNELS.index("censored")]).sum(axis=0),
            np.full(n_streams, w.sum()),
        ],
        axis=1,
    )


def _packed(scalars: Floats, sums: tuple[Floats, ...], histogram: Floats) -> Floats:
    """Vectors in the order of `CellSums.pack` (F, SIZE)."""
    parts = (scalars, *sums, histogram)
    return np.concatenate([part.reshape(len(scalars), -1) for part in parts], axis=1)


def _histogram(
    dwell: Floats, y: Floats, r: Floats, w: Floats, has_dwell: npt.NDArray[np.bool_] | None
) -> Floats:
    """(F, 4, 65): impressions, positives, residual and weight by fine bin of the dwell exposure."""
    n_streams = dwell.shape[1]
    result = np.zeros((n_streams, 4, FINE_BINS + 1))
    if has_dwell is None:
        return result
    code = np.where(has_dwell, fine_bin(dwell), FINE_BINS)
    flat = code + np.arange(n_streams)[None, :] * (FINE_BINS + 1)
    for place, values in enumerate((np.ones_like(y), y, r, w)):
        spread = np.broadcast_to(values[:, None], flat.shape)
        counts = np.bincount(flat.ravel(), weights=spread.ravel(), minlength=n_streams * (FINE_BINS + 1))
        result[:, place] = counts.reshape(n_streams, FINE_BINS + 1)
    return result


def fine_bin(dwell: Floats) -> Ints:
    """Fine bin 0..63 of a dwell exposure in [−3, 3]."""
    return np.clip(np.floor((dwell + 3.0) / 6.0 * FINE_BINS), 0, FINE_BINS - 1).astype(np.int64)


def bin_centres() -> Floats:
    """Centre of every fine bin (64,), in standard deviations of ln(1+dwell)."""
    return np.asarray((np.arange(FINE_BINS) + 0.5) * (6.0 / FINE_BINS) - 3.0, np.float64)


def thirds(calendar: Calendar) -> tuple[int, int]:
    """Inner borders of three equal windows of the statistics period, µs since 1970 UTC."""
    start = since_1970(calendar.statistics.start)
    length = since_1970(calendar.statistics.end) - start
    return start + length // 3, start + 2 * length // 3
