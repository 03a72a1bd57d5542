"""A request with a history of 100,000 events, as a bot's: it is cut to the newest ones, whatever their order."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.serving import SINCE_US, STREAMS, frame, service
from dynamix.features.calendar import DAY_US
from dynamix.models.service import RankerService, request_table
from dynamix.models.serving import prepare

EVENTS = 100_000
NOW_US = SINCE_US + 34 * DAY_US


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> RankerService:
    return service(tmp_path_factory.mktemp("served"))


def request(seed: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    back = rng.integers(120, 30 * DAY_US // 1_000_000, EVENTS)
    events = [
        {"stream": STREAMS[f], "ts": int(NOW_US - 1_000_000 * b)}
        for f, b in zip(rng.integers(len(STREAMS), size=EVENTS), back, strict=True)
    ]
    return {"user_id": "bot", "request_ts": NOW_US, "events": events}


def test_it_is_cut_to_the_newest_events_and_scored(served: RankerService) -> None:
    asked = request(0)
    rows, _ = prepare(request_table(frame([asked])), served.preparation)
    assert 0 < rows.tokens <= served.preparation.total
    newest = sorted(NOW_US - e["ts"] for e in asked["events"])[: served.preparation.total]  # type: ignore[attr-defined]
    assert np.expm1(rows.log_age).max() <= newest[-1] / 1e6 + 1
    found = served.predict(frame([asked, {**asked, "events": asked["events"][::-1]}]))  # type: ignore[index]
    assert np.isfinite(found.drop(columns="segment_id").to_numpy()).all()
    pd.testing.assert_series_equal(found.iloc[0], found.iloc[1], check_names=False, rtol=1e-6)
