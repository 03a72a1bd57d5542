"""From additive sums to effects: score test of a stream's channel block, relevance with bounds, curvature.

    s = Σ (x−x̄) r,   I = Σ w (x−x̄)(x−x̄)ᵀ,   V = Σ_u s_u s_uᵀ,   x̄ = Σ w x / Σ w
    R = (sᵀ I⁻¹ s − tr I⁻¹V) / (2 n H),   deff = tr(I⁻¹V) / rank

R is the share of the segment's entropy H that the block explains; its bounds invert the noncentral χ² that
matches two moments of sᵀ I⁻¹ s (segmentation/bounds.py). Source: docs/method.md A.3 with the block form of its amendment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dynamix.contracts import CHANNELS
from dynamix.features.relevance import FINE_BINS, C, CellSums, D, bin_centres
from dynamix.segmentation.bounds import (
    Quadratic,
    entropy,
    lower_noncentrality,
    of_entropy,
    upper_noncentrality,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_MIN_EIGENVALUE = 1e-4
"""Directions of the block whose share of information is below this are left out: copies of other channels."""


class Additive(Protocol):
    """Sums over impressions of D values: Σ w, wx (D,), wxx (D, D), a (D + 1,), aa (D + 1, D + 1) as in `CellSums`."""

    @property
    def w(self) -> float: ...
    @property
    def wx(self) -> Floats: ...
    @property
    def wxx(self) -> Floats: ...
    @property
    def a(self) -> Floats: ...
    @property
    def aa(self) -> Floats: ...


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
    """A cell's block test: n, positives with the stream, rate and entropy H, rank, deff, R with bounds.

    `quadratic` is the test in additive form, 2nH · R before the correction for bias.
    """

    n: float
    positives: float
    rate: float
    h: float
    dof: int
    quadratic: Quadratic
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
    """Score s (6,), information I (6, 6) and user-clustered variance V (6, 6) given the nuisance of the history.

    Centred at x̄ = Σwx/Σw; then the channels' part that activity and freshness of the whole history explain is
    projected out of score and information (efficient score; docs/method.md E6).
    """
    return given_rest(sums, np.arange(C), np.arange(C, D))


def given_rest(sums: Additive, own: Ints, rest: Ints) -> tuple[Floats, Floats, Floats]:
    """Score (k,), information (k, k) and user-clustered variance (k, k) of the values `own` (k,) given those of `rest`.

    Both are places among the D values of the sums; all are centred at x̄ = Σwx/Σw first.
    """
    width = len(sums.wx)
    centre = sums.wx / sums.w if sums.w > 0 else np.zeros(width)
    information = sums.wxx - np.outer(sums.wx, centre)
    shared = information[np.ix_(rest, rest)]
    slope = information[np.ix_(own, rest)] @ np.linalg.pinv(shared, rcond=1e-9, hermitian=True)
    pick = np.zeros((len(own), width))
    pick[np.arange(len(own)), own] = 1.0
    pick[:, rest] = -slope
    shift = pick @ np.concatenate([np.eye(width), -centre[:, None]], axis=1)
    left = information[np.ix_(own, own)] - slope @ information[np.ix_(rest, own)]
    return shift @ sums.a, left, shift @ sums.aa @ shift.T


def effect(sums: CellSums) -> Effect:
    """Block test of one cell. A block without information (absent or constant stream) has rank 0 and R = 0."""
    s, information, variance = moments(sums)
    rate = sums.positives / sums.n if sums.n else 0.0
    h = entropy(rate)
    scale = of_entropy(sums.n, sums.positives)
    block, dof = block_test(s, information, variance, sums.w)
    return Effect(
        n=sums.n, positives=sums.with_stream, rate=rate, h=h, dof=dof, quadratic=block,
        deff=block.trace / dof if dof else 1.0,
        relevance=scale * block.estimate, lcb=scale * block.lower(), ucb=scale * block.upper(),
        channels={name: _channel(j, s, information, variance, sums, scale) for j, name in enumerate(CHANNELS)},
    )  # fmt: skip


def loss(sums: CellSums) -> Quadratic:
    """The quadratic of a cell's block test alone, without the bounds of `effect`."""
    return block_test(*moments(sums), sums.w)[0]


def block_test(s: Floats, information: Floats, variance: Floats, total: float) -> tuple[Quadratic, int]:
    """Quadratic of the score s (k,) in units of model information, and the rank of that information; `total` is Σ w."""
    basis = whitening(information, total)
    return block_quadratic(basis.T @ s, basis.T @ variance @ basis), basis.shape[1]


def whitening(information: Floats, total: float) -> Floats:
    """B (k, rank) with Bᵀ I B = identity, over channels that vary and directions that are no copies."""
    diagonal = np.diag(information)
    varies = diagonal > 1e-9 * max(total, 1e-300)
    if not varies.any():
        return np.zeros((len(diagonal), 0))
    root = np.zeros(len(diagonal))
    root[varies] = 1.0 / np.sqrt(diagonal[varies])
    correlation = information * np.outer(root, root)
    values, vectors = np.linalg.eigh(correlation)
    use = values > _MIN_EIGENVALUE
    return np.asarray(root[:, None] * vectors[:, use] / np.sqrt(values[use]))


def block_quadratic(s: Floats, variance: Floats) -> Quadratic:
    """|s|² with the spread of s, both in units of model information; eigenvalues of V count at least 1.

    The model's own variance is the floor: a channel that a handful of users have (match, mostly) can show next
    to no spread between users by chance, and an unfloored V would call that certainty.
    """
    values = np.maximum(np.linalg.eigvalsh(variance), 1.0) if len(s) else np.zeros(0)
    return Quadratic(float(s @ s), float(values.sum()), float((values**2).sum()))


def _channel(
    j: int, s: Floats, information: Floats, variance: Floats, sums: CellSums, scale: float
) -> ChannelEffect:
    score, info, var = float(s[j]), float(information[j, j]), float(variance[j, j])
    if info <= 1e-9 * max(sums.w, 1e-300) or var <= 0:
        return ChannelEffect(score, max(info, 0.0), max(var, 0.0), 0.0, 0.0, 0.0, 0.0, 0.0)
    sd = np.sqrt(info / sums.w)
    wide = max(var, info)  # as in `block_quadratic`
    q, width = score**2 / wide, scale * wide / info
    return ChannelEffect(
        score,
        info,
        var,
        score / info * sd,
        np.sqrt(wide) / info * sd,
        scale * (score**2 - wide) / info,
        width * lower_noncentrality(q, 1),
        width * upper_noncentrality(q, 1),
    )


def curvature(sums: CellSums, *, deff: float) -> Curvature:
    """Score test of the squared dwell exposure, given its linear term, among impressions that have a dwell.

    Its variance is the model's, widened by the cell's design effect: the histogram has no users.
    """
    n_bin, _, r, w = (row[:FINE_BINS] for row in sums.hist)
    scale = of_entropy(sums.n, sums.positives)
    used = n_bin > 0
    if used.sum() < 3 or scale == 0:
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
    width = scale * wide
    return Curvature((q - 1.0) * width, width * lower_noncentrality(q, 1), width * upper_noncentrality(q, 1))


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
