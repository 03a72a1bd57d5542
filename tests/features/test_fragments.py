"""Cuts and merges of sessions: any split of the events, merged in any order, gives what one pass gives."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamix.errors import GuardError
from dynamix.features.engine import Kernel
from dynamix.features.engine_hot import HotUsers, _active_batch, cut_hot
from dynamix.features.fragments import ABSENT, Border, Rule, Spans, border, mark, merge_spans, spans
from dynamix.features.user_block import Reading

GAP, LENGTH = 30, 100
RULE = Rule(GAP, LENGTH)
MINUTE_US = 60_000_000
MIDNIGHT_US = 1_774_742_400_000_000  # 2026-03-29 00:00 UTC, the night in which Europe's clocks change


def by_hand(times: list[int], *, whole: bool) -> list[tuple[int, int, bool, int]]:
    """(first, part, begins, until_next) of one line's sorted times, an event at a time."""
    found: list[tuple[int, int, bool]] = []
    for i, at in enumerate(times):
        opens = i == 0 or (at - times[i - 1] > GAP and not whole)
        first, part = (at, 0) if opens else (found[-1][0], 0)
        while at - first > (part + 1) * LENGTH:
            part += 1
        found.append((first, part, opens or part != found[-1][1]))
    rows = []
    for i, (first, part, begins) in enumerate(found):
        follows = i + 1 < len(times) and not found[i + 1][2]
        rows.append((first, part, begins, times[i + 1] - times[i] if follows else -1))
    return rows


times_of_a_line = st.lists(st.sampled_from([0, 0, 1, 7, 29, 30, 31, 95, 130]), min_size=1, max_size=25).map(
    lambda waits: np.cumsum(waits).tolist()
)


def merged(draw: random.Random, parts: list[Spans]) -> Spans:
    """The parts, merged two or three at a time in an order drawn by lot."""
    while len(parts) > 1:
        draw.shuffle(parts)
        size = draw.randint(2, 3)
        parts = [merge_spans(parts[:size], gap_us=GAP), *parts[size:]]
    return parts[0]


@settings(max_examples=200)
@given(times_of_a_line, st.booleans())
def test_marks_equal_those_made_by_hand(times: list[int], whole: bool) -> None:
    us = np.array(times, dtype=np.int64)
    found = mark(np.zeros(len(us), dtype=np.int64), us, rule=RULE, whole=np.full(len(us), whole))
    rows = zip(*(x.tolist() for x in (found.first, found.part, found.begins, found.until_next)), strict=True)
    assert list(rows) == by_hand(times, whole=whole)


@settings(max_examples=200)
@given(st.lists(times_of_a_line, min_size=1, max_size=3), st.booleans(), st.randoms(use_true_random=False))
def test_any_cut_gives_the_marks_of_one_pass(
    lines: list[list[int]], whole: bool, draw: random.Random
) -> None:
    """Spans of scattered subsets, merged in any order, and blocks cut at any place in time."""
    line = np.repeat(np.arange(len(lines)), [len(times) for times in lines])
    us = np.concatenate(lines).astype(np.int64)
    own = np.full(len(us), whole)
    wanted = mark(line, us, rule=RULE, whole=own)
    gap = 10**9 if whole else GAP
    subset = np.array([draw.randrange(3) for _ in us])
    scattered = [spans(line[subset == i], us[subset == i], gap_us=gap) for i in range(3)]
    while len(scattered) > 1:
        draw.shuffle(scattered)
        scattered = [merge_spans(scattered[:2], gap_us=gap), *scattered[2:]]
    chains = scattered[0]
    cuts = sorted({0, len(us), *(draw.randrange(len(us) + 1) for _ in range(3))})
    for low, high in itertools.pairwise(cuts):
        own_lines, dense = np.unique(line[low:high], return_inverse=True)
        before = [us[low - 1] if low and line[low - 1] == each else ABSENT for each in own_lines]
        after = [us[high] if high < len(us) and line[high] == each else ABSENT for each in own_lines]
        outside = border(chains, own_lines, np.array(before), np.array(after))
        found = mark(dense, us[low:high], rule=RULE, whole=own[low:high], outside=outside)
        for name in ("first", "part", "begins", "until_next"):
            assert getattr(found, name).tolist() == getattr(wanted, name)[low:high].tolist(), name


