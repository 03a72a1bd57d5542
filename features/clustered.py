"""Weighted moments and user-clustered score sums of many streams at once, and their packing into one vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Parts = Sequence[tuple[str, tuple[int, ...]]]
"""Names and shapes, in the order of packing."""


def size_of(parts: Parts) -> int:
    """Length of the packed vector."""
    return sum(int(np.prod(shape)) for _, shape in parts)


def split(sums: Sequence[float] | Floats, parts: Parts) -> dict[str, Floats]:
    """Arrays by name out of a packed vector. ValueError where its length is another one."""
    values = np.asarray(sums, np.float64)
    if values.shape != (size_of(parts),):
        raise ValueError(f"sums have length {values.shape}; allowed: {size_of(parts)}")
    found, at = {}, 0
    for name, shape in parts:
        size = int(np.prod(shape))
        found[name] = values[at : at + size].reshape(shape)
        at += size
    return found


class PackedSums:
    """A dataclass of sums that travels as one vector: first its SCALARS, then the arrays of ARRAYS in that order."""

    SCALARS: ClassVar[tuple[str, ...]]
    ARRAYS: ClassVar[Parts]

    @classmethod
    def size(cls) -> int:
        """Length of the vector."""
        return len(cls.SCALARS) + size_of(cls.ARRAYS)

    @classmethod
    def unpack(cls, sums: Sequence[float] | Floats) -> Self:
        """The state from its vector. ValueError where its length is another one."""
        parts = split(sums, [("scalars", (len(cls.SCALARS),)), *cls.ARRAYS])
        scalars = dict(zip(cls.SCALARS, parts.pop("scalars").tolist(), strict=True))
        return cls(**scalars, **cast("dict[str, Any]", parts))

    def pack(self) -> Floats:
        """The state as one vector."""
        scalars = np.array([getattr(self, name) for name in self.SCALARS])
        return np.concatenate([scalars, *[getattr(self, name).ravel() for name, _ in self.ARRAYS]])

    def __add__(self, other: Self) -> Self:
        return self.unpack(self.pack() + other.pack())


def clustered_sums(x: Floats, r: Floats, w: Floats, user: Ints) -> tuple[Floats, Floats, Floats, Floats]:
    """(Σ w x, Σ w x xᵀ, Σ_u a_u, Σ_u a_u a_uᵀ) of each stream, with a_u = (Σ x r, Σ r) over the rows of a user.

    x (F, B, D) with rows sorted by user, r and w (B,), user (B,) codes; results (F, D), (F, D, D), (F, D + 1) and
    (F, D + 1, D + 1). Source: docs/method.md A.3.
    """
    n_streams, _, width = x.shape
    weighted = x * w[None, :, None]
    starts = np.flatnonzero(np.append(True, user[1:] != user[:-1]))
    per_user = np.empty((n_streams, len(starts), width + 1))
    per_user[:, :, :width] = np.add.reduceat(x * r[None, :, None], starts, axis=1)
    per_user[:, :, width] = np.add.reduceat(r, starts)[None, :]
    return (
        weighted.sum(axis=1),
        np.matmul(x.transpose(0, 2, 1), weighted),
        per_user.sum(axis=1),
        np.matmul(per_user.transpose(0, 2, 1), per_user),
    )
