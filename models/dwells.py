"""Dwell of the events of a request, settled as ingest does: logged, derived from the next event, capped.

The counterpart in NumPy of features/dwell.py and of `told_us` in features/streams.py (docs/method.md A.2.2); the
sessions are those of the kernel that ingest uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamix.features.fragments import Rule, mark

DWELL = "dwell.json"
_LONGEST_MS = 10**12  # as in features/streams.py: sums of microseconds stay in range
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class DwellRule:
    """What settles a dwell; the default, and models stored without one, take a request's dwells as they come.

    `derive`: an event without a dwell gets the time to its session's next event. A silence longer than `gap_us`, or
    `length_us` after the first event, opens a session; with `given` a request's `session_id` does. `caps_ms` and
    `imputed_ms` (values that a source fills in, never measured) are by stream id.
    """

    derive: bool = False
    given: bool = False
    gap_us: int = 0
    length_us: int = 1
    caps_ms: Mapping[int, int] = field(default_factory=dict)
    imputed_ms: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def to_tree(self) -> dict[str, Any]:
        """Plain data for JSON, whose keys are text."""
        by_stream = {
            "caps_ms": {str(n): cap for n, cap in self.caps_ms.items()},
            "imputed_ms": {str(n): list(values) for n, values in self.imputed_ms.items()},
        }
        return vars(self) | by_stream

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> DwellRule:
        """The inverse of `to_tree`."""
        by_stream = {
            "caps_ms": {int(n): int(cap) for n, cap in tree.get("caps_ms", {}).items()},
            "imputed_ms": {int(n): tuple(v) for n, v in tree.get("imputed_ms", {}).items()},
        }
        return cls(**{**tree, **by_stream})


@dataclass(frozen=True)
class Logged:
    """N events of requests by (row, time): µs, stream id, logged dwell (ms, NaN = none, < 0 = no length of time)."""

    row: Ints
    ts_us: Ints
    stream: Ints
    dwell_ms: NDArray[np.float64]
    session: Ints
    """Code of the request's session_id, −1 = none; read where the rule is `given` only."""


def settle(events: Logged, now: Ints, rule: DwellRule) -> NDArray[np.float64]:
    """Usable dwell (N,) in ms of each event as known at its request's instant `now` (N,); NaN where there is none.

    A dwell that goes on is not known, nor is a derived one above its cap before the gap is over. A
    bad dwell and a filled-in constant are never usable; a logged dwell is rounded to whole milliseconds.
    """
    bad = events.dwell_ms < 0
    logged = np.where(bad, np.nan, np.floor(events.dwell_ms + 0.5))
    until = _until_next(events, rule) if rule.derive else np.full(len(logged), -1, np.int64)
    derived = np.isnan(logged) & ~bad & (until >= 0)
    whole = np.where(derived, until // 1000, logged)
    cap = _of_stream(events.stream, rule.caps_ms)
    lasts_us = (np.minimum(whole, _LONGEST_MS) + 1) * 1000
    told_us = np.where(derived & (whole > cap), float(rule.gap_us + 1), lasts_us)
    usable = np.isfinite(whole) & (told_us <= now - events.ts_us)
    for number, values in rule.imputed_ms.items():
        usable &= ~((events.stream == number) & np.isin(logged, values))
    return np.where(usable, np.minimum(whole, cap), np.nan)


def _of_stream(stream: Ints, by_stream: Mapping[int, int]) -> NDArray[np.float64]:
    """Value (N,) of each event's stream, infinity where there is none."""
    table = np.full(max([int(stream.max(initial=0)), *by_stream]) + 1, np.inf)
    table[list(by_stream)] = list(by_stream.values())
    return np.asarray(table[stream])


def _until_next(events: Logged, rule: DwellRule) -> Ints:
    """µs to the session's next event (N,), −1 at its last."""
    session = events.session if rule.given else np.full(len(events.row), -1, np.int64)
    width = int(session.max(initial=-1)) + 2
    line = np.unique(events.row * width + session + 1, return_inverse=True)[1].astype(np.int64)
    order = np.argsort(line, kind="stable")
    whole = session[order] >= 0 if rule.given else None
    marks = mark(line[order], events.ts_us[order], rule=Rule(rule.gap_us, rule.length_us), whole=whole)
    until = np.empty(len(line), np.int64)
    until[order] = marks.until_next
    return until
