"""Drift of the events against a baseline: dwell, missing values, and what share streams and segments have.

A profile is counts alone, so profiles of disjoint users add up. It takes one pass over the events: they meet by
user, NumPy counts (docs/method.md C.6).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.config_parts import DriftConfig
from dynamix.features.calendar import DAY_US
from dynamix.features.events import stream_name
from dynamix.features.streams import log_dwell
from dynamix.features.timeline import codes, whole_users

NOISE_SD = 3.09
"""Standard deviations of chance that a finding must exceed: one in a thousand, one-sided."""
NO_SEGMENT = "0"
_BINS = 64
"""More than ln(1 + 9e15), the largest dwell."""
_SCHEMA = "kind string, name string, bin int, n bigint"


@dataclass(frozen=True)
class Group:
    """Events of a stream or segment, the (user, day) pairs that have one, and its usable dwells by floor(ln(1 + ms))."""

    events: int = 0
    user_days: int = 0
    bins: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """Counts of a set of events; `nulls` per column."""

    events: int
    user_days: int
    nulls: Mapping[str, int]
    streams: Mapping[str, Group]
    segments: Mapping[str, Group]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Profile:
        """The inverse of `to_json`, from a file too, where the bins have become text."""

        def groups(part: Mapping[str, Any]) -> dict[str, Group]:
            return {
                name: Group(g["events"], g["user_days"], {int(b): n for b, n in g["bins"].items()})
                for name, g in part.items()
            }

        return cls(
            told["events"],
            told["user_days"],
            told["nulls"],
            groups(told["streams"]),
            groups(told["segments"]),
        )


@dataclass(frozen=True)
class Finding:
    """One comparison: `value` beyond `limit` is drift; `sentence` says it."""

    measure: str
    name: str
    baseline: float
    now: float
    value: float
    limit: float
    drifted: bool
    sentence: str


def profile_rows(events: DataFrame, segments: DataFrame | None, *, columns: Iterable[str]) -> DataFrame:
    """Counts of the events as rows (kind, name, bin, n), one set a partition: add them up by `profile`.

    `columns` are those whose NULLs are counted. `segments` (user_id, segment_id) holds a user's current segment;
    users without one are in segment 0. One shuffle by user, two Spark jobs to collect.
    """
    names = list(columns)
    bits = [F.when(F.col(name).isNull(), F.lit(1 << i)).otherwise(F.lit(0)) for i, name in enumerate(names)]
    told = events.select(
        "user_id",
        F.floor(F.unix_micros("event_ts") / F.lit(DAY_US)).cast("int").alias("day"),
        stream_name().alias("stream"),
        F.floor(log_dwell()).cast("int").alias("bin"),
        F.lit(None).cast("string").alias("segment"),
        reduce(Column.__add__, bits, F.lit(0).cast("bigint")).alias("nulls"),
    )
    if segments is not None:
        own = segments.select("user_id", F.col("segment_id").cast("string").alias("segment"))
        told = told.unionByName(own, allowMissingColumns=True)

    def count(batches: Iterator[Any]) -> Iterator[Any]:
        counts: Counter[tuple[str, str, int | None]] = Counter()
        for table in whole_users(batches):
            counts.update(_counted(table.combine_chunks(), names))
        kinds, labels, bins = zip(*counts, strict=True) if counts else ((), (), ())
        values = [pa.array(kinds, pa.string()), pa.array(labels, pa.string()), pa.array(bins, pa.int32())]
        yield pa.RecordBatch.from_arrays(
            [*values, pa.array(counts.values(), pa.int64())], names=["kind", "name", "bin", "n"]
        )

    return told.repartition("user_id").sortWithinPartitions("user_id").mapInArrow(count, _SCHEMA)


def _counted(table: Any, names: list[str]) -> Counter[tuple[str, str, int | None]]:
    """Counts of whole users: events, user_days and bins of all, of each stream and of each segment."""
    user, users = codes(table.column("user_id"))
    given, segments = codes(table.column("segment"))
    seen = codes(table.column("stream"))[0] >= 0
    segment_of = np.full(len(users), -1, dtype=np.int64)
    segment_of[user[~seen]] = given[~seen]
    events = table.filter(pa.array(seen))
    user, day = user[seen], np.asarray(events.column("day")).astype(np.int64)
    dwell = np.asarray(events.column("bin").fill_null(-1)).astype(np.int64)
    stream, streams = codes(events.column("stream"))
    found: Counter[tuple[str, str, int | None]] = Counter()
    labels = [*(segments.to_pylist()), NO_SEGMENT]
    own = segment_of[user]
    pair = (
        user * (int(day.max(initial=0)) + 1) + day
    )  # days count from 1970: at least 0 in the range of events
    for kind, code, called in (
        ("all", np.zeros(len(user), dtype=np.int64), ["all"]),
        ("stream", stream, streams.to_pylist()),
        ("segment", np.where(own < 0, len(labels) - 1, own), labels),
    ):
        pairs = int(pair.max(initial=0)) + 1
        days = np.bincount(np.unique(code * pairs + pair) // pairs, minlength=len(called))
        bins = np.bincount((code * _BINS + dwell)[dwell >= 0], minlength=len(called) * _BINS)
        for at in np.flatnonzero(days):
            found[f"{kind} events", called[at], None] += int((code == at).sum())
            found[f"{kind} user_days", called[at], None] += int(days[at])
        for at in np.flatnonzero(bins):
            found[f"{kind} bins", called[at // _BINS], int(at % _BINS)] += int(bins[at])
    flags = np.asarray(events.column("nulls"))
    for place, name in enumerate(names):
        found["nulls", name, None] += int(((flags >> place) & 1).sum())
    return found


def profile(rows: Iterable[Mapping[str, Any]]) -> Profile:
    """The profile that collected `profile_rows` add up to."""
    sums: Counter[tuple[str, str, int | None]] = Counter()
    for row in rows:
        sums[row["kind"], row["name"], row["bin"]] += row["n"]

    def groups(kind: str) -> dict[str, Group]:
        names = sorted(name for what, name, _ in sums if what == f"{kind} events")
        return {
            name: Group(
                sums[f"{kind} events", name, None],
                sums[f"{kind} user_days", name, None],
                {
                    b: n
                    for (what, own, b), n in sorted(sums.items(), key=str)
                    if b is not None and what == f"{kind} bins" and own == name
                },
            )
            for name in names
        }

    return Profile(
        sums["all events", "all", None],
        sums["all user_days", "all", None],
        {name: n for (what, name, _), n in sorted(sums.items(), key=str) if what == "nulls"},
        groups("stream"),
        groups("segment"),
    )


def psi(baseline: Mapping[int, int], now: Mapping[int, int]) -> float:
    """Population stability index: sum over bins of (q - p) ln(q / p), each count plus one half (docs/method.md C.6)."""
    bins = sorted(set(baseline) | set(now))
    p, q = (np.array([counts.get(b, 0) + 0.5 for b in bins]) for counts in (baseline, now))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())


def psi_noise(bins: int, n: int, m: int) -> float:
    """PSI that chance exceeds once in a thousand times: of equal distributions it is chi-squared with bins - 1 degrees,
    times 1/n + 1/m (docs/method.md C.6)."""  # fmt: skip
    free = max(bins - 1, 1)
    return (free + NOISE_SD * math.sqrt(2 * free)) * (1 / n + 1 / m)


def compare(baseline: Profile, now: Profile, config: DriftConfig) -> list[Finding]:
    """Every comparison of two profiles that has enough rows on both sides; those with `drifted` are warnings.

    PSI of dwell per stream and segment; NULL share per column; share of events and of user days per stream and
    segment. User days and not users, since a share of users grows with the length of the period.
    """
    found: list[Finding] = []
    if min(baseline.events, now.events) < config.min_rows:
        return found
    for column in sorted(set(baseline.nulls) & set(now.nulls)):
        shares = baseline.nulls[column] / baseline.events, now.nulls[column] / now.events
        found.append(_finding("null_rate", column, shares, abs(shares[1] - shares[0]), config.null_rate))
    for kind, before, after in (
        ("stream", baseline.streams, now.streams),
        ("segment", baseline.segments, now.segments),
    ):
        for name in sorted(set(before) | set(after)):
            old, new = before.get(name, Group()), after.get(name, Group())
            found += _dwell_finding(f"{kind} {name}", old, new, config)
            for measure, a, b, whole in (
                ("events", old.events, new.events, (baseline.events, now.events)),
                ("user_days", old.user_days, new.user_days, (baseline.user_days, now.user_days)),
            ):
                found.append(_share_finding(f"{kind} {name}", measure, (a, b), whole, config))
    return found


def _dwell_finding(name: str, old: Group, new: Group, config: DriftConfig) -> list[Finding]:
    n, m = sum(old.bins.values()), sum(new.bins.values())
    if min(n, m) < config.min_rows:
        return []
    limit = max(config.psi, psi_noise(len(set(old.bins) | set(new.bins)), n, m))
    means = tuple(sum(b * k for b, k in g.bins.items()) / size for g, size in ((old, n), (new, m)))
    return [_finding("psi of dwell", name, (means[0], means[1]), psi(old.bins, new.bins), limit)]


def _share_finding(
    name: str, measure: str, counts: tuple[int, int], whole: tuple[int, int], config: DriftConfig
) -> Finding:
    """Ratio of two shares on the log scale, against the configured ratio and four times its standard error."""
    a, b = (count + 0.5 for count in counts)
    ratio = abs(math.log((b / (whole[1] + 0.5)) / (a / (whole[0] + 0.5))))
    limit = max(math.log(config.coverage_ratio), 4 * math.sqrt(1 / (a + 0.5) + 1 / (b + 0.5)))
    shares = counts[0] / whole[0], counts[1] / whole[1]
    return _finding(f"share of {measure}", name, shares, ratio, limit)


def _finding(measure: str, name: str, sides: tuple[float, float], value: float, limit: float) -> Finding:
    before, now = sides
    sentence = f"{measure} of {name}: {before:.4g} at the first write, {now:.4g} now ({value:.3g}, limit {limit:.3g})"
    return Finding(measure, name, before, now, value, limit, value > limit, sentence)
