"""Sums over all streams at once against loops over impressions and users."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dynamix.contracts import CHANNELS
from dynamix.features.gram import EACH, GramSums, columns_of, gram_sums, size_of
from dynamix.features.recency import SHARED

ROWS, STREAMS = 25, 2


def data(seed: int = 0) -> tuple[np.ndarray, ...]:
    """x (B, F, 6), shared (B, 4), y, p and sorted users (B,)."""
    rng = np.random.default_rng(seed)
    x, shared = rng.normal(size=(ROWS, STREAMS, len(CHANNELS))), rng.normal(size=(ROWS, SHARED))
    y, p = (rng.random(ROWS) < 0.4).astype(float), rng.uniform(0.1, 0.6, ROWS)
    return x, shared, y, p, np.sort(rng.integers(0, 6, ROWS))


def test_the_sums_equal_a_loop_over_impressions_and_users() -> None:
    x, shared, y, p, user = data()
    found = GramSums.unpack(gram_sums(x, shared, y, p, user))
    width = SHARED + EACH * STREAMS
    wx, wxx = np.zeros(width), np.zeros((width, width))
    a, aa = np.zeros(width + 1), np.zeros((width + 1, width + 1))
    for u in range(6):
        own = np.zeros(width + 1)
        for i in np.flatnonzero(user == u):
            values = [*shared[i]]
            for f in range(STREAMS):
                values += [*x[i, f], x[i, f, CHANNELS.index("dwell")] ** 2]
            values = np.array(values)
            w = p[i] * (1 - p[i])
            wx += w * values
            wxx += w * np.outer(values, values)
            own += (y[i] - p[i]) * np.append(values, 1.0)
        a += own
        aa += np.outer(own, own)
    assert (found.n, found.positives, found.w) == (ROWS, y.sum(), pytest.approx((p * (1 - p)).sum()))
    for got, expected in ((found.wx, wx), (found.wxx, wxx), (found.a, a), (found.aa, aa)):
        assert got == pytest.approx(expected, abs=1e-9)


def test_columns_of_a_stream_are_its_channels_and_its_squared_dwell() -> None:
    x, shared, y, p, user = data()
    found = GramSums.unpack(gram_sums(x, shared, y, p, user))
    w = p * (1 - p)
    dwell = x[:, 1, CHANNELS.index("dwell")]
    first, last = columns_of(1)[CHANNELS.index("dwell")], columns_of(1)[-1]
    assert found.wx[first] == pytest.approx(w @ dwell)
    assert found.wx[last] == pytest.approx(w @ dwell**2)


def test_packing_is_a_round_trip_and_whole_users_add_up() -> None:
    x, shared, y, p, user = data()
    whole = gram_sums(x, shared, y, p, user)
    assert len(whole) == size_of(STREAMS)
    assert GramSums.unpack(whole).pack() == pytest.approx(whole, abs=1e-12)
    parts = [
        GramSums.unpack(gram_sums(*(v[take] for v in (x, shared, y, p, user))))
        for take in (user < 3, user >= 3)
    ]
    assert (parts[0] + parts[1]).pack() == pytest.approx(whole, abs=1e-9)
    assert gram_sums(*data(1)) + whole == pytest.approx(
        (GramSums.unpack(gram_sums(*data(1))) + parts[0] + parts[1]).pack()
    )


@pytest.mark.parametrize("length", [0, 1, size_of(1) - 1, size_of(1) + 1])
def test_a_state_of_another_length_is_refused(length: int) -> None:
    assert math.isqrt(size_of(1) - 1) ** 2 == size_of(1) - 1
    with pytest.raises(ValueError, match="allowed: "):
        GramSums.unpack(np.zeros(length))
