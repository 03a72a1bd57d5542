"""The life of a mask on worlds that drift, window by window, without Spark: `python -m benchmarks drift [--seeds 0,1]`.

A world of 84 days that turns on day 42. The mask published on that day was right until then: it drops every null and
trace cell, as those before it did. Each week the product's watch (segmentation/life.py) reads the newest two windows
of the log, and what it brings back is kept from that day on; the log of S5 has never held what these masks drop. The
hold-out users of the world are all there; of the users under the mask there is a sample, so their statistics are
weaker than they would be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from time import perf_counter

import numpy as np
import numpy.typing as npt

from benchmarks.gates import SETTINGS, Gate
from benchmarks.gates_sums import statistics_of, world_sums
from benchmarks.gates_world import START, histories, pipeline_dwells, world_config
from dynamix.config import MaskConfig
from dynamix.errors import ConfigError
from dynamix.features import sim_world as W
from dynamix.features.calendar import Calendar, Period, build_calendar, midnight
from dynamix.features.quotas import HOLDOUT_PER_MILLE
from dynamix.features.sim_log import Served, thinned, unlogged
from dynamix.features.simulate import Simulation, draw_in
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.life import EXPIRED, HARMFUL, UNDER_THE_MASK, Watch, watch

Bools = npt.NDArray[np.bool_]

DAYS, TURN = 84, 42
PRESETS = ("S4", "S5", "S0")
HOLDOUT_USERS, USERS = 1_500, 1_500
"""All hold-out users of a world of 100,000, and of the users under the mask as many as fit in a minute."""
LIMIT = 2
"""Windows within which a stream has to be back and an obsolete mask has to be gone (docs/method.md C.4)."""
WATCHES = 3
"""In a world that turns: one more than the gates allow; of a broken variant as many as they allow."""
FALSE_SHARE = 0.01
"""Of the dropped cells a watch looks at, those that it may bring back in a world where nothing turned on."""


def newest_windows(calendar: Calendar, config: MaskConfig) -> Period:
    """The two windows before the run date: what the product's watch reads."""
    end = calendar.test.end
    return Period(end - 2 * timedelta(days=config.window_days), end)


def statistics_period(calendar: Calendar, config: MaskConfig) -> Period:
    """The period that a refit reads, two to five weeks old."""
    return calendar.statistics


def everyone_alike(statistics: Statistics) -> Statistics:
    """The statistics as they are."""
    return statistics


def no_hold_out(statistics: Statistics) -> Statistics:
    """Those of the users under the mask alone (docs/method.md E4)."""
    return Statistics(
        {key: sums for key, sums in statistics.sums.items() if key[3] == UNDER_THE_MASK}, statistics.heads
    )


@dataclass(frozen=True)
class Variant:
    """What a watch reads; world and gate: where a broken one has to fail."""

    name: str
    world: str = ""
    gate: str = ""
    period: Callable[[Calendar, MaskConfig], Period] = newest_windows
    statistics: Callable[[Statistics], Statistics] = everyone_alike


SOUND = Variant("as it is")
BROKEN = (
    Variant("no hold-out", "S5", "restored", statistics=no_hold_out),
    Variant("statistics of the refit", "S4", "retired", period=statistics_period),
)


