"""Imputed dwell: exact values that a source fills in at the end of sessions (docs/method.md A.2.2).

A source that does not know how long the last event of a session took may log a constant, such as 30000 ms.
That is no measured dwell: the value is flagged `imputed` for its stream and enters no statistic. Streams are
`surface/event_type` as they come, whatever the config declares, so a declaration never changes `events`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from dynamix.features.events import stream_name

LAST = "last_in_session"
MIN_COUNT = 30
"""Last events that must hold the value: fewer prove nothing, whatever their share."""
EXCESS = 10.0
"""A value has to stand this far above what the rest of the histogram puts on one value."""
AT_ENDS = 2.0
"""A value has to be this much more frequent on last events than on the stream's others: a genuine one is not."""
CHANCE = 1e-6
"""Chance that a stream without a constant is flagged all the same, over all values tested."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Imputed:
    """A flagged value: `count` of the stream's `total` last events with a logged dwell hold exactly `dwell_ms`."""

    stream: str
    dwell_ms: int
    count: int
    total: int

    def sentence(self) -> str:
        """The warning that names stream, value and share."""
        return (
            f"stream {self.stream}: {self.dwell_ms} ms stands on {self.count / self.total:.1%} of {self.total} last "
            "events with a logged dwell; taken for a filled-in constant, flagged imputed, in no statistic"
        )


def imputed_values(
    values: Sequence[int] | Ints,
    counts: Sequence[int] | Ints,
    *,
    total: int,
    share: float,
    inner: Sequence[float] | None = None,
) -> Ints:
    """Values (ms, ascending) that recur in an implausible share of the stream's last events.

    values and counts (V,) are distinct exact dwells and how many last events hold each, inner (V,) their shares of
    the stream's other logged dwells (None: 0); values rarer than share/10 of `total` may be left out, the result is
    the same. With c the count of a value, N = `total` and c2 the second largest count of any other value (the
    largest may be a second constant), the share to be excluded is p = max(share, 10 c2/N, 2 inner): what a smooth
    histogram or a grid of rounded values could put on one value, and what the value has anyway, away from the
    ends of sessions. Flagged iff c >= 30, c/N > p and

        N · KL(c/N ‖ p) >= ln(10/share / 1e-6),   KL(a ‖ b) = a ln(a/b) + (1−a) ln((1−a)/(1−b))

    By Chernoff's bound P(Bin(N, p) >= c) <= exp(−N KL(c/N ‖ p)); at most 10/share values have a probability of
    share/10 or more. So a stream whose values all have a probability of at most p is flagged with a chance of about
    1e-6. At most two constants a stream are found.
    """
    values, counts = np.asarray(values, np.int64), np.asarray(counts, np.int64)
    anyway = np.zeros(len(values)) if inner is None else np.asarray(inner, np.float64)
    order = np.argsort(-counts, kind="stable")
    listed = np.concatenate([counts[order], [0, 0, 0]])
    need = math.log(EXCESS / share / CHANCE)
    found = []
    for rank, place in enumerate(order):
        # the second largest of the others: the largest two of the list, less this one
        rival = int(listed[2] if rank < 2 else listed[1])
        c, p = int(counts[place]), max(share, EXCESS * rival / total, AT_ENDS * float(anyway[place]))
        if c >= MIN_COUNT and c / total > p and total * _divergence(c / total, p) >= need:
            found.append(int(values[place]))
    return np.array(sorted(found), dtype=np.int64)


def _divergence(a: float, b: float) -> float:
    """KL divergence of two coins in nats, b < a <= 1."""
    rest = 0.0 if a >= 1 else (1 - a) * math.log((1 - a) / (1 - b))
    return a * math.log(a / b) + rest


def is_last() -> Column:
    """True for the last event of its session; reads the columns of `assign_sessions` before dwell is settled."""
    return F.col("session_id").isNotNull() & F.col("until_next_us").isNull()


def frequent_last_dwells(events: DataFrame, *, share: float) -> DataFrame:
    """(stream, dwell_ms, n, total, inner): logged dwells on at least share/10 of a stream's last events.

    Needs event rows with `last_in_session` and uncapped dwells. At most 10/share rows a stream, so the result
    may travel to the driver; `total` counts all last events of the stream with a logged dwell, `inner` is the
    value's share of its other events of sessions with one. A derived dwell of a last event does not exist and
    does not count.
    """
    logged = events.where((F.col("dwell_status") == "observed") & F.col("session_id").isNotNull())
    counted = logged.groupBy(stream_name().alias("stream"), "dwell_ms").agg(
        F.count_if(LAST).alias("n"), F.count_if(~F.col(LAST)).alias("inside")
    )
    whole = Window.partitionBy("stream")
    summed = counted.withColumns({"total": F.sum("n").over(whole), "others": F.sum("inside").over(whole)})
    often = summed.where((F.col("n") > 0) & (F.col("n") >= F.lit(share / EXCESS) * F.col("total")))
    inner = F.col("inside") / F.greatest(F.col("others"), F.lit(1))
    return often.select("stream", "dwell_ms", "n", "total", inner.alias("inner"))


def find_imputed(rows: Iterable[tuple[str, int, int, int, float]], *, share: float) -> list[Imputed]:
    """Flagged values of all streams by stream and value, from rows (stream, dwell_ms, n, total, inner)."""
    by_stream: dict[str, list[tuple[int, int, int, float]]] = {}
    for stream, dwell_ms, n, total, inner in rows:
        by_stream.setdefault(stream, []).append((dwell_ms, n, total, inner))
    found = []
    for stream, listed in sorted(by_stream.items()):
        count = {dwell_ms: n for dwell_ms, n, _, _ in listed}
        all_last, inside = listed[0][2], [inner for *_, inner in listed]
        for value in imputed_values(
            list(count), list(count.values()), total=all_last, share=share, inner=inside
        ).tolist():
            found.append(Imputed(stream, value, count[value], all_last))
    return found


def by_stream(found: Iterable[Imputed]) -> dict[str, list[int]]:
    """Flagged values per stream, as the commit of `events` stores them."""
    listed: dict[str, list[int]] = {}
    for one in found:
        listed.setdefault(one.stream, []).append(one.dwell_ms)
    return listed


def flag_imputed(events: DataFrame, *, constants: Mapping[str, Sequence[int]]) -> DataFrame:
    """Set dwell_status `imputed` where a logged, uncapped dwell is exactly a constant of its stream.

    The value stays for the reader; grain and all else are untouched. It holds wherever the event stands: who
    fills in a constant at the end of its own sessions does so inside ours too. Flagging twice is flagging once.
    """
    if not constants:
        return events
    hit = F.lit(False)
    for stream in sorted(constants):
        hit = hit | ((stream_name() == stream) & F.col("dwell_ms").isin([int(v) for v in constants[stream]]))
    filled = F.coalesce(hit & (F.col("dwell_status") == "observed"), F.lit(False))
    return events.withColumn("dwell_status", F.when(filled, "imputed").otherwise(F.col("dwell_status")))
