"""One pass of sums picks what mRMR picks, and what the package picks where it is installed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_selection import f_classif

from benchmarks import mrmr


@pytest.mark.parametrize("seed", range(3))
def test_the_picks_are_those_of_the_definition(seed: int) -> None:
    x, y = mrmr.drawn(3_000, 16, seed=seed)
    relevance, correlation = f_classif(x, y)[0], np.abs(np.corrcoef(x, rowvar=False))
    picks: list[int] = []
    while len(picks) < 6:
        redundancy = correlation[:, picks].mean(axis=1) if picks else np.ones(16)
        gain = relevance / redundancy
        gain[picks] = -np.inf
        picks.append(int(np.argmax(gain)))
    assert mrmr.ours(x, y, 6) == tuple(picks)


def test_the_picks_are_those_of_the_package() -> None:
    peer = pytest.importorskip("mrmr", reason=mrmr.MISSING)
    x, y = mrmr.drawn(3_000, 16, seed=5)
    table = pd.DataFrame(x, columns=[str(f) for f in range(16)])
    picks = peer.mrmr_classif(table, pd.Series(y), K=6, n_jobs=1, show_progress=False)
    assert mrmr.ours(x, y, 6) == tuple(int(name) for name in picks)
