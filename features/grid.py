"""A grid of 2^-20: doubles on it add up to the same last bit in any order, for sums below 8e9 (docs/method.md A.2.4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GRID = 2.0**20


def on_grid(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Values rounded to multiples of 2^-20; features/streams.py has the same for a Spark column."""
    return np.rint(values * GRID) / GRID
