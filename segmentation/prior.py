"""What all cells say of one: a prior over effect sizes and each cell's expected loss under it.

Sizes β, log-odds per SD, lie on a fixed grid; their weights are fitted to the quadratics of all cells by EM on the
noncentral χ² likelihood. A cell whose own data say little is judged by what most cells are. Adaptive shrinkage:
M. Stephens, "False discovery rates: a new deal", Biostatistics 18 (2017); docs/method.md A.7.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from dynamix.segmentation.bounds import Quadratic

Floats = npt.NDArray[np.float64]
GRID = np.concatenate([[0.0], 0.01 * 1.2 ** np.arange(25)])
"""Sizes of an effect, none and .01 to .79; larger ones count as the last."""
_STEPS = 300
_TINY = 1e-9
_FLOOR = 1e-3
"""Cells' worth of weight that every size keeps, so that none is excluded by a few cells."""


def expected_losses(quadratics: Sequence[Quadratic], weight: Sequence[float]) -> tuple[Floats, Floats]:
    """Posterior mean and sd of |E s|² of every cell (N,), in the units of its quadratic.

    `weight` is Σ w of the cell: an effect of β adds β² Σ w to |E s|². A cell without information has loss 0.
    """
    mean, sd = np.zeros(len(quadratics)), np.zeros(len(quadratics))
    known = np.array([i for i, q in enumerate(quadratics) if q.trace > 0], dtype=np.int64)
    if not len(known):
        return mean, sd
    found = [quadratics[i] for i in known]
    q, trace, square = (np.array([getattr(x, name) for x in found]) for name in ("q", "trace", "square"))
    size = GRID**2 * np.asarray(weight, np.float64)[known, None]
    scale = square / trace
    log = log_density((q / scale)[:, None], (trace / scale)[:, None], size / scale[:, None])
    likelihood = np.exp(log - log.max(axis=1, keepdims=True))
    share = np.full(len(GRID), 1.0 / len(GRID))
    for _ in range(_STEPS):
        posterior = likelihood * share
        posterior /= posterior.sum(axis=1, keepdims=True)
        share = (posterior.sum(axis=0) + _FLOOR) / (len(found) + _FLOOR * len(GRID))
    posterior = likelihood * share
    posterior /= posterior.sum(axis=1, keepdims=True)
    mean[known] = (posterior * size).sum(axis=1)
    sd[known] = np.sqrt(np.maximum((posterior * size**2).sum(axis=1) - mean[known] ** 2, 0.0))
    return mean, sd


def log_density(x: Floats, dof: Floats, noncentrality: Floats) -> Floats:
    """Log density of the noncentral χ² by its Bessel form; arrays that broadcast, finite for every x >= 0."""
    x, shift = np.maximum(x, _TINY), np.maximum(noncentrality, _TINY)
    order = dof / 2 - 1
    bessel = np.maximum(special.ive(order, np.sqrt(x * shift)), np.finfo(np.float64).tiny)
    return np.asarray(
        -((np.sqrt(x) - np.sqrt(shift)) ** 2) / 2 + order / 2 * np.log(x / shift) + np.log(bessel / 2)
    )
