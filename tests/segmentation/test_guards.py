"""Choice of K: what is measured, which guard refuses what, and that nothing is found where nothing is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from scipy import sparse

from dynamix.config import SegmentationConfig
from dynamix.segmentation.blocks import INPUT, NEXT
from dynamix.segmentation.em import ALL, HALF_A, HALF_B, Candidate, fit, user_half
from dynamix.segmentation.guards import Choice, Measured, Trial, choose, length_eta2, measure
from dynamix.segmentation.mixture import Mixture, initial, predictive

Floats = npt.NDArray[np.float64]
CONFIG = SegmentationConfig()
ENTRY = pa.struct([("day", pa.int32()), ("part", pa.int32()), ("cell", pa.int32()), ("n", pa.int32())])


class Frame:
    """Two partitions that answer `mapInArrow(...).collect()` as a Spark frame would."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def mapInArrow(self, work: Any, schema: str) -> Frame:
        return Frame([out for batch in self.batches for out in work(iter([batch]))])

    def collect(self) -> list[dict[str, Any]]:
        return [row for batch in self.batches for row in batch.to_pylist()]


def frame_of(now: Floats, following: Floats) -> Any:
    rows = [
        [
            {"day": day, "part": part, "cell": cell, "n": int(n)}
            for part, day, counts in ((INPUT, 1, now[u]), (NEXT, 8, following[u]))
            for cell, n in enumerate(counts)
            if n
        ]
        for u in range(len(now))
    ]
    users = pa.array(names_of(len(now)))
    batch = pa.record_batch({"user_id": users, "entries": pa.array(rows, pa.list_(ENTRY))})
    return Frame([batch.slice(0, len(now) // 2), batch.slice(len(now) // 2)])


def names_of(users: int) -> list[str]:
    return [f"u{u:04d}" for u in range(users)]


def mixture(shares: Sequence[float], *, width: int = 4) -> Mixture:
    rng = np.random.default_rng(len(shares))
    p = rng.dirichlet(np.ones(width), len(shares))
    return Mixture(np.log(p), np.log(np.array(shares)))


def trial(*shares: float) -> Trial:
    m = mixture(shares)
    return Trial(m, m, m)


def measured(trials: Sequence[Trial], ahead: Floats, **over: Any) -> Measured:
    """Measurements with perfect agreement of the halves and no length effect; ahead (users, trials)."""
    fields = {
        "users": len(ahead),
        "long_users": 1000,
        "next_sum": ahead.sum(axis=0),
        "next_gram": ahead.T @ ahead,
        "tables": tuple(np.eye(t.k) * 100 for t in trials),
        "lengths": tuple(np.tile([100.0, 400.0, 1700.0], (t.k, 1)) for t in trials),
    }
    return Measured(**{**fields, **over})


def noisy(gains: Sequence[float], *, users: int = 400, sd: float = 0.1) -> Floats:
    """Log likelihoods per user: hard and easy users, `gains` per trial, small paired noise."""
    rng = np.random.default_rng(0)
    level = rng.normal(-50, 20, (users, 1))
    return np.asarray(level + np.array(gains) + sd * rng.normal(size=(users, len(gains))))


def test_the_best_heldout_likelihood_wins_although_users_differ_far_more() -> None:
    trials = [trial(1.0), trial(0.5, 0.5), trial(0.4, 0.3, 0.3)]
    assert choose(trials, measured(trials, noisy([0, 1.0, 2.0])), config=CONFIG).k == 3


def test_a_gain_within_one_standard_error_does_not_buy_a_segment() -> None:
    trials = [trial(1.0), trial(0.5, 0.5), trial(0.4, 0.3, 0.3)]
    ahead = noisy([0, 1.0, 1.0], sd=0.1)
    ahead[:, 2] += 0.003 - (ahead[:, 2] - ahead[:, 1]).mean()  # SE of the difference is .1 · √2 / √400 = .007
    assert choose(trials, measured(trials, ahead), config=CONFIG).k == 2
    ahead[:, 2] += 0.02
    assert choose(trials, measured(trials, ahead), config=CONFIG).k == 3


def test_too_few_long_users_leave_one_segment_as_not_measurable() -> None:
    trials = [trial(1.0), trial(0.5, 0.5)]
    choice = choose(trials, measured(trials, noisy([0, 5]), long_users=199), config=CONFIG)
    assert choice.k == 1
    assert "K=2: not measurable, 199 users" in choice.reason


@pytest.mark.parametrize(
    ("shares", "over", "words"),
    [
        ((0.995, 0.005), {}, "smallest share 0.0050 < 0.01"),
        ((0.98, 0.02), {}, "perplexity 1.10 < 0.6 K"),
        ((0.5, 0.5), {"tables": (np.eye(1), np.full((2, 2), 25.0))}, "split-half ARI"),
        (
            (0.5, 0.5),
            {"lengths": (np.ones((1, 3)), np.array([[50.0, 100.0, 205.0], [50.0, 200.0, 805.0]]))},
            "segments explain 0.91 of log length > 0.1",
        ),
    ],
)
def test_each_guard_refuses_and_is_named(shares: tuple[float, ...], over: dict[str, Any], words: str) -> None:
    trials = [trial(1.0), trial(*shares)]
    choice = choose(trials, measured(trials, noisy([0, 5]), **over), config=CONFIG)
    assert choice.k == 1
    assert words in choice.verdicts[1].refused and f"K=2: {words}" in choice.reason


def test_length_eta2_is_the_share_of_variance_between_segments() -> None:
    rng = np.random.default_rng(1)
    segment, value = rng.integers(0, 3, 90), rng.normal(3, 1, 90)
    value += segment * 0.4
    sums = np.array([[sum(1 for s in segment if s == k), 0, 0] for k in range(3)], float)
    for k in range(3):
        sums[k, 1:] = value[segment == k].sum(), (value[segment == k] ** 2).sum()
    between = sum((segment == k).sum() * (value[segment == k].mean() - value.mean()) ** 2 for k in range(3))
    assert length_eta2(sums) == pytest.approx(between / ((value - value.mean()) ** 2).sum())
    assert length_eta2(np.array([[10.0, 20.0, 40.0], [5.0, 10.0, 20.0]])) == 0.0  # all of one length


def test_measurements_equal_a_loop_over_users() -> None:
    rng = np.random.default_rng(4)
    now, following = rng.poisson(4, (30, 4)).astype(float), rng.poisson(5, (30, 4)).astype(float)
    now[0], following[1] = 0, 0
    trials = [trial(1.0), Trial(mixture([0.4, 0.6]), mixture([0.5, 0.5]), mixture([0.7, 0.3]))]
    found = measure(frame_of(now, following), trials, width=4)
    both = now + following
    long = [u for u in range(30) if both[u].sum() >= 30]
    assert 0 < len(long) < 30
    assert (found.users, found.long_users) == (28, len(long))
    ahead = np.stack([predictive(t.full, now[2:], following[2:]) for t in trials], axis=1)
    assert found.next_sum == pytest.approx(ahead.sum(axis=0), abs=1e-4)
    assert found.next_gram == pytest.approx(ahead.T @ ahead, rel=1e-6)
    table = np.zeros((2, 2))
    lengths = np.zeros((2, 3))
    for u in long:
        halves = (trials[1].half_a, trials[1].half_b, trials[1].full)
        a, b, k = (int(np.argmax(m.log_pi + m.log_p @ both[u])) for m in halves)
        table[a, b] += 1
        log_n = math.log(both[u].sum())
        lengths[k] += 1, log_n, log_n**2
    assert np.array_equal(found.tables[1], table)
    assert found.lengths[1] == pytest.approx(lengths, abs=1e-4)


def decide_k(now: Floats, following: Floats, *, k_max: int = 3) -> Choice:
    """Fit every K on all users and on both halves, and choose, without Spark."""
    frame, half = frame_of(now, following), user_half(pa.array(names_of(len(now))))
    width = now.shape[1]
    starts = []
    for k in range(1, k_max + 1):
        for which in (ALL, HALF_A, HALF_B):
            rows = sparse.csr_matrix(now if which == ALL else now[half == which])
            start = initial(rows, k=k, group=np.arange(width), prior=0.5, seed=k)
            starts.append(Candidate(start, which))
    done = fit(frame, starts, width=width, parts=(INPUT,), max_iter=40, prior=0.5)
    trials = [Trial(*(c.mixture for c in done[3 * i : 3 * i + 3])) for i in range(k_max)]
    return choose(trials, measure(frame, trials, width=width), config=CONFIG)


def test_constant_data_never_gives_more_than_one_segment() -> None:
    same = np.tile([10.0, 6.0, 4.0, 0.0], (260, 1))
    assert decide_k(same, same).k == 1


@pytest.mark.parametrize("seed", range(3))
def test_users_who_differ_by_chance_or_by_length_only_are_one_segment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    length = np.where(rng.random(300) < 0.5, 20, 200)
    now, following = (
        np.array([rng.multinomial(n, [0.4, 0.3, 0.2, 0.1]) for n in length], float) for _ in range(2)
    )
    assert decide_k(now, following).k == 1


def test_two_planted_behaviours_are_two_segments() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([[0.5, 0.3, 0.1, 0.1], [0.1, 0.1, 0.3, 0.5]])[(rng.random(300) < 0.4).astype(int)]
    now, following = (np.array([rng.multinomial(20, p) for p in shares], float) for _ in range(2))
    choice = decide_k(now, following)
    assert choice.k == 2
    assert choice.chosen.numbers["split_half_ari"] > 0.9
