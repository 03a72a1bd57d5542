"""Which planted horizons the sums by recency can tell."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gates_quota import is_decidable
from benchmarks.gates_world import EXPECTED, HEAD
from dynamix.config import MaskConfig
from dynamix.features.recency import BUCKETS, RecencySums, recency_sums
from dynamix.features.relevance import logit
from dynamix.segmentation.cells import Statistics

CONFIG = MaskConfig(delta=0.10)
CELL = (1, "feed/view")


def statistics(beta: float, *, acts: int = BUCKETS, rows: int) -> tuple[Statistics, Statistics]:
    """Drawn and planted sums of one cell, a user an impression: dwell acts in each of the first `acts` buckets."""
    draw = np.random.default_rng(0)
    dwell = draw.normal(size=(rows, BUCKETS))
    p = 1 / (1 + np.exp(2.5 - beta * dwell[:, :acts].sum(axis=1)))
    block = np.zeros((rows, 1, BUCKETS, 3))
    block[:, 0, :, 0] = dwell
    exposure, tokens = np.zeros((rows, 1, 6)), np.ones((rows, 1, BUCKETS))
    given = np.full(rows, p.mean())
    shared = np.column_stack([np.zeros((rows, 3)), logit(given)])
    made = []
    for head, y in ((HEAD, (draw.random(rows) < p).astype(np.float64)), (EXPECTED, p)):
        sums = recency_sums(exposure, block, tokens, shared, y, given, np.arange(rows))
        made.append(Statistics({}, (head,), recency={(*CELL, head, 0): RecencySums.unpack(sums[0])}))
    return made[0], made[1]


@pytest.mark.parametrize(
    ("acts", "beta", "rows", "told"),
    [
        (1, 0.5, 60_000, True),  # a longer history is a clear mistake, a shorter one there is not
        (1, 0.5, 3_000, False),  # too few to bound the tail
        (4, 0.2, 60_000, True),  # keeping 10 of 100 costs twice .2
        (4, 0.05, 60_000, False),  # and twice .05 less than a cell may cost: a short history is no mistake
        (3, 0.2, 60_000, True),
    ],
)
def test_a_horizon_can_be_told_where_both_too_long_and_too_short_would_show(
    acts: int, beta: float, rows: int, told: bool
) -> None:
    drawn, planted = statistics(beta, acts=acts, rows=rows)
    assert is_decidable(CELL, drawn, planted, acts, 0.01, CONFIG) is told


def test_a_tail_without_tokens_tells_nothing() -> None:
    drawn, planted = statistics(0.5, acts=1, rows=60_000)
    assert not is_decidable(CELL, drawn, planted, 1, 3.5, CONFIG)
