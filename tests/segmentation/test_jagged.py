"""Jagged inputs against a loop over users, and what may not change them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from jagged_worlds import N_STREAMS, flat_world, ids, planted

from dynamix.errors import InputError
from dynamix.segmentation.blocks import INPUT, NEXT, OTHER
from dynamix.segmentation.jagged import FlatEvents, Jagged, jagged

KIND = np.array([0, 1, 2, 0, 1])


def same(a: Jagged, b: Jagged) -> bool:
    return a.users.equals(b.users) and all(
        np.array_equal(x, y, equal_nan=True)
        for (name, x), y in zip(vars(a).items(), vars(b).values(), strict=True)
        if isinstance(x, np.ndarray) and name in Jagged.__dataclass_fields__
    )


def build(events: FlatEvents, **more: object) -> Jagged:
    return jagged(events, users=ids(len(KIND)), n_streams=N_STREAMS, **more)  # type: ignore[arg-type]


def joined(a: FlatEvents, b: FlatEvents) -> FlatEvents:
    return FlatEvents(
        *(np.concatenate(pair) for pair in zip(vars(a).values(), vars(b).values(), strict=True))
    )


def test_sessions_end_at_a_longer_silence_and_at_the_border_of_the_windows() -> None:
    ts = np.array([0.0, 1800.0, 3600.1, 3700.0, 9000.0])
    part = np.array([INPUT, INPUT, INPUT, NEXT, NEXT])
    flat = FlatEvents(
        np.array([1, 1, 1, 1, 3]), ts, np.array([0, 1, 2, 3, 0]), np.array([12, 0, 5, 11, 1]),
        np.array([np.nan, 0.5, -1.0, 2.0, 0.0]), part,
    )  # fmt: skip
    found = build(flat)
    assert found.first_session.tolist() == [0, 0, 3, 3, 4, 4]
    assert found.first_event.tolist() == [0, 2, 3, 4, 5]
    assert found.part.tolist() == [INPUT, INPUT, NEXT, NEXT]
    assert found.gap == pytest.approx([0.0, np.log1p(1800.1 / 3600), np.log1p(99.9 / 3600), 0.0])
    assert found.stream.tolist() == [0, 1, 2, 3, 0]
    assert found.events.tolist() == [0, 4, 0, 1, 0]


def test_rows_in_any_order_give_the_same_inputs() -> None:
    flat = flat_world(KIND, events=30)
    order = np.random.default_rng(3).permutation(len(flat.user))
    assert same(build(flat), build(flat.take(order)))


def test_conversions_and_events_of_other_days_change_nothing() -> None:
    flat = flat_world(KIND, events=30)
    keep = flat.take(np.flatnonzero(flat.stream != 3))
    for part in (INPUT, NEXT):
        more = flat.take(np.arange(20))
        conversions = FlatEvents(
            more.user, more.ts_s + 1.0, np.full(20, 3), more.dwell_bin, more.z, np.full(20, part)
        )
        assert same(build(keep), build(joined(keep, conversions), conversion_streams=[3]))
    away = FlatEvents(
        flat.user, flat.ts_s, flat.stream, flat.dwell_bin, flat.z, np.full(len(flat.user), OTHER)
    )
    assert same(build(flat), build(joined(flat, away)))


def test_users_are_taken_with_their_own_sessions_and_events() -> None:
    whole, _ = planted(30, events=10)
    rows = np.array([7, 2, 7, 29])
    chosen = whole.take(rows)
    assert chosen.users.to_pylist() == [whole.users[int(r)].as_py() for r in rows]
    for place, row in enumerate(rows):
        own, one = (x.take(np.array([i])) for x, i in ((whole, row), (chosen, place)))
        assert same(own, one) and one.n_users == 1


def test_windows_and_halves_part_the_events() -> None:
    whole, _ = planted(40, events=12)
    for views in ((whole.window(INPUT), whole.window(NEXT)), whole.halves()):
        assert np.array_equal(sum(view.events for view in views), whole.events)
        assert all(view.n_users == whole.n_users for view in views)
    assert set(whole.window(NEXT).part.tolist()) == {NEXT}


def test_counts_and_exposures_equal_a_loop() -> None:
    whole, _ = planted(15, events=20)
    counts = whole.counts().matrix(N_STREAMS * 13, INPUT, NEXT).toarray()
    expected, exposure = np.zeros_like(counts), np.zeros((15, N_STREAMS))
    for u in range(15):
        dwell: list[list[float]] = [[] for _ in range(N_STREAMS)]
        for s in range(whole.first_session[u], whole.first_session[u + 1]):
            for e in range(whole.first_event[s], whole.first_event[s + 1]):
                expected[u, whole.stream[e] * 13 + whole.dwell_bin[e]] += 1
                if not np.isnan(whole.z[e]):
                    dwell[whole.stream[e]].append(float(whole.z[e]))
        exposure[u] = [len(v) / (len(v) + 1) * float(np.mean(v)) if v else 0.0 for v in dwell]
    assert np.array_equal(counts, expected)
    assert whole.exposure() == pytest.approx(exposure)
    by_window = whole.counts(dwell_bins=False).matrix(N_STREAMS, NEXT).toarray()
    assert by_window.sum(axis=1).tolist() == whole.window(NEXT).events.tolist()


def test_no_event_at_all_is_an_input_of_empty_users() -> None:
    none = flat_world(KIND, events=5).take(np.empty(0, np.int64))
    found = build(none)
    assert (found.n_users, found.n_sessions, found.events.tolist()) == (5, 0, [0] * 5)
    assert found.exposure().tolist() == np.zeros((5, N_STREAMS)).tolist()


@pytest.mark.parametrize(("name", "value"), [("user", 5), ("stream", -1), ("dwell_bin", 13)])
def test_numbers_out_of_range_are_named(name: str, value: int) -> None:
    flat = flat_world(KIND, events=5)
    values = vars(flat) | {name: np.full(len(flat.user), value)}
    with pytest.raises(InputError, match=f"{name} from {value} to {value}; allowed: 0 to"):
        jagged(FlatEvents(**values), users=pa.array(list("abcde")), n_streams=N_STREAMS)
