"""Who is in which segment when: confidence, hysteresis, no look ahead, rows that partition the days."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamix.features.calendar import build_calendar
from dynamix.segmentation.assign import NEVER, activity_border, assigned, day_table, histories
from dynamix.segmentation.blocks import OTHER, count_block
from dynamix.segmentation.midnights import Rule, decide
from dynamix.segmentation.mixture import Mixture

RULE = Rule(confidence=0.9, min_events=15, active_from=5.0)
TWO = Mixture(np.log(np.array([[0.7, 0.3], [0.3, 0.7]])), np.log(np.array([0.6, 0.4])))
ENTRY = pa.struct([("day", pa.int32()), ("part", pa.int32()), ("cell", pa.int32()), ("n", pa.int32())])
Event = tuple[int, int, int]  # day, cell, n


class Frame:
    """Record batches that answer `mapInArrow` as a Spark frame would."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def mapInArrow(self, work: Any, schema: str) -> Frame:
        return Frame([out for batch in self.batches for out in work(iter([batch]))])

    def collect(self) -> list[dict[str, Any]]:
        return [row for batch in self.batches for row in batch.to_pylist()]


def batch_of(users: Sequence[Sequence[Event]]) -> Any:
    rows = [[{"day": d, "part": OTHER, "cell": c, "n": n} for d, c, n in user] for user in users]
    names = pa.array([f"u{i}" for i in range(len(users))])
    return pa.record_batch({"user_id": names, "entries": pa.array(rows, pa.list_(ENTRY))})


def stream_of(q: Sequence[Sequence[float]], events: Sequence[int] | None = None) -> list[int]:
    """Component per midnight of one user with the given posteriors."""
    table = np.array([q], float)
    seen = np.array([events or [100] * len(q)])
    return [int(x) for x in decide(table, seen, RULE)[0]]


def test_the_first_segment_comes_at_once_when_confidence_and_events_suffice() -> None:
    assert stream_of([[0.95, 0.05]]) == [0]
    assert stream_of([[0.9, 0.1]]) == [0]
    assert stream_of([[0.89, 0.11]]) == [-1]
    assert stream_of([[0.95, 0.05]] * 3, [14, 14, 15]) == [-1, -1, 0]


def test_a_segment_is_kept_while_the_posterior_only_wavers() -> None:
    assert stream_of([[0.95, 0.05], [0.5, 0.5], [0.41, 0.59], [0.41, 0.59]]) == [0, 0, 0, 0]


def test_a_change_needs_a_lead_on_two_midnights_in_a_row() -> None:
    other, back = [0.05, 0.95], [0.95, 0.05]
    assert stream_of([back, other, other]) == [0, 0, 1]
    assert stream_of([back, other, back, other, back]) == [0, 0, 0, 0, 0]
    assert stream_of([back, other, back, other, other]) == [0, 0, 0, 0, 1]


def test_two_different_challengers_do_not_add_up() -> None:
    home, b, c = [0.95, 0.05, 0.0], [0.0, 0.95, 0.05], [0.0, 0.05, 0.95]
    assert stream_of([home, b, c, b, c]) == [0, 0, 0, 0, 0]
    assert stream_of([home, b, c, c]) == [0, 0, 0, 2]


def test_a_change_also_needs_the_confidence_on_the_day_of_the_change() -> None:
    assert stream_of([[0.95, 0.05], [0.3, 0.7], [0.2, 0.8], [0.08, 0.92]]) == [0, 0, 0, 1]


posteriors = st.lists(
    st.sampled_from([(0.95, 0.05, 0.0), (0.04, 0.96, 0.0), (0.0, 0.05, 0.95), (0.6, 0.4, 0.0), (0.2, 0.45, 0.35)]),
    min_size=1, max_size=9,
)  # fmt: skip


