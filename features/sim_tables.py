"""Tables that the simulator writes: raw events and the truth beside them (interface names)."""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynamix.features import sim_world as W
from dynamix.features.sim_events import Content, Users
from dynamix.features.sim_labels import Conversions, Impressions, Truth
from dynamix.features.sim_world import Bools, Floats, Ints, World
from dynamix.features.sources.output import TIMESTAMP, raw_events

_CONVERSION, _CONTENT, _IMPRESSION = 0, 1, 2
"""Order among equal times: a conversion inside a session comes before the event whose time it takes."""


def event_table(
    world: World,
    content: Content,
    imps: Impressions,
    conversions: Conversions,
    *,
    start: date,
    rng: np.random.Generator,
    before: tuple[int, int, int] = (0, 0, 0),
    dwell_logged: bool = False,
) -> pa.Table:
    """Raw events of all users, sorted by user, time, then conversion before content; `event_seq` counts ties.

    `before` are the conversions, content events and impressions of earlier days, whose numbers are taken.
    `dwell_logged` writes the dwell that happened where a next event ended it, for logs that leave events out.
    """
    sizes = (len(conversions.user), len(content.user), len(imps.user))
    kind = np.repeat([_CONVERSION, _CONTENT, _IMPRESSION], sizes)
    row = np.concatenate([np.arange(size) for size in sizes])
    user = np.concatenate([conversions.user, content.user, imps.user])
    ts = np.concatenate([conversions.ts_us, content.ts_ms * 1000, imps.ts_us])
    item = np.concatenate([conversions.item, content.item, imps.item])
    stream = np.concatenate([np.full(sizes[0], -1), content.stream, content.stream[imps.anchor]])
    request = np.concatenate([np.full(sizes[0] + sizes[1], -1), imps.request])
    position = np.concatenate([np.full(sizes[0] + sizes[1], -1), imps.position])
    value = np.round(np.exp(3.0 + 0.6 * rng.normal(size=sizes[0])), 2)
    dwell = np.concatenate(
        [np.full(sizes[0], -1), np.where(content.censored, -1, content.dwell_ms), np.full(sizes[2], -1)]
    )
    order = np.lexsort((row, kind, ts, user))
    kind, row, user, ts, item, stream, request, position, dwell = (
        a[order] for a in (kind, row, user, ts, item, stream, request, position, dwell)
    )
    shown = kind == _IMPRESSION
    surface, event_type = _names(world, stream, kind)
    return raw_events(
        {
            "user_id": user_names(user),
            "event_ts": pa.array(ts + _epoch_us(start)).cast(TIMESTAMP),
            "event_type": event_type,
            "surface": surface,
            "event_id": _event_ids(kind, row + np.asarray(before)[kind]),
            "event_seq": pa.array(_ties(user, ts)),
            "item_id": _ids("i", item, 5),
            "category": _ids("c", item % W.N_CATEGORIES, 2),
            "ad_id": _ids("ad", item, 5, where=shown),
            "advertiser_id": _ids("adv", item % W.N_ADVERTISERS, 3, where=shown),
            "campaign_id": _ids("cmp", item % W.N_CAMPAIGNS, 3, where=shown),
            "conversion_type": pa.array(["purchase"]).take(
                pa.array(np.zeros(len(row), int), mask=kind != _CONVERSION)
            ),
            "request_id": _ids("r", request, 8, where=shown),
            "position": pa.array(position, mask=~shown),
            "value": pa.array(value).take(pa.array(row, mask=kind != _CONVERSION)),
            **({"dwell_ms": pa.array(dwell, mask=dwell < 0)} if dwell_logged else {}),
        }
    )


def truth_users(users: Users) -> pa.Table:
    """One row a user: user_id, segment 1..G, tier by planned activity."""
    tier = np.where(users.active, "active", "passive")
    return pa.table(
        {
            "user_id": user_names(np.arange(len(users.segment))),
            "segment": pa.array(users.segment + 1, pa.int32()),
            "tier": pa.array(tier.tolist(), pa.string()),
        }
    )


def truth_cells(world: World, truth: Truth) -> pa.Table:
    """One row a segment x stream.

    beta: log-odds per SD of the exposure over the newest `horizon` events (0 for kind `u`); u: log-odds per
    SD of its square; match: log-odds of at least one matching event; horizon: NULL where no dwell acts;
    beta_full: beta as far as the exposure over the whole history shows it (beta x correlation of the two).
    """
    segment, stream = (index.ravel() for index in np.indices(world.beta.shape))
    kind, beta = world.kind.ravel(), world.beta.ravel()
    curved = kind == "u"
    return pa.table(
        {
            "segment": pa.array(segment + 1, pa.int32()),
            "stream": pa.array(world.streams).take(pa.array(stream)),
            "beta": pa.array(np.where(curved, 0.0, beta)),
            "match": pa.array(world.match.ravel()),
            "horizon": pa.array(world.horizon.ravel(), pa.int32(), mask=beta == 0),
            "kind": pa.array(kind.tolist(), pa.string()),
            "u": pa.array(np.where(curved, beta, 0.0)),
            "beta_full": pa.array(truth.beta_full.ravel()),
        }
    )


