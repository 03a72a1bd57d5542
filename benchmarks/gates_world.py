"""A simulated world as the statistics see it, without Spark: dwells, habits and histories in NumPy.

From the kept history on, every number comes from the product's own functions (sums: benchmarks/gates_sums.py). What
Spark does before that, caps, moments, habits and z of the dwells, is repeated here in NumPy (docs/method.md A.2) and
held against the plain Python oracle in tests/benchmarks/test_gates_world.py. Past conversions are left out of the
histories.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dynamix.config import Config, load_config
from dynamix.features import sim_world as W
from dynamix.features.calendar import Calendar, Period, build_calendar, midnight, since_1970
from dynamix.features.dwell import BINS_PER_E
from dynamix.features.history import EventBlock, ImpressionBlock, kept_history
from dynamix.features.quotas import BaseQuota
from dynamix.features.relevance import Prediction
from dynamix.features.sim_labels import StreamIndex, acting_events, contributions, standard, stream_exposure
from dynamix.features.simulate import CONFIG, Simulation
from dynamix.features.streams import Z_LIMIT
from dynamix.features.timeline import codes
from dynamix.segmentation.given import Rates, fit_given

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

HEAD = "conversion"
EXPECTED = "expected"
"""In place of a label: the planted p."""
START = date(2026, 1, 5)
G, F = W.N_SEGMENTS, W.N_STREAMS
BLOCK_USERS = 1500
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)


def world_config(*settings: str) -> Config:
    """The config that `simulate` writes beside its events, with `key=value` settings on top."""
    return load_config(base=CONFIG, settings=settings)


def world_calendar(days: int) -> Calendar:
    """The one-shot calendar of a world of that many days."""
    return build_calendar(START + timedelta(days=days), first_event=midnight(START), days=days)


# --- dwell, habit, z (docs/method.md A.2.2, A.2.3)


@dataclass(frozen=True)
class Dwells:
    """Of N content events: z (NaN = no usable dwell), and whether the dwell is censored."""

    z: Floats
    censored: Bools


def pipeline_dwells(drawn: Simulation, config: Config, calendar: Calendar) -> Dwells:
    """z as the pipeline derives it from the written events: caps, moments and habits from the calendar's windows."""
    content = drawn.content
    ts = content.ts_ms * 1000 + since_1970(midnight(START))
    last = content.censored
    ms = np.where(last, 0, content.dwell_ms)
    usable = ~last if config.dwell.censor_last else np.ones_like(last)
    base = inside(ts, calendar.baseline) & usable
    ms = np.minimum(ms, _caps(ms[base], content.stream[base], config.dwell.cap_quantile)[content.stream])
    log = np.log1p(ms.astype(np.float64))
    mu, sigma = _moments(log[base], content.stream[base])
    residual = log - mu[content.stream]
    habit = np.zeros(len(drawn.users.planned))
    if calendar.habit is not None:
        seen = inside(ts, calendar.habit) & usable & np.isfinite(residual)
        habit = habits(residual[seen], content.user[seen], len(habit))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.clip((residual - habit[content.user]) / sigma[content.stream], -Z_LIMIT, Z_LIMIT)
    defined = usable & (sigma[content.stream] > 0)
    return Dwells(np.where(defined, z, np.nan), last & ~usable)


def planted_dwells(drawn: Simulation) -> Dwells:
    """The z that act on the labels, without habits: what no pipeline can know better."""
    acting = acting_events(drawn.world, drawn.content)
    return Dwells(np.where(acting, drawn.content.z, np.nan), drawn.content.censored)


def inside(ts_us: Ints, period: Period) -> Bools:
    """Which instants (µs since 1970) lie in the period."""
    return np.asarray((ts_us >= since_1970(period.start)) & (ts_us < since_1970(period.end)))