@settings(max_examples=200)
@given(st.lists(times_of_a_line, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_spans_of_subsets_merge_in_any_order(lines: list[list[int]], draw: random.Random) -> None:
    line = np.repeat(np.arange(len(lines)), [len(times) for times in lines])
    us = np.concatenate(lines).astype(np.int64)
    subset = np.array([draw.randrange(4) for _ in us])
    found = merged(draw, [spans(line[subset == i], us[subset == i], gap_us=GAP) for i in range(4)])
    wanted = []
    for row, times in enumerate(lines):
        opened = [t for i, t in enumerate(times) if i == 0 or t - times[i - 1] > GAP]
        wanted += [
            (row, at, max(t for t in times if t < later))
            for at, later in zip(opened, [*opened[1:], 1 << 60], strict=True)
        ]
    assert list(zip(found.line.tolist(), found.start.tolist(), found.end.tolist(), strict=True)) == wanted


def test_a_gap_is_exceeded_only_by_more_than_it() -> None:
    us = np.array([0, GAP, 2 * GAP + 1], dtype=np.int64)
    assert mark(np.zeros(3, dtype=np.int64), us, rule=RULE).begins.tolist() == [True, False, True]
    none = np.array([ABSENT])
    for wait, begins in ((GAP, False), (GAP + 1, True)):
        outside = Border(np.array([-wait]), np.array([-wait]), none)
        assert mark(np.zeros(1, dtype=np.int64), us[:1], rule=RULE, outside=outside).begins.tolist() == [
            begins
        ]


# ---------------------------------------------------------------- rows

MIX = ("view", "view", "click", "conversion")
READING = Reading(
    rule=Rule(30 * MINUTE_US, 90 * MINUTE_US), given=False, derive=True, censor_last=True,
    conversion_types=("conversion",), settled=False,
)  # fmt: skip


def event_table(draw: random.Random, users: int) -> Any:
    """Events of a few users over midnight, with ties, the edges of the gap, bad dwells, names with slashes."""
    rows = []
    for user in range(users):
        at = MIDNIGHT_US - draw.randrange(200) * MINUTE_US
        for _ in range(draw.randint(1, 30)):
            at += draw.choice(
                [0, 1, 7 * MINUTE_US, 29 * MINUTE_US, 30 * MINUTE_US, 30 * MINUTE_US + 1, 300 * MINUTE_US]
            )
            rows.append(
                {
                    "key": user,
                    "user_id": f"u{user}",
                    "us": at,
                    "seq": draw.choice([None, 1, 2]),
                    "ingest": at + draw.choice([0, 60]),
                    "event_id": f"{draw.randrange(10**6):06d}-{len(rows)}",
                    "surface": draw.choice(["feed", "shop", "shop/a"]),
                    "event_type": draw.choice([*MIX, "a/view"]),
                    "dwell_ms": draw.choice([None, None, None, 0, 1234]),
                    "flags": draw.choice([0, 0, 0, 4]),
                    "source_session_id": draw.choice([None, "A", "B"]),
                }
            )
    kinds = {"seq": pa.int64(), "dwell_ms": pa.int64(), "flags": pa.int8(), "source_session_id": pa.string()}
    draw.shuffle(rows)
    columns = {name: pa.array([row[name] for row in rows], kinds.get(name)) for name in rows[0]}
    return pa.table(columns).take(pc.sort_indices(columns["key"]))


def cut_users(table: Any, above: int, draw: random.Random) -> HotUsers:
    """All users cut into ranges of hours, found from batches of any size."""
    narrow = table.select(["user_id", "us"]).take(pa.array(draw.sample(range(len(table)), len(table))))
    size = draw.randint(1, len(table))
    found = [_active_batch(narrow.slice(i, size), READING.rule.gap_us) for i in range(0, len(table), size)]
    return cut_hot(pa.concat_tables(found), gap_us=READING.rule.gap_us, above=above)


def in_parts(kernel: Kernel, table: Any, draw: random.Random) -> dict[str, Any]:
    """Final rows by table from blocks that hold whole (user, range) groups, each block any of them."""
    assert kernel.hot is not None
    width = dict(zip(kernel.hot.names, kernel.hot.width_us.tolist(), strict=True))
    owners, times = table.column("user_id").to_pylist(), table.column("us").to_pylist()
    groups = [(user, us // width[user]) for user, us in zip(owners, times, strict=True)]
    block = {group: draw.randrange(4) for group in sorted(set(groups))}
    kinds: dict[str, list[Any]] = {"session_part": [], "surface_part": []}
    for number in range(4):
        rows = [i for i, group in enumerate(groups) if block[group] == number]
        if rows:
            for kind, part in kernel.pack(table.take(pa.array(rows))):
                kinds[kind].insert(draw.randrange(len(kinds[kind]) + 1), part)
    return {kind: kernel.join(kind, kinds[f"{kind}_part"]) for kind in ("session", "surface")}


KEYS = {
    "session": ["user_id", "session_start", "_part"],
    "surface": ["user_id", "stream", "window_end", "window_days"],
}


@settings(max_examples=200)
@given(st.integers(1, 3), st.randoms(use_true_random=False))
def test_rows_of_cut_users_equal_those_of_whole_users(users: int, draw: random.Random) -> None:
    table = event_table(draw, users)
    end = MIDNIGHT_US // 86_400_000_000 + 2
    whole = dict(Kernel(READING, end).pack(table))
    found = in_parts(Kernel(READING, end, cut_users(table, draw.choice([1, 3, 8]), draw)), table, draw)
    for kind, keys in KEYS.items():
        order = [(key, "ascending") for key in keys]
        assert found[kind].sort_by(order).to_pylist() == whole[kind].sort_by(order).to_pylist()


def test_ranges_of_hours_hold_about_as_many_events_as_asked() -> None:
    us = np.arange(4800, dtype=np.int64) * 3 * MINUTE_US  # ten days, twenty an hour
    table = pa.table({"user_id": pa.array(["bot"] * len(us)), "us": pa.array(us)})
    hot = cut_hot(_active_batch(table, 30 * MINUTE_US), gap_us=30 * MINUTE_US, above=1000)
    assert hot.width_us.tolist() == [50 * 60 * MINUTE_US]
    assert hot.place.tolist() == [0, 1, 2, 3, 4]
    assert hot.border.first.tolist() == [ABSENT, 0, 0, 0, 0]
    assert hot.border.before.tolist() == [ABSENT, *(us[k * 1000 - 1] for k in range(1, 5))]
    assert hot.border.after.tolist() == [*(us[k * 1000] for k in range(1, 5)), ABSENT]


def test_events_that_the_cut_has_not_seen_are_refused() -> None:
    table = event_table(random.Random(1), 1)
    hot = cut_users(table, 1, random.Random(1))
    later = table.set_column(2, "us", pc.add(table.column("us"), 40 * 86_400_000_000))
    with pytest.raises(GuardError, match="other events"):
        list(Kernel(READING, hot=hot).pack(later))


@pytest.mark.parametrize("rows", [0, 1])
def test_blocks_without_events_have_no_rows(rows: int) -> None:
    table = event_table(random.Random(0), 1).slice(0, rows)
    found = dict(Kernel(READING, 20_000).pack(table))
    assert (len(found["session"]), len(found["surface"]) > 0) == (rows, rows == 1)
