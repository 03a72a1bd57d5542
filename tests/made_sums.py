"""Sums of cells as impressions with known effects would give them, for the keep rule's tests."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from dynamix.contracts import CHANNELS
from dynamix.features.relevance import FINE_BINS, WHOLE, C, CellSums, D, bin_centres
from dynamix.segmentation.cells import Cell, Statistics

RATE = 0.05
NORMAL = np.exp(-(bin_centres() ** 2) / 2)
NORMAL /= NORMAL.sum()
PLENTY = 3_000_000.0


def cell_sums(
    rng: np.random.Generator, n: float, effects: Mapping[str, float], *, deff: float = 1.0, tokens: float = 3.0,
    presence: float = 1.0, censored: float = 0.0, bend: float = 0.0,
) -> CellSums:  # fmt: skip
    """Sums as n impressions of a stream would give whose channels are independent with variance 1.

    effects are log-odds per SD by channel (`bend`: of the squared dwell); the score is drawn with its sampling
    error, the spread between users with the error of as many users as positives.
    """
    w = n * RATE * (1 - RATE)
    beta = np.array([effects.get(name, 0.0) for name in CHANNELS])
    a = np.zeros(D + 1)
    a[:C] = w * beta + rng.normal(size=C) * np.sqrt(deff * w)
    users = int(max(n * RATE, 20))
    root = np.tril(rng.normal(size=(D + 1, D + 1)), -1) + np.diag(
        np.sqrt(rng.chisquare(users - np.arange(D + 1)))
    )
    share = w * NORMAL
    hist = np.zeros((4, FINE_BINS + 1))
    hist[0, :-1], hist[3, :-1] = n * NORMAL, share
    mean = beta[0] * bin_centres() + bend * (bin_centres() ** 2 - 1)
    hist[2, :-1] = share * mean + rng.normal(size=FINE_BINS) * np.sqrt(deff * share)
    return CellSums(
        n=n, positives=n * RATE, with_stream=n * RATE * presence, present=n * presence, tokens=n * tokens,
        censored=n * tokens * censored, w=w, wx=np.zeros(D), wxx=w * np.eye(D), a=a,
        aa=deff * w * root @ root.T / users, hist=hist,
    )  # fmt: skip


Plan = Mapping[Cell, Mapping[str, Any]]


def statistics(plan: Plan, *, heads: tuple[str, ...] = ("conversion",), seed: int = 7) -> Statistics:
    """Halves and thirds of every planned cell; a plan has `n`, `effects` (or one per head) and cell_sums' options."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[int, str, str, int, int], CellSums] = {}
    for (cell, options), head in itertools.product(plan.items(), heads):
        options = dict(options)
        n, effects = options.pop("n"), options.pop("effects", {})
        effects = effects.get(head, effects)
        for half in (0, 1):
            parts = [cell_sums(rng, n / 6, effects, **options) for _ in range(3)]
            for window, part in enumerate(parts):
                found[*cell, head, half, window] = part
            found[*cell, head, half, WHOLE] = parts[0] + parts[1] + parts[2]
    return Statistics(found, heads)
