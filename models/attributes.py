"""What kept events no longer carry under a mask, in the ranker's input: as if it had been missing from the start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dynamix.contracts import NO_DWELL_BIN
from dynamix.features.attributes import Hidden, hidden_tables
from dynamix.models.batch import CATEGORY_MATCH, ITEM_MATCH


class MaskCell(Protocol):
    """A row of the mask grid."""

    @property
    def segment_id(self) -> int: ...
    @property
    def tier(self) -> str: ...
    @property
    def stream(self) -> str: ...
    @property
    def attributes(self) -> tuple[str, ...] | None: ...


class Numbered(Protocol):
    """A stream with its id."""

    @property
    def stream_id(self) -> int: ...


def cell_attributes(cells: Iterable[MaskCell], streams: Mapping[str, Numbered]) -> Hidden:
    """What cells of one mask version no longer carry, as in features/attributes.py; empty where nothing is lost."""
    ids = {name: scale.stream_id for name, scale in streams.items()}
    return hidden_tables(((c.segment_id, c.tier, c.stream, c.attributes) for c in cells), ids)


def to_tree(cell: MaskCell) -> dict[str, Any]:
    """A cell as plain data for JSON; one that keeps every attribute does not name them."""
    return {name: value for name, value in vars(cell).items() if name != "attributes" or value is not None}


def from_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a cell from what `to_tree` gave."""
    return {**tree, "attributes": tuple(tree["attributes"])} if "attributes" in tree else dict(tree)


def emptied(
    events: Mapping[str, NDArray[Any]], lost: Mapping[str, NDArray[np.bool_]]
) -> dict[str, NDArray[Any]]:
    """Event arrays (N,) by name as in `JaggedRows`, changed where an event has lost an attribute (N,).

    The values are those that `rows_from_table` gives where item, category, dwell or age of an event is missing.
    """
    found = dict(events)

    def put(name: str, gone: NDArray[np.bool_], value: Any) -> None:
        found[name] = np.where(gone, found[name].dtype.type(value), found[name])

    for attribute, gone in lost.items():
        if attribute == "item":
            put("item", gone, 0)
            found["match"] = np.where(gone, found["match"] & ~np.int8(ITEM_MATCH), found["match"])
        elif attribute == "category":
            found["match"] = np.where(gone, found["match"] & ~np.int8(CATEGORY_MATCH), found["match"])
        elif attribute == "dwell":
            put("dwell_bin", gone, NO_DWELL_BIN)
            put("z", gone, 0)
            put("usable", gone, False)
        elif attribute == "recency":
            put("log_age", gone, 0)
    return found