def _caps(ms: Ints, stream: Ints, quantile: float) -> Ints:
    """Upper edge (F,) of the dwell bin that holds the quantile of each stream; no events, no cap."""
    bins = np.floor(BINS_PER_E * np.log1p(ms.astype(np.float64))).astype(np.int64)
    width = int(bins.max(initial=0)) + 1
    counts = np.bincount(stream * width + bins, minlength=F * width).reshape(F, width)
    below, total = np.cumsum(counts, axis=1), counts.sum(axis=1)
    reached = (below >= quantile * total[:, None]).argmax(axis=1)
    edge = np.floor(np.exp((reached + 1) / BINS_PER_E) - 1).astype(np.int64)
    return np.where(total > 0, edge, np.iinfo(np.int64).max)


def _moments(log: Floats, stream: Ints) -> tuple[Floats, Floats]:
    """Mean and sample standard deviation (F,) of each stream's log dwells; NaN where there are too few."""
    n = np.bincount(stream, minlength=F).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(stream, log, minlength=F) / n
        spread = np.bincount(stream, (log - mean[stream]) ** 2, minlength=F)
        return mean, np.sqrt(spread / np.where(n > 1, n - 1, np.nan))


def habits(residual: Floats, user: Ints, n_users: int) -> Floats:
    """Shrunken habit (U,) from log dwells minus the stream's mean; 0 without any, or where nothing lies between users.

    n/(n+κ) · mean with κ = within / between variance by one-way ANOVA moments (docs/method.md A.2.3).
    """
    n = np.bincount(user, minlength=n_users).astype(np.float64)
    total = np.bincount(user, residual, minlength=n_users)
    size, groups = n.sum(), float((n > 0).sum())
    if groups < 2 or size <= groups:
        return np.zeros(n_users)
    explained = float((total[n > 0] ** 2 / n[n > 0]).sum())
    within = max(float((residual**2).sum()) - explained, 0.0) / (size - groups)
    mean_square = (explained - total.sum() ** 2 / size) / (groups - 1)
    between = max((mean_square - within) / ((size - (n**2).sum() / size) / (groups - 1)), 0.0)
    if between == 0:
        return np.zeros(n_users)
    return np.asarray(total * between / (n * between + within))


# --- histories


@dataclass(frozen=True)
class Rows:
    """The B labelled impressions of the statistics period: their place among all, and what is known of them.

    segment: planted 0..G-1; given (B,): the segment id the statistics use, planted + 1, or 0 for users that are
    cold at the impression; expected: p with the user effect integrated out; fixed: its log-odds without that effect.
    """

    place: Ints
    segment: Ints
    given: Ints
    label: Bools
    fixed: Floats
    expected: Floats


@dataclass(frozen=True)
class Block:
    """Whole users with their kept histories; `events` is the slice of content events that the block holds.

    `collected`: offsets and index of the histories beyond their base, the same where no boosts are asked for.
    """

    events: slice
    asked: ImpressionBlock
    rows: slice
    offsets: Ints
    index: Ints
    collected: tuple[Ints, Ints]


@dataclass(frozen=True)
class Histories:
    """A world's labelled impressions with their kept histories, block by block, and the prediction without history.

    `base`: what of the collected histories is kept without boosts; None where none are asked for.
    """

    drawn: Simulation
    calendar: Calendar
    rows: Rows
    prediction: Prediction
    base: BaseQuota | None
    blocks: tuple[Block, ...] = field(repr=False)


