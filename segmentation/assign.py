"""Segments over time: posterior of every user at every midnight from earlier events only, with hysteresis.

The state at 00:00 of day d rests on events known before it; the rule is in segmentation/midnights.py
(docs/method.md A.4.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame

from dynamix.contracts import TIERS
from dynamix.features.calendar import Calendar
from dynamix.segmentation.blocks import CountBlock, count_block
from dynamix.segmentation.em import reduce_blocks
from dynamix.segmentation.fitted import FittedSegmenter
from dynamix.segmentation.midnights import TIER_DAYS, Rule, decide, known_by
from dynamix.segmentation.mixture import Floats, Ints, Mixture, posterior
from dynamix.segmentation.prefixes import at_midnights
from dynamix.segmentation.user_events import dated_events

NEVER = 1e9
USERS_AT_ONCE = 1000
"""Users whose events are unpacked together; bounds what a task holds beside the batch."""
_MAX_WEEKLY = 10_000
SCHEMA = (
    "user_id string, valid_from timestamp, valid_to timestamp, component int, tier string, "
    "posterior map<int,double>, n_events bigint, last boolean"
)


@dataclass(frozen=True)
class Days:
    """Of U users at D midnights (day 0 .. D−1): score (U, D, K), events so far (U, D), of the last week (U, D)."""

    scores: Floats
    events: Ints
    week: Ints


def day_table(block: CountBlock, mixture: Mixture, n_days: int) -> Days:
    """Joint log density and event counts of every user at every midnight, from the days before it."""
    users, k = len(block.users), mixture.k
    gains = np.zeros((users * n_days, k))
    inside = (block.day >= 0) & (block.day < n_days)
    slot = block.row[inside] * n_days + block.day[inside]
    n = block.n[inside]
    for component in range(k):
        weights = mixture.log_p[component, block.cell[inside]] * n
        gains[:, component] = np.bincount(slot, weights=weights, minlength=users * n_days)
    new = np.bincount(slot, weights=n, minlength=users * n_days).astype(np.int64)
    scores = np.zeros((users, n_days, k))
    scores[:, 1:] = np.cumsum(gains.reshape(users, n_days, k), axis=1)[:, :-1]
    return Days(scores + mixture.log_pi, *known_by(new.reshape(users, n_days)))


def tiers(component: Ints, week: Ints, rule: Rule) -> npt.NDArray[np.bool_]:
    """True = active (U, D): warm and at least `active_from` usable events in the last seven days."""
    return (component >= 0) & (week >= rule.active_from)


def activity_border(counts: DataFrame, *, min_events: int, day: int) -> float:
    """Median of the last seven days' usable events at midnight of `day`, over users with enough events by then.

    NEVER without such a user: nobody is active.
    """

    def work(block: CountBlock) -> Ints:
        users = len(block.users)
        past = block.day < day
        n = np.bincount(block.row[past], weights=block.n[past], minlength=users)
        recent = past & (block.day >= day - TIER_DAYS)
        week = np.bincount(block.row[recent], weights=block.n[recent], minlength=users).astype(np.int64)
        return np.bincount(np.minimum(week[n >= min_events], _MAX_WEEKLY), minlength=_MAX_WEEKLY + 1)

    histogram = reduce_blocks(counts, work, np.add, np.zeros(_MAX_WEEKLY + 1, np.int64))
    total = int(histogram.sum())
    if not total:
        return NEVER
    return float(max(1, int(np.searchsorted(np.cumsum(histogram), (total + 1) // 2))))


def histories(
    counts: DataFrame, mixture: Mixture, *, rule: Rule, calendar: Calendar, group: Ints | None = None
) -> DataFrame:
    """Slowly changing rows of every user: one per stretch of days with the same component and tier (SCHEMA).

    `component` −1 is cold. posterior and n_events are those at valid_from; `last` marks the open row, whose
    posterior is that of the run date. Rows start at the calendar's first midnight. With `group` (K₀,) posteriors of the
    mixture's components add up by group, which takes the component's place.
    """
    n_days, first_us = _midnights(calendar)

    def work(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            if batch.num_rows:
                block = count_block(batch)
                yield _rows(block.users, *assigned(block, mixture, rule, n_days, group), first_us)

    return counts.mapInArrow(work, SCHEMA)


def event_histories(
    events: DataFrame, segmenter: FittedSegmenter, *, rule: Rule, calendar: Calendar, n_streams: int, gap_s: float
) -> DataFrame:  # fmt: skip
    """Rows as those of `histories`, by a segmenter that reads events; `events` as of segmentation/user_events.py.

    The segmenter travels in the closure; USERS_AT_ONCE users are unpacked at a time.
    """
    n_days, first_us = _midnights(calendar)

    def work(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            for start in range(0, batch.num_rows, USERS_AT_ONCE):
                own = dated_events(batch.slice(start, USERS_AT_ONCE))
                found = at_midnights(own, segmenter, n_days=n_days, n_streams=n_streams, gap_s=gap_s)
                component = decide(found.q, found.events, rule)
                active = tiers(component, found.week, rule)
                yield _rows(own.users, found.q, component, found.events, active, first_us)

    return events.mapInArrow(work, SCHEMA)


def _midnights(calendar: Calendar) -> tuple[int, np.datetime64]:
    """Number of midnights from the calendar's first to the run date, and the first."""
    return (calendar.run_date - calendar.first.date()).days + 1, np.datetime64(calendar.first, "us")


