"""From additive sums to effects: score test of a stream's channel block, relevance with bounds, curvature.

    s = Σ (x−x̄) r,   I = Σ w (x−x̄)(x−x̄)ᵀ,   V = Σ_u s_u s_uᵀ,   x̄ = Σ w x / Σ w
    q = sᵀ V⁻¹ s,    R = (sᵀ I⁻¹ s − tr I⁻¹V) / (2 n H),   deff = tr(I⁻¹V) / rank

R is the share of the segment's entropy H that the block explains; its bounds invert a noncentral χ² for q and
scale with deff. Source: docs/method.md A.3 with the block form of its amendment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dynamix.contracts import CHANNELS
from dynamix.features.relevance import FINE_BINS, C, CellSums, bin_centres
from dynamix.segmentation.bounds import entropy, lower_noncentrality, upper_noncentrality

Floats = npt.NDArray[np.float64]
_MIN_EIGENVALUE = 1e-4
"""Directions of the block whose share of information is below this are left out: copies of other channels."""


@dataclass(frozen=True)
class ChannelEffect:
    """One channel alone: score, information, clustered variance; beta and se in log-odds per SD of x; R with bounds."""

    score: float
    information: float
    variance: float
    beta: float
    se: float
    relevance: float
    lcb: float
    ucb: float


@dataclass(frozen=True)
class Effect:
    """A cell's block test: n, positives with the stream, rate and entropy H, rank, q, deff, R with bounds."""

    n: float
    positives: float
    rate: float
    h: float
    dof: int
    q: float
    deff: float
    relevance: float
    lcb: float
    ucb: float
    channels: dict[str, ChannelEffect]

    @property
    def leading(self) -> str:
        """Channel with the greatest lower bound of relevance, ties by the greater estimate."""
        return max(self.channels, key=lambda c: (self.channels[c].lcb, self.channels[c].relevance))


@dataclass(frozen=True)
class Curvature:
    """Quadratic effect of the dwell exposure beside the linear one: R with bounds, fraction of H (pitfall E17)."""

    relevance: float
    lcb: float
    ucb: float


def moments(sums: CellSums) -> tuple[Floats, Floats, Floats]:
    """Score s (6,), information I (6, 6) and user-clustered variance V (6, 6), centred at x̄ = Σwx/Σw."""
    centre = sums.wx / sums.w if sums.w > 0 else np.zeros(C)
    shift = np.concatenate([np.eye(C), -centre[:, None]], axis=1)
    information = sums.wxx - np.outer(sums.wx, centre)
    return shift @ sums.a, information, shift @ sums.aa @ shift.T


def effect(sums: CellSums) -> Effect:
    """Block test of one cell. A block without information (absent or constant stream) has rank 0 and R = 0."""
    s, information, variance = moments(sums)
    rate = sums.positives / sums.n if sums.n else 0.0
    h = entropy(rate)
    scale = 1.0 / (2.0 * sums.n * h) if h > 0 else 0.0
    basis = whitening(information, sums.w)
    dof = basis.shape[1]
    white_s, white_v = basis.T @ s, basis.T @ variance @ basis
    deff = float(np.trace(white_v)) / dof if dof else 1.0
    q = quadratic(white_s, white_v)
    relevance = scale * float(white_s @ white_s - np.trace(white_v)) if dof else 0.0
    width = scale * max(deff, 1.0)
    return Effect(
        n=sums.n, positives=sums.with_stream, rate=rate, h=h, dof=dof, q=q, deff=deff, relevance=relevance,
        lcb=width * lower_noncentrality(q, dof), ucb=width * upper_noncentrality(q, dof),
        channels={name: _channel(j, s, information, variance, sums, scale) for j, name in enumerate(CHANNELS)},
    )  # fmt: skip