def histories(
    drawn: Simulation,
    *,
    days: int,
    config: Config,
    calendar: Calendar | None = None,
    half: Ints | None = None,
) -> Histories:
    """Kept histories of every mature impression of the statistics period, with true segments.

    calendar: that of `days` where none is given; half (U,): of each user, every other one where none is given.
    """
    calendar = calendar or world_calendar(days)
    rows = _labelled(drawn, calendar, config)
    asked = _impressions(drawn, rows, np.arange(len(drawn.users.planned)) % 2 if half is None else half)
    made = []
    base = BaseQuota(config.history.per_stream) if config.mask.boost_to else None
    dwells = planted_dwells(drawn)  # any would do: which events are kept does not depend on them
    for events, own in _slices(drawn, asked.user):
        block = event_block(drawn, events, dwells)
        seen = _part(asked, own)
        collected = _kept(block, seen, config)
        kept = collected if base is None else base.part(*collected, block.stream)
        made.append(Block(events, seen, own, *kept, collected))
    return Histories(drawn, calendar, rows, _prediction(asked.frame), base, tuple(made))


def _kept(events: EventBlock, asked: ImpressionBlock, config: Config) -> tuple[Ints, Ints]:
    history = config.history
    return kept_history(
        events, asked, per_stream=history.per_stream, total=history.total,
        embargo_us=round(history.embargo_s * 1e6), run_date_us=None, boost_to=config.mask.boost_to,
    )  # fmt: skip


def _labelled(drawn: Simulation, calendar: Calendar, config: Config) -> Rows:
    imps, users = drawn.impressions, drawn.users
    ts = imps.ts_us + since_1970(midnight(START))
    mature = ts + W.ATTRIBUTION_MS * 1000 <= since_1970(calendar.statistics.end)
    place = np.flatnonzero(inside(ts, calendar.statistics) & mature)
    user = imps.user[place]
    p = drawn.truth.p[place]
    with np.errstate(divide="ignore"):
        fixed = (
            np.log(p) - np.log1p(-p) - users.effect[user]
        )  # -inf where a path's conversion goes to a later touch
    spread = drawn.world.preset.user_effect_sd
    expected = np.zeros(len(place))
    for node, weight in zip(_NODES, _WEIGHTS / _WEIGHTS.sum(), strict=True):
        expected += weight / (1.0 + np.exp(-(fixed + spread * node)))
    segment = users.segment[user]
    given = segment + 1
    if drawn.world.preset.cold_share:
        given = np.where(_events_so_far(drawn, place) < config.segmentation.min_events, 0, given)
    return Rows(place, segment, given, drawn.truth.label[place], fixed, expected)


def _events_so_far(drawn: Simulation, place: Ints) -> Ints:
    """Content events of the user before midnight of the impression's day: assignment is by day."""
    content, imps = drawn.content, drawn.impressions
    user = imps.user[place]
    day = imps.ts_us[place] // (W.DAY_MS * 1000)
    wide = np.int64(2) ** 40
    keys = content.user * wide + content.ts_ms
    before = np.searchsorted(keys, user * wide + day * W.DAY_MS, side="left")
    return np.asarray(before - content.first[user], np.int64)


def _impressions(drawn: Simulation, rows: Rows, half: Ints) -> ImpressionBlock:
    imps = drawn.impressions
    at = rows.place
    surface = drawn.content.stream[imps.anchor[at]] // len(W.TYPES)
    frame = pa.table(
        {
            "user_id": pa.array(imps.user[at]),
            "segment_id": pa.array(rows.given),
            "half": pa.array(half[imps.user[at]]),
            f"label_{HEAD}": pa.array(rows.label.astype(np.float64)),
            f"label_{EXPECTED}": pa.array(rows.expected),
            "surface": pa.array(W.SURFACES).take(pa.array(surface)),
            "position": pa.array(imps.position[at], pa.int32()),
        }
    )
    ts = imps.ts_us[at] + since_1970(midnight(START))
    return ImpressionBlock(
        imps.user[at], ts, imps.request[at], imps.item[at], imps.item[at] % W.N_CATEGORIES, frame
    )


def _part(asked: ImpressionBlock, own: slice) -> ImpressionBlock:
    frame = asked.frame.slice(own.start, own.stop - own.start)
    return ImpressionBlock(
        asked.user[own], asked.ts_us[own], asked.request[own], asked.item[own], asked.category[own], frame
    )


