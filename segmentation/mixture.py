"""Multinomial mixture over cells: E and M step, predictive likelihood, initialisation. Plain NumPy.

    E:  log q_u(k) = log π_k + Σ_j C_uj log P_kj + const        M:  P_k ∝ Σ_u q_u(k) C_u + a,  π_k ∝ Σ_u q_u(k) + 1

Where cells are dwell bins of streams, P is a share of the stream times a share of its bins (`m_step` with `group`).
Source: docs/method.md A.4.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.special import logsumexp

from dynamix.features.grid import on_grid

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
BIN_EVENTS = 1000.0
"""Events of a stream that a component needs until its own dwell bins weigh as much as those of all users."""
STARTS, START_STEPS = 2, 30
"""Short runs of EM over streams alone, of which the likeliest is a start, and their steps."""
_APART = 100_000
"""Between the seeds of these runs: more than there are starts of a fit."""


@dataclass(frozen=True)
class Mixture:
    """K components over J cells: log emission (K, J), rows normalised, and log prior (K,)."""

    log_p: Floats
    log_pi: Floats

    @property
    def k(self) -> int:
        return len(self.log_pi)

    def scores(self, counts: Any) -> Floats:
        """Joint log density log π_k + Σ_j C_uj log P_kj (U, K) of sparse or dense counts (U, J)."""
        return np.asarray(counts @ self.log_p.T) + self.log_pi

    def posterior(self, counts: Any) -> Floats:
        """q (U, K), rows sum to 1; users without events get the prior."""
        return posterior(self.scores(counts))


@dataclass(frozen=True)
class Sums:
    """What an M step needs, additive over users: cells (K, J), users (K,), log likelihood."""

    cells: Floats
    users: Floats
    loglik: float

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.cells + other.cells, self.users + other.users, self.loglik + other.loglik)


def posterior(scores: Floats) -> Floats:
    """Softmax over the last axis, in the log domain."""
    return np.asarray(np.exp(scores - logsumexp(scores, axis=-1, keepdims=True)))


def e_step(mixture: Mixture, counts: Any) -> Sums:
    """Sums over the users of `counts` (U, J); users without events are left out."""
    seen = np.asarray(counts.sum(axis=1)).ravel() > 0
    counts = counts[seen]
    scores = mixture.scores(counts)
    total = logsumexp(scores, axis=1)
    # multiples of 2^-20: sums of their products with counts are exact in any order
    q = on_grid(np.exp(scores - total[:, None]))
    cells = np.asarray((counts.T @ q).T)
    return Sums(cells, q.sum(axis=0), float(on_grid(total).sum()))


def m_step(sums: Sums, *, prior: float, group: Ints | None = None) -> Mixture:
    """The mixture that maximises the penalised expected log likelihood.

    With `group` (J,), the stream of each cell, `prior` is added to a component's events of a stream, and its shares of
    the stream's dwell bins are drawn towards those of all users, which weigh as BIN_EVENTS events: a short history
    shows streams long before it shows dwells.
    """
    pi = sums.users + 1.0
    log_pi = np.log(pi / pi.sum())
    if group is None:
        p = sums.cells + prior
        return Mixture(np.log(p / p.sum(axis=1, keepdims=True)), log_pi)
    by_stream = _by_stream(sums.cells, group)
    share = by_stream + prior
    share /= share.sum(axis=1, keepdims=True)
    bins = (sums.cells + BIN_EVENTS * _bin_shares(sums.cells, group, prior)) / (by_stream + BIN_EVENTS)[
        :, group
    ]
    return Mixture(np.log(share[:, group] * bins), log_pi)


def _by_stream(cells: Floats, group: Ints) -> Floats:
    """Cells (N, J) added up by stream (N, F)."""
    found = np.zeros((len(cells), int(group.max(initial=0)) + 1))
    np.add.at(found.T, group, cells.T)
    return found


def _bin_shares(cells: Floats, group: Ints, prior: float) -> Floats:
    """Share (J,) of each cell in its stream over all rows of cells (N, J); `prior` keeps it above 0."""
    pooled = cells.sum(axis=0) + prior
    return np.asarray(pooled / np.bincount(group, pooled)[group])


def predictive(mixture: Mixture, counts: Any, following: Any) -> Floats:
    """log Σ_k q_u(k) Π_j P_kj^C⁺ (U,): log likelihood of the next window given the posterior of this one."""
    q = mixture.scores(counts)
    q = q - logsumexp(q, axis=1, keepdims=True)
    return np.asarray(logsumexp(q + np.asarray(following @ mixture.log_p.T), axis=1))


def initial(counts: Any, *, k: int, group: Ints, prior: float, seed: int) -> Mixture:
    """Mixture of k-means clusters on the centred log ratio of each user's stream shares.

    counts (U, J) sparse; `group` (J,) maps a cell to its stream, so that dwell bins do not drown the streams.
    Fewer users than components leaves the surplus components at the pooled emission.
    """
    dense = np.asarray(counts.todense(), dtype=np.float64)
    logs = np.log(_by_stream(dense, group) + 0.5)
    clr = logs - logs.mean(axis=1, keepdims=True)
    labels = np.zeros(len(dense), np.int64)
    from sklearn.cluster import KMeans  # a second to import, which serving would wait for

    if 1 < k <= len(np.unique(clr, axis=0)):
        labels = KMeans(n_clusters=k, n_init=1, random_state=seed).fit_predict(clr).astype(np.int64)
    one_hot = np.eye(k)[labels]
    pooled = dense.sum(axis=0)
    cells = one_hot.T @ dense + pooled * (5.0 / max(pooled.sum(), 1.0))
    return m_step(Sums(cells, one_hot.sum(axis=0), 0.0), prior=prior)


def started(counts: Any, *, k: int, group: Ints, prior: float, seed: int) -> Mixture:
    """The likeliest of STARTS short runs of EM over streams alone, dwell bins as all users have them.

    counts (U, J) sparse, `group` (J,) as in `initial`, from whose k-means each run starts with a seed of its own.
    """
    streams = sparse.csr_matrix(_by_stream(np.asarray(counts.todense(), dtype=np.float64), group))
    one = np.arange(streams.shape[1])
    runs = [
        _short(initial(streams, k=k, group=one, prior=prior, seed=seed + _APART * run), streams, prior)
        for run in range(STARTS if k > 1 else 1)
    ]
    best = max(runs, key=lambda run: run[1])[0]
    bins = _bin_shares(np.asarray(counts.sum(axis=0)), group, prior)
    return Mixture(best.log_p[:, group] + np.log(bins), best.log_pi)


def _short(mixture: Mixture, counts: Any, prior: float) -> tuple[Mixture, float]:
    """Where START_STEPS steps of EM lead, and the log likelihood before the last of them."""
    for _ in range(START_STEPS):
        sums = e_step(mixture, counts)
        mixture = m_step(sums, prior=prior)
    return mixture, sums.loglik


def adjusted_rand(table: Floats) -> float:
    """Adjusted Rand index from a contingency table (A, B); 1 for two identical single-cluster labellings."""

    def pairs(x: Floats) -> float:
        return float((x * (x - 1.0)).sum() / 2.0)

    total = float(table.sum())
    if total < 2:
        return 1.0
    both, rows, columns = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    expected = rows * columns / (total * (total - 1.0) / 2.0)
    best = (rows + columns) / 2.0
    return 1.0 if best == expected else (both - expected) / (best - expected)
