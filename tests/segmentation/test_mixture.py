"""EM against its definition: likelihood, planted components, exact sums, next-window likelihood, ARI."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from dynamix.segmentation.mixture import (
    BIN_EVENTS,
    Mixture,
    Sums,
    adjusted_rand,
    e_step,
    initial,
    m_step,
    predictive,
    started,
)

Floats = npt.NDArray[np.float64]
PLANTED = np.array([[0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.2, 0.6]])


def planted(users: int, events: int, *, seed: int = 0) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Counts (U, 4) of two behaviours, 70 % and 30 % of the users, and who has which."""
    rng = np.random.default_rng(seed)
    kind = (rng.random(users) < 0.3).astype(np.int64)
    return np.array([rng.multinomial(events, PLANTED[k]) for k in kind], np.float64), kind


def start(counts: Floats, k: int) -> Mixture:
    return initial(sparse.csr_matrix(counts), k=k, group=np.arange(counts.shape[1]), prior=0.5, seed=1)


def penalised(mixture: Mixture, loglik: float, prior: float) -> float:
    """What the M step climbs: log likelihood + a Σ log P + Σ log π."""
    return loglik + prior * float(mixture.log_p.sum()) + float(mixture.log_pi.sum())


def test_em_never_lowers_the_penalised_likelihood() -> None:
    counts, _ = planted(300, 8)
    mixture = start(counts, 3)
    values = []
    for _ in range(25):
        sums = e_step(mixture, sparse.csr_matrix(counts))
        values.append(penalised(mixture, sums.loglik, 0.5))
        mixture = m_step(sums, prior=0.5)
    assert np.diff(values).min() > -1e-3  # responsibilities sit on a 2^-20 grid
    assert values[-1] > values[0] + 1


def test_two_planted_components_are_recovered() -> None:
    counts, kind = planted(600, 30)
    mixture = start(counts, 2)
    for _ in range(40):
        mixture = m_step(e_step(mixture, sparse.csr_matrix(counts)), prior=0.5)
    order = np.argsort(-mixture.log_pi)
    assert np.abs(np.exp(mixture.log_p[order]) - PLANTED).max() < 0.02
    assert np.exp(mixture.log_pi[order]) == pytest.approx([1 - kind.mean(), kind.mean()], abs=0.02)
    found = mixture.posterior(counts).argmax(axis=1)
    assert adjusted_rand_score(kind, found) > 0.97


def test_m_step_adds_the_priors_of_the_method() -> None:
    counts = np.array([[2.0, 0.0], [0.0, 4.0]])
    one = Mixture(np.log(np.array([[0.5, 0.5]])), np.zeros(1))
    two = m_step(e_step(one, sparse.csr_matrix(counts)), prior=0.5)
    assert np.exp(two.log_p[0]) == pytest.approx([2.5 / 7, 4.5 / 7])  # (2 + a, 4 + a) / (6 + 2a)


def test_dwell_bins_of_a_component_are_drawn_to_those_of_all_users() -> None:
    group = np.array([0, 0, 1, 1])  # two streams of two bins
    cells = np.array([[600.0, 400.0, 0.0, 0.0], [100.0, 900.0, 30.0, 10.0]])
    found = np.exp(m_step(Sums(cells, np.array([3.0, 5.0]), 0.0), prior=0.5, group=group).log_p)
    pooled = np.array([700.5 / 2001, 1300.5 / 2001, 30.5 / 41, 10.5 / 41])  # a in every cell
    stream = np.array([[1000.5, 0.5], [1000.5, 40.5]]) / np.array([[1001.0], [1041.0]])
    own = (cells + BIN_EVENTS * pooled) / (np.array([[1000.0, 0.0], [1000.0, 40.0]]) + BIN_EVENTS)[:, group]
    assert found == pytest.approx(stream[:, group] * own)
    assert found.sum(axis=1) == pytest.approx([1, 1])
    many = m_step(Sums(cells * 1e5, np.array([3.0, 5.0]), 0.0), prior=0.5, group=group)
    assert np.exp(many.log_p[1, :2]) == pytest.approx(cells[1, :2] / cells[1].sum(), rel=1e-3)


def test_streams_alone_as_cells_have_no_bins_to_draw() -> None:
    counts, _ = planted(300, 8)
    sums = e_step(start(counts, 3), sparse.csr_matrix(counts))
    plain, grouped = m_step(sums, prior=0.5), m_step(sums, prior=0.5, group=np.arange(4))
    assert grouped.log_p == pytest.approx(plain.log_p) and np.array_equal(grouped.log_pi, plain.log_pi)


def test_sums_are_bitwise_the_same_in_any_order_and_any_blocks() -> None:
    counts, _ = planted(500, 9, seed=3)
    mixture = m_step(e_step(start(counts, 4), sparse.csr_matrix(counts)), prior=0.5)
    whole = e_step(mixture, sparse.csr_matrix(counts))
    rng = np.random.default_rng(0)
    for borders in ([250], [1, 2, 3], [17, 333, 499]):
        shuffled = counts[rng.permutation(len(counts))]
        parts = [
            e_step(mixture, sparse.csr_matrix(block)) for block in np.split(shuffled, borders) if len(block)
        ]
        total = parts[-1]
        for part in parts[:-1]:
            total = total + part
        assert np.array_equal(total.cells, whole.cells)
        assert np.array_equal(total.users, whole.users)
        assert total.loglik == whole.loglik


