"""Further weeks of a simulated world: `dynamix simulate --out DIR --continue [--masks W]`.

The same users go on: segments, habits, effects and activity are theirs, as are their histories, which act on the new
labels. Earlier days stay as they lie there, byte by byte. A mask that a logging policy serves takes the events it drops
out of the log, not out of the lives: labels are drawn from all that happened (docs/method.md C.4, E4).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynamix.errors import ConfigError
from dynamix.features import sim_events, sim_labels, sim_tables
from dynamix.features import sim_world as W
from dynamix.features.sim_events import Content, Users
from dynamix.features.sim_labels import Conversions, Impressions
from dynamix.features.sim_log import thinned
from dynamix.features.sim_world import Bools, Floats, Ints, World
from dynamix.features.simulate import WORLD_FILE, Simulation, WorldFile, draw, read_world

WEEK = 7
"""Days that one continuation adds."""
COLUMNS = tuple(f.name for f in fields(Impressions))
Policy = Callable[[list[str], tuple[str, ...]], Bools]
"""(user ids, stream names) -> which streams the log leaves out for which user (U, F)."""


@dataclass(frozen=True)
class ContinuedSummary:
    """What was appended; `left_out` content events happened and are not in the log."""

    out: Path
    first_day: int
    days: int
    events: int
    content_events: int
    left_out: int
    impressions: int
    positives: int
    conversions: int
    mean_p: float
    masks: str


@dataclass(frozen=True)
class Lived:
    """All that happened up to day `days`. Impressions in the order in which they were written, `wanted` and `done` of
    the positive ones: when the conversion would come (µs), and whether it came before the end.
    """

    content: Content
    imps: Impressions
    p: Floats
    label: Bools
    wanted: Ints
    done: Bools
    days: int


def continue_world(out: Path, *, policy: Policy | None = None, masks: str = "") -> ContinuedSummary:
    """Append the seven days after the last to `out`/events and `out`/truth_impressions.

    `masks` names the mask version that `policy` serves. The world is drawn anew from its seed, then week by week, so
    equal calls append equal rows. ConfigError for a folder that no `simulate` of this version wrote, and beyond 365 days.
    """
    stated = read_world(out)
    days = stated.days + WEEK * len(stated.weeks)
    if days + WEEK > W.MAX_DAYS:
        raise ConfigError(
            f"--continue: the world has {days} days; allowed are {W.MAX_DAYS} in all: simulate another one"
        )
    drawn = draw(
        preset=stated.preset, users=stated.users, days=stated.days, seed=stated.seed, start=stated.first
    )
    lived = _begun(drawn, stated)
    for number in range(len(stated.weeks)):
        lived, _ = _week(drawn, lived, stated, number)
    before = lived
    lived, conversions = _week(drawn, before, stated, len(stated.weeks))
    content, imps = _newest(lived, len(before.imps.user))
    gone = np.zeros(len(content.user), bool)
    if policy is not None:
        names = sim_tables.user_names(np.arange(stated.users)).to_pylist()
        gone = policy(names, drawn.world.streams)[content.user, content.stream]
        content, imps = thinned(content, imps, gone)
    taken = (int(before.done.sum()), len(before.content.user), len(before.imps.user))
    number = len(stated.weeks) + 1
    events = sim_tables.event_table(
        drawn.world, content, imps, conversions, start=stated.first, before=taken,
        rng=np.random.default_rng([stated.seed, 100 + number, 6]), dwell_logged=policy is not None,
    )  # fmt: skip
    fresh = slice(len(before.imps.user), None)
    truth = sim_tables.truth_impressions(lived.p[fresh], lived.label[fresh], before=taken[2])
    files = {"events": events, "truth_impressions": truth}
    if drawn.world.preset.path_rate:
        files["truth_paths"] = sim_tables.truth_paths(imps, before=taken[2])
    _append(out, files, number, replace(stated, weeks=(*stated.weeks, masks)))
    return ContinuedSummary(
        out, days, WEEK, events.num_rows, len(content.user), int(gone.sum()), len(imps.user),
        int(lived.label[fresh].sum()), len(conversions.user), float(lived.p[fresh].mean()) if len(imps.user) else 0.0,
        masks,
    )  # fmt: skip


def _begun(drawn: Simulation, stated: WorldFile) -> Lived:
    """The world as `simulate` left it; the moments of its conversions are drawn again, those past its end included."""
    imps, label = drawn.impressions, drawn.truth.label
    wanted = sim_labels.wanted_moments(imps.ts_us[label], np.random.default_rng([stated.seed, 5]))
    moment = sim_labels.conversion_moments(drawn.content, imps.user[label], wanted)
    done = moment < stated.days * W.DAY_MS * 1000
    return Lived(drawn.content, imps, drawn.truth.p, label, wanted, done, stated.days)


def _week(drawn: Simulation, lived: Lived, stated: WorldFile, number: int) -> tuple[Lived, Conversions]:
    """All that happened a week later, and the conversions of that week, those of earlier impressions included."""
    stage = [np.random.default_rng([stated.seed, 101 + number, which]) for which in range(6)]
    world, people, end = drawn.world, drawn.users, lived.days + WEEK
    added = _content(world, people, lived, stated, stage[1], stage[2])
    content, moved = _joined(lived.content, added)
    old = replace(lived.imps, anchor=moved[lived.imps.anchor])
    new = sim_labels.draw_impressions(world, content, end, stage[3], since=lived.days)
    new = _apart(old, new, stage[3])
    imps = _both(old, new)
    truth = sim_labels.draw_truth(world, people, content, imps, stage[4], days=stated.days)
    fresh = np.arange(len(imps.user)) >= len(old.user)
    p, label = np.where(fresh, truth.p, 0.0), truth.label & fresh
    p[: len(old.user)], label[: len(old.user)] = lived.p, lived.label
    shown = imps.ts_us[label & fresh]
    wanted = np.concatenate([lived.wanted, sim_labels.wanted_moments(shown, stage[5])])
    done = np.concatenate([lived.done, np.zeros(len(shown), bool)])
    begin = lived.days * W.DAY_MS * 1000
    moment = np.maximum(sim_labels.conversion_moments(content, imps.user[label], wanted), begin)
    comes = ~done & (moment < end * W.DAY_MS * 1000)
    conversions = Conversions(imps.user[label][comes], moment[comes], imps.item[label][comes])
    return Lived(content, imps, p, label, wanted, done | comes, end), conversions


def _content(
    world: World,
    people: Users,
    lived: Lived,
    stated: WorldFile,
    counts: np.random.Generator,
    rng: np.random.Generator,
) -> Content:
    """A week of content of the same users, none of it too near their last session to be one of its own."""
    planned = counts.poisson(people.planned * WEEK / stated.days)
    weekday = (stated.first.weekday() + lived.days) % 7
    found = sim_events.draw_content(
        world, replace(people, planned=planned.astype(np.int64)), WEEK, weekday, rng
    )
    ts = found.ts_ms + lived.days * W.DAY_MS
    old = lived.content
    newest = np.full(len(people.planned), -W.SESSION_GAP_MS, np.int64)
    newest[old.user] = old.ts_ms + old.dwell_ms  # rows are in time order: the last one stays
    opens = np.flatnonzero(np.append(True, found.session[1:] != found.session[:-1])[: len(found.user)])
    near = ts[opens] < newest[found.user[opens]] + W.SESSION_GAP_MS
    sizes = np.diff(np.append(opens, len(found.user)))
    kept = ~np.repeat(near, sizes)
    chosen = {
        n: getattr(found, n)[kept]
        for n in ("user", "stream", "item", "dwell_ms", "session", "censored", "intent")
    }
    size = np.bincount(chosen["user"], minlength=len(people.planned))
    session = chosen["session"] + (int(old.session.max(initial=-1)) + 1)
    first = np.concatenate([[0], np.cumsum(size)]).astype(np.int64)
    rest = {n: v for n, v in chosen.items() if n != "session"}
    return Content(**rest, session=session, ts_ms=ts[kept], z=found.z[kept], first=first)


def _joined(old: Content, new: Content) -> tuple[Content, Ints]:
    """Both as one, by user and time, and the rows at which those of `old` stand now. z is kept as each was drawn."""
    order = np.lexsort((np.append(old.ts_ms, new.ts_ms), np.append(old.user, new.user)))
    columns = {
        f.name: np.append(getattr(old, f.name), getattr(new, f.name))[order]
        for f in fields(Content)
        if f.name != "first"
    }
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return Content(**columns, first=old.first + new.first), place[: len(old.user)]


def _apart(old: Impressions, new: Impressions, rng: np.random.Generator) -> Impressions:
    """New impressions whose item the user saw within the 24 h before the border get another one."""
    item, size = new.item.copy(), len(old.user)
    while True:
        both = _both(old, replace(new, item=item))
        earlier, later = sim_labels.same_within_a_day(both, both.item)
        own = new.path_from[np.maximum(later - size, 0)] == earlier - size
        clash = later[(later >= size) & ~(own & (earlier >= size))] - size
        if not len(clash):
            return replace(new, item=item)
        item[clash] = rng.integers(W.N_ITEMS, size=len(clash))
        paired = new.path_from >= 0
        item[paired] = item[new.path_from[paired]]


def _both(old: Impressions, new: Impressions) -> Impressions:
    """Old impressions, then the new ones; requests and paths are numbered on."""
    size, last = len(old.user), int(old.request.max(initial=-1)) + 1
    path = np.where(new.path_from >= 0, new.path_from + size, -1)
    shifted = replace(new, request=new.request + last, path_from=path)
    return Impressions(*(np.append(getattr(old, n), getattr(shifted, n)) for n in COLUMNS))


def _newest(lived: Lived, earlier: int) -> tuple[Content, Impressions]:
    """Content and impressions of the last week alone; requests keep their numbers, paths count from 0."""
    content, begin = lived.content, (lived.days - WEEK) * W.DAY_MS
    left, _ = thinned(content, lived.imps, content.ts_ms < begin)
    place = np.cumsum(content.ts_ms >= begin) - 1
    own = Impressions(*(getattr(lived.imps, n)[earlier:] for n in COLUMNS))
    path = np.where(own.path_from >= 0, own.path_from - earlier, -1)
    return left, replace(own, anchor=place[own.anchor], path_from=path)


def _append(out: Path, tables: dict[str, pa.Table], number: int, stated: WorldFile) -> None:
    """The week's files beside the earlier ones, then the note that it is there; the next call makes good a killed one."""
    drafts = []
    for name, table in tables.items():
        file = out / name / f"week-{number:03d}.parquet"
        draft = file.with_name(f".{file.name}")
        pq.write_table(table, draft, compression="zstd")
        drafts.append((draft, file))
    for draft, file in drafts:
        draft.replace(file)
    note = out / f".{WORLD_FILE}"
    note.write_text(json.dumps({**asdict(stated), "first": str(stated.first)}), encoding="utf-8")
    note.replace(out / WORLD_FILE)