def truth_segments(world: World) -> pa.Table:
    """One row a segment x stream: share of the users, and mix = share of the stream in the segment's events."""
    segment, stream = (index.ravel() for index in np.indices(world.mix.shape))
    return pa.table(
        {
            "segment": pa.array(segment + 1, pa.int32()),
            "share": pa.array(np.asarray(W.SEGMENT_SHARES)[segment]),
            "stream": pa.array(world.streams).take(pa.array(stream)),
            "mix": pa.array(world.mix.ravel()),
        }
    )


def truth_copies(world: World) -> pa.Table:
    """One row a near-copy: the stream, and the one it accompanies, of which alone the dwell acts."""
    names = pa.array(world.streams)
    original = pa.array(world.copy_of[world.copies])
    return pa.table({"stream": names.take(pa.array(world.copies)), "copy_of": names.take(original)})


def truth_swaps(world: World, *, start: date, days: int) -> pa.Table:
    """One row a swapped stream: from `from_ts` on its cells have kind, beta and horizon of those of `takes_over`."""
    names = pa.array(world.streams)
    return pa.table(
        {
            "stream": names.take(pa.array(world.swap)),
            "takes_over": names.take(pa.array(world.swap[::-1])),
            "from_ts": _mid_world(start, days, len(world.swap)),
        }
    )


def truth_turned_on(world: World, *, start: date, days: int) -> pa.Table:
    """One row a stream that is null at first: from `from_ts` on its cells are strong, with log-odds beta per SD."""
    n = len(world.turned_on)
    return pa.table(
        {
            "stream": pa.array(world.streams).take(pa.array(world.turned_on)),
            "beta": pa.array([W.KIND_BETA["strong"]] * n),
            "from_ts": _mid_world(start, days, n),
        }
    )


def _mid_world(start: date, days: int, n: int) -> pa.Array:
    return pa.array([_epoch_us(start) + days * W.DAY_MS * 500] * n, pa.int64()).cast(TIMESTAMP)


def truth_intent(world: World) -> pa.Table:
    """One row a stream whose dwell follows the session's intent: ln dwell and log-odds of the label per SD of it."""
    n = len(world.intent)
    return pa.table(
        {
            "stream": pa.array(world.streams).take(pa.array(world.intent)),
            "ln_dwell": pa.array([W.INTENT_DWELL] * n),
            "log_odds": pa.array([W.INTENT_LOG_ODDS] * n),
        }
    )


def truth_paths(imps: Impressions, *, before: int = 0) -> pa.Table:
    """One row a path: the impression that a conversion is credited to, and the earlier one of the same item."""
    later = np.flatnonzero(imps.path_from >= 0)
    ids = [
        _event_ids(np.full(len(rows), _IMPRESSION), rows + before) for rows in (later, imps.path_from[later])
    ]
    return pa.table({"impression_id": ids[0], "first_impression_id": ids[1]})


def truth_types(world: World) -> pa.Table:
    """One row a segment: composition type (equal shares but for a little) and slope type (equal effects), from 1."""
    return pa.table(
        {
            "segment": pa.array(np.arange(len(world.types)) + 1, pa.int32()),
            "composition": pa.array(world.types[:, 0] + 1, pa.int32()),
            "slope": pa.array(world.types[:, 1] + 1, pa.int32()),
        }
    )


def truth_impressions(p: Floats, label: Bools, *, before: int = 0) -> pa.Table:
    """One row an impression: impression_id (= event_id), p, and the planted label, matured or not."""
    rows = np.arange(len(p)) + before
    return pa.table(
        {
            "impression_id": _event_ids(np.full(len(rows), _IMPRESSION), rows),
            "p": pa.array(p),
            "label": pa.array(label.astype(np.int8)),
        }
    )


def user_names(user: Ints) -> pa.Array:
    """`u0000012` for user 12."""
    return _ids("u", user, 7)


def _ids(prefix: str, number: Ints, width: int, *, where: np.ndarray | None = None) -> pa.Array:
    values = pa.array(number, pa.int64(), mask=None if where is None else ~where)
    text = pc.utf8_lpad(values.cast(pa.string()), width, "0")
    return pc.binary_join_element_wise(prefix, text, "")


def _event_ids(kind: Ints, row: Ints) -> pa.Array:
    letter = pa.array(["v", "e", "m"]).take(pa.array(kind))
    return pc.binary_join_element_wise(letter, pc.utf8_lpad(pa.array(row).cast(pa.string()), 9, "0"), "")


def _names(world: World, stream: Ints, kind: Ints) -> tuple[pa.Array, pa.Array]:
    """Surface and event type; an impression is shown on the surface of the event on screen."""
    surfaces, types = zip(*(name.split("/") for name in world.streams), strict=True)
    surface = pa.array([*surfaces, W.CONVERSION_SURFACE]).take(pa.array(stream % (W.N_STREAMS + 1)))
    code = np.where(kind == _CONTENT, stream, W.N_STREAMS + kind)
    event_type = pa.array([*types, "conversion", "", "impression"]).take(pa.array(code))
    return surface, event_type


def _ties(user: Ints, ts: Ints) -> Ints:
    """0, 1, … within equal (user, ts) of a sorted block."""
    fresh = np.ones(len(user), dtype=np.bool_)
    fresh[1:] = (np.diff(user) != 0) | (np.diff(ts) != 0)
    place = np.arange(len(user))
    return place - np.maximum.accumulate(np.where(fresh, place, 0))


def _epoch_us(start: date) -> int:
    return (start - date(1970, 1, 1)).days * W.DAY_MS * 1000
