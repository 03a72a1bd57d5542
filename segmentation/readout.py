"""Read-out: what scores of a segmenter are worth, fitted on the agreement of two halves of each user's sessions.

Scores that grow with the number of events are no posterior yet: events of one session depend on each other, and a
network's scores have no unit. The temperature makes .9 mean the same for every segmenter (docs/method.md A.4.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import logsumexp

Floats = npt.NDArray[np.float64]
_LIMIT = 3.0
"""Largest |ln T| and |slope|."""
_FLOOR = 1e-12
_LEAST_USERS = 50


@dataclass(frozen=True)
class Readout:
    """Temperature T(n) = exp(level + slope · ln(1 + n)) of a user with n events."""

    level: float = 0.0
    slope: float = 0.0

    def posterior(self, evidence: Floats, log_prior: Floats, n: Floats) -> Floats:
        """q (U, K) ∝ π · exp(evidence/T(n)); a row of zero evidence is the prior."""
        t = np.exp(self.level + self.slope * np.log1p(n))
        scores = evidence / t[:, None] + log_prior
        return np.asarray(np.exp(scores - logsumexp(scores, axis=1, keepdims=True)))


@dataclass(frozen=True)
class View:
    """One half of each user's sessions: evidence (U, K) without the prior, and events (U,)."""

    evidence: Floats
    n: Floats


def fit_readout(first: View, second: View, log_prior: Floats) -> Readout:
    """The temperature under which the halves predict each other best.

    If the halves are independent given the segment, p(a, b)/(p(a) p(b)) = Σ_k q_a(k) q_b(k)/π_k. Its mean logarithm
    over users is greatest for true posteriors: one that is too sure loses on every user whose halves disagree. π is the
    mean posterior of the halves under the same temperature, so that the ratio keeps its mean of one. Users with events in
    both halves count; fewer than 50 leave T = 1.
    """
    both = (first.n > 0) & (second.n > 0)
    if int(both.sum()) < _LEAST_USERS or len(log_prior) < 2:
        return Readout()
    a, b = (View(view.evidence[both], view.n[both]) for view in (first, second))

    def loss(x: Floats) -> float:
        return -agreement(Readout(float(x[0]), float(x[1])), a, b, log_prior)

    found = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=[(-_LIMIT, _LIMIT)] * 2)
    return Readout(float(found.x[0]), float(found.x[1]))


def agreement(readout: Readout, first: View, second: View, log_prior: Floats) -> float:
    """Mean over users of ln Σ_k q_a(k) q_b(k)/π_k in nats: what one half tells of the other, 0 when it tells nothing.

    For equal shares it is ln K minus the loss −ln Σ_k q_a(k) q_b(k), which stands at ln K when prototypes have collapsed.
    """
    q_a, q_b = (readout.posterior(v.evidence, log_prior, v.n) for v in (first, second))
    share = np.maximum((q_a.mean(axis=0) + q_b.mean(axis=0)) / 2.0, _FLOOR)
    return float(np.log(np.maximum((q_a * q_b / share).sum(axis=1), _FLOOR)).mean())


def effective_rank(z: Floats) -> float:
    """exp of the entropy of the normalised singular values of the centred rows z (U, D); 1 where all rows are alike.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.
    """
    values = np.linalg.svd(z - z.mean(axis=0), compute_uv=False)
    total = float(values.sum())
    if total <= 1e-9 * max(1.0, float(np.abs(z).max(initial=0.0))):
        return 1.0
    share = values[values > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))
