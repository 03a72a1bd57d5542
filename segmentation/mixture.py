"""Multinomial mixture over cells: E and M step, predictive likelihood, initialisation. Plain NumPy.

    E:  log q_u(k) = log π_k + Σ_j C_uj log P_kj + const        M:  P_k ∝ Σ_u q_u(k) C_u + a,  π_k ∝ Σ_u q_u(k) + 1

Source: docs/method.md A.4.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from dynamix.features.grid import on_grid

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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


def m_step(sums: Sums, *, prior: float) -> Mixture:
    """The mixture that maximises the penalised expected log likelihood."""
    p = sums.cells + prior
    pi = sums.users + 1.0
    return Mixture(np.log(p / p.sum(axis=1, keepdims=True)), np.log(pi / pi.sum()))


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
    by_stream = np.zeros((len(dense), int(group.max(initial=0)) + 1))
    np.add.at(by_stream.T, group, dense.T)
    logs = np.log(by_stream + 0.5)
    clr = logs - logs.mean(axis=1, keepdims=True)
    labels = np.zeros(len(dense), np.int64)
    from sklearn.cluster import KMeans  # a second to import, which serving would wait for

    if 1 < k <= len(np.unique(clr, axis=0)):
        labels = KMeans(n_clusters=k, n_init=1, random_state=seed).fit_predict(clr).astype(np.int64)
    one_hot = np.eye(k)[labels]
    pooled = dense.sum(axis=0)
    cells = one_hot.T @ dense + pooled * (5.0 / max(pooled.sum(), 1.0))
    return m_step(Sums(cells, one_hot.sum(axis=0), 0.0), prior=prior)


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
