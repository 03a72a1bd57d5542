"""Impressions of the simulator, the planted exposures, the true probabilities and the conversions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dynamix.features import sim_world as W
from dynamix.features.sim_events import Content, Users, draw_items
from dynamix.features.sim_world import Bools, Floats, Ints, World

_SPAN_MS = np.int64(2) ** 35  # in a key of (owner, time): room for 397 days and 11 M users


@dataclass(frozen=True)
class Impressions:
    """B impressions sorted by (user, ts_us, position). Times in µs since the start of the world.

    request: number over all users; anchor: row of the content event on screen; item: catalogue item; path_from: row
    of the earlier impression of the same path, -1 for none. Two impressions of one user and item are more than 24 h
    apart, so attribution is unambiguous; the two of a path are not, and the later one is the last touch.
    """

    user: Ints
    ts_us: Ints
    request: Ints
    position: Ints
    anchor: Ints
    item: Ints
    path_from: Ints

    @property
    def cutoff_ms(self) -> Ints:
        """Events (whole ms) strictly before it may act: the impression minus the embargo, rounded up."""
        return np.maximum(_ceil_ms(self.ts_us) - W.EMBARGO_MS, 0)


@dataclass(frozen=True)
class Truth:
    """Planted outcome: p (B,), label (B,), beta_full (G, F): beta as seen by the whole history's exposure."""

    p: Floats
    label: Bools
    beta_full: Floats


@dataclass(frozen=True)
class Conversions:
    """Conversion events, one per positive impression whose conversion comes before the end of the world."""

    user: Ints
    ts_us: Ints
    item: Ints


class StreamIndex:
    """Content events by (user, stream, time), with running sums of z; `acting` selects the events that count."""

    def __init__(self, content: Content, acting: Bools) -> None:
        owner = content.user * W.N_STREAMS + content.stream
        self.rows = np.flatnonzero(acting)[np.argsort(owner[acting], kind="stable")]
        n_owners = (len(content.first) - 1) * W.N_STREAMS
        counts = np.bincount(owner[acting], minlength=n_owners)
        self.first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._keys = owner[self.rows] * _SPAN_MS + content.ts_ms[self.rows]
        self._sums = np.concatenate([[0.0], np.cumsum(content.z[self.rows])])

    def bounds(self, user: Ints, stream: int, cutoff_ms: Ints) -> tuple[Ints, Ints]:
        """Half-open range in `rows` of the user's events of `stream` strictly before the cutoff."""
        owner = user * W.N_STREAMS + stream
        low = self.first[owner]
        high = np.searchsorted(self._keys, owner * _SPAN_MS + cutoff_ms, side="left")
        return low, np.maximum(high, low).astype(np.int64)

    def exposure(self, low: Ints, high: Ints, horizon: Ints) -> Floats:
        """n/(n+1) · mean z of the newest `horizon` events of each range, 0 where it is empty (A.3)."""
        low = np.maximum(low, high - horizon)
        return np.asarray((self._sums[high] - self._sums[low]) / (high - low + 1), dtype=np.float64)


def acting_events(world: World, content: Content) -> Bools:
    """Which events act on labels: all of them, or in a clean world those with a visible dwell; from a day on."""
    acting = np.ones_like(content.censored) if world.preset.censored_acts else ~content.censored
    return acting & (content.ts_ms >= world.preset.acts_from_day * W.DAY_MS)


