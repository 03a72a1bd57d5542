"""`simulate --continue --masks W`: whom the published mask of a warehouse takes events from, and whom not."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyspark.sql import SparkSession

from dynamix.contracts import MASKS, SEGMENTS
from dynamix.errors import GuardError
from dynamix.features.quotas import HOLDOUT_PER_MILLE
from dynamix.features.simulate import read_world, simulate
from dynamix.features.tables import Warehouse
from dynamix.jobs.cli import main
from dynamix.jobs.continued import continue_with
from dynamix.jobs.frames import table_frame
from dynamix.models.hashing import spark_xxhash64

pytestmark = pytest.mark.spark

USERS = 300
STREAMS = ("feed/view", "feed/like")


def cell(segment: int, stream: str, *, keep: bool, status: str, version: str) -> dict[str, Any]:
    return {
        "mask_version": version, "seq": 0, "segment_version": "s1", "segment_id": segment, "segment_name": "x",
        "tier": "*", "stream": stream, "keep": keep, "quota": 500 if keep else 0, "boost": 0.0, "positives": 1,
        "tokens": 1.0, "verdict": "keep" if keep else "drop", "reason": "r", "status": status,
        "run_date": date(2026, 2, 16), "run_id": "r",
    }  # fmt: skip


def test_users_under_the_published_mask_lose_what_their_segment_drops(
    spark: SparkSession, tmp_path: Path
) -> None:
    out, place = tmp_path / "world", Warehouse(tmp_path / "W")
    simulate(out, users=USERS, days=14, seed=1)
    rows = [cell(1, s, keep=s != "feed/view", status="published", version="m2") for s in STREAMS]
    rows += [cell(2, s, keep=True, status="published", version="m2") for s in STREAMS]
    retired = [cell(g, s, keep=False, status="retired", version="m1") for g in (1, 2) for s in STREAMS]
    with pytest.raises(GuardError, match="not in"):
        continue_with(out, str(place.root))
    place.replace(spark, MASKS, table_frame(spark, MASKS, retired))
    with pytest.raises(GuardError, match="no mask is published there"):
        continue_with(out, str(place.root))
    place.replace(spark, MASKS, table_frame(spark, MASKS, [*retired, *rows]))
    known = [
        {"user_id": f"u{n:07d}", "segment_version": "s1", "valid_from": datetime(2026, 1, 5, tzinfo=UTC),
         "segment_id": 1 if n < 200 else 2, "segment_name": "x", "tier": "active", "posterior": {1: 1.0}, "n_events": 9}
        for n in range(USERS - 10)
    ]  # fmt: skip
    place.replace(spark, SEGMENTS, table_frame(spark, SEGMENTS, known))
    assert main(["simulate", "--out", str(out), "--continue", "--masks", str(place.root)]) == 0
    assert read_world(out).weeks == ("m2",)
    week = pd.read_parquet(out / "events" / "week-001.parquet")
    number = week["user_id"].str[1:].astype(int)
    viewed = (week["surface"] == "feed") & (week["event_type"] == "view")
    held = week["user_id"].map(lambda u: spark_xxhash64("holdout", u) % 1000 < HOLDOUT_PER_MILLE)
    assert not (viewed & (number < 200) & ~held).any()
    assert (viewed & (number < 200) & held).any() and (viewed & (number >= 200)).any()
    assert ((week["surface"] == "feed") & (week["event_type"] == "like") & (number < 200)).any()