def assigned(
    block: CountBlock, mixture: Mixture, rule: Rule, n_days: int, group: Ints | None = None
) -> tuple[Floats, Ints, Ints, Any]:
    """q (U, D, K), component (U, D), events (U, D), active (U, D) under the rule and its control."""
    days = day_table(block, mixture, n_days)
    q = posterior(days.scores)
    if group is not None:
        q = q @ np.eye(int(group.max()) + 1)[group]
    if rule.control == "shuffled":
        q = _drawn(block.users, mixture, n_days)
    elif rule.control == "tier":
        active = days.week >= rule.active_from
        q = np.stack([active, ~active], axis=2).astype(np.float64)
    component = decide(q, days.events, rule)
    if rule.control == "tier":
        component = np.where(days.events >= rule.min_events, q.argmax(axis=2), -1)
    return q, component, days.events, tiers(component, days.week, rule)


def _drawn(users: Any, mixture: Mixture, n_days: int) -> Floats:
    """The control `shuffled`: a certain component per user, drawn by hash with the mixture's shares."""
    from hashlib import blake2b

    draws = np.array(
        [int.from_bytes(blake2b(f"shuffled|{u}".encode(), digest_size=6).digest(), "big") / 2**48
         for u in users.to_pylist()]
    )  # fmt: skip
    edges = np.cumsum(np.exp(mixture.log_pi))[:-1]
    one_hot = np.eye(mixture.k)[np.searchsorted(edges, draws, side="right")]
    return np.repeat(one_hot[:, None, :], n_days, axis=1)


def _rows(
    users: Any, q: Floats, component: Ints, events: Ints, active: npt.NDArray[np.bool_], first: np.datetime64
) -> Any:
    n_days, k = q.shape[1:]
    code = component * 2 + active
    changed = np.ones(code.shape, bool)
    changed[:, 1:] = code[:, 1:] != code[:, :-1]
    user, day = np.nonzero(changed)
    following = np.append(user[1:] == user[:-1], False)
    end = np.append(day[1:], 0)
    last = ~following
    shown = np.where(last, n_days - 1, day)
    stamp = first + day * np.timedelta64(1, "D")
    until = np.where(following, first + end * np.timedelta64(1, "D"), np.datetime64("NaT", "us"))
    values = np.round(q[user, shown], 6)
    offsets = pa.array(np.arange(len(user) + 1, dtype=np.int32) * k, pa.int32())
    keys = pa.array(np.tile(np.arange(k, dtype=np.int32), len(user)))
    utc = pa.timestamp("us", tz="UTC")
    columns = {
        "user_id": users.take(pa.array(user)),
        "valid_from": pa.array(stamp.astype("datetime64[us]")).cast(utc),
        "valid_to": pa.array(until.astype("datetime64[us]")).cast(utc),
        "component": pa.array(component[user, day].astype(np.int32)),
        "tier": pa.array([TIERS[0] if a else TIERS[1] for a in active[user, day]], pa.string()),
        "posterior": pa.MapArray.from_arrays(offsets, keys, pa.array(values.ravel())),
        "n_events": pa.array(events[user, shown]),
        "last": pa.array(last),
    }
    return pa.RecordBatch.from_pydict(columns)
