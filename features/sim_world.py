"""Constants of the simulated worlds and the draw of one world: streams, mixes and planted cells.

Every number of the simulator stands in this file (docs/method.md C.4). A change is dated in
docs/experiments.md. Rates (events, impressions) are given for 42 days and scale with the span.

What "clean" means for S0: no user habit, and the planted effect acts through the dwell that a log can
show (events whose dwell is censored do not act), so the exposure of docs/method.md A.3 can be rebuilt from the events.
S1 adds habits and lets censored events act too: a pipeline that skips habit centring or fills
the last dwell of a session with 0 loses the planted effects there.
No preset plants a position, item or activity effect. S10 plants an intent of the session that moves dwell and label
alike: its streams do not act, and what their dwell tells is worth having all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dynamix.errors import ConfigError

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Kind = Literal["null", "trace", "weak", "strong", "u", "match", "copy"]

# --- users and segments
SEGMENT_SHARES = (0.35, 0.25, 0.18, 0.12, 0.07, 0.03)
N_SEGMENTS = len(SEGMENT_SHARES)
BASE_DAYS = 42
MAX_DAYS = 365
EVENTS_MEDIAN, EVENTS_LOG_SD = 75.0, 0.8  # content events a user in BASE_DAYS, log-normal
EVENTS_MAX = 3000
HABIT_SD = 0.4  # of ln dwell, presets with a habit
HABIT_DAYS = 7  # the calendar's habit window of a world of BASE_DAYS
USER_EFFECT_SD = 0.6  # log-odds
CLUSTERED_EFFECT_SD = 1.8  # labels of a user so alike that naive variances are about half of the true ones
COLD_SHARE = 0.6  # of the users, presets with cold users
COLD_EVENTS_MAX = 14  # content events of a cold user in BASE_DAYS, uniform from 1: under `min_events`

# --- streams
SURFACES = ("feed", "shorts", "search", "shop")
TYPES = ("view", "click", "like", "save", "share", "comment")
N_STREAMS = len(SURFACES) * len(TYPES)
MIX_CONCENTRATION, MIX_WEIGHT = 0.6, 0.85  # the rest is spread evenly, so no cell is empty
MAX_NULL_SHARE = 0.6  # of a segment's events

# --- planted effects: how many streams of each kind a segment has, and log-odds per SD of the exposure
KIND_COUNTS: dict[Kind, int] = {"strong": 3, "weak": 6, "trace": 2, "u": 1, "null": 12}
KIND_BETA: dict[Kind, float] = {
    "strong": 0.5,
    "weak": 0.2,
    "trace": 0.05,
    "u": 0.3,
    "null": 0.0,
    "match": 0.0,
    "copy": 0.0,
}
"""For "u" the log-odds are per SD of the squared standardised exposure (capped at U_CAP)."""
U_CAP = 9.0
HORIZONS = (3, 10, 30, 100)  # newest events of the cell that act
EMBARGO_MS = 60_000  # an event acts if strictly older than this before the impression
Z_CLIP = 3.0
BASE_RATE = 0.05
RARE_RATE = 0.005

# --- sessions and dwell
SESSION_END_RATE = 0.2  # chance that an event is the last of its session: 5 events on average
SESSION_END_LOG_SD = 0.4  # between users, presets with censoring
SESSION_GAP_MS = 70 * 60_000  # least silence between sessions; above 2 x CONVERSION_GAP_MS
DWELL_LOG_MEAN = (8.0, 10.6)  # ln ms, uniform over streams: 3 s to 40 s
DWELL_LOG_SD = 0.9
DWELL_MAX_MS = 1_500_000  # under the 30 minutes that would end the session
BOUNCE_RATE, BOUNCE_MAX_MS = 0.05, 400
HOUR_WEIGHTS = (2, 1, 1, 1, 1, 2, 4, 6, 7, 7, 7, 8, 9, 9, 8, 8, 8, 9, 11, 13, 14, 13, 9, 5)
PHASE_HOURS = 2  # users live up to this much earlier or later
WEEKEND_WEIGHT = 1.2

# --- items, impressions, conversions
N_ITEMS, N_CATEGORIES, N_ADVERTISERS, N_CAMPAIGNS = 5000, 40, 200, 600
ZIPF_SHIFT = 20  # popularity of rank r is 1/(r + shift)
REQUESTS = 8.0  # a user in BASE_DAYS; times the mean size: 20 impressions
REQUEST_SIZES = (1, 2, 3, 4)
IMPRESSION_OFFSET_MS = 55_000  # below the embargo: the event on screen never acts on its own impression
RETARGET_RATE = 0.30  # impressions of an item that the user has met
RETARGET_RATE_WITH_MATCH = 0.10
MATCH_STREAMS = 2
MATCH_MIX = 0.08  # events of each match stream, in every segment
MATCH_RETARGET_RATE = 0.15  # impressions aimed at an item of that match stream
MATCH_LOG_ODDS = 1.2  # of at least one earlier event of the stream on the impression's item
ATTRIBUTION_MS = 24 * 3_600_000
DELAY_SHAPE, DELAY_SCALE_MS, DELAY_MAX_MS = 0.7, 3 * 3_600_000, 23 * 3_600_000
CONVERSION_GAP_MS = 31 * 60_000  # outside sessions a conversion keeps this distance, so that none is joined
CONVERSION_SURFACE = "shop"
DAY_MS = 86_400_000

# --- intent of a session, paths over two surfaces
INTENT_STREAMS = 2
INTENT_MIX = 0.08  # events of each stream whose dwell the intent moves, in every segment
INTENT_DWELL = 0.9  # of ln dwell per SD of the intent: as much as the dwell's own spread
INTENT_LOG_ODDS = 0.8  # per SD of the intent, of impressions in the session
PATH_RATE = 0.9  # of the requests that another can follow within a day on another surface
PATH_EVENTS = 8  # content events on, at most

# --- copies, orthogonal types
COPIED_STREAMS = 2
COPIED_MIX = 0.06  # events of each stream that has a copy, in every segment
COPY_RATE = 0.98  # of these events, those that an event of the copy follows
COPY_CORRELATION = 0.98  # of the two log dwells, given the streams' means and the habit
N_COMPOSITIONS = 3  # x 2 slope types = N_SEGMENTS
SLOPE_TILT = (
    0.10  # slope types differ by this log factor in a stream's share, up for one and down for the other
)


@dataclass(frozen=True)
class Preset:
    """Switches of one world. `censored_acts`: events without a visible dwell act on the label too.

    acts_from_day: events of the days before it, from 0, do not act; effects: false plants nothing but the user
    effect; copied_streams: streams followed by near-copies that do not act; exact_copies: every event inside a session
    is followed, by one of the same log dwell but for the streams' means; orthogonal: segments are composition
    types x slope types; swap: two streams exchange their effects at mid-world; turn_on: a stream that is null in every
    segment becomes strong in all of them at mid-world, in a log that leaves out what a mask drops (`unlogged`);
    intent_streams: streams whose dwell follows an intent of the session that acts on its impressions; path_rate:
    of requests that another follows on another surface with the same item: a path, credited to the second.
    """

    name: str
    habit_sd: float = 0.0
    session_end_log_sd: float = 0.0
    censored_acts: bool = False
    match_streams: int = 0
    effects: bool = True
    base_rate: float = BASE_RATE
    user_effect_sd: float = USER_EFFECT_SD
    copied_streams: int = 0
    exact_copies: bool = False
    cold_share: float = 0.0
    orthogonal: bool = False
    swap: bool = False
    turn_on: bool = False
    intent_streams: int = 0
    path_rate: float = 0.0
    acts_from_day: int = 0

    @property
    def copies_per_event(self) -> float:
        """Events of a near-copy for one of its original."""
        return 1 - SESSION_END_RATE if self.exact_copies else COPY_RATE


_S1 = Preset("S1", habit_sd=HABIT_SD, session_end_log_sd=SESSION_END_LOG_SD, censored_acts=True)
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("S0"),
        _S1,
        replace(_S1, name="S1-late", acts_from_day=HABIT_DAYS),
        Preset("S2", base_rate=RARE_RATE),
        Preset("S3", copied_streams=COPIED_STREAMS),
        Preset("S3-exact", copied_streams=COPIED_STREAMS, exact_copies=True),
        Preset("S4", swap=True),
        Preset("S5", turn_on=True),
        Preset("S6", cold_share=COLD_SHARE),
        replace(
            _S1, name="S7", match_streams=MATCH_STREAMS, copied_streams=COPIED_STREAMS, cold_share=COLD_SHARE
        ),
        Preset("S8", match_streams=MATCH_STREAMS),
        Preset("S9", orthogonal=True),
        Preset("S10", intent_streams=INTENT_STREAMS, path_rate=PATH_RATE),
        Preset("null", effects=False),
        Preset("null-clustered", effects=False, user_effect_sd=CLUSTERED_EFFECT_SD),
    )
}


@dataclass(frozen=True)
class World:
    """What is planted. G segments (row g is segment g + 1), F streams.

    streams: F names `surface/event_type`; mix (G, F) shares of a segment's events; kind (G, F) str;
    beta (G, F) log-odds per SD of the exposure; match (G, F) log-odds of at least one matching event;
    horizon (G, F) newest events that act; dwell_mean (F,) of ln ms; copy_of (F,) the stream that this one is a
    near-copy of, -1 for none; types (G, 2) composition and slope type of each segment, both g where types are not
    apart; swap (0 or 2,) streams that exchange kind, beta and horizon at mid-world; turned_on (0 or 1,) the stream
    that becomes strong then; intent (0 or 2,) null streams whose dwell follows the session's intent.
    """

    preset: Preset
    streams: tuple[str, ...]
    mix: Floats
    kind: NDArray[np.str_]
    beta: Floats
    match: Floats
    horizon: Ints
    dwell_mean: Floats
    copy_of: Ints
    types: Ints
    swap: Ints
    turned_on: Ints
    intent: Ints

    @property
    def drifts(self) -> bool:
        """Whether the planted cells change at mid-world."""
        return len(self.swap) + len(self.turned_on) > 0

    @property
    def match_streams(self) -> Ints:
        """Indices of the streams that act by the item alone."""
        return np.flatnonzero((self.match != 0).any(axis=0))

    @property
    def copies(self) -> Ints:
        """Indices of the streams that are near-copies of another."""
        return np.flatnonzero(self.copy_of >= 0)

    def second_half(self) -> World:
        """The planted cells from mid-world on; the same world where nothing drifts."""
        order = np.arange(N_STREAMS)
        order[self.swap] = self.swap[::-1]
        kind, beta = self.kind[:, order], self.beta[:, order]
        kind[:, self.turned_on] = "strong"
        beta[:, self.turned_on] = KIND_BETA["strong"]
        return replace(self, kind=kind, beta=beta, horizon=self.horizon[:, order])


def preset_named(name: str) -> Preset:
    """The preset of that name; raises ConfigError with the names that exist."""
    if name not in PRESETS:
        raise ConfigError.unknown_version("preset", name, sorted(PRESETS))
    return PRESETS[name]


def draw_world(preset: Preset, rng: np.random.Generator) -> World:
    """One world of the preset: names, mixes, kinds, horizons and dwell means are drawn from `rng`."""
    names = [f"{surface}/{kind}" for surface in SURFACES for kind in TYPES]
    matching = np.sort(rng.choice(N_STREAMS, size=preset.match_streams, replace=False))
    for stream in matching:
        names[stream] = f"{names[stream].split('/')[0]}/{_random_word(rng)}"
    roles = _draw_roles(preset, matching, rng)
    copy_of = roles.copy_of
    types = _types(preset)
    mix = _draw_mix(_reserved(roles, preset.copies_per_event), types, rng)
    fixed = _fixed_kinds(roles)
    slopes = range(int(types[:, 1].max()) + 1)
    if preset.effects:
        kind = np.stack([_draw_kinds(mix[types[:, 1] == slope], fixed, rng) for slope in slopes])
    else:
        kind = np.full((len(slopes), N_STREAMS), "null", dtype="<U6")
    horizon = rng.choice(np.asarray(HORIZONS, dtype=np.int64), size=kind.shape)
    copies = np.flatnonzero(copy_of >= 0)
    horizon[:, copies] = horizon[:, copy_of[copies]]
    kind, horizon = kind[types[:, 1]], horizon[types[:, 1]]
    beta = np.vectorize(KIND_BETA.__getitem__, otypes=[np.float64])(kind)
    return World(
        preset=preset,
        streams=tuple(names),
        mix=mix,
        kind=kind,
        beta=beta,
        match=np.where(kind == "match", MATCH_LOG_ODDS, 0.0),
        horizon=horizon,
        dwell_mean=rng.uniform(*DWELL_LOG_MEAN, size=N_STREAMS),
        copy_of=copy_of,
        types=types,
        swap=roles.swap,
        turned_on=roles.turned_on,
        intent=roles.intent,
    )


def _random_word(rng: np.random.Generator) -> str:
    return "".join(chr(97 + int(letter)) for letter in rng.integers(26, size=8))


@dataclass(frozen=True)
class _Roles:
    """Streams that are more than a drawn kind: fields as in `World`, matching those that act by the item."""

    matching: Ints
    copy_of: Ints
    swap: Ints
    turned_on: Ints
    intent: Ints


def _draw_roles(preset: Preset, matching: Ints, rng: np.random.Generator) -> _Roles:
    """Every role but the first goes to streams that do not match."""
    copy_of = np.full(N_STREAMS, -1, dtype=np.int64)
    free = np.setdiff1d(np.arange(N_STREAMS), matching)
    if preset.copied_streams:
        drawn = rng.choice(free, size=(2, preset.copied_streams), replace=False)
        copy_of[drawn[1]] = drawn[0]
    numbers = (2 * preset.swap, int(preset.turn_on), preset.intent_streams)
    none = np.zeros(0, dtype=np.int64)
    swap, turned_on, intent = (rng.choice(free, size=n, replace=False) if n else none for n in numbers)
    return _Roles(matching, copy_of, swap, turned_on, intent)


def _types(preset: Preset) -> Ints:
    """Composition and slope type of each segment (G, 2)."""
    number = np.arange(N_SEGMENTS, dtype=np.int64)
    if preset.orthogonal:
        slopes = N_SEGMENTS // N_COMPOSITIONS
        return np.stack([number // slopes, number % slopes], axis=1)
    return np.stack([number, number], axis=1)


def _reserved(roles: _Roles, copies_per_event: float) -> dict[int, float]:
    """Stream -> share of the events, for streams whose share is planted and not drawn."""
    shares = {int(stream): MATCH_MIX for stream in roles.matching}
    shares |= {int(stream): INTENT_MIX for stream in roles.intent}
    for copy in np.flatnonzero(roles.copy_of >= 0):
        shares |= {int(roles.copy_of[copy]): COPIED_MIX, int(copy): COPIED_MIX * copies_per_event}
    return shares


def _fixed_kinds(roles: _Roles) -> dict[int, Kind]:
    """Stream -> kind, for streams of one kind in every segment."""
    fixed: dict[int, Kind] = {int(stream): "match" for stream in roles.matching}
    fixed |= {int(stream): "null" for stream in (*roles.turned_on, *roles.intent)}
    for copy in np.flatnonzero(roles.copy_of >= 0):
        fixed |= {int(roles.copy_of[copy]): "strong", int(copy): "copy"}
    if len(roles.swap):
        fixed |= {int(roles.swap[0]): "strong", int(roles.swap[1]): "null"}
    return fixed


def _draw_mix(reserved: Mapping[int, float], types: Ints, rng: np.random.Generator) -> Floats:
    """Stream shares (G, F); reserved streams get theirs, the rest is scaled down to make room."""
    mix = rng.dirichlet(np.full(N_STREAMS, MIX_CONCENTRATION), size=int(types[:, 0].max()) + 1)
    mix = MIX_WEIGHT * mix + (1 - MIX_WEIGHT) / N_STREAMS
    if len(mix) < N_SEGMENTS:  # compositions are shared by slope types, which differ a little
        up = rng.choice([-1.0, 1.0], size=N_STREAMS) * SLOPE_TILT
        mix = mix[types[:, 0]] * np.exp(np.where(types[:, 1] % 2, 1.0, -1.0)[:, None] * up)
        mix /= mix.sum(axis=1, keepdims=True)
    if reserved:
        streams, shares = list(reserved), np.asarray(list(reserved.values()))
        mix[:, streams] = 0.0
        mix *= (1 - shares.sum()) / mix.sum(axis=1, keepdims=True)
        mix[:, streams] = shares
    return np.asarray(mix, dtype=np.float64)


def _draw_kinds(mix: Floats, fixed: Mapping[int, Kind], rng: np.random.Generator) -> NDArray[np.str_]:
    """Kinds (F,) in random order, drawn again until null cells hold at most MAX_NULL_SHARE of each row's events.

    mix (segments that share the kinds, F). What no segment has by nature, a match or a copy, takes a null's place.
    """
    pool = [kind for kind, count in KIND_COUNTS.items() for _ in range(count)]
    for taken in fixed.values():
        pool.remove(taken if taken in KIND_COUNTS else "null")
    free = np.setdiff1d(np.arange(N_STREAMS), list(fixed))
    kinds = np.full(N_STREAMS, "null", dtype="<U6")
    for stream, taken in fixed.items():
        kinds[stream] = taken
    for _ in range(10_000):
        kinds[free] = rng.permutation(pool)
        if mix[:, kinds == "null"].sum(axis=1).max() <= MAX_NULL_SHARE:
            return kinds
    raise ConfigError(
        f"no order of kinds keeps null cells under {MAX_NULL_SHARE:.0%} of the events; change --seed"
    )
