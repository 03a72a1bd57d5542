"""Small planted worlds for the segmenters: users of known kinds as jagged events, and labels that follow slopes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dynamix.segmentation.blocks import INPUT, NEXT
from dynamix.segmentation.jagged import FlatEvents, Jagged, jagged
from dynamix.segmentation.slopes import Evidence

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
N_STREAMS = 4
MIXES = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])


def flat_world(kind: Ints, *, events: int, seed: int = 0, bursts: int = 8, lean: float = 0.0) -> FlatEvents:
    """About `events` events a user in at most `bursts` sessions over two days, one a window; a fifth have no dwell.

    Users of kind 0 have dwells `lean` above the others.
    """
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(len(kind)), rng.poisson(events, len(kind)))
    stream = (rng.random(len(user))[:, None] > np.cumsum(MIXES, axis=1)[kind[user]]).sum(axis=1)
    ts = (rng.integers(bursts, size=len(user)) + 0.3 * rng.random(len(user))) * 2 * 86_400 / bursts
    z = np.where(rng.random(len(user)) < 0.2, np.nan, rng.normal(size=len(user)) + lean * (kind[user] == 0))
    dwell_bin = np.where(np.isnan(z), 12, np.clip(np.nan_to_num(z) * 2 + 5, 0, 11)).astype(np.int64)
    part = np.where(ts < 86_400, INPUT, NEXT)
    return FlatEvents(user, ts, stream.astype(np.int64), dwell_bin, z, part)


def ids(n: int) -> pa.Array:
    """n user ids."""
    return pa.array([f"user-{i:05d}" for i in range(n)])


def planted(users: int = 600, *, events: int = 40, seed: int = 0, bursts: int = 8) -> tuple[Jagged, Ints]:
    """Users of three kinds (50, 30, 20 %) and who is of which."""
    kind = np.random.default_rng(seed + 1).choice(3, size=users, p=[0.5, 0.3, 0.2]).astype(np.int64)
    flat = flat_world(kind, events=events, seed=seed, bursts=bursts)
    return jagged(flat, users=ids(users), n_streams=N_STREAMS), kind


def labelled(kind: Ints, slopes: Floats, *, rows: int = 20, seed: int = 0) -> Evidence:
    """`rows` impressions a user whose label has the slopes (K, F) of its user's kind on normal exposures."""
    rng = np.random.default_rng(seed + 2)
    user = np.repeat(np.arange(len(kind)), rows)
    x = rng.normal(size=(len(user), slopes.shape[1]))
    p = 1 / (1 + np.exp(-(x * slopes[kind[user]]).sum(axis=1)))
    return Evidence(user, x, (rng.random(len(user)) < p).astype(np.float64), np.full(len(user), 0.5))
