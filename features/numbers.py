"""Small sums over integer keys in NumPy, shared by the kernels of sessions and surfaces."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_DENSE = 16
"""Keys below this many per row are found by marking, not by sorting: a byte each."""
_EXACT = 1 << 53


def distinct(key: Ints, size: int) -> tuple[Ints, Ints]:
    """(distinct keys in order, place of each key among them); keys are whole numbers in [0, size)."""
    if size > _DENSE * len(key) + 4096:
        keys, place = np.unique(key, return_inverse=True)
        return keys, place
    seen = np.zeros(size, dtype=bool)
    seen[key] = True
    place = np.cumsum(seen, dtype=np.int64)
    return np.flatnonzero(seen), place[key] - 1


def add_up(place: Ints, values: Ints, size: int) -> Ints:
    """Sum of the values (not negative) at each place, exact: the quick way is taken where doubles suffice."""
    if float(values.sum(dtype=np.float64)) < _EXACT:
        return np.bincount(place, weights=values, minlength=size).astype(np.int64)
    total = np.zeros(size, dtype=np.int64)
    np.add.at(total, place, values)
    return total


def first_of_runs(ordered: Ints) -> Ints:
    """Where each run of equal neighbours begins."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def latest_so_far(line: Ints, instant: Ints) -> Ints:
    """Running maximum of `instant` within runs of equal `line`; both (N,), N >= 1, equal lines side by side."""
    base, width = int(instant.min()), int(instant.max()) - int(instant.min()) + 1
    run = np.cumsum(np.concatenate([[False], line[1:] != line[:-1]]), dtype=np.int64) * width
    return np.asarray(np.maximum.accumulate(run + (instant - base)) - run + base)


def tied_rows(tied: Bools) -> tuple[Ints, Ints]:
    """(places of rows that equal a neighbour, number of each one's group); tied (N-1,): row i equals row i + 1."""
    inside = np.flatnonzero(np.concatenate([tied, [False]]) | np.concatenate([[False], tied]))
    return inside, np.cumsum(np.concatenate([[True], ~tied]))[inside]
