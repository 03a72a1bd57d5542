"""What a dropped set of cells costs a ranker that reads the log: only what the histories tell of the planted effects.

`benchmarks/gates_loss.py` counts an effect as lost even where no model could have used it: that of a habit which is
known from a few events only, or of a dwell that the end of a session hides. Here both sides know the events of the
history and nothing else: the six channels of every stream and those of its buckets of recency.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.gates_loss import Bools, Loss
from benchmarks.gates_world import EXPECTED, Dwells, F, Floats, G, Histories, event_block
from dynamix.contracts import CHANNELS
from dynamix.features.exposure import OWN, exposure_block
from dynamix.features.recency import BUCKETS, SHARED, recency_block
from dynamix.features.relevance import history_values, logit
from dynamix.models.metrics import entropy

EACH = len(CHANNELS) + BUCKETS * len(OWN)
"""Values of a stream."""
GIVEN = SHARED + 1
"""Values that every impression has whatever is dropped: those shared by all streams, and 1."""
WIDTH = GIVEN + F * EACH
_RIDGE = 1e-3
"""Of each value's own information, so that values which say the same share what they say."""


@dataclass(frozen=True)
class Told:
    """Mergeable sums by segment id (G + 1) and half of the users (2) over the W = GIVEN + F · EACH values x.

    n and p: impressions and their summed planted p (G + 1, 2); information = Σ v x xᵀ (G + 1, 2, W, W) and cross =
    Σ v x η_fᵀ (G + 1, 2, W, F) with v = p (1 − p) and η_f what stream f adds to the log-odds.
    """

    n: Floats
    p: Floats
    information: Floats
    cross: Floats

    def __add__(self, other: Told) -> Told:
        return Told(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def told_sums(made: Histories, dwells: Dwells, parts: npt.NDArray[np.float32]) -> Told:
    """The sums of a world whose dwells are known as given; parts (B, F): what each stream adds to the log-odds."""
    sizes = ((), (), (WIDTH, WIDTH), (WIDTH, F))
    total = Told(*(np.zeros((G + 1, 2, *size)) for size in sizes))
    for block in made.blocks:
        events, asked = event_block(made.drawn, block.events, dwells), block.asked
        of = (block.offsets, block.index)
        given = logit(made.prediction.of(asked.frame, EXPECTED))
        shared = np.column_stack([history_values(events, asked, *of), given, np.ones(len(given))])
        channels = exposure_block(events, asked, *of, n_streams=F)
        buckets = recency_block(events, asked, *of, n_streams=F)[0].reshape(len(given), F, -1)
        x = np.concatenate(
            [shared, np.concatenate([channels, buckets], axis=2).reshape(len(given), -1)], axis=1
        )
        p, segment, half = (
            asked.frame.column(name).to_numpy() for name in (f"label_{EXPECTED}", "segment_id", "half")
        )
        for own, side in np.unique(np.stack([segment, half]), axis=1).T:
            mine = np.flatnonzero((segment == own) & (half == side))
            weighted = x[mine] * (p[mine] * (1 - p[mine]))[:, None]
            total.n[own, side] += len(mine)
            total.p[own, side] += p[mine].sum()
            total.information[own, side] += weighted.T @ x[mine]
            total.cross[own, side] += weighted.T @ parts[block.rows][mine].astype(np.float64)
    return total


def told_loss(sums: Told, dropped: Bools) -> Loss:
    """Relative NE lost by the drops (G + 1, F) of what the histories tell; in units of the base rate's entropy.

    The dropped streams' part of the log-odds is fitted on one half of the users and judged on the other, from all
    values and from those of kept streams; what the first explains more is what goes: Σ v (t̂² − t̂_kept²)/2 nats, log
    loss to second order. What a kept copy tells is not lost.
    """
    lost, total = np.zeros(len(dropped)), 0.0
    for segment in np.flatnonzero(dropped.any(axis=1) & (sums.n > 0).all(axis=1)):
        kept = np.ones(WIDTH, bool)
        kept[GIVEN:] = np.repeat(~dropped[segment], EACH)
        goal = sums.cross[segment][:, :, dropped[segment]].sum(axis=2)
        information = sums.information[segment]
        by_all, by_kept = (explained(information, goal, use) for use in (np.ones(WIDTH, bool), kept))
        nats = max(by_all - by_kept, 0.0)
        n = float(sums.n[segment].sum())
        lost[segment] = nats / (n * entropy(float(sums.p[segment].sum()) / n))
        total += nats
    n = float(sums.n.sum())
    return Loss(total / (n * entropy(float(sums.p.sum()) / n)) if n else 0.0, lost)


def explained(information: Floats, goal: Floats, use: Bools) -> float:
    """Nats that the values in use explain of the goal (2, W), each half judged by what the other teaches; at least 0.

    Values that tell nothing are left alone: fitted to noise they would explain less than nothing.
    """
    columns, found = np.flatnonzero(use), 0.0
    for half in (0, 1):
        own, other = (information[side][np.ix_(columns, columns)] for side in (half, 1 - half))
        ridge = np.diag(_RIDGE * np.diag(own) + 1e-9)
        theta = np.linalg.solve(own + ridge, goal[half][columns])
        found += float(theta @ goal[1 - half][columns] - 0.5 * theta @ other @ theta)
    return max(found, 0.0)
