"""Jagged events of users in sessions, in plain NumPy: what every segmenter is fitted on and applied to.

    user            0              1    2
    session         0    1    2         3          first_session [0 3 3 4]   user u owns sessions first_session[u:u+2]
    event           a b  c    d e       f g h      first_event [0 2 3 5 8]   session s owns events first_event[s:s+2]

Values and offsets only; nothing is padded. A user without events owns no session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dynamix.contracts import N_DWELL_BINS
from dynamix.errors import InputError
from dynamix.segmentation.blocks import INPUT, NEXT, CountBlock

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
SESSION_GAP_S = 1800.0


@dataclass(frozen=True)
class FlatEvents:
    """N events in any order: row of their user, instant in s, stream id, dwell bin, z (NaN without a usable dwell), part.

    `part` is INPUT, NEXT or OTHER of segmentation/counts.py, by the event's own time.
    """

    user: Ints
    ts_s: Floats
    stream: Ints
    dwell_bin: Ints
    z: Floats
    part: Ints

    def take(self, index: Ints) -> FlatEvents:
        """The events at these places, in this order."""
        return FlatEvents(*(value[index] for value in vars(self).values()))


@dataclass(frozen=True)
class Jagged:
    """U users, S sessions, N events in the order of users, sessions, time; see the drawing above.

    users: pyarrow string array (U,); first_session (U+1,), first_event (S+1,) int64; part (S,) INPUT or NEXT (a session
    that crosses the border between the windows is two); gap (S,) ln(1 + hours since the user's session before), 0 for
    the first; stream, dwell_bin (N,) int64; z (N,) float, NaN without a usable dwell.
    """

    users: Any
    n_streams: int
    first_session: Ints
    first_event: Ints
    part: Ints
    gap: Floats
    stream: Ints
    dwell_bin: Ints
    z: Floats

    @property
    def n_users(self) -> int:
        return len(self.first_session) - 1

    @property
    def n_sessions(self) -> int:
        return len(self.first_event) - 1

    @cached_property
    def user_of_session(self) -> Ints:
        """Row of the user of each session (S,)."""
        return np.repeat(np.arange(self.n_users, dtype=np.int64), np.diff(self.first_session))

    @cached_property
    def session_of_event(self) -> Ints:
        """Session of each event (N,)."""
        return np.repeat(np.arange(self.n_sessions, dtype=np.int64), np.diff(self.first_event))

    @cached_property
    def user_of_event(self) -> Ints:
        """Row of the user of each event (N,)."""
        return self.user_of_session[self.session_of_event]

    @cached_property
    def events(self) -> Ints:
        """Number of events of each user (U,)."""
        return self.first_event[self.first_session[1:]] - self.first_event[self.first_session[:-1]]

    def take(self, rows: Ints) -> Jagged:
        """These users, in this order; a row may occur more than once."""
        sessions, first_session = _ranges(self.first_session, rows)
        return self._of(self.users.take(pa.array(rows)), sessions, first_session)

    def sessions(self, kept: Bools) -> Jagged:
        """All users with only the sessions (S,) that are True."""
        counts = np.bincount(self.user_of_session[kept], minlength=self.n_users)
        return self._of(self.users, np.flatnonzero(kept), _offsets(counts))

    def window(self, part: int) -> Jagged:
        """All users with only their sessions of that part."""
        return self.sessions(self.part == part)

    def halves(self) -> tuple[Jagged, Jagged]:
        """Two disjoint views of every user: the sessions of even and of odd rank; the second may be empty."""
        rank = np.arange(self.n_sessions) - self.first_session[self.user_of_session]
        return self.sessions(rank % 2 == 0), self.sessions(rank % 2 == 1)

    def _of(self, users: Any, sessions: Ints, first_session: Ints) -> Jagged:
        events, first_event = _ranges(self.first_event, sessions)
        return Jagged(
            users, self.n_streams, first_session, first_event, self.part[sessions], self.gap[sessions],
            self.stream[events], self.dwell_bin[events], self.z[events],
        )  # fmt: skip

    def counts(self, *, dwell_bins: bool = True) -> CountBlock:
        """Counts per user, part and cell as the mixture reads them; `day` is 0."""
        cell = self.stream * N_DWELL_BINS + self.dwell_bin if dwell_bins else self.stream
        width = self.n_streams * (N_DWELL_BINS if dwell_bins else 1)
        part = self.part[self.session_of_event]
        key, n = np.unique((self.user_of_event * 2 + (part == NEXT)) * width + cell, return_counts=True)
        owner = key // width
        return CountBlock(
            self.users, owner // 2, np.zeros(len(key), np.int64), np.where(owner % 2, NEXT, INPUT), key % width,
            n.astype(np.int64),
        )  # fmt: skip

    def exposure(self) -> Floats:
        """m/(m+1) · mean z of the m events with a usable dwell, per user and stream (U, F); 0 where there is none.

        Source: docs/method.md A.3, the dwell channel, taken at the end of the inputs.
        """
        known = ~np.isnan(self.z)
        place = self.user_of_event[known] * self.n_streams + self.stream[known]
        size = self.n_users * self.n_streams
        total = np.bincount(place, weights=self.z[known], minlength=size)
        count = np.bincount(place, minlength=size)
        return (total / (count + 1.0)).reshape(self.n_users, self.n_streams)


def jagged(
    events: FlatEvents,
    *,
    users: Any,
    n_streams: int,
    conversion_streams: Sequence[int] = (),
    gap_s: float = SESSION_GAP_S,
) -> Jagged:
    """Sessions of the events in the two windows: a silence longer than `gap_s`, or the windows' border, opens one.

    `users` are the ids (U,) that `events.user` numbers. Events of conversion streams are left out before anything else
    is computed, so that no label of any window is seen (docs/method.md A.4.1, E23). Events tie by stream, bin and z, so
    the order of the rows does not matter. InputError for a user, stream or bin out of range.
    """
    _check(events, len(users), n_streams)
    listed = np.isin(events.part, (INPUT, NEXT)) & ~np.isin(
        events.stream, np.asarray(conversion_streams, np.int64)
    )
    chosen = events.take(np.flatnonzero(listed))
    tied = np.nan_to_num(chosen.z, nan=np.inf)
    own = chosen.take(np.lexsort((tied, chosen.dwell_bin, chosen.stream, chosen.ts_s, chosen.user)))
    n = len(own.user)
    changed = np.ones(n, bool)
    same_user = own.user[1:] == own.user[:-1]
    silence = np.diff(own.ts_s)
    changed[1:] = ~same_user | (silence > gap_s) | (own.part[1:] != own.part[:-1])
    opens = np.flatnonzero(changed)
    gap = np.zeros(len(opens))
    again = np.flatnonzero(np.append(False, same_user)[opens])
    gap[again] = np.log1p(silence[opens[again] - 1] / 3600.0)
    counts = np.bincount(own.user[opens], minlength=len(users))
    return Jagged(
        users=users,
        n_streams=n_streams,
        first_session=_offsets(counts),
        first_event=np.append(opens, n).astype(np.int64),
        part=own.part[opens],
        gap=gap,
        stream=own.stream,
        dwell_bin=own.dwell_bin,
        z=own.z,
    )


def _check(events: FlatEvents, n_users: int, n_streams: int) -> None:
    limits = (("user", events.user, n_users), ("stream", events.stream, n_streams),
              ("dwell_bin", events.dwell_bin, N_DWELL_BINS))  # fmt: skip
    for name, values, size in limits:
        if len(values) and (values.min() < 0 or values.max() >= size):
            raise InputError(
                f"segmenter input: {name} from {values.min()} to {values.max()}; allowed: 0 to {size - 1}"
            )


def _offsets(counts: npt.NDArray[Any]) -> Ints:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _ranges(first: Ints, rows: Ints) -> tuple[Ints, Ints]:
    """Places of the elements that `rows` own under the offsets `first`, and their offsets."""
    length = first[rows + 1] - first[rows]
    offsets = _offsets(length)
    places = np.arange(offsets[-1]) + np.repeat(first[rows] - offsets[:-1], length)
    return places.astype(np.int64), offsets