def draw_impressions(
    world: World, content: Content, days: int, rng: np.random.Generator, *, since: int = 0
) -> Impressions:
    """Requests of one to four impressions while a content event is on screen; active users get more.

    On events of day `since` to before day `days` of the world.
    """
    start = content.first[:-1]
    if since:
        from_key = np.arange(len(start)) * _SPAN_MS + since * W.DAY_MS
        start = np.searchsorted(content.user * _SPAN_MS + content.ts_ms, from_key, side="left")
    counts = content.first[1:] - start
    pull = np.sqrt(counts)
    rate = W.REQUESTS * (days - since) / W.BASE_DAYS * pull / max(float(pull.mean()), 1e-12)
    user = np.repeat(np.arange(len(counts)), rng.poisson(rate))
    anchor = start[user] + np.floor(rng.random(len(user)) * counts[user]).astype(np.int64)
    ts = _moments(content, anchor, rng)
    follows = np.full(len(user), -1, dtype=np.int64)  # request that this one makes a path with
    if world.preset.path_rate:
        first, then = _follow_ups(content, anchor, ts, world.preset.path_rate, rng)
        user, anchor = np.append(user, user[first]), np.append(anchor, then)
        ts, follows = np.append(ts, _moments(content, then, rng)), np.append(follows, first)
    order = np.lexsort((ts, user))
    order = order[ts[order] < days * W.DAY_MS * 1000]
    size = rng.choice(np.asarray(W.REQUEST_SIZES), size=len(order))
    request = np.repeat(np.arange(len(order)), size)
    begins = np.cumsum(size) - size
    position = np.arange(len(request)) - np.repeat(begins, size) + 1
    row = order[request]
    none = np.full(len(row), -1, dtype=np.int64)
    blank = Impressions(user[row], ts[row], request, position, anchor[row], none, none)
    imps = replace(blank, item=_separate(blank, _draw_items(world, content, blank, rng), rng))
    if not world.preset.path_rate:
        return imps
    place = np.full(len(ts), -1, dtype=np.int64)
    place[order] = begins
    path_from = none.copy()
    path_from[begins] = np.where(follows[order] >= 0, place[follows[order]], -1)
    return _separate_paths(replace(imps, path_from=path_from), rng)


def _moments(content: Content, anchor: Ints, rng: np.random.Generator) -> Ints:
    """A moment (µs) at which the content event of each request is on screen."""
    shown = np.minimum(content.dwell_ms[anchor], W.IMPRESSION_OFFSET_MS) * 1000
    later = np.floor(rng.random(len(anchor)) * (shown - 1)).astype(np.int64)
    return np.asarray(content.ts_ms[anchor] * 1000 + 1 + later, dtype=np.int64)


