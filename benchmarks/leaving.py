"""How soon users leave segment 0, without Spark: `python -m benchmarks leaving [--users 12000] [--seeds 0-4]`.

On S6, where most users are cold: the share of users who have a segment of their own at one of the three midnights after
their fifteenth event, under the fitted mixture, and under the planted one, which no segmenter can beat on these events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from benchmarks.segment_worlds import dwell_bins
from dynamix.config import SegmentationConfig
from dynamix.contracts import N_DWELL_BINS
from dynamix.features import sim_events
from dynamix.features import sim_world as W
from dynamix.segmentation.assign import assigned
from dynamix.segmentation.blocks import INPUT, NEXT, OTHER, CountBlock
from dynamix.segmentation.jagged import Floats, Ints
from dynamix.segmentation.midnights import Rule
from dynamix.segmentation.mix import fit_mixture
from dynamix.segmentation.mixture import Mixture

PRESET, DAYS, INPUT_DAYS, NEXT_DAYS = "S6", 42, (15, 21), (22, 26)
WITHIN_DAYS = 3
AIM = 0.8


@dataclass(frozen=True)
class Left:
    """Of `users` whose fifteenth event lies early enough: the share with a segment in time, of these in the right one."""

    users: int
    share: float
    right: float
    k: int


def left_in_time(component: Ints, events: Ints, rule: Rule) -> tuple[Ints, Ints]:
    """Users (V,) with enough events at a midnight that WITHIN_DAYS follow, and their component by then, -1 = none."""
    enough = events >= rule.min_events
    first = np.where(enough.any(axis=1), enough.argmax(axis=1), events.shape[1])
    seen = np.flatnonzero(first + WITHIN_DAYS < events.shape[1])
    return seen, component[seen, first[seen] + WITHIN_DAYS]


def counts_of(content: sim_events.Content, users: int, *, bins: bool) -> CountBlock:
    """Events of every day per user and cell; days count from 0, windows are those of the calendar of 42 days."""
    day = content.ts_ms // W.DAY_MS
    cell = content.stream * N_DWELL_BINS + dwell_bins(content) if bins else content.stream
    width = W.N_STREAMS * (N_DWELL_BINS if bins else 1)
    key, n = np.unique((content.user * DAYS + day) * width + cell, return_counts=True)
    slot, own = np.divmod(key, width)
    user, at = np.divmod(slot, DAYS)
    part = np.full(len(key), OTHER, np.int64)
    for window, (first, last) in ((INPUT, INPUT_DAYS), (NEXT, NEXT_DAYS)):
        part[(at >= first - 1) & (at < last)] = window
    return CountBlock(pa.array([f"u{i:07d}" for i in range(users)]), user, at, part, own, n.astype(np.int64))


def share_left(users: int, seed: int, config: SegmentationConfig) -> dict[str, Left]:
    """Both mixtures on one world."""
    stage = [np.random.default_rng([seed, number]) for number in range(3)]
    world = W.draw_world(W.preset_named(PRESET), stage[0])
    people = sim_events.draw_users(world, users, DAYS, stage[1])
    content = sim_events.draw_content(world, people, DAYS, 0, stage[2])
    rule = Rule.of(config, active_from=0.0)
    seen_by_fit = counts_of(content, users, bins=config.dwell_bins)
    fitted = fit_mixture(seen_by_fit, n_streams=W.N_STREAMS, config=config).mixture
    planted = Mixture(np.log(world.mix), np.log(np.asarray(W.SEGMENT_SHARES)))
    blocks = (("planted", planted, counts_of(content, users, bins=False)), ("mix", fitted, seen_by_fit))
    found = {}
    for name, mixture, counts in blocks:
        _, component, events, _ = assigned(counts, mixture, rule, DAYS + 1)
        seen, own = left_in_time(component, events, rule)
        found[name] = Left(
            len(seen), float((own >= 0).mean()), agreement(own, people.segment[seen]), mixture.k
        )
    return found


def agreement(component: Ints, truth: Ints) -> float:
    """Share of the assigned users whose component holds mostly users of their planted segment; NaN without any."""
    there = component >= 0
    if not there.any():
        return float("nan")
    table: Floats = np.zeros((int(component.max()) + 1, int(truth.max()) + 1))
    np.add.at(table, (component[there], truth[there]), 1.0)
    return float(table.max(axis=1).sum() / table.sum())


def main(*, users: int, seeds: Sequence[int]) -> None:
    """Print a line a seed and mixture."""
    config = SegmentationConfig()
    print(
        f"{PRESET}, {users:,} users; with a segment within {WITHIN_DAYS} days of {config.min_events} events:"
    )
    for seed in seeds:
        for name, x in share_left(users, seed, config).items():
            verdict = "met" if x.share >= AIM else "missed"
            print(
                f"seed {seed}, {name} mixture, K {x.k}: {x.share:.3f} of {x.users:,} users (aim {AIM}: {verdict}), "
                f"{x.right:.3f} of them in the right one",
                flush=True,
            )
