"""Simulated worlds with planted truth: `dynamix simulate` (docs/method.md C.4, constants in sim_world)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa

from dynamix.errors import ConfigError
from dynamix.features import sim_events, sim_labels, sim_tables
from dynamix.features import sim_world as W
from dynamix.features.sim_world import Floats, Ints, World
from dynamix.features.sources.output import staged_folder, write_config, write_parquet

EVENT_FILES = 4
WORLD_FILE = "world.json"
"""What a world was drawn from, so that it can go on."""
CONFIG: dict[str, object] = {
    "impression_types": ["impression"],
    "click_types": [],
    "conversion_types": ["conversion"],
    "labels": ["conversion"],
    "label_meaning": "simulated ad conversion",
    "attribution": {"click_window": "24h", "view_window": "24h", "join_on": [["item_id"]]},
}


@dataclass(frozen=True)
class WorldFile:
    """What `world.json` states; `weeks` names the mask version that each later week was logged under, "" for none."""

    preset: str
    users: int
    days: int
    seed: int
    first: date
    weeks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Simulation:
    """Everything that was drawn for one world, in memory."""

    world: World
    users: sim_events.Users
    content: sim_events.Content
    impressions: sim_labels.Impressions
    truth: sim_labels.Truth
    conversions: sim_labels.Conversions


@dataclass(frozen=True)
class SimulationSummary:
    """What was written: rows by role; `positives` counts planted labels, `conversions` those before the end."""

    out: Path
    preset: str
    users: int
    days: int
    seed: int
    start: date
    events: int
    content_events: int
    sessions: int
    impressions: int
    positives: int
    conversions: int
    mean_p: float
    null_event_share: float


def simulate(
    out: Path,
    *,
    preset: str = "S0",
    users: int = 20000,
    days: int = 42,
    seed: int = 0,
    start: date = date(2026, 1, 5),
) -> SimulationSummary:
    """Write `out`/events, the truth tables and dynamix.yaml of one world; equal arguments give equal rows.

    The folder appears as a whole or not at all; one written before is replaced. About 100 content events and 20
    impressions a user in 42 days, fewer in proportion for fewer days. `dwell_ms` is left empty on purpose: the
    gap to the next event of the session is the dwell, and the last one is censored. Labels of the last
    24 hours are immature: their conversions lie past the end and are not written.
    Raises ConfigError for an unknown preset, a span outside 1..365 days, or no users.
    """
    drawn = draw(preset=preset, users=users, days=days, seed=seed, start=start)
    events = sim_tables.event_table(
        drawn.world,
        drawn.content,
        drawn.impressions,
        drawn.conversions,
        start=start,
        rng=np.random.default_rng([seed, 6]),
    )
    with staged_folder(out) as folder:
        write_parquet(events, folder / "events", files=EVENT_FILES)
        write_parquet(sim_tables.truth_users(drawn.users), folder / "truth_users")
        write_parquet(sim_tables.truth_cells(drawn.world, drawn.truth), folder / "truth_cells")
        write_parquet(sim_tables.truth_segments(drawn.world), folder / "truth_segments")
        write_parquet(
            sim_tables.truth_impressions(drawn.truth.p, drawn.truth.label), folder / "truth_impressions"
        )
        for name, table in extra_truth(drawn, start=start, days=days).items():
            write_parquet(table, folder / name)
        stated = WorldFile(preset, users, days, seed, start)
        (folder / WORLD_FILE).write_text(
            json.dumps({**asdict(stated), "first": str(start)}), encoding="utf-8"
        )
        write_config(
            CONFIG, folder / "dynamix.yaml", comment=f"simulated world {preset}, seed {seed}, {days} days"
        )
    content, truth = drawn.content, drawn.truth
    null = drawn.world.kind[drawn.users.segment[content.user], content.stream] == "null"
    return SimulationSummary(
        out=out,
        preset=preset,
        users=users,
        days=days,
        seed=seed,
        start=start,
        events=events.num_rows,
        content_events=len(content.user),
        sessions=int(content.censored.sum()),
        impressions=len(truth.p),
        positives=int(truth.label.sum()),
        conversions=len(drawn.conversions.user),
        mean_p=float(truth.p.mean()) if len(truth.p) else 0.0,
        null_event_share=float(null.mean()) if len(null) else 0.0,
    )


def read_world(out: Path) -> WorldFile:
    """What the world in this folder was drawn from. ConfigError (exit 2) where it does not say."""
    file = out / WORLD_FILE
    if not file.is_file():
        raise ConfigError(
            f"--out {out} holds no {WORLD_FILE}, so it cannot go on; simulate a world there first, without --continue"
        )
    tree = json.loads(file.read_text(encoding="utf-8"))
    return WorldFile(**{**tree, "first": date.fromisoformat(tree["first"]), "weeks": tuple(tree["weeks"])})


def extra_truth(drawn: Simulation, *, start: date, days: int) -> dict[str, pa.Table]:
    """Truth tables that only some presets have, by name."""
    world, tables = drawn.world, {}
    if len(world.copies):
        tables["truth_copies"] = sim_tables.truth_copies(world)
    if len(world.swap):
        tables["truth_swaps"] = sim_tables.truth_swaps(world, start=start, days=days)
    if len(world.turned_on):
        tables["truth_turned_on"] = sim_tables.truth_turned_on(world, start=start, days=days)
    if len(world.intent):
        tables["truth_intent"] = sim_tables.truth_intent(world)
    if world.preset.path_rate:
        tables["truth_paths"] = sim_tables.truth_paths(drawn.impressions)
    if world.preset.orthogonal:
        tables["truth_types"] = sim_tables.truth_types(world)
    return tables


def draw(
    *, preset: str = "S0", users: int = 20000, days: int = 42, seed: int = 0, start: date = date(2026, 1, 5)
) -> Simulation:
    """The world in memory; every stage has a generator of its own, so a change in one leaves the others' draws."""
    if users < 1:
        raise ConfigError.bad_value("--users", users, "1 or more")
    if not 1 <= days <= W.MAX_DAYS:
        raise ConfigError.bad_value("--days", days, f"1 to {W.MAX_DAYS}")
    if seed < 0:
        raise ConfigError.bad_value("--seed", seed, "0 or more")
    world = W.draw_world(W.preset_named(preset), np.random.default_rng([seed, 0]))
    return draw_in(world, users=users, days=days, start=start, key=(seed,))