def _follow_ups(
    content: Content, anchor: Ints, ts: Ints, rate: float, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Requests that another one follows, and its event on screen: a few events on, on another surface, within a day."""
    then = np.minimum(anchor + rng.integers(1, W.PATH_EVENTS + 1, size=len(anchor)), len(content.user) - 1)
    surface = content.stream // len(W.TYPES)
    latest = (content.ts_ms[then] + W.IMPRESSION_OFFSET_MS) * 1000
    near = (content.user[then] == content.user[anchor]) & (latest - ts <= W.ATTRIBUTION_MS * 1000)
    first = np.flatnonzero(near & (surface[then] != surface[anchor]) & (rng.random(len(anchor)) < rate))
    return first, then[first]


def _separate_paths(imps: Impressions, rng: np.random.Generator) -> Impressions:
    """Items such that only the two of a path are the same within 24 h; a path that would cross another one is none."""
    item, path_from = imps.item.copy(), imps.path_from.copy()
    while True:
        later = np.flatnonzero(path_from >= 0)
        item[later] = item[path_from[later]]
        earlier, clash = same_within_a_day(imps, item)
        own = path_from[clash] == earlier
        earlier, clash = earlier[~own], clash[~own]
        if not len(clash):
            return replace(imps, item=item, path_from=path_from)
        ends = np.concatenate([earlier, clash])
        broken = ends[path_from[ends] >= 0]
        path_from[broken] = -1
        fresh = np.concatenate([broken, clash])
        item[fresh] = rng.integers(W.N_ITEMS, size=len(fresh))


def same_within_a_day(imps: Impressions, item: Ints) -> tuple[Ints, Ints]:
    """Rows (earlier, later) of impressions in turn of one user and item at most 24 h apart."""
    order = np.lexsort((imps.position, imps.ts_us, item, imps.user))
    same = (np.diff(imps.user[order]) == 0) & (np.diff(item[order]) == 0)
    same &= np.diff(imps.ts_us[order]) <= W.ATTRIBUTION_MS * 1000
    return order[:-1][same], order[1:][same]


def _draw_items(world: World, content: Content, imps: Impressions, rng: np.random.Generator) -> Ints:
    """Items: by popularity, or one that the user met before the cutoff (in S8 mostly in a match stream)."""
    item = draw_items(len(imps.user), rng)
    index = StreamIndex(content, np.ones_like(content.censored))
    choice, pick = rng.random(len(item)), rng.random(len(item))
    from_key = imps.user * _SPAN_MS + imps.cutoff_ms
    seen = np.searchsorted(content.user * _SPAN_MS + content.ts_ms, from_key, side="left")
    start = content.first[imps.user]
    matching = world.match_streams
    any_rate = W.RETARGET_RATE_WITH_MATCH if len(matching) else W.RETARGET_RATE
    aimed = (choice < any_rate) & (seen > start)
    row = start + np.floor(pick * (seen - start)).astype(np.int64)
    item[aimed] = content.item[row[aimed]]
    for place, stream in enumerate(matching):
        low, high = index.bounds(imps.user, int(stream), imps.cutoff_ms)
        floor = any_rate + place * W.MATCH_RETARGET_RATE
        aimed = (choice >= floor) & (choice < floor + W.MATCH_RETARGET_RATE) & (high > low)
        row = low + np.floor(pick * (high - low)).astype(np.int64)
        item[aimed] = content.item[index.rows[row[aimed]]]
    return item


def _separate(imps: Impressions, item: Ints, rng: np.random.Generator) -> Ints:
    """Replace items until no user sees the same one twice within 24 h; the earliest impression keeps its own."""
    while True:
        _, clash = same_within_a_day(imps, item)
        if not len(clash):
            return item
        item = item.copy()
        item[clash] = rng.integers(W.N_ITEMS, size=len(clash))


def stream_exposure(
    world: World, users: Users, imps: Impressions, index: StreamIndex, stream: int
) -> tuple[Floats, Floats]:
    """Exposure of every impression to `stream` (B,): over the planted horizon, and over the whole history."""
    low, high = index.bounds(imps.user, stream, imps.cutoff_ms)
    horizon = world.horizon[users.segment[imps.user], stream]
    return index.exposure(low, high, horizon), index.exposure(low, high, high - low)


def matches(content: Content, imps: Impressions, stream: int) -> Bools:
    """Whether the user has at least one event of `stream` on the impression's item before the cutoff (B,)."""
    rows = np.flatnonzero(content.stream == stream)
    key = content.user[rows] * W.N_ITEMS + content.item[rows]
    keys, oldest = np.unique(key, return_index=True)  # rows are in time order: the first is the earliest
    if not len(keys):
        return np.zeros(len(imps.user), dtype=np.bool_)
    wanted = imps.user * W.N_ITEMS + imps.item
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    earliest = content.ts_ms[rows[oldest[place]]]
    return np.asarray((keys[place] == wanted) & (earliest < imps.cutoff_ms), dtype=np.bool_)


@dataclass(frozen=True)
class Contribution:
    """What one stream adds to the log-odds of every impression (B,); beta_full (G,) as in `Truth`, first half."""

    stream: int
    logit: Floats
    beta_full: Floats


def contributions(
    world: World, users: Users, content: Content, imps: Impressions, *, days: int
) -> Iterator[Contribution]:
    """Planted dwell effects of all streams, then match effects: each is 0 where its stream does not act.

    Exposures are standardised over the impressions of a segment, apart before and after mid-world where a world drifts.
    """
    segment = users.segment[imps.user]
    late = imps.ts_us >= days * W.DAY_MS * 500  # half of the span, in µs
    index = StreamIndex(content, acting_events(world, content))
    parts = [(world, ~late), (world.second_half(), late)] if world.drifts else [(world, late | True)]
    for stream in range(W.N_STREAMS):
        logit, beta_full = np.zeros(len(segment)), np.zeros(W.N_SEGMENTS)
        for place, (planted, there) in enumerate(parts):
            x, x_full = stream_exposure(planted, users, imps, index, stream)
            for g in range(W.N_SEGMENTS):
                rows = np.flatnonzero(there & (segment == g))
                beta = float(planted.beta[g, stream])
                if beta and len(rows):
                    logit[rows], seen = _cell_effect(x[rows], x_full[rows], beta, planted.kind[g, stream])
                    beta_full[g] = seen if place == 0 else beta_full[g]
        yield Contribution(stream, logit, beta_full)
    for stream in world.match_streams:
        hit = world.match[segment, stream] * matches(content, imps, int(stream))
        yield Contribution(int(stream), hit, np.zeros(W.N_SEGMENTS))


def _cell_effect(x: Floats, x_full: Floats, beta: float, kind: str) -> tuple[Floats, float]:
    """Log-odds of the impressions of one cell, and beta as the whole history's exposure shows it (kind u: 0)."""
    planted = standard(x)
    if kind == "u":
        return beta * standard(np.minimum(planted**2, W.U_CAP)), 0.0
    return beta * planted, beta * float(np.mean(planted * standard(x_full)))


def draw_truth(
    world: World, users: Users, content: Content, imps: Impressions, rng: np.random.Generator, *, days: int
) -> Truth:
    """p = sigmoid(a + planted effects + user effect) with a solved for the preset's mean p, and drawn labels.

    The session's intent adds to it. The earlier impression of a path is never the last touch: its p is 0, and the mean
    is that of the others.
    """
    logit = users.effect[imps.user] + W.INTENT_LOG_ODDS * content.intent[imps.anchor]
    beta_full = np.zeros_like(world.beta)
    for part in contributions(world, users, content, imps, days=days):
        logit += part.logit
        beta_full[:, part.stream] += part.beta_full
    credited = np.ones(len(logit), bool)
    credited[imps.path_from[imps.path_from >= 0]] = False
    p = np.where(credited, _sigmoid(logit + _solve_intercept(logit[credited], world.preset.base_rate)), 0.0)
    return Truth(p=p, label=rng.random(len(p)) < p, beta_full=beta_full)


def draw_conversions(
    content: Content, imps: Impressions, label: Bools, days: int, rng: np.random.Generator
) -> Conversions:
    """One conversion per positive impression, within 24 h; those past the end of the world are left out."""
    user, item = imps.user[label], imps.item[label]
    moment = conversion_moments(content, user, wanted_moments(imps.ts_us[label], rng))
    kept = moment < days * W.DAY_MS * 1000
    return Conversions(user=user[kept], ts_us=moment[kept], item=item[kept])


def wanted_moments(shown_us: Ints, rng: np.random.Generator) -> Ints:
    """When the conversion of each positive impression would come, whatever else the user does (µs)."""
    top = 1 - np.exp(-((W.DELAY_MAX_MS / W.DELAY_SCALE_MS) ** W.DELAY_SHAPE))
    delay = W.DELAY_SCALE_MS * (-np.log1p(-top * rng.random(len(shown_us)))) ** (1 / W.DELAY_SHAPE)
    return np.asarray(shown_us + np.maximum(delay * 1000, 1).astype(np.int64), dtype=np.int64)


def conversion_moments(content: Content, user: Ints, wanted: Ints) -> Ints:
    """When it does come (µs), so that it changes no content dwell and joins no sessions.

    Inside a session it takes the time of the next content event and is ordered before it, so the
    dwell of the event before stays whole. Outside it keeps CONVERSION_GAP_MS from both neighbouring sessions.
    """
    ts = content.ts_ms * 1000
    key = user * _SPAN_MS + _ceil_ms(wanted)
    follow = np.searchsorted(content.user * _SPAN_MS + content.ts_ms, key, side="left")
    has_next = follow < content.first[user + 1]
    nearest = np.where(has_next, follow, follow - 1)
    inside = has_next & (content.session[nearest] == content.session[follow - 1])
    low = ts[follow - 1] + W.CONVERSION_GAP_MS * 1000
    high = np.where(has_next, ts[nearest] - W.CONVERSION_GAP_MS * 1000, np.iinfo(np.int64).max)
    return np.asarray(np.where(inside, ts[nearest], np.clip(wanted, low, high)), dtype=np.int64)


def _ceil_ms(ts_us: Ints) -> Ints:
    return -(-ts_us // 1000)


def standard(x: Floats) -> Floats:
    """x (N,) minus its mean, over its standard deviation; zeros where it does not vary."""
    sd = float(x.std())
    return (x - x.mean()) / sd if sd > 0 else np.zeros_like(x)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-x)), dtype=np.float64)


def _solve_intercept(logit: Floats, rate: float) -> float:
    """The a for which mean sigmoid(a + logit) is `rate`, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        if len(logit) and float(_sigmoid(logit + middle).mean()) > rate:
            high = middle
        else:
            low = middle
    return (low + high) / 2
