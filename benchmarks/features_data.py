"""Seeded events for the benchmarks of features: a Parquet log with ties, late rows and impressions.

About 100 events a user in sessions of about nine; three surfaces with four types of event; a logged dwell on three
events in ten; 2 % of the rows become known late; no duplicates.
"""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

DAYS = 14
GAP_US = 1_800_000_000
HOT_SHARE = 0.25
FILES = 8
FIRST_DAY = date(2026, 1, 1)
_DAY_US = 86_400_000_000
_START_US = 1_767_225_600_000_000  # FIRST_DAY 00:00 UTC
_SURFACES = ("feed", "search", "shop")
_TYPES = ("view", "click", "open", "conversion", "impression")
_TYPE_SHARES = (0.60, 0.20, 0.14, 0.01, 0.05)

Ints = npt.NDArray[np.int64]


def make_events(folder: Path, *, events: int, hot: bool, seed: int = 0) -> Path:
    """Parquet files of about `events` rows of 14 days, in the order of time, some up to two days late; made once."""
    place = folder / f"{events}-{'hot' if hot else 'uniform'}-{seed}"
    if (place / "_SUCCESS").is_file():
        return place
    place.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng([seed, events, int(hot)])
    n_hot = int(events * HOT_SHARE) if hot else 0
    user, us = _timeline(draw, events - n_hot)
    user = np.concatenate([user, np.full(n_hot, int(user.max()) + 1)])
    us = np.concatenate([us, _START_US + np.sort(draw.integers(0, DAYS * _DAY_US, n_hot))])
    order = np.argsort(us, kind="stable")
    table = _columns(draw, user[order], us[order], _late(draw, len(us), 2 * _DAY_US))
    step = -(-len(table) // FILES)
    for number in range(FILES):
        part = table.slice(number * step, step)
        pq.write_table(part, place / f"part-{number}.parquet", row_group_size=250_000, compression="snappy")
    (place / "_SUCCESS").touch()
    return place


def make_days(folder: Path, *, days: int, per_day: int, late_days: int, seed: int = 0) -> Path:
    """One Parquet file a day of arrival; nine in ten late rows come within a day, all within `late_days`; made once."""
    place = folder / f"{days}x{per_day}-late{late_days}-{seed}"
    if (place / "_SUCCESS").is_file():
        return place
    place.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng([seed, days, per_day, late_days])
    user, us = _timeline(draw, days * per_day, days=days)
    delay = _late(draw, len(us), _DAY_US)
    very = (delay > 5_000_000) & (draw.random(len(us)) < 0.1)
    delay[very] = draw.integers(_DAY_US, late_days * _DAY_US, int(very.sum()))
    arrival = (us + delay - _START_US) // _DAY_US
    for day in np.unique(arrival):
        rows = np.flatnonzero(arrival == day)
        part = _columns(draw, user[rows], us[rows], delay[rows], first_id=int(day) << 32)
        name = f"{FIRST_DAY + timedelta(days=int(day))}.parquet"
        pq.write_table(part, place / name, row_group_size=250_000, compression="snappy")
    (place / "_SUCCESS").touch()
    return place


def _late(draw: np.random.Generator, n: int, most_us: int) -> Ints:
    """µs from event to ingest: seconds, and for 2 % of the rows an hour up to `most_us`."""
    late = draw.random(n) < 0.02
    return np.where(late, draw.integers(3_600_000_000, most_us, n), draw.integers(0, 5_000_000, n))


def _timeline(draw: np.random.Generator, rows: int, *, days: int = DAYS) -> tuple[Ints, Ints]:
    """(user, µs) of each event: sessions of a geometric length, silences with the edges of the rule among them."""
    length = draw.geometric(1 / 9, rows // 8 + 50)  # more than needed, the rest is left out
    owner = draw.integers(0, max(rows // 100, 1), len(length))
    begin = _START_US + draw.integers(0, (days - 1) * _DAY_US, len(length))
    wait = np.minimum(draw.lognormal(np.log(4e7), 1.2, int(length.sum())).astype(np.int64), GAP_US - 1)
    edge = draw.random(len(wait))
    wait[edge < 0.01] = 0
    wait[(edge >= 0.01) & (edge < 0.011)] = GAP_US
    wait[(edge >= 0.011) & (edge < 0.012)] = GAP_US + 1
    heads = np.cumsum(length) - length
    wait[heads] = 0
    since = np.cumsum(wait)
    session = np.repeat(np.arange(len(length)), length)
    return owner[session][:rows], (begin[session] + since - since[heads][session])[:rows]


def _columns(draw: np.random.Generator, user: Ints, us: Ints, delay: Ints, *, first_id: int = 0) -> Any:
    n = len(us)
    logged = draw.random(n) < 0.3
    dwell = np.minimum(draw.lognormal(9, 1.5, n).astype(np.int64), 3_600_000)
    names = pa.array([f"user-{number:09d}" for number in range(int(user.max()) + 1)])

    def choice(values: tuple[str, ...], shares: tuple[float, ...] | None) -> Any:
        picked = draw.choice(len(values), n, p=shares).astype(np.int32)
        return pa.DictionaryArray.from_arrays(pa.array(picked), pa.array(values)).cast(pa.string())

    stamp = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            "event_id": _hex(np.arange(first_id, first_id + n, dtype=np.uint64)),
            "user_id": names.take(pa.array(user)),
            "event_ts": pa.array(us).cast(stamp),
            "event_seq": pa.array(draw.integers(0, 5, n), mask=draw.random(n) < 0.5),
            "ingest_ts": pa.array(us + delay).cast(stamp),
            "event_type": choice(_TYPES, _TYPE_SHARES),
            "surface": choice(_SURFACES, None),
            "dwell_ms": pa.array(dwell, mask=~logged),
        }
    )


def _hex(number: npt.NDArray[np.uint64]) -> Any:
    """Distinct ids of 16 hex digits: an odd factor permutes the 64-bit numbers."""
    mixed = number * np.uint64(0x9E3779B97F4A7C15)
    shifts = np.arange(60, -4, -4, dtype=np.uint64)
    text = np.empty((len(number), 16), dtype=np.uint8)
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    for place, shift in enumerate(shifts):
        text[:, place] = digits[((mixed >> shift) & np.uint64(15)).astype(np.int64)]
    offsets = np.arange(0, 16 * (len(number) + 1), 16, dtype=np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text.reshape(-1))]
    return pa.LargeStringArray.from_buffers(len(number), buffers[1], buffers[2]).cast(pa.string())