def draw_in(world: World, *, users: int, days: int, start: date, key: tuple[int, ...]) -> Simulation:
    """Users of a given world with all they do; other keys give other users of the same world.

    The mean p and the scale of exposures are those of these users.
    """
    stage = [np.random.default_rng([*key, number]) for number in range(6)]
    people = sim_events.draw_users(world, users, days, stage[1])
    content = sim_events.draw_content(world, people, days, start.weekday(), stage[2])
    imps = sim_labels.draw_impressions(world, content, days, stage[3])
    truth = sim_labels.draw_truth(world, people, content, imps, stage[4], days=days)
    conversions = sim_labels.draw_conversions(content, imps, truth.label, days, stage[5])
    return Simulation(world, people, content, imps, truth, conversions)


def bayes_segments(mix: Floats, share: Floats, counts: Ints) -> tuple[Ints, Floats]:
    """The best possible segment of every user, knowing the planted world: argmax of the true posterior.

    mix (G, F) stream shares (> 0), share (G,) of the users, counts (U, F) content events a user and stream
    -> segment (U,) in 1..G, posterior (U, G). A user without events gets the prior; ties take the smaller
    number. Exact, since a user's events are independent draws from the segment's mix (docs/method.md A.4.3, E step).
    """
    log = np.log(share)[None, :] + counts @ np.log(mix).T  # (U, G)
    log -= log.max(axis=1, keepdims=True)
    posterior = np.exp(log)
    posterior /= posterior.sum(axis=1, keepdims=True)
    return posterior.argmax(axis=1).astype(np.int64) + 1, posterior
