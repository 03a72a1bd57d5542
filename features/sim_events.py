"""Content events of the simulator: users, sessions with a daily rhythm, dwell, items.

Times are whole milliseconds since the start of the world. Inside a session the gap to the next event is
the dwell, so the dwell that the pipeline derives is the one that was drawn (docs/method.md A.2, C.4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dynamix.features import sim_world as W
from dynamix.features.sim_world import Bools, Floats, Ints, World


@dataclass(frozen=True)
class Users:
    """U users: segment 0..G-1 here (written as 1..G), planned events, tier, habit (ln ms), label effect, end rate."""

    segment: Ints
    planned: Ints
    active: Bools
    habit: Floats
    effect: Floats
    end_rate: Floats


@dataclass(frozen=True)
class Content:
    """N content events sorted by (user, ts_ms); times of one user are strictly increasing.

    session: number of the session over all users; censored: last of its session, its dwell shows in no
    log; z: standardised, clipped ln(1 + dwell) without the habit, known here for censored events too; intent: of the
    event's session, in SD, 0 in worlds without.
    first (U + 1,): offsets of the users, user u owns rows first[u]..first[u + 1].
    """

    user: Ints
    stream: Ints
    item: Ints
    ts_ms: Ints
    dwell_ms: Ints
    session: Ints
    censored: Bools
    z: Floats
    intent: Floats
    first: Ints


def draw_users(world: World, n: int, days: int, rng: np.random.Generator) -> Users:
    """`n` users; `active` iff the planned number of events is at least the median one and the user is not cold."""
    preset = world.preset
    activity = rng.normal(size=n)
    planned = np.exp(np.log(W.EVENTS_MEDIAN * days / W.BASE_DAYS) + W.EVENTS_LOG_SD * activity)
    end_rate = W.SESSION_END_RATE * np.exp(preset.session_end_log_sd * rng.normal(size=n))
    users = Users(
        segment=rng.choice(W.N_SEGMENTS, size=n, p=W.SEGMENT_SHARES).astype(np.int64),
        planned=np.clip(np.rint(planned), 1, W.EVENTS_MAX).astype(np.int64),
        active=activity >= np.median(activity),
        habit=preset.habit_sd * rng.normal(size=n),
        effect=preset.user_effect_sd * rng.normal(size=n),
        end_rate=np.clip(end_rate, 0.05, 0.8),
    )
    return _with_cold(users, preset.cold_share, days, rng) if preset.cold_share else users


def _with_cold(users: Users, share: float, days: int, rng: np.random.Generator) -> Users:
    """A share of the users, drawn at random, gets too few events to leave the cold segment."""
    cold = rng.random(len(users.planned)) < share
    few = rng.integers(1, W.COLD_EVENTS_MAX + 1, size=len(cold)) * days / W.BASE_DAYS
    planned = np.where(cold, np.maximum(np.rint(few), 1), users.planned).astype(np.int64)
    return replace(users, planned=planned, active=users.active & ~cold)


def draw_content(
    world: World, users: Users, days: int, start_weekday: int, rng: np.random.Generator
) -> Content:
    """All content events before the end of the world; what would come later is cut off."""
    user = np.repeat(np.arange(len(users.planned)), users.planned)
    stream = _draw_streams(world, users.segment[user], rng)
    dwell = _draw_dwell(world.dwell_mean[stream] + users.habit[user], rng)
    item = draw_items(len(user), rng)
    ends = (rng.random(len(user)) < users.end_rate[user]) | np.append(user[1:] != user[:-1], True)
    if len(world.copies):
        followed = _followed(world, stream, ends, rng)
        row, stream, dwell = _with_copies(world, stream, dwell, users.habit[user], followed, rng)
        user, item = user[row], item[row]
        ends = ends[row] & np.append(row[1:] != row[:-1], True)  # a session ends with the copy
    session = np.cumsum(ends) - ends
    opens = np.flatnonzero(np.insert(ends[:-1], 0, True))
    intent = np.zeros(len(user))
    if len(world.intent):
        intent = rng.normal(size=len(opens))[session]
        dwell = _with_intent(dwell, intent * np.isin(stream, world.intent))
    before = np.cumsum(dwell) - dwell
    length = np.add.reduceat(dwell, opens)
    begin = _session_starts(user[opens], length, days, start_weekday, rng)
    ts = begin[session] + before - before[opens][session]
    kept = ts < days * W.DAY_MS
    user, stream, item, ts, dwell, session = (a[kept] for a in (user, stream, item, ts, dwell, session))
    intent = intent[kept]
    censored = np.append(session[1:] != session[:-1], True)[: len(user)]
    counts = np.bincount(user, minlength=len(users.planned))
    return Content(
        user=user,
        stream=stream,
        item=item,
        ts_ms=ts,
        dwell_ms=dwell,
        session=session,
        censored=censored,
        z=standardise(dwell, stream, users.habit[user], ~censored),
        intent=intent,
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def draw_items(n: int, rng: np.random.Generator) -> Ints:
    """Catalogue items 0..N_ITEMS-1, popularity 1/(rank + shift)."""
    weight = 1.0 / (np.arange(W.N_ITEMS) + 1 + W.ZIPF_SHIFT)
    cdf = np.cumsum(weight) / weight.sum()
    return np.minimum(np.searchsorted(cdf, rng.random(n), side="right"), W.N_ITEMS - 1).astype(np.int64)


def _draw_streams(world: World, segment: Ints, rng: np.random.Generator) -> Ints:
    """One stream an event from its segment's mix: inverse CDF of all segments laid end to end; no copies yet."""
    mix = world.mix.copy()
    mix[:, world.copies] = 0.0
    cdf = np.cumsum(mix, axis=1)
    laid = ((cdf / cdf[:, -1:]) + np.arange(W.N_SEGMENTS)[:, None]).ravel()
    place = np.searchsorted(laid, segment + rng.random(len(segment)), side="right")
    stream = np.asarray(place - segment * W.N_STREAMS, dtype=np.int64)
    return np.minimum(np.maximum(stream, 0), W.N_STREAMS - 1)  # rounding may step over an end


