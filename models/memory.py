"""How many rows go through a model at once: fewer when the device has no memory left (docs/faults.md 38).

A batch of the config stays one optimiser step: its rows go through in pieces whose gradients add up to its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dynamix.errors import EnvironmentTrouble

LEAST_ROWS = 8
"""Where even so few rows do not fit, it is not the batch that is too large."""

T = TypeVar("T")


@dataclass
class RowsAtOnce:
    """The rows of a piece; halved for good by every lack of memory, and said each time."""

    rows: int
    say: Callable[[str], None] = lambda text: None

    def attempt(self, work: Callable[[int], T]) -> T:
        """What `work(rows)` gives, tried from its start with half the rows while the device has too little memory.

        Only torch.OutOfMemoryError counts as that. EnvironmentTrouble (exit 5) where LEAST_ROWS rows do not fit.
        """
        while True:
            try:
                return work(self.rows)
            except torch.OutOfMemoryError as trouble:
                said = str(trouble).split(". ")[0]
            self._halve(said)  # here the failed attempt's tensors are gone with its trace

    def _halve(self, said: str) -> None:
        if self.rows <= LEAST_ROWS:
            raise EnvironmentTrouble(
                f"out of memory with {self.rows} rows at once ({said}); set train.device=cpu, lower train.hidden, "
                "train.embedding_dim or history.total, or free the device"
            )
        self.rows = max(LEAST_ROWS, self.rows // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.say(f"out of memory: {self.rows} rows at once from here on, in batches of the same size")


def pieces(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """The rows in pieces of `size`, the last one shorter."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
