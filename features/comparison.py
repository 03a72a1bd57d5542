"""Two lists of rows that should be one: the first difference, with both sides in words.

Plain Python like the oracle (features/oracle.py), whose rows it holds against those of a table.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]

GRID = 2.0**-20
"""Step of the sums of reals: libraries differ in the last bit of a logarithm, so an addend may round either way."""


@dataclass(frozen=True)
class Difference:
    """One key at which stored and expected rows differ; `columns` are those that do, empty if a side has no row."""

    table: str
    key: Mapping[str, Any]
    stored: tuple[Row, ...]
    expected: tuple[Row, ...]
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = ", ".join(f"{name} {value!r}" for name, value in self.key.items())
        what = f"columns {', '.join(self.columns)} differ" if self.columns else _missing(self)
        sides = (("stored  ", self.stored), ("expected", self.expected))
        lines = [f"  {side} {dict(row)}" for side, rows in sides for row in rows]
        return "\n".join([f"table {self.table!r}, {where}: {what}", *lines])


def _missing(found: Difference) -> str:
    if not found.stored:
        return "the table has no such row, the rules give one"
    if not found.expected:
        return "the table has a row that the rules do not give"
    return f"the table has {len(found.stored)} rows, the rules give {len(found.expected)}"


@dataclass(frozen=True)
class Shape:
    """What of a table is compared: its key, the columns, and reals that may differ by more than the grid."""

    table: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    slack: Mapping[str, float] = field(default_factory=dict)


def differences(stored: Iterable[Row], expected: Iterable[Row], shape: Shape) -> Iterator[Difference]:
    """Every difference in the order of the keys; rows of one key are compared in the shape's columns only.

    Whole numbers, texts, maps and lists are equal or not. Reals may differ by a step of 2^-20 for each of the
    row's `n` or `n_events` events (one without such a column), see GRID, or by the column's `slack`; reals in
    lists are single precision and may differ by 10^-6 of their size. NULL equals NULL alone.
    """
    sides: dict[tuple[Any, ...], tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((stored, expected)):
        for row in rows:
            sides[tuple(row[name] for name in shape.key)][side].append(row)
    for values in sorted(sides, key=lambda values: tuple(map(str, values))):
        have, want = sides[values]
        place = dict(zip(shape.key, values, strict=True))
        if len(have) != 1 or len(want) != 1:
            yield Difference(shape.table, place, tuple(have), tuple(want))
            continue
        left, right = have[0], want[0]
        step = GRID * max(1, left.get("n") or left.get("n_events") or 1)
        odd = tuple(n for n in shape.columns if not _equal(left[n], right[n], shape.slack.get(n, step)))
        if odd:
            shown = [*shape.key, *odd]
            yield Difference(shape.table, place, (_part(left, shown),), (_part(right, shown),), odd)


def _part(row: Row, names: Iterable[str]) -> Row:
    return {name: row[name] for name in names}


def _equal(left: Any, right: Any, step: float) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal_single, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return abs(left - right) <= step
    return bool(left == right)


def _equal_single(left: Any, right: Any) -> bool:
    """Equality of two elements of lists, where reals were rounded to single precision."""
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-6, abs_tol=1e-6)
    return bool(left == right)