@dataclass(frozen=True)
class Replay:
    """The watches over one mask in one world: (day, what it said) in order, and what it had to find.

    dropped (G, F) when it was published; wanted: cells that became relevant at the turn.
    """

    preset: str
    seed: int
    variant: str
    watches: tuple[tuple[int, Watch], ...]
    dropped: Bools
    wanted: frozenset[Cell]

    def windows_until(self, day: int | None, *, since: int) -> int | None:
        """Whole windows from one day to another."""
        return None if day is None else -(-(day - since) // WINDOW)

    @property
    def restored(self) -> int | None:
        """Windows from the turn until every wanted cell is back."""
        left = set(self.wanted)
        for day, said in self.watches:
            left -= said.restored.keys()
            if not left:
                return self.windows_until(day, since=TURN)
        return None

    def retired(self, state: str, *, since: int = TURN) -> int | None:
        """Windows from a day until the mask is found to be in that state."""
        found = (day for day, said in self.watches if said.state == state)
        return self.windows_until(next(found, None), since=since)

    @property
    def false(self) -> int:
        """Cells brought back that did not become relevant."""
        return sum(len(said.restored.keys() - self.wanted) for _, said in self.watches)

    @property
    def looks(self) -> int:
        """Dropped cells × watches."""
        return int(self.dropped.sum()) * len(self.watches)


WINDOW = MaskConfig().window_days


# --- gates


def restored(r: Replay) -> Gate:
    """The stream that became relevant is back in every segment within LIMIT windows."""
    return Gate("restored", r.restored is not None and r.restored <= LIMIT, _windows(r.restored))


def retired(r: Replay) -> Gate:
    """The mask that became harmful is retired within LIMIT windows."""
    found = r.retired(HARMFUL)
    return Gate("retired", found is not None and found <= LIMIT, _windows(found))


def expired(r: Replay) -> Gate:
    """Where nothing drifts, the mask is in force until its time is over, and gone within LIMIT windows of that day."""
    due = TURN + MaskConfig().ttl_days
    found, early = r.retired(EXPIRED, since=due), r.retired(HARMFUL)
    passed = early is None and found is not None and 0 <= found <= LIMIT
    return Gate("expired", passed, f"{_windows(found)} after its time, harmful before {_windows(early)}")


def quiet(r: Replay) -> Gate:
    """At most FALSE_SHARE of what is looked at comes back without having become relevant."""
    return Gate("quiet", r.false <= FALSE_SHARE * r.looks, f"{r.false} of {r.looks}")


def _windows(found: int | None) -> str:
    return "never" if found is None else f"{found} windows"


GATES: dict[str, tuple[Callable[[Replay], Gate], ...]] = {
    "S4": (restored, retired, quiet),
    "S5": (restored, retired, quiet),
    "S0": (expired, quiet),
}


# --- the replay


def drawn_world(
    preset: str, *, seed: int, users: int = USERS, holdout: int = HOLDOUT_USERS
) -> tuple[Simulation, Bools]:
    """The world and which of its users are hold-out users: the first ones, since users are drawn in no order."""
    world = W.draw_world(W.preset_named(preset), np.random.default_rng([seed, 0]))
    drawn = draw_in(world, users=users + holdout, days=DAYS, start=START, key=(seed,))
    return drawn, np.arange(users + holdout) < holdout


def replay(drawn: Simulation, holdout: Bools, *, seed: int, variant: Variant, config: MaskConfig) -> Replay:
    """One watch a window from the turn on, until nothing is left to be found."""
    world = drawn.world
    dropped = np.isin(world.kind, ("null", "trace"))
    turned = np.concatenate([world.swap[1:], world.turned_on])
    wanted = frozenset((g + 1, world.streams[f]) for g in range(W.N_SEGMENTS) for f in turned)
    in_force, served = dropped.copy(), [Served(0, TURN, dropped)]
    watches: list[tuple[int, Watch]] = []
    result = Replay(world.preset.name, seed, variant.name, (), dropped, wanted)
    for day in range(TURN + config.window_days, DAYS + 1, config.window_days):
        served.append(Served(day - config.window_days, day, in_force.copy()))
        statistics = _read(drawn, holdout, served, variant, day=day, config=config)
        said = watch(statistics, _cells(world, in_force), age_days=day - TURN, config=config)
        watches.append((day, said))
        for segment, stream in said.restored:
            in_force[segment - 1, world.streams.index(stream)] = False
        result = replace(result, watches=tuple(watches))
        over = result.restored is not None and result.retired(HARMFUL) is not None
        over = over or (variant is not SOUND and len(watches) == LIMIT)
        if said.state == EXPIRED or over or (wanted and len(watches) == WATCHES):
            break
    return result


def _cells(world: W.World, dropped: Bools) -> list[Cell]:
    return [(int(g) + 1, world.streams[f]) for g, f in np.argwhere(dropped)]


def _read(
    drawn: Simulation, holdout: Bools, served: Sequence[Served], variant: Variant, *, day: int, config: MaskConfig
) -> Statistics:  # fmt: skip
    """What the watch of that day reads: the log of S5 lacks what masks dropped, the other logs are whole."""
    if drawn.world.preset.turn_on:
        gone = unlogged(drawn.content, segment=drawn.users.segment, holdout=holdout, masks=served)
        content, imps = thinned(drawn.content, drawn.impressions, gone)
        drawn = replace(drawn, content=content, impressions=imps)
    calendar = build_calendar(START + timedelta(days=day), first_event=midnight(START))
    calendar = replace(calendar, statistics=variant.period(calendar, config))
    whole = world_config()
    made = histories(drawn, days=day, config=whole, calendar=calendar, half=holdout.astype(np.int64))
    sums = world_sums(made, pipeline_dwells(drawn, whole, calendar))
    return variant.statistics(statistics_of(sums, drawn.world.streams))


# --- the table


def main(presets: Sequence[str], *, seeds: Sequence[int], settings: Sequence[str] = SETTINGS) -> None:
    """Print the watches and gates of every preset and seed, then which broken variants were noticed."""
    for name in presets:
        if name not in GATES:
            raise ConfigError.unknown_version("preset with a gate of drift", name, list(GATES))
    config = world_config(*settings).mask
    world = HOLDOUT_USERS * 1000 // HOLDOUT_PER_MILLE
    print(
        f"{HOLDOUT_USERS:,} hold-out users of a world of {world:,}, {USERS:,} under the mask, {DAYS} days, turn on day "
        f"{TURN}, delta {config.delta:g}, budget {config.ne_budget:.2%}"
    )
    flags: dict[tuple[str, str, str], list[bool]] = {}
    for seed in seeds:
        for preset in presets:
            drawn, holdout = drawn_world(preset, seed=seed)
            for variant in (SOUND, *(v for v in BROKEN if v.world == preset)):
                start = perf_counter()
                r = replay(drawn, holdout, seed=seed, variant=variant, config=config)
                results = [gate(r) for gate in GATES[preset]]
                for g in results:
                    flags.setdefault((variant.name, preset, g.name), []).append(g.passed is True)
                print(_line(r, results, perf_counter() - start), flush=True)
    print("\nseeds that pass")
    for (variant_name, preset, gate_name), passed in flags.items():
        print(f"  {variant_name:24} {preset:4} {gate_name:9} {sum(passed)} of {len(passed)}")


def _line(r: Replay, results: Sequence[Gate], seconds: float) -> str:
    words = {True: "pass", False: "FAIL"}
    gates = "; ".join(f"{g.name} {words[g.passed is True]} ({g.said})" for g in results)
    said = " | ".join(f"day {day}: {w.reason}" for day, w in r.watches)
    return f"{r.preset} seed {r.seed}, {r.variant}: {gates}; {seconds:.0f} s\n    {said}"
