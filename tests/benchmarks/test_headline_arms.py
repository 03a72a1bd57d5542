"""Arms of the headline benchmark on rows that one can count by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from headline_rows import rows_of

from benchmarks.headline_arms import (
    Bools,
    Cut,
    last_events,
    limits_for,
    nearest,
    random_cells,
    rank_counts,
    stochastic_length,
    thinned,
    within,
)
from dynamix.models.dataset import JaggedRows

HISTORIES = [[0, 0, 1, 0, 1], [1, 1], [], [0, 1, 0]]
SEGMENTS = np.array([0, 1, 1, 0])


@pytest.fixture(name="long")
def fixture_long() -> JaggedRows:
    """400 rows with 0 to 60 events of five streams in three segments."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 61, 400)
    return rows_of(
        [rng.integers(5, size=n).tolist() for n in lengths], segment=rng.integers(3, size=400).tolist()
    )


def test_truncation_keeps_the_newest_events_of_every_row() -> None:
    rows = rows_of(HISTORIES)
    assert last_events(rows, 6).tolist() == [*[False] * 3, True, True, True, True, False, True, True]
    assert last_events(rows, 10).all() and not last_events(rows, 0).any()


def test_thinning_keeps_exactly_the_tokens_and_hangs_on_the_seed(long: JaggedRows) -> None:
    first = thinned(long, 5000, seed=1)
    assert first.sum() == 5000
    assert np.array_equal(first, thinned(long, 5000, seed=1))
    assert not np.array_equal(first, thinned(long, 5000, seed=2))


def test_stochastic_length_keeps_short_rows_whole_and_long_ones_by_the_square_of_their_length() -> None:
    rows = rows_of([[0] * 40] * 3000 + [[0] * 5] * 10)
    kept = np.diff(rows.keep_events(stochastic_length(rows, 60_000, seed=0)).offsets)
    assert (kept[3000:] == 5).all()
    cut = int(kept.min(initial=40, where=np.arange(len(kept)) < 3000))
    assert set(kept[:3000].tolist()) == {cut, 40}
    # 3,000 rows: the share's standard error is below .01
    assert (kept[:3000] == 40).mean() == pytest.approx((cut / 40) ** 2, abs=0.03)


def test_what_stochastic_length_keeps_of_a_row_is_random() -> None:
    rows = rows_of([[0] * 40] * 2000)
    keep = stochastic_length(rows, 20_000, seed=0).reshape(2000, 40)
    assert keep.mean(axis=0) == pytest.approx(np.full(40, keep.mean()), abs=0.06)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.77, 0.9])
def test_every_arm_comes_within_one_event_a_row_of_the_tokens(long: JaggedRows, share: float) -> None:
    tokens = round(share * long.tokens)

    def of_cuts(cuts: list[Cut], segment: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Bools:
        return within(long, segment, limits_for(long, segment, cuts, tokens))

    one = np.zeros(len(long), np.int64)
    arms: dict[str, Callable[[], Bools]] = {
        "last": lambda: last_events(long, tokens),
        "thinned": lambda: thinned(long, tokens, seed=0),
        "stochastic": lambda: stochastic_length(long, tokens, seed=0),
        "cells": lambda: of_cuts([Cut(g, f) for f in range(5) for g in range(3)], long.segment),
        "streams": lambda: of_cuts([Cut(0, f) for f in range(5)], one),
        "quotas": lambda: of_cuts([Cut(0, f, q) for q in (9, 3, 0) for f in range(5)], one),
    }
    for name, arm in arms.items():
        assert abs(int(arm().sum()) - tokens) <= len(long), name


def test_cuts_in_their_order_equal_a_loop_over_events() -> None:
    rows = rows_of(HISTORIES, segment=SEGMENTS.tolist())
    cuts = [Cut(0, 1, 1), Cut(1, 1), Cut(0, 0, 2), Cut(0, 1, 3), Cut(7, 0), Cut(0, 9)]
    keep = within(rows, rows.segment, limits_for(rows, rows.segment, cuts, None))
    quota = {(0, 0): 2, (0, 1): 1, (1, 0): 9, (1, 1): 0}
    wanted = []
    for segment, history in zip(SEGMENTS.tolist(), HISTORIES, strict=True):
        own, seen = [], Counter[int]()
        for stream in reversed(history):
            own.append(seen[stream] < quota[segment, stream])
            seen[stream] += 1
        wanted += own[::-1]
    assert keep.tolist() == wanted


def test_the_last_cut_goes_as_deep_as_the_tokens_ask_for() -> None:
    rows = rows_of([[0] * 6, [0] * 4 + [1] * 2])
    one = np.zeros(2, np.int64)
    assert limits_for(rows, one, [Cut(0, 1), Cut(0, 0)], 6).tolist() == [[3, 0]]
    assert limits_for(rows, one, [Cut(0, 1, 1), Cut(0, 0)], 11).tolist() == [[6, 1]]
    assert limits_for(rows, one, [Cut(0, 0, 2), Cut(0, 0, 5), Cut(0, 1)], 4).tolist() == [[2, 0]]


def test_cuts_that_leave_too_much_are_refused() -> None:
    rows = rows_of([[0] * 6, [1] * 6])
    with pytest.raises(ValueError, match="all 1 cuts leave 6 of 12 events; 1 were asked for"):
        limits_for(rows, np.zeros(2, np.int64), [Cut(0, 1)], 1)


def test_ranks_are_counted_by_segment_and_stream() -> None:
    rows = rows_of(HISTORIES, segment=SEGMENTS.tolist())
    assert rank_counts(rows, rows.segment).tolist() == [[[2, 2, 1], [2, 1, 0]], [[0, 0, 0], [1, 1, 0]]]


def test_random_cells_are_all_but_one_of_every_segment(long: JaggedRows) -> None:
    cuts = random_cells(long, long.segment, seed=4)
    assert len(set(cuts)) == len(cuts) == 12 and all(c.events == 0 for c in cuts)
    assert Counter(c.segment for c in cuts) == {0: 4, 1: 4, 2: 4}
    assert cuts != random_cells(long, long.segment, seed=5)


@pytest.mark.parametrize(("tokens", "found"), [(0, 0), (4, 0), (5, 1), (6, 1), (14, 1), (16, 2), (99, 5)])
def test_the_nearest_count_is_found(tokens: int, found: int) -> None:
    assert nearest(lambda n: 10 * n, tokens, top=5) == found