def _followed(world: World, stream: Ints, ends: Bools, rng: np.random.Generator) -> Bools:
    """Events (N,) that an event of the copy follows: most of a copied stream, or all inside a session."""
    copied = np.isin(stream, world.copy_of[world.copies])
    if world.preset.exact_copies:
        return np.asarray(copied & ~ends)
    return np.asarray(copied & (rng.random(len(stream)) < W.COPY_RATE))


def _with_copies(
    world: World, stream: Ints, dwell: Ints, habit: Floats, followed: Bools, rng: np.random.Generator
) -> tuple[Ints, Ints, Ints]:
    """Rows with a copy right after those `followed`: (row it stems from, stream, dwell), each (N,).

    The copy has the item of its original, is in the same session, and its log dwell follows the original's.
    """
    copy = np.full(W.N_STREAMS, -1, dtype=np.int64)
    copy[world.copy_of[world.copies]] = world.copies
    correlation = 1.0 if world.preset.exact_copies else W.COPY_CORRELATION
    row = np.repeat(np.arange(len(stream)), 1 + followed)
    new = np.append(False, row[1:] == row[:-1])
    source = row[new]
    own = np.log(dwell[source]) - world.dwell_mean[stream[source]] - habit[source]
    noise = W.DWELL_LOG_SD * rng.normal(size=len(source))
    log = correlation * own + np.sqrt(1 - correlation**2) * noise
    stream, dwell = stream[row], dwell[row]
    stream[new] = copy[stream[new]]
    drawn = np.exp(world.dwell_mean[stream[new]] + habit[source] + log)
    dwell[new] = np.clip(np.rint(drawn), 1, W.DWELL_MAX_MS).astype(np.int64)
    return row, stream, dwell


def _draw_dwell(log_mean: Floats, rng: np.random.Generator) -> Ints:
    """Log-normal dwell in ms with a share of bounces; at least 1 ms, so that times never tie."""
    dwell = np.exp(log_mean + W.DWELL_LOG_SD * rng.normal(size=len(log_mean)))
    bounced = rng.random(len(dwell)) < W.BOUNCE_RATE
    dwell[bounced] = rng.uniform(1, W.BOUNCE_MAX_MS, size=int(bounced.sum()))
    return np.clip(np.rint(dwell), 1, W.DWELL_MAX_MS).astype(np.int64)


def _with_intent(dwell: Ints, intent: Floats) -> Ints:
    """The dwells of sessions with an intent (N,), 0 where it does not reach."""
    moved = np.clip(np.rint(dwell * np.exp(W.INTENT_DWELL * intent)), 1, W.DWELL_MAX_MS)
    return np.where(intent == 0, dwell, moved.astype(np.int64))


def _session_starts(
    user: Ints, length: Ints, days: int, start_weekday: int, rng: np.random.Generator
) -> Ints:
    """Starts of the sessions, in order within the user and at least SESSION_GAP_MS after the one before.

    Drawn with a weekly and daily rhythm, sorted, then pushed apart: with C the time taken by earlier
    sessions, start_k = C_k + max over j <= k of (drawn_j - C_j), a running maximum per user.
    """
    weight = np.where((np.arange(days) + start_weekday) % 7 >= 5, W.WEEKEND_WEIGHT, 1.0)
    day = rng.choice(days, size=len(user), p=weight / weight.sum())
    hours = np.asarray(W.HOUR_WEIGHTS, dtype=np.float64)
    hour = rng.choice(24, size=len(user), p=hours / hours.sum())
    phase = rng.integers(-W.PHASE_HOURS, W.PHASE_HOURS + 1, size=int(user.max()) + 1)
    drawn = day * W.DAY_MS + ((hour + phase[user]) % 24) * 3_600_000 + rng.integers(3_600_000, size=len(user))
    span = days * W.DAY_MS
    drawn = np.sort(drawn + user * span) - user * span  # users stay together, their starts get ordered
    taken = length + W.SESSION_GAP_MS
    total = np.cumsum(taken) - taken
    first = np.searchsorted(user, user, side="left")
    total = total - total[first]
    slack = drawn - total
    wide = span + int(total.max()) + 1  # keeps the running maximum inside a user
    pushed: Ints = np.maximum.accumulate(slack + user * wide)
    return total + pushed - user * wide


def standardise(dwell: Ints, stream: Ints, habit: Floats, seen: Bools) -> Floats:
    """z = clip((ln(1 + dwell) - habit - mean) / sd, ±3), moments per stream over the events with a visible dwell."""
    log = np.log1p(dwell.astype(np.float64)) - habit
    n = np.maximum(np.bincount(stream[seen], minlength=W.N_STREAMS), 1)
    mean = np.bincount(stream[seen], log[seen], minlength=W.N_STREAMS) / n
    spread = np.bincount(stream[seen], (log[seen] - mean[stream[seen]]) ** 2, minlength=W.N_STREAMS) / n
    sd = np.sqrt(np.where(spread > 0, spread, 1.0))
    return np.clip((log - mean[stream]) / sd[stream], -W.Z_CLIP, W.Z_CLIP)
