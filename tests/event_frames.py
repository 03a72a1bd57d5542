"""Small `events` frames for tests: rows as dicts with only the columns that matter, the rest by default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dynamix.contracts import EVENTS

START = datetime(2024, 1, 1)


def event_frame(spark: SparkSession, rows: Iterable[Mapping[str, Any]]) -> DataFrame:
    """Events from dicts; `t` is seconds after START, `ingest` likewise (default t); ids count up from e0.

    Defaults: user u, surface shop, event_type view, dwell_status observed if dwell_ms is given, else missing.
    """
    records = []
    for number, row in enumerate(rows):
        t, ingest = row["t"], row.get("ingest", row["t"])
        full = {
            "event_id": f"e{number}",
            "user_id": "u",
            "event_type": "view",
            "surface": "shop",
            "dwell_status": "observed" if row.get("dwell_ms") is not None else "missing",
            "bad_dwell": False,
            **{k: v for k, v in row.items() if k not in ("t", "ingest")},
            "event_ts": round(t * 1e6),
            "ingest_ts": round(ingest * 1e6),
            "event_date": (START + timedelta(seconds=t)).date(),
        }
        records.append(tuple(full.get(name) for name in EVENTS.names))
    # instants travel as numbers: a naive datetime would be read in the time zone of the machine
    plain = EVENTS.ddl().replace("`event_ts` timestamp", "`event_ts` bigint")
    frame = spark.createDataFrame(records, plain.replace("`ingest_ts` timestamp", "`ingest_ts` bigint"))
    zero = (START - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    for name in ("event_ts", "ingest_ts"):
        frame = frame.withColumn(name, F.timestamp_micros(F.col(name) + zero))
    return frame
