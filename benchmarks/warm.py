"""A mask is switched on under a live ranker: `python -m benchmarks warm [--presets S0] [--users 1500] [--seeds 2]`.

A simulated world with its planted segments. A ranker learns from whole histories; at 00:00 of the first test day
the mask that is right by the planted truth begins to cut them. Seven days follow. On each the ranker of that morning is
judged on the day's rows, and it has learned only from rows whose labels were mature by then. NE is expected under the
planted probabilities. The arms differ in what the ranker learns and in who is under the mask:

    still        nothing more                                  everyone
    daily        goes on with each day's rows, one pass        everyone
    window       goes on with the rows that `cold` has         everyone
    cold         begins anew on the weeks before, as masked    everyone
    ramp         as daily, knows each row's mask version       10 % of users, from the third day 50 %, from the fifth all
    ramp-blind   as ramp, without the version                  as ramp
    unmasked     as daily                                      nobody: what the switch itself costs
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.headline_arms import Bools, Ints, limits_for, row_of, within
from benchmarks.headline_masks import oracle
from benchmarks.headline_table import interval
from benchmarks.headline_world import keep_all_files, main_head, true_probabilities, used_rows
from benchmarks.worlds import SETTINGS, for_all_time
from dynamix.config import Config, TrainConfig, load_config
from dynamix.contracts import PARTS
from dynamix.features.calendar import DAY_US
from dynamix.features.simulate import simulate
from dynamix.features.tables import Warehouse
from dynamix.jobs.context import Run, new_run_id
from dynamix.jobs.run import execute
from dynamix.jobs.session import get_spark
from dynamix.jobs.verbs import latest_run_date
from dynamix.models.contest import Floats
from dynamix.models.dataset import JaggedRows, load_rows
from dynamix.models.evidence import Scored, compare, ne_interval
from dynamix.models.ranker import Ranker, RankerConfig
from dynamix.models.train import ArmSpec, predict, ranker_config, train_arm
from dynamix.models.warm import WarmStart

DAYS = 7
WORLD_DAYS = 48
"""Test days are a sixth of them, from a midnight on; the last has no mature label, which leaves seven."""
LAG_DAYS = 1
"""Labels of a day are mature a day after it (24 h of attribution)."""
VALIDATE_DAYS = 5
"""Of the window of `cold`: the newest, by which the pass is chosen."""
RAMP = ((0, 10), (2, 50), (4, 100))
"""From a day of the switch on, the percentage of users under the mask."""
TRAIN = {
    "epochs": 2,
    "min_steps": 150,
    "batch_size": 256,
    "threads": 1,
    "device": "cpu",
    "item_buckets": 5_000,
}
NEW = " under the mask"


@dataclass(frozen=True)
class World:
    """Keep-all rows outside the hold-out, what the mask leaves of their events (N,), and planted p (R,).

    `n_streams` and `n_segments` size the ranker; the segments are the planted ones.
    """

    name: str
    rows: JaggedRows
    kept: Bools
    true_p: Floats
    config: TrainConfig
    head: str
    n_streams: int
    n_segments: int

    @property
    def day(self) -> Ints:
        """Day of each row (R,), 0 = that of the switch."""
        first = int(self.rows.event_us[self.rows.part == PARTS.index("test")].min()) // DAY_US
        return self.rows.event_us // DAY_US - first

    def masked(self, under: Bools) -> JaggedRows:
        """The rows, those in `under` (R,) with the histories that the mask leaves."""
        return self.rows.keep_events(self.kept | ~under[row_of(self.rows)])


@dataclass(frozen=True)
class Arm:
    """Who is under the mask by day, what each morning learns, and whether rows name their mask version."""

    percent: Callable[[int], int]
    learns: str  # nothing | day | window | anew
    version: bool = False


def ramp(day: int) -> int:
    """Percentage of users under the mask on a day of the switch."""
    return max((percent for since, percent in RAMP if since <= day), default=0)


def everyone(day: int) -> int:
    """The mask for all from the first day on."""
    return 100


ARMS: Mapping[str, Arm] = {
    "still": Arm(everyone, "nothing"),
    "daily": Arm(everyone, "day"),
    "window": Arm(everyone, "window"),
    "cold": Arm(everyone, "anew"),
    "ramp": Arm(ramp, "day", version=True),
    "ramp-blind": Arm(ramp, "day"),
    "unmasked": Arm(lambda day: 0, "day"),
}
BASE = "cold"


def main(presets: Sequence[str], folder: Path, *, users: int, seeds: int) -> None:
    """Print one table a world and write warm.json into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for preset in presets:
        world = load(preset, folder, users=users)
        judged = by_arm(world, list(ARMS), seeds)
        found[preset] = lines = compared(world, judged)
        print("\n".join(table(world, lines, seeds)), flush=True)
        (folder / "warm.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def load(preset: str, folder: Path, *, users: int) -> World:
    """The world of a preset: simulated, ingested and joined to its histories where that has not been done."""
    place = folder / f"{preset}-{users}-{WORLD_DAYS}"
    events, facts = place / "world", place / "facts.json"
    if not (events / "dynamix.yaml").is_file():
        simulate(events, preset=preset, users=users, days=WORLD_DAYS, seed=0)
    config = load_config(files=[events / "dynamix.yaml"], settings=(*SETTINGS, f"calendar.days={WORLD_DAYS}"))
    if not facts.is_file():
        facts.write_text(json.dumps(_through_spark(config, events, place / "warehouse")))
    told = json.loads(facts.read_text(encoding="utf-8"))
    train = config.train.model_copy(update=TRAIN)
    rows = used_rows(
        load_rows(told["files"], heads=config.heads(), item_buckets=train.item_buckets), max_rows=0
    )
    cells = pd.read_parquet(events / "truth_cells")
    cuts, small = oracle(cells, rows, rows.segment, told["ids"], delta=config.mask.delta)
    kept = within(rows, rows.segment, limits_for(rows, rows.segment, cuts[:small], None))
    head = main_head(config)
    return World(
        preset, rows, kept, true_probabilities(rows, head, events / "truth_impressions"), train, head,
        n_streams=1 + max(told["ids"].values()), n_segments=1 + int(rows.segment.max()),
    )  # fmt: skip


def _through_spark(config: Config, events: Path, warehouse: Path) -> dict[str, Any]:
    """Files of the keep-all rows under the planted segments, and stream ids by name."""
    spark, place = get_spark(), Warehouse(warehouse)
    run = Run(spark, place, config, latest_run_date(spark, place, config, str(events)), new_run_id())
    for verb in ("ingest", "features"):
        execute(run, verb, skip=True, source=str(events) if verb == "ingest" else None)
    users = pd.read_parquet(events / "truth_users").rename(columns={"segment": "segment_id"})
    files = keep_all_files(run, for_all_time(spark, users))
    streams = run.warehouse.read(spark, "streams").select("stream", "stream_id").collect()
    return {"files": files, "ids": {str(r["stream"]): int(r["stream_id"]) for r in streams}}


def by_arm(world: World, names: Sequence[str], seeds: int) -> dict[str, Floats]:
    """Probabilities (S, R) by arm: every arm of a seed begins from the same ranker."""
    found: dict[str, list[Floats]] = {name: [] for name in names}
    for seed in range(seeds):
        begun = champion(world, seed)
        for name in names:
            say(f"warm: {world.name} seed {seed}, {name}")
            found[name].append(lived(world, ARMS[name], begun, seed))
    return {name: np.stack(each) for name, each in found.items()}


def champion(world: World, seed: int) -> Ranker:
    """The ranker that serves when the mask is switched on: it has learned from whole histories."""
    return _trained(world, world.masked(np.zeros(len(world.rows), bool)), _window(world, 0), None, seed)


def lived(world: World, arm: Arm, ranker: Ranker, seed: int) -> Floats:
    """Probability of every row of the seven days (R,), NaN elsewhere, each by the ranker of its day's morning."""
    under = _under(world, arm)
    served = world.masked(under)
    past = world.masked(np.ones(len(world.rows), bool))  # a mask can be laid on all history
    if arm.version:
        served, ranker = told_apart(served, under), knows_versions(ranker)
    p = np.full(len(world.rows), np.nan)
    for day in range(DAYS):
        if arm.learns == "day":
            ranker = _trained(world, served, _newest_day(world, day), ranker, seed)
        elif arm.learns == "window":
            ranker = _trained(world, past, _window(world, day), ranker, seed)
        elif arm.learns == "anew":
            ranker = _trained(world, past, _window(world, day), None, seed)
        today = np.flatnonzero(world.day == day)
        p[today] = predict(ranker, served.take(today), batch_size=4096)[world.head]
    return p


def _under(world: World, arm: Arm) -> Bools:
    """Rows under the mask (R,): of the days from the switch on, those of the users that it holds for by then."""
    share = (world.rows.user.view(np.uint64) % np.uint64(100)).astype(np.int64)
    percent = np.array([arm.percent(int(d)) if d >= 0 else 0 for d in world.day])
    return np.asarray(share < percent)


def _newest_day(world: World, day: int) -> Ints:
    """Rows of the newest day with mature labels; before the switch there is none to go on with."""
    learned = day - 1 - LAG_DAYS
    return _parts(world, (world.day == learned) & (world.day >= 0))


def _window(world: World, day: int) -> Ints:
    """The weeks before a day as far as labels are mature, the newest days to choose the pass by."""
    known = world.day < day - LAG_DAYS
    newest = known & (world.day >= day - LAG_DAYS - VALIDATE_DAYS)
    return _parts(world, known & ~newest, newest)


def _parts(world: World, train: Bools, validate: Bools | None = None) -> Ints:
    """Part of every row (R,): train, validate, or test for rows that this training does not see."""
    part = np.full(len(world.rows), PARTS.index("test"), np.int64)
    part[train] = PARTS.index("train")
    if validate is not None:
        part[validate] = PARTS.index("validate")
    return part


def _trained(world: World, rows: JaggedRows, part: Ints, start: Ranker | None, seed: int) -> Ranker:
    """A ranker from these parts of the rows; one that goes on makes one pass, and none where there are no rows."""
    if not (part == PARTS.index("train")).any():
        assert start is not None
        return start
    config = world.config if start is None else world.config.model_copy(update={"epochs": 1, "min_steps": 1})
    begin = None if start is None else WarmStart(start, {}, "of yesterday")
    own = replace(rows, part=part.astype(np.int8))
    spec = ArmSpec("warm", "benchmark", seed)
    return train_arm(spec, own, model_config=_shape(world, own), config=config, start=begin).model


def _shape(world: World, rows: JaggedRows) -> RankerConfig:
    return ranker_config(rows, n_streams=world.n_streams, n_segments=world.n_segments, config=world.config)


def told_apart(rows: JaggedRows, under: Bools) -> JaggedRows:
    """The rows with the mask version in their surface: rows in `under` (R,) have one of their own for each surface."""
    names = rows.surfaces
    own = np.where(under & (rows.surface > 0), rows.surface + len(names), rows.surface)
    return replace(rows, surface=own, surfaces=(*names, *(name + NEW for name in names)))


def knows_versions(ranker: Ranker) -> Ranker:
    """The ranker for such rows; until it learns more it predicts as before, whatever the version."""
    old = ranker.config
    names = (*old.surfaces, *(name + NEW for name in old.surfaces))
    grown = Ranker(replace(old, surfaces=names, trunk=replace(old.trunk, n_surfaces=1 + len(names))))
    WarmStart(ranker, {}, "itself").begin(grown)
    known = len(old.surfaces)
    with torch.no_grad():
        weight = grown.trunk.surface.weight
        weight[1 + known :] = weight[1 : 1 + known].clone()
    return grown


def compared(world: World, judged: Mapping[str, Floats]) -> list[dict[str, Any]]:
    """NE of every arm on the seven days and each of them, and the paired difference to the base on all."""
    days = world.day
    every = np.flatnonzero((days >= 0) & (days < DAYS))
    replicates = world.config.bootstrap
    base = _scored(world, judged[BASE], every)
    found = []
    for name, p in judged.items():
        own = _scored(world, p, every)
        ne, low, high = ne_interval(own, replicates=replicates)
        by_day = [
            ne_interval(_scored(world, p, np.flatnonzero(days == d)), replicates=1)[0] for d in range(DAYS)
        ]
        delta = compare(own, base, replicates=replicates)
        found.append({
            "arm": name, "ne": ne, "low": low, "high": high, "days": by_day, "delta": delta.delta_ne_pct,
            "delta_low": delta.low, "delta_high": delta.high,
        })  # fmt: skip
    return found


def _scored(world: World, p: Floats, at: Ints) -> Scored:
    """Predictions (S, R) of the rows `at` against the planted probabilities."""
    rows = world.rows
    return Scored(p[:, at], world.true_p[at], rows.user[at], rows.request[at], rows.weight[at].astype(float))


def table(world: World, lines: Sequence[Mapping[str, Any]], seeds: int) -> list[str]:
    """Markdown: one line an arm."""
    rows, days = world.rows, world.day
    judged = int(((days >= 0) & (days < DAYS)).sum())
    found = [
        f"\n### {world.name}: {int((days < 0).sum()):,} rows before the switch, {judged:,} on {DAYS} days after it, "
        f"{len(np.unique(rows.user)):,} users, {rows.tokens_per_row:.1f} tokens a row, of which the mask keeps "
        f"{world.kept.mean():.1%}; {seeds} seeds; NE of {world.head} expected under the planted p\n",
        "| arm | NE [95 %] | ΔNE % to cold [95 %] | "
        + " | ".join(f"day {d + 1}" for d in range(DAYS))
        + " |",
        "|---" * (3 + DAYS) + "|",
    ]
    for x in lines:
        delta = "0" if x["arm"] == BASE else interval(x["delta"], x["delta_low"], x["delta_high"])
        by_day = " | ".join(f"{ne:.4f}" for ne in x["days"])
        found.append(f"| {x['arm']} | {x['ne']:.4f} [{x['low']:.4f}, {x['high']:.4f}] | {delta} | {by_day} |")
    return found


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
