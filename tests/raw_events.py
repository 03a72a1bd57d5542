"""Small frames of canonical events for the tests of sessions and dwell: seeded lists with ties and edges."""

from __future__ import annotations

import random
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

START_MS = 1_767_225_600_000  # 2026-01-01 00:00 UTC
MINUTE = 60_000
SCHEMA = (
    "user_id string, event_id string, event_ts bigint, event_seq bigint, ingest_ts bigint, "
    "event_type string, surface string, source_session_id string, dwell_ms bigint"
)


def event(user: str, ms: int, **more: Any) -> dict[str, Any]:
    """One event `ms` after START_MS; ids are unique by content unless given."""
    values = {
        "user_id": user,
        "ts": START_MS + ms,
        "event_seq": None,
        "ingest": START_MS + ms,
        "event_type": "view",
        "surface": "feed",
        "source_session_id": None,
        "dwell_ms": None,
    }
    values |= more
    values.setdefault("event_id", f"{user}:{ms}:{values['event_seq']}:{values['event_type']}")
    return values


def frame(spark: SparkSession, events: list[dict[str, Any]]) -> DataFrame:
    rows = [
        (
            e["user_id"], e["event_id"], e["ts"], e["event_seq"], e["ingest"],
            e["event_type"], e["surface"], e["source_session_id"], e["dwell_ms"],
        )
        for e in events
    ]  # fmt: skip
    numbers = spark.createDataFrame(rows, SCHEMA)
    # instants travel as numbers: a naive datetime would be read in the machine's time zone
    return numbers.withColumns({n: F.timestamp_millis(n) for n in ("event_ts", "ingest_ts")})


def many_users(users: int = 30, *, seed: int = 0) -> list[dict[str, Any]]:
    """Users with 1-14 events: gaps at, just above and far above 30 min, ties, impressions, long sessions."""
    draw = random.Random(seed)
    found = []
    for u in range(users):
        at = draw.randrange(3_600_000)
        for i in range(draw.randint(1, 14)):
            at += draw.choice(
                [0, 0, 1, 7_000, 5 * MINUTE, 29 * MINUTE, 30 * MINUTE, 30 * MINUTE + 1, 300 * MINUTE]
            )
            found.append(
                event(
                    f"u{u}",
                    at,
                    event_id=f"{draw.randrange(10**6):06d}-{u}-{i}",
                    event_seq=draw.choice([None, 1, 2, 3]),
                    ingest=START_MS + at + draw.choice([0, 60_000]),
                    event_type=draw.choice(["view", "view", "click", "impression", "conversion"]),
                    surface=draw.choice(["feed", "search", "shop"]),
                    source_session_id=draw.choice([None, "A", "B"]),
                    dwell_ms=draw.choice([None, None, None, 0, 1234]),
                )
            )
    draw.shuffle(found)
    return found
