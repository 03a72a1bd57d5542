"""One-sided bounds of quadratic statistics: noncentral chi-squared inversion, entropy, budgets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

ALPHA = 0.05
"""Level of every one-sided bound."""
# scipy.special, not scipy.stats: the same numbers without the checks of arguments, which cost twenty times as much


def entropy(rate: float) -> float:
    """H of a Bernoulli(rate) in nats; 0 at 0 and 1."""
    if rate <= 0.0 or rate >= 1.0:
        return 0.0
    return float(-(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def of_entropy(n: float, positives: float) -> float:
    """1/(2nH): from a quadratic statistic over n impressions to a fraction of their entropy; 0 without entropy."""
    h = entropy(positives / n) if n else 0.0
    return 1.0 / (2.0 * n * h) if h > 0 else 0.0


def upper_noncentrality(q: float, dof: float, *, alpha: float = ALPHA) -> float:
    """Largest λ that q does not refute: P(χ²_dof(λ) ≤ q) = alpha; 0 where even λ = 0 makes q that small."""
    if dof <= 0 or special.chdtr(dof, q) <= alpha:
        return 0.0
    high = max(1.0, q)
    while special.chndtr(q, dof, high) > alpha:
        high *= 2.0
    return float(
        optimize.brentq(lambda x: special.chndtr(q, dof, x) - alpha, 0.0, high, xtol=1e-6, rtol=1e-8)
    )


def lower_noncentrality(q: float, dof: float, *, alpha: float = ALPHA) -> float:
    """Smallest λ that q does not refute: P(χ²_dof(λ) ≥ q) = alpha; 0 where λ = 0 is not refuted."""
    if dof <= 0 or special.chdtrc(dof, q) >= alpha:
        return 0.0
    high = max(1.0, q)
    return float(
        optimize.brentq(lambda x: 1.0 - special.chndtr(q, dof, x) - alpha, 0.0, high, xtol=1e-6, rtol=1e-8)
    )


@dataclass(frozen=True)
class Quadratic:
    """Q = |s|² of scores in units of model information, with the spread of s: additive over cells.

    trace = Σ tr V, square = Σ tr V² of the clustered variances V in those units. Q is close to c·χ²_ν(λ) with
    c = square/trace and ν = trace²/square (Satterthwaite's match of two moments); |E s|² = c·λ.
    """

    q: float = 0.0
    trace: float = 0.0
    square: float = 0.0

    def __add__(self, other: Quadratic) -> Quadratic:
        return Quadratic(self.q + other.q, self.trace + other.trace, self.square + other.square)

    @property
    def estimate(self) -> float:
        """Unbiased |E s|²."""
        return self.q - self.trace

    @property
    def _scaled(self) -> tuple[float, float, float]:
        c = self.square / self.trace
        return c, self.q / c, self.trace**2 / self.square

    def upper(self) -> float:
        """One-sided upper bound of |E s|²."""
        if self.trace <= 0:
            return 0.0
        c, q, dof = self._scaled
        return c * upper_noncentrality(q, dof)

    def lower(self, *, alpha: float = ALPHA) -> float:
        """One-sided lower bound of |E s|² at level 1 − alpha, never below 0."""
        if self.trace <= 0:
            return 0.0
        c, q, dof = self._scaled
        return c * lower_noncentrality(q, dof, alpha=alpha)

    def chance(self) -> float:
        """P(a Q as large as this) where nothing acts, |E s|² = 0; 1 without information."""
        if self.trace <= 0:
            return 1.0
        _, q, dof = self._scaled
        return float(special.chdtrc(dof, q))


def cell_budget(rate: float, delta: float) -> float:
    """ε_cell = ȳ(1−ȳ)δ²/(2H): relative NE that an effect of δ log-odds per SD is worth (docs/method.md A.7)."""
    h = entropy(rate)
    return rate * (1 - rate) * delta**2 / (2 * h) if h > 0 else 0.0


def delta_for(rate: float, budget: float) -> float:
    """δ whose removal costs `budget` relative NE: the inverse of `cell_budget`."""
    return float(np.sqrt(2 * entropy(rate) * budget / (rate * (1 - rate))))


def support_needed(delta: float, deff: float, *, support: float) -> float:
    """Positives a cell needs before it may be dropped: (support/δ)² · deff (docs/method.md A.7 rule 2)."""
    return (support / delta) ** 2 * max(deff, 1.0)