def test_users_without_events_add_nothing_and_get_the_prior() -> None:
    counts, _ = planted(50, 5)
    mixture = start(counts, 2)
    with_empty = np.vstack([counts, np.zeros((3, 4))])
    a, b = e_step(mixture, sparse.csr_matrix(counts)), e_step(mixture, sparse.csr_matrix(with_empty))
    assert np.array_equal(a.cells, b.cells) and np.array_equal(a.users, b.users) and a.loglik == b.loglik
    assert mixture.posterior(with_empty)[-1] == pytest.approx(np.exp(mixture.log_pi))


def test_predictive_is_the_sum_over_components_of_posterior_times_likelihood() -> None:
    p, pi = PLANTED, [0.7, 0.3]
    mixture = Mixture(np.log(p), np.log(np.array(pi)))
    now = [[3, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    then = [[2, 1, 0, 0], [0, 0, 1, 5], [0, 0, 0, 0]]
    for u, (c, n) in enumerate(zip(now, then, strict=True)):
        joint = [pi[k] * math.prod(p[k][j] ** c[j] for j in range(4)) for k in range(2)]
        following = [math.prod(p[k][j] ** n[j] for j in range(4)) for k in range(2)]
        expected = sum(a / sum(joint) * b for a, b in zip(joint, following, strict=True))
        found = predictive(mixture, np.array(now, float), np.array(then, float))[u]
        assert found == pytest.approx(math.log(expected), abs=1e-12)


@pytest.mark.parametrize(("seed", "left", "right"), list(product(range(4), (1, 2, 5), (1, 3))))
def test_adjusted_rand_equals_scikit_learn(seed: int, left: int, right: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, left, 40)
    b = np.where(rng.random(40) < 0.6, a % right, rng.integers(0, right, 40))
    table = np.zeros((left, right))
    np.add.at(table, (a, b), 1)
    assert adjusted_rand(table) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)


def test_adjusted_rand_of_too_few_users_is_one() -> None:
    assert adjusted_rand(np.zeros((2, 2))) == 1.0
    assert adjusted_rand(np.array([[1.0, 0.0], [0.0, 0.0]])) == 1.0


def test_more_components_than_distinct_users_start_without_error() -> None:
    mixture = start(np.tile([4.0, 1.0, 0.0, 0.0], (6, 1)), 3)
    assert np.exp(mixture.log_pi).sum() == pytest.approx(1)
    assert np.exp(mixture.log_p).sum(axis=1) == pytest.approx(np.ones(3))


def test_seed_streams_are_not_drowned_by_their_dwell_bins() -> None:
    # two streams of two bins each: the bins carry noise, the stream carries the behaviour
    rng = np.random.default_rng(2)
    kind = np.arange(200) % 2
    stream = np.array([rng.multinomial(20, [0.9, 0.1] if k else [0.1, 0.9]) for k in kind])
    share = rng.random((200, 2))
    bins = np.stack([rng.binomial(stream, share), stream], axis=2)
    bins[:, :, 1] -= bins[:, :, 0]
    counts = sparse.csr_matrix(bins.reshape(200, 4).astype(float))
    mixture = initial(counts, k=2, group=np.array([0, 0, 1, 1]), prior=0.5, seed=0)
    assert adjusted_rand_score(kind, mixture.posterior(counts).argmax(axis=1)) > 0.95


def test_a_start_knows_streams_and_takes_the_dwell_bins_of_all_users() -> None:
    rng = np.random.default_rng(4)
    kind = (rng.random(1500) < 0.4).astype(np.int64)
    stream = np.array([rng.multinomial(6, [0.7, 0.3] if k else [0.2, 0.8]) for k in kind])
    low = rng.binomial(stream, [0.3, 0.6])  # bins say nothing of the kind
    bins = np.stack([low, stream - low], axis=2).reshape(1500, 4).astype(float)
    group = np.array([0, 0, 1, 1])
    found = started(sparse.csr_matrix(bins), k=2, group=group, prior=0.5, seed=0)
    by_stream = np.exp(found.log_p).reshape(2, 2, 2).sum(axis=2)
    assert np.sort(by_stream[:, 0]) == pytest.approx([0.2, 0.7], abs=0.06)
    pooled = bins.sum(axis=0).reshape(2, 2)
    expected = pooled / pooled.sum(axis=1, keepdims=True)
    shares = np.exp(found.log_p).reshape(2, 2, 2) / by_stream[:, :, None]
    assert shares == pytest.approx(np.stack([expected, expected]), abs=1e-3)
    assert np.exp(found.log_p).sum(axis=1) == pytest.approx([1, 1])
