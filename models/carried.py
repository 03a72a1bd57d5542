"""What declared streams change when a request is prepared: how many events are kept, and what they carry.

The counterpart in NumPy of `stream_lengths` and `hidden_attributes` in features/streams.py (docs/method.md A.2.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

CARRIED = "carried.json"


@dataclass(frozen=True)
class Carried:
    """Streams by id: `lengths` where not the history's own, `hidden` attributes where not every one is carried."""

    lengths: Mapping[int, int] = field(default_factory=dict)
    hidden: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def hides(self, attribute: str, stream: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True for events (N,) of streams that do not carry the attribute."""
        return np.isin(stream, [number for number, names in self.hidden.items() if attribute in names])

    def shown(self, attribute: str, stream: NDArray[np.int64], values: pa.Array) -> pa.Array:
        """`values` (N,), NULL where the event's stream does not carry the attribute."""
        return pc.if_else(pa.array(self.hides(attribute, stream)), pa.scalar(None, values.type), values)

    def to_tree(self) -> dict[str, object]:
        """Plain data for JSON, whose keys are text."""
        return {
            "lengths": {str(n): length for n, length in self.lengths.items()},
            "hidden": {str(n): list(names) for n, names in self.hidden.items()},
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Carried:
        """The inverse of `to_tree`; a model that was stored without one carries everything."""
        lengths = {int(n): int(length) for n, length in tree.get("lengths", {}).items()}
        hidden = {int(n): tuple(names) for n, names in tree.get("hidden", {}).items()}
        return cls(lengths, hidden)
