"""Posterior at every midnight from a user's earlier events alone, for segmenters whose scores do not add over events.

    day          0        1     2       3      of two users; a midnight has a new posterior after a day with events
    user a       x x      .     x       .      midnights 0..4:  prior, {x x}, {x x}, {x x x}, {x x x}
    user b       .        .     y       y                       prior, prior, prior, {y}, {y y}

Plain NumPy; executors and serving share it (docs/method.md A.4.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dynamix.features.ragged import slices_within, unrolled
from dynamix.segmentation.blocks import INPUT
from dynamix.segmentation.fitted import FittedSegmenter
from dynamix.segmentation.jagged import FlatEvents, Floats, Ints, jagged
from dynamix.segmentation.midnights import known_by

PREFIX_EVENTS = 500_000
"""Events of all prefixes worked on at once; beside the last bit of a network's sums the result does not depend on it."""
DIGITS = 6
"""A posterior is rounded to these before it decides, since a network's last bits depend on who is encoded beside."""


@dataclass(frozen=True)
class DatedEvents:
    """Events of U users, ids in `users`: `flat`, and the day (N,) from 0 on which each was known; parts do not matter."""

    users: Any
    flat: FlatEvents
    day: Ints


@dataclass(frozen=True)
class Midnights:
    """Of U users at D midnights: posterior (U, D, K), events so far (U, D), of the last seven days (U, D)."""

    q: Floats
    events: Ints
    week: Ints


def at_midnights(
    found: DatedEvents, segmenter: FittedSegmenter, *, n_days: int, n_streams: int, gap_s: float
) -> Midnights:
    """Posterior and event counts of every user at 00:00 of day 0 .. n_days − 1, from the events of the days before.

    A posterior is computed anew only at midnights after a day with events; before the first it is the prior.
    """
    users = len(found.users)
    inside = np.flatnonzero((found.day >= 0) & (found.day < n_days - 1))
    slot = found.flat.user[inside] * n_days + found.day[inside]
    new = np.bincount(slot, minlength=users * n_days).reshape(users, n_days)

    order = inside[np.argsort(slot, kind="stable")]
    state = np.zeros((users, n_days), np.int64)  # number of the prefix, 0 = none yet
    at = np.flatnonzero(new.ravel())
    state.ravel()[at + 1] = np.arange(
        1, len(at) + 1
    )  # the last day of n_days has no events, so at + 1 is the user's
    state = np.maximum.accumulate(state, axis=1)
    stop = np.cumsum(new.ravel()[at])
    first = np.searchsorted(found.flat.user[order], at // n_days)
    table = [_posterior(found.flat.take(order[:0]), 1, segmenter, n_streams, gap_s)]
    for rows in slices_within(stop - first, PREFIX_EVENTS):
        own, index = unrolled(first[rows], (stop - first)[rows])
        flat = found.flat.take(order[index])
        flat = FlatEvents(own, flat.ts_s, flat.stream, flat.dwell_bin, flat.z, np.full(len(own), INPUT))
        table.append(_posterior(flat, rows.stop - rows.start, segmenter, n_streams, gap_s))
    q = np.concatenate(table)
    return Midnights(q[np.where(state > 0, state, 0)], *known_by(new))


def _posterior(flat: FlatEvents, n: int, segmenter: FittedSegmenter, n_streams: int, gap_s: float) -> Floats:
    inputs = jagged(flat, users=pa.nulls(n, pa.string()), n_streams=n_streams, gap_s=gap_s)
    return np.round(segmenter.posterior(inputs), DIGITS)
