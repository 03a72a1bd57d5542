"""Which segment a posterior leads to, midnight by midnight: the rule that training and serving share. Plain NumPy.

A user leaves segment 0 on the first midnight at which the posterior reaches the confidence with enough events, and
changes segment only when another one has led by at least .2 on two midnights in a row (docs/method.md A.4.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dynamix.config import SegmentationConfig

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAD = 0.2
TIER_DAYS = 7


@dataclass(frozen=True)
class Rule:
    """What turns posteriors into segments: confidence, usable events, tier border, and a control if one is set."""

    confidence: float
    min_events: int
    active_from: float
    control: str = "none"

    @classmethod
    def of(cls, config: SegmentationConfig, *, active_from: float) -> Rule:
        return cls(config.confidence, config.min_events, active_from, config.control)


def known_by(new: Ints) -> tuple[Ints, Ints]:
    """Events (U, D) known at 00:00 of each day and of the seven days before it; `new` (U, D) came on the day itself."""
    events = np.zeros(new.shape, np.int64)
    events[:, 1:] = np.cumsum(new, axis=1)[:, :-1]
    week = events.copy()
    week[:, TIER_DAYS:] -= events[:, :-TIER_DAYS]
    return events, week


def decide(q: Floats, events: Ints, rule: Rule) -> Ints:
    """Component of every user at every midnight (U, D), −1 = cold; q (U, D, K), events (U, D)."""
    users, n_days, _ = q.shape
    state = np.full(users, -1, np.int64)
    challenger = np.full(users, -1, np.int64)
    out = np.empty((users, n_days), np.int64)
    every = np.arange(users)
    for day in range(n_days):
        best = q[:, day].argmax(axis=1)
        sure = (q[every, day, best] >= rule.confidence) & (events[:, day] >= rule.min_events)
        lead = q[every, day, best] - q[every, day, np.maximum(state, 0)]
        contest = (state >= 0) & (best != state) & (lead >= LEAD)
        switch = contest & (challenger == best) & sure
        first = (state < 0) & sure
        challenger = np.where(contest & ~switch, best, -1)
        state = np.where(first | switch, best, state)
        out[:, day] = state
    return out