@given(posteriors, st.integers(0, 20))
def test_decisions_equal_the_rule_told_day_by_day(q: list[tuple[float, ...]], first: int) -> None:
    events = [first + 3 * d for d in range(len(q))]
    state, before, expected = -1, -1, []
    for day, row in enumerate(q):
        best = max(range(3), key=lambda k: row[k])
        sure = row[best] >= 0.9 and events[day] >= 15
        challenged = state >= 0 and best != state and row[best] - row[state] >= 0.2
        if (state < 0 and sure) or (challenged and before == best and sure):
            state, before = best, -1
        else:
            before = best if challenged else -1
        expected.append(state)
    assert stream_of(q, events) == expected


def test_the_posterior_at_midnight_rests_on_earlier_days_only() -> None:
    user: list[Event] = [(0, 0, 2), (0, 1, 1), (2, 1, 4)]
    q, _, events, _ = assigned(count_block(batch_of([user])), TWO, RULE, 5)
    for day in range(5):
        joint = [
            math.exp(TWO.log_pi[k]) * math.prod(math.exp(TWO.log_p[k, c]) ** n for d, c, n in user if d < day)
            for k in range(2)
        ]
        assert q[0, day] == pytest.approx([j / sum(joint) for j in joint])
        assert events[0, day] == sum(n for d, _, n in user if d < day)


@given(st.integers(1, 9), st.integers(0, 1), st.integers(1, 60))
def test_events_of_a_day_and_later_change_nothing_before(day: int, cell: int, n: int) -> None:
    past: list[Event] = [(0, 0, 20), (3, 1, 30), (6, 1, 30)]
    plain = assigned(count_block(batch_of([past])), TWO, RULE, 11)
    more = assigned(count_block(batch_of([[*past, (day, cell, n)]])), TWO, RULE, 11)
    for a, b in zip(plain, more, strict=True):
        assert np.array_equal(a[:, : day + 1], b[:, : day + 1])
    assert more[2][0, day + 1] == plain[2][0, day + 1] + n


def test_events_of_the_last_seven_days_are_counted_at_each_midnight() -> None:
    rng = np.random.default_rng(0)
    user: list[Event] = [
        (int(d), int(rng.integers(2)), int(rng.integers(1, 4))) for d in rng.integers(0, 20, 30)
    ]
    days = day_table(count_block(batch_of([user])), TWO, 21)
    for day in range(21):
        assert days.week[0, day] == sum(n for d, _, n in user if day - 7 <= d < day)


def test_the_activity_border_is_the_median_week_of_users_with_enough_events() -> None:
    users: list[list[Event]] = [[(0, 0, 20), (9, 0, n)] for n in (1, 4, 6, 9)] + [[(9, 0, 14)]]
    frame: Any = Frame([batch_of(users)])
    assert activity_border(frame, min_events=15, day=10) == 4.0
    assert activity_border(frame, min_events=22, day=10) == 6.0  # 24, 26 and 29 events
    assert activity_border(frame, min_events=500, day=10) == NEVER


CALENDAR = build_calendar(date(2024, 1, 21), first_event=datetime(2024, 1, 1, 5))


def rows_of(
    users: Sequence[Sequence[Event]], rule: Rule = RULE, mixture: Mixture = TWO
) -> list[dict[str, Any]]:
    frame: Any = Frame([batch_of(users)])
    found: Any = histories(frame, mixture, rule=rule, calendar=CALENDAR)
    return list(found.collect())