def _slices(drawn: Simulation, user: Ints) -> Iterator[tuple[slice, slice]]:
    """Content events and labelled impressions of BLOCK_USERS users after the other, where there is an impression."""
    first = drawn.content.first
    for low in range(0, len(first) - 1, BLOCK_USERS):
        high = min(low + BLOCK_USERS, len(first) - 1)
        begin, end = np.searchsorted(user, [low, high], side="left")
        if end > begin:
            yield slice(int(first[low]), int(first[high])), slice(int(begin), int(end))


def event_block(drawn: Simulation, part: slice, dwells: Dwells) -> EventBlock:
    """The content events of the slice, with the dwells given."""
    content = drawn.content
    ts = content.ts_ms[part] * 1000 + since_1970(midnight(START))
    item = content.item[part]
    return EventBlock(
        user=content.user[part], ts_us=ts, ingest_us=ts, request=np.full(len(ts), -1, np.int64),
        stream=content.stream[part].astype(np.int16), item=item, category=item % W.N_CATEGORIES,
        z=dwells.z[part], dwell_bin=np.zeros(len(ts), np.int8), censored=dwells.censored[part],
        item_name=None, category_name=None,
    )  # fmt: skip


def _prediction(frame: pa.Table) -> Prediction:
    """What is predicted without history, by the product's fit on these impressions; the expected head shares it."""
    columns = [frame.column(name).to_numpy() for name in ("position", "segment_id", f"label_{HEAD}")]
    position, segment, label = (np.asarray(c) for c in columns)
    surface, names = codes(frame.column("surface"))
    key = (surface * 8 + position) * (G + 1) + segment  # positions are 1 to 4
    groups, group = np.unique(key, return_inverse=True)
    rest, segments = np.divmod(groups, G + 1)
    rates = Rates(
        [names[int(s)].as_py() for s in rest // 8], (rest % 8).astype(np.int64), segments.astype(np.int64),
        np.bincount(group).astype(np.float64), {HEAD: np.bincount(group, label).astype(np.float64)},
    )  # fmt: skip
    made = fit_given(rates, kind="baseline", n_segments=G + 1)
    return Prediction(
        made.surfaces,
        dict.fromkeys((HEAD, EXPECTED), made.cell[HEAD]),
        dict.fromkeys((HEAD, EXPECTED), made.offset[HEAD]),
    )


# --- what is planted


def planted_logits(made: Histories, *, days: int) -> tuple[npt.NDArray[np.float32], Mapping[int, Floats]]:
    """What each stream adds to the log-odds of every labelled impression (B, F), and what a near-copy still tells.

    The second maps a copied stream to the projection (B,) of its own contribution on its copy's exposure.
    """
    drawn, at = made.drawn, made.rows.place
    parts = np.zeros((len(at), F), np.float32)
    for part in contributions(drawn.world, drawn.users, drawn.content, drawn.impressions, days=days):
        parts[:, part.stream] += part.logit[at].astype(np.float32)
    return parts, {
        int(drawn.world.copy_of[copy]): _told_by(made, int(copy), parts) for copy in drawn.world.copies
    }


def _told_by(made: Histories, copy: int, parts: npt.NDArray[np.float32]) -> Floats:
    """Projection of the original's contribution on the copy's exposure, segment by segment."""
    drawn, rows = made.drawn, made.rows
    index = StreamIndex(drawn.content, acting_events(drawn.world, drawn.content))
    x, _ = stream_exposure(drawn.world, drawn.users, drawn.impressions, index, copy)
    own = cast(Floats, parts[:, drawn.world.copy_of[copy]].astype(np.float64))
    told = np.zeros(len(own))
    for g in range(G):
        mine = np.flatnonzero(rows.segment == g)
        if len(mine):
            told_by = standard(x[rows.place[mine]])
            told[mine] = told_by * float(np.mean(told_by * own[mine]))
    return told
