"""Sums over all streams of a segment at once, mergeable: what a stream says beside the others, from the same scan.

The values of an impression are those shared by all streams, then for each stream its channels and its squared dwell
exposure. One Gram matrix of them gives every conditional relevance (docs/method.md A.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np

from dynamix.contracts import CHANNELS
from dynamix.features.clustered import Floats, Ints, clustered_sums
from dynamix.features.recency import SHARED

EACH = len(CHANNELS) + 1
"""Values of a stream: its channels, then the square of its dwell exposure, so that an effect without a slope shows."""
MAX_STREAMS = 64
"""With more streams these sums are not made: they grow with the square of the number."""


@dataclass(frozen=True)
class GramSums:
    """The mergeable state of one segment, head and user half over all its streams.

    n impressions, positives among them, w = Σ w; over the W = 4 + 7 F values wx = Σ w x (W,), wxx = Σ w x xᵀ (W, W);
    per user a_u = (Σ x r, Σ r): a = Σ_u a_u (W + 1,), aa = Σ_u a_u a_uᵀ (W + 1, W + 1).
    """

    n: float
    positives: float
    w: float
    wx: Floats
    wxx: Floats
    a: Floats
    aa: Floats

    @classmethod
    def unpack(cls, sums: Sequence[float] | Floats) -> GramSums:
        """The state from its vector, of which the matrices are upper triangles. ValueError for a length that none has."""
        values = np.asarray(sums, np.float64)
        width = isqrt(max(len(values) - 1, 0)) - 2
        if width < SHARED or (width - SHARED) % EACH or len(values) != size_of_width(width):
            raise ValueError(f"sums have length {values.shape}; allowed: (W + 2)² + 1 for W = 4 + 7 F values")
        borders = np.cumsum([3, width, width + 1, width * (width + 1) // 2])
        (n, positives, w), wx, a, wxx, aa = np.split(values, borders)
        return cls(float(n), float(positives), float(w), wx, _square(wxx, width), a, _square(aa, width + 1))

    def pack(self) -> Floats:
        """The state as one vector."""
        scalars = np.array([self.n, self.positives, self.w])
        return np.concatenate([scalars, self.wx, self.a, _triangle(self.wxx), _triangle(self.aa)])

    def __add__(self, other: GramSums) -> GramSums:
        return GramSums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def size_of_width(width: int) -> int:
    """Length of the vector of sums over W values: 3 + W + (W + 1) + two triangles."""
    return (width + 2) ** 2 + 1


def size_of(n_streams: int) -> int:
    """Length of the vector of sums over all of `n_streams` streams."""
    return size_of_width(SHARED + EACH * n_streams)


def columns_of(stream: int) -> Ints:
    """Places of a stream's values, channels first; `stream` is its id."""
    return SHARED + EACH * stream + np.arange(EACH, dtype=np.int64)


def gram_sums(x: Floats, shared: Floats, y: Floats, p: Floats, user: Ints) -> Floats:
    """Packed `GramSums` from impressions sorted by user: x (B, F, 6), shared (B, 4), y and p (B,), user (B,) codes."""
    rows = len(y)
    r, w = y - p, p * (1.0 - p)
    square = x[:, :, CHANNELS.index("dwell")] ** 2
    values = np.concatenate([x, square[:, :, None]], axis=2).reshape(rows, -1)
    whole = np.concatenate([shared, values], axis=1)
    parts = (part[0] for part in clustered_sums(whole[None], r, w, user))
    wx, wxx, a, aa = parts
    return GramSums(float(rows), float(y.sum()), float(w.sum()), wx, wxx, a, aa).pack()


def _triangle(matrix: Floats) -> Floats:
    return np.asarray(matrix[np.triu_indices(len(matrix))])


def _square(triangle: Floats, width: int) -> Floats:
    matrix = np.zeros((width, width))
    matrix[np.triu_indices(width)] = triangle
    return np.asarray(matrix + np.triu(matrix, 1).T)
