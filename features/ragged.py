"""Ranges of whole numbers unrolled, and cut into slices of bounded cost: plain NumPy for everything that is jagged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def unrolled(start: Ints, length: Ints) -> tuple[Ints, Ints]:
    """Ranges [start, start+length): (number of the range, running value) for every element."""
    owner = np.repeat(np.arange(len(start), dtype=np.int64), length)
    begin = np.cumsum(length) - length
    return owner, np.arange(len(owner), dtype=np.int64) + (start - begin)[owner]


def slices_within(cost: Ints, budget: int) -> Iterator[slice]:
    """Consecutive slices whose summed cost stays within the budget, at least one element each."""
    spent = np.cumsum(cost)
    begin = 0
    while begin < len(cost):
        done = int(spent[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(spent, done + budget, side="right")))
        yield slice(begin, end)
        begin = end
