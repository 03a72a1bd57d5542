"""What the log of a simulated world keeps where logging depends on the mask (preset S5, docs/method.md C.4, E4).

A log that stores what the ranker reads loses what a mask drops: from then on nobody under the mask shows whether the
stream matters. Labels are drawn from all that happened, logged or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from dynamix.features import sim_world as W
from dynamix.features.sim_events import Content
from dynamix.features.sim_labels import Impressions
from dynamix.features.sim_world import Bools, Ints


@dataclass(frozen=True)
class Served:
    """A mask in force from day `start` to before day `end` of the world: dropped (G, F) by planted segment."""

    start: int
    end: int
    dropped: Bools


def unlogged(content: Content, *, segment: Ints, holdout: Bools, masks: Iterable[Served]) -> Bools:
    """Which content events (N,) are left out: of a stream that the mask in force drops for the user's segment.

    segment (U,) 0..G-1, holdout (U,): users who are under no mask.
    """
    gone = np.zeros(len(content.user), bool)
    for mask in masks:
        during = (content.ts_ms >= mask.start * W.DAY_MS) & (content.ts_ms < mask.end * W.DAY_MS)
        gone |= during & mask.dropped[segment[content.user], content.stream]
    return gone & ~holdout[content.user]


def thinned(content: Content, imps: Impressions, gone: Bools) -> tuple[Content, Impressions]:
    """The content events that are logged, and the impressions on them; gone (N,).

    Dwells are those that happened, as a client logs them, whether or not the next event is there. The event on
    screen of an impression is the newest one that is left.
    """
    keep = np.flatnonzero(~gone)
    counts = np.bincount(content.user[keep], minlength=len(content.first) - 1)
    left = replace(
        content,
        **{
            name: getattr(content, name)[keep]
            for name in ("user", "stream", "item", "ts_ms", "dwell_ms", "session", "censored", "z", "intent")
        },
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )
    newest = np.maximum(np.cumsum(~gone) - 1, 0)
    return left, replace(imps, anchor=newest[imps.anchor])
