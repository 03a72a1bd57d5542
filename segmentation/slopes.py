"""Slopes of dwell on conversion by group of users: mergeable sums, merging of alike groups, heterogeneity.

    s_f = Σ (x_f − x̄_f) r     I_f = Σ w x_f² − (Σ w x_f)²/Σ w     β_f = s_f/(I_f + 1)     r = y − p, w = p(1 − p)

One exposure per stream (docs/method.md A.3, one channel); all sums add over users and groups. Labels come from the
evidence window, which ends before the segmenter's input begins (docs/method.md A.4.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_TINY = 1e-12
PRIOR_INFO = 1.0
"""Without it one impression of a rare stream would have a slope of any size."""


@dataclass(frozen=True)
class Evidence:
    """B labelled impressions of the evidence window: row of the user, dwell exposure x (B, F), label y (B,), p (B,).

    p is what is predicted without the history.
    """

    user: Ints
    x: Floats
    y: Floats
    p: Floats


@dataclass(frozen=True)
class SlopeSums:
    """Sums per group, leading axes (..., G): n, r, w, rr (..., G); xr, wx, wxx, xrr, xxrr (..., G, F).

    rr, xrr and xxrr are sums over users of products of the user's own Σ r and Σ x r: the clustered variance of the score.
    """

    n: Floats
    r: Floats
    w: Floats
    rr: Floats
    xr: Floats
    wx: Floats
    wxx: Floats
    xrr: Floats
    xxrr: Floats

    def __add__(self, other: SlopeSums) -> SlopeSums:
        return SlopeSums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def half(self, which: int) -> SlopeSums:
        """The sums at this place of the first axis."""
        return SlopeSums(*(value[which] for value in vars(self).values()))

    def merged(self, group: Ints) -> SlopeSums:
        """Sums (G', F) of the groups that `group` (G,) maps to the same number 0..G'−1."""
        n = int(group.max()) + 1

        def add(value: Floats) -> Floats:
            total = np.zeros((n, *value.shape[1:]))
            np.add.at(total, group, value)
            return total

        return SlopeSums(*(add(value) for value in vars(self).values()))

    @property
    def centre(self) -> Floats:
        """Weighted mean exposure (..., G, F)."""
        return self.wx / np.maximum(self.w, _TINY)[..., None]

    @property
    def score(self) -> Floats:
        """s (..., G, F)."""
        return self.xr - self.centre * self.r[..., None]

    @property
    def info(self) -> Floats:
        """I (..., G, F), 0 where the exposure does not vary."""
        return np.maximum(self.wxx - self.centre * self.wx, 0.0)

    @property
    def variance(self) -> Floats:
        """Σ_u s_u² (..., G, F)."""
        c = self.centre
        return np.maximum(self.xxrr - 2 * c * self.xrr + c**2 * self.rr[..., None], 0.0)

    @property
    def beta(self) -> Floats:
        """β = s/(I + 1) (..., G, F): a normal prior of sd 1 per unit of exposure, 0 without information."""
        return self.score / (self.info + PRIOR_INFO)


def slope_sums(evidence: Evidence, group: Ints, half: Ints, *, n_groups: int) -> SlopeSums:
    """Sums with axes (2, G, F) from the group 0..G−1 and the half 0 or 1 of every user (U,)."""
    users, rows = len(group), len(evidence.user)
    r, w = evidence.y - evidence.p, evidence.p * (1.0 - evidence.p)
    owner = sparse.csr_matrix((np.ones(rows), (evidence.user, np.arange(rows))), shape=(users, rows))
    place = (half * n_groups + group).astype(np.int64)
    cell = sparse.csr_matrix((np.ones(users), (place, np.arange(users))), shape=(2 * n_groups, users))
    own_r, own_x = np.asarray(owner @ r), np.asarray(owner @ (evidence.x * r[:, None]))
    per_user = (
        np.asarray(owner @ np.ones(rows)), own_r, np.asarray(owner @ w), own_r**2, own_x,
        np.asarray(owner @ (evidence.x * w[:, None])), np.asarray(owner @ (evidence.x**2 * w[:, None])),
        own_x * own_r[:, None], own_x**2,
    )  # fmt: skip
    totals = [np.asarray(cell @ value) for value in per_user]
    return SlopeSums(*(t.reshape(2, n_groups, *t.shape[1:]) for t in totals))


def pooled_slopes(evidence: Evidence) -> Floats:
    """β (F,) of all users together: the population numbers that may enter a segmenter."""
    users = int(evidence.user.max(initial=0)) + 1
    zero = np.zeros(users, np.int64)
    return np.asarray(slope_sums(evidence, zero, zero, n_groups=1).half(0).beta[0])


def explained(sums: SlopeSums) -> float:
    """Σ_g Σ_f (β² − SE²) I: twice the log likelihood that slopes per group explain, without what noise explains."""
    info = sums.info
    gain = np.where(info > _TINY, (sums.score**2 - sums.variance) / np.maximum(info, _TINY), 0.0)
    return float(gain.sum())


def merge_path(sums: SlopeSums) -> list[Ints]:
    """Maps (G,) of the first groups to G, G − 1, …, 1 merged ones: each step joins the cheapest pair, ties by number.

    The cost of a pair is Σ_f I_a I_b/(I_a + I_b) · (β_a − β_b)², what the log likelihood loses by giving both one slope
    (times two). Groups without information cost nothing and go first.
    """
    group = np.arange(len(sums.n), dtype=np.int64)
    path = [group]
    while int(group.max()) > 0:
        now = sums.merged(group)
        a, b = _cheapest(now)
        group = np.where(group == b, a, group)
        group = np.where(group > b, group - 1, group)
        path.append(group)
    return path


def _cheapest(sums: SlopeSums) -> tuple[int, int]:
    info, beta = sums.info, sums.beta
    total = info[:, None, :] + info[None, :, :]
    weight = info[:, None, :] * info[None, :, :] / np.maximum(total, _TINY)
    cost = (weight * (beta[:, None, :] - beta[None, :, :]) ** 2).sum(axis=2)
    cost[np.tril_indices(len(cost))] = np.inf
    a, b = divmod(int(cost.argmin()), len(cost))
    return a, b


def crossfit_gain(sums: SlopeSums, group: Ints, *, fitted_on: int) -> float:
    """Twice the log likelihood that slopes of the merged groups gain over pooled ones on the other half.

    Quadratic in the slopes around no effect: 2 β·s − β² I with β from half `fitted_on` of `sums` (2, G, F).
    """
    fit, other = sums.half(fitted_on), sums.half(1 - fitted_on)
    one = np.zeros_like(group)

    def gain(groups: Ints) -> float:
        beta, held = fit.merged(groups).beta, other.merged(groups)
        return float((2 * beta * held.score - beta**2 * held.info).sum())

    return gain(group) - gain(one)


def merge_alike(sums: SlopeSums, *, k_max: int, k: int | None = None) -> tuple[Ints, tuple[float, ...]]:
    """Groups (G,) -> merged groups, and the cross-fitted gain of 1..k_max merged groups.

    The number of groups is `k`, or the smallest within one standard error of the one whose paths, merged on one half of
    the users, gain most on the other half; so one group where slopes do not differ. Without any effect the gain of a
    slope has sd 2, and a group more has 2 F slopes in two directions. The path itself then uses both halves.
    """
    n_groups = sums.n.shape[1]
    most = min(k_max, n_groups)
    gains = np.zeros(most)
    for side in (0, 1):
        path = merge_path(sums.half(side))
        for number in range(1, most + 1):
            gains[number - 1] += crossfit_gain(sums, path[n_groups - number], fitted_on=side)
    best = int(gains.argmax())
    error = 2.0 * np.sqrt(2.0 * sums.xr.shape[2] * np.maximum(best - np.arange(most), 0))
    smallest = int(np.flatnonzero(gains >= gains[best] - error)[0]) + 1
    chosen = smallest if k is None else min(k, n_groups)
    both = sums.half(0) + sums.half(1)
    return merge_path(both)[n_groups - chosen], tuple(float(g) for g in gains)