def whitening(information: Floats, total: float) -> Floats:
    """B (6, rank) with Bᵀ I B = identity, over channels that vary and directions that are no copies."""
    diagonal = np.diag(information)
    varies = diagonal > 1e-9 * max(total, 1e-300)
    if not varies.any():
        return np.zeros((C, 0))
    root = np.zeros(C)
    root[varies] = 1.0 / np.sqrt(diagonal[varies])
    correlation = information * np.outer(root, root)
    values, vectors = np.linalg.eigh(correlation)
    use = values > _MIN_EIGENVALUE
    return np.asarray(root[:, None] * vectors[:, use] / np.sqrt(values[use]))


def quadratic(s: Floats, variance: Floats) -> float:
    """sᵀ V⁻¹ s over the directions in which V is not zero."""
    if not len(s):
        return 0.0
    values, vectors = np.linalg.eigh(variance)
    use = values > 1e-9 * max(float(values.max()), 1e-300)
    along = vectors[:, use].T @ s
    return float((along**2 / values[use]).sum())


def _channel(
    j: int, s: Floats, information: Floats, variance: Floats, sums: CellSums, scale: float
) -> ChannelEffect:
    score, info, var = float(s[j]), float(information[j, j]), float(variance[j, j])
    if info <= 1e-9 * max(sums.w, 1e-300) or var <= 0:
        return ChannelEffect(score, max(info, 0.0), max(var, 0.0), 0.0, 0.0, 0.0, 0.0, 0.0)
    sd = np.sqrt(info / sums.w)
    q, deff = score**2 / var, var / info
    width = scale * max(deff, 1.0)
    return ChannelEffect(
        score, info, var, score / info * sd, np.sqrt(var) / info * sd, scale * (score**2 - var) / info,
        width * lower_noncentrality(q, 1), width * upper_noncentrality(q, 1),
    )  # fmt: skip


def curvature(sums: CellSums, *, deff: float) -> Curvature:
    """Score test of the squared dwell exposure, given its linear term, among impressions that have a dwell.

    Its variance is the model's, widened by the cell's design effect: the histogram has no users.
    """
    n_bin, _, r, w = (row[:FINE_BINS] for row in sums.hist)
    rate = sums.positives / sums.n if sums.n else 0.0
    h = entropy(rate)
    used = n_bin > 0
    if used.sum() < 3 or h == 0:
        return Curvature(0.0, 0.0, 0.0)
    x, r, w = bin_centres()[used], r[used], w[used]
    linear = np.stack([np.ones_like(x), x], axis=1)
    gram = linear.T @ (w[:, None] * linear)
    square = x**2 - linear @ np.linalg.lstsq(gram, linear.T @ (w * x**2), rcond=None)[0]
    info = float((w * square**2).sum())
    if info <= 1e-9 * float(w.sum()):
        return Curvature(0.0, 0.0, 0.0)
    wide = max(deff, 1.0)
    # the residual of the bins has its own mean and slope, which belong to the linear channels
    slope = np.linalg.lstsq(gram, linear.T @ r, rcond=None)[0]
    score = float(square @ (r - w * (linear @ slope)))
    q = score**2 / (info * wide)
    width = wide / (2.0 * sums.n * h)
    return Curvature(
        (q - 1.0) * width, width * lower_noncentrality(q, 1), width * upper_noncentrality(q, 1)
    )


def shrink(beta: Floats, se: Floats) -> tuple[Floats, Floats]:
    """Empirical Bayes: posterior mean and sd of effects β̂ ~ N(β, se²), β ~ N(0, τ²), τ² by moments.

    Cells without information (se 0) keep mean 0 and sd 0. τ² is the weighted mean of β̂² − se² (not below 0).
    """
    known = se > 0
    mean, sd = np.zeros_like(beta), np.zeros_like(beta)
    if not known.any():
        return mean, sd
    weight = 1.0 / se[known] ** 2
    tau2 = max(0.0, float((weight * (beta[known] ** 2 - se[known] ** 2)).sum() / weight.sum()))
    keep = tau2 / (tau2 + se[known] ** 2)
    mean[known] = keep * beta[known]
    sd[known] = np.sqrt(keep * se[known] ** 2)
    return mean, sd