def test_rows_partition_the_days_and_repeat_the_state_of_every_midnight() -> None:
    rng = np.random.default_rng(3)
    users = [
        [(int(d), int(rng.random() < (0.8 if d < 10 else 0.1)), int(rng.integers(1, 5))) for d in range(20)]
        for _ in range(12)
    ] + [[(19, 0, 1)]]
    rows = rows_of(users)
    first = datetime(2024, 1, 1, tzinfo=UTC)
    _, component, events, active = assigned(count_block(batch_of(users)), TWO, RULE, 21)
    for u in range(len(users)):
        own = [r for r in rows if r["user_id"] == f"u{u}"]
        assert own[0]["valid_from"] == first
        assert [r["valid_to"] for r in own[:-1]] == [r["valid_from"] for r in own[1:]]
        assert own[-1]["valid_to"] is None
        assert [r["last"] for r in own] == [False] * (len(own) - 1) + [True]
        for day in range(21):
            now = first + timedelta(days=day)
            (row,) = [
                r
                for r in own
                if r["valid_from"] <= now and (r["valid_to"] or datetime.max.replace(tzinfo=UTC)) > now
            ]
            assert row["component"] == component[u, day]
            assert row["tier"] == ("active" if active[u, day] else "passive")
        starts = [(r["valid_from"] - first).days for r in own[:-1]]
        assert [r["n_events"] for r in own] == [*events[u, starts], events[u, 20]]
    assert (
        len({r["component"] for r in rows}) == 3
        and max(len([r for r in rows if r["user_id"] == f"u{u}"]) for u in range(12)) > 2
    )


def test_neighbouring_rows_differ_in_segment_or_tier() -> None:
    rng = np.random.default_rng(5)
    users = [
        [(int(d), int(rng.integers(2)), int(rng.integers(1, 9))) for d in range(0, 20, 2)] for _ in range(20)
    ]
    rows = rows_of(users)
    for a, b in itertools.pairwise(rows):
        if a["user_id"] == b["user_id"]:
            assert (a["component"], a["tier"]) != (b["component"], b["tier"])


def test_the_open_row_shows_the_posterior_of_the_run_date() -> None:
    user: list[Event] = [(0, 0, 20), (19, 1, 4)]
    row = rows_of([user])[-1]
    joint = [0.6 * 0.7**20 * 0.3**4, 0.4 * 0.3**20 * 0.7**4]
    assert dict(row["posterior"])[0] == pytest.approx(joint[0] / sum(joint), abs=1e-6)
    assert row["n_events"] == 24


def test_thinning_the_events_by_half_moves_few_confident_users() -> None:
    rng = np.random.default_rng(7)
    mixture = Mixture(
        np.log(np.array([[0.6, 0.2, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])), np.log(np.array([0.5, 0.5]))
    )
    kinds = rng.integers(0, 2, 300)
    full = np.array([rng.multinomial(60, np.exp(mixture.log_p[k])) for k in kinds])
    thin = rng.binomial(full, 0.5)

    def final(counts: npt.NDArray[np.int64]) -> Any:
        users = [[(0, c, int(n)) for c, n in enumerate(row) if n] for row in counts]
        return assigned(count_block(batch_of(users)), mixture, RULE, 2)[1][:, 1]

    a, b = final(full), final(thin)
    confident = (a >= 0) & (b >= 0)
    assert confident.mean() > 0.8
    assert (a[confident] != b[confident]).mean() <= 0.1


def test_the_control_shuffled_is_a_fixed_draw_with_the_shares_of_the_mixture() -> None:
    users: list[list[Event]] = [[(0, 0, 20)] for _ in range(2000)]
    rule = Rule(0.9, 15, 5.0, "shuffled")
    a = assigned(count_block(batch_of(users)), TWO, rule, 4)[1]
    b = assigned(count_block(batch_of([[(0, 1, 40)] for _ in range(2000)])), TWO, rule, 4)[1]
    assert np.array_equal(a, b)  # behaviour plays no part
    assert set(a[:, 0]) == {-1} and abs((a[:, 3] == 0).mean() - 0.6) < 4 * (0.24 / 2000) ** 0.5


def test_the_control_tier_puts_active_users_first() -> None:
    rule = Rule(0.9, 15, 5.0, "tier")
    users: list[list[Event]] = [[(0, 0, 20)], [(0, 1, 20), (9, 1, 5)], [(9, 0, 3)]]
    component = assigned(count_block(batch_of(users)), TWO, rule, 11)[1]
    assert component[:, 10].tolist() == [1, 0, -1]
    assert component[0, 7] == 0 and component[0, 8] == 1  # its twenty events leave the week
