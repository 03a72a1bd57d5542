"""Small tables in the columns of `training_rows`, made without Spark."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch

from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.ranker import Ranker, RankerConfig
from dynamix.models.trunks.base import TrunkConfig
from dynamix.models.trunks.build import TRUNKS

N_STREAMS, N_SEGMENTS, BUCKETS = 4, 3, 50


def history_table(lengths: list[int], *, seed: int = 0, effect: float = 0.0) -> pa.Table:
    """One impression per length with a random history; `effect` plants log-odds on the mean z of stream 0."""
    rng = np.random.default_rng(seed)
    b, n = len(lengths), int(sum(lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    row = np.repeat(np.arange(b), lengths)
    stream = rng.integers(0, N_STREAMS, n).astype(np.int16)
    z = np.clip(rng.normal(size=n), -3, 3).astype(np.float32)
    bins = np.where(rng.random(n) < 0.2, 12, rng.integers(0, 12, n)).astype(np.int8)
    z[bins == 12] = 0
    own = (stream == 0) & (bins < 12)
    x = np.bincount(row[own], weights=z[own], minlength=b) / (np.bincount(row[own], minlength=b) + 1)
    p = 1 / (1 + np.exp(1.5 - effect * x))
    items = np.array(["a", "b", "c", None], object)
    age = np.concatenate([np.sort(rng.random(k) * 1e5 + 60)[::-1] for k in lengths]) if n else np.zeros(0)

    def ragged(values: pa.Array) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(offsets), values)

    return pa.table(
        {
            "impression_id": [f"i{i:05d}" for i in range(b)],
            "user_id": [f"u{i // 4:05d}" for i in range(b)],
            "event_ts": pa.array(np.arange(b) * 1_000_000, pa.timestamp("us")),
            "request_id": [f"r{i // 4}" for i in range(b)],
            "surface": pa.array(np.array(["feed", "search"])[rng.integers(0, 2, b)]),
            "item_id": pa.array(items[rng.integers(0, 4, b)], pa.string()),
            "category": pa.array(items[rng.integers(0, 4, b)], pa.string()),
            "position": pa.array([None if i % 5 == 0 else i % 7 + 1 for i in range(b)], pa.int32()),
            "weight": np.ones(b),
            "part": pa.array(np.array(["train", "validate", "test"])[np.minimum(np.arange(b) % 5 // 2, 2)]),
            "segment_id": pa.array(rng.integers(0, N_SEGMENTS, b).astype(np.int32)),
            "tier": pa.array(np.array(["active", "passive"])[rng.integers(0, 2, b)]),
            "holdout": np.zeros(b, bool),
            "value": pa.array([None if i % 3 else float(i) for i in range(b)], pa.float64()),
            "label_conversion": (rng.random(b) < p).astype(float),
            "label_click": (rng.random(b) < 0.3).astype(float),
            "hist_stream": ragged(pa.array(stream)),
            "hist_item": ragged(pa.array(items[rng.integers(0, 4, n)], pa.string())),
            "hist_category": ragged(pa.array(items[rng.integers(0, 4, n)], pa.string())),
            "hist_dwell_bin": ragged(pa.array(bins)),
            "hist_z": ragged(pa.array(z)),
            "hist_age_s": ragged(pa.array(age.astype(np.float32))),
        }
    )


@pytest.fixture(name="table", scope="session")
def fixture_table() -> Callable[..., pa.Table]:
    return history_table


@pytest.fixture(name="rows")
def fixture_rows() -> JaggedRows:
    """40 impressions with histories of 0 to 14 events."""
    lengths = [int(n) for n in np.random.default_rng(1).integers(0, 15, 40)]
    return rows_from_table(
        history_table([0, 1, *lengths[2:]]), heads=("click", "conversion"), item_buckets=BUCKETS
    )


@pytest.fixture(name="ranker", params=list(TRUNKS))
def fixture_ranker(request: pytest.FixtureRequest) -> Ranker:
    """A double-precision ranker of each trunk with every weight moved away from its start."""
    trunk = TrunkConfig(N_STREAMS, N_SEGMENTS, 3, BUCKETS, width=8, hidden=(16, 8), kind=request.param)
    model = Ranker(RankerConfig(trunk, ("click", "conversion"), ("feed", "search")), seed=3).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return model.eval()
