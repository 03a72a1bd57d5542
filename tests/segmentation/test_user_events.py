"""Events per user on Spark: those of the counts, blind to conversions; placed on executors as in memory; exposures."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest
from event_frames import START, event_frame
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dynamix.config import Config, HistoryConfig, SegmentationConfig
from dynamix.contracts import N_DWELL_BINS
from dynamix.features.calendar import build_calendar
from dynamix.features.streams import scaled_events
from dynamix.segmentation.assign import event_histories
from dynamix.segmentation.blocks import INPUT, NEXT
from dynamix.segmentation.counts import segmenter_streams, user_counts
from dynamix.segmentation.exposures import dwell_exposures
from dynamix.segmentation.fitted import Paper2Fitted
from dynamix.segmentation.midnights import Rule, decide
from dynamix.segmentation.prefixes import at_midnights
from dynamix.segmentation.readout import Readout
from dynamix.segmentation.user_events import dated_events, fit_users, user_events, window_events

pytestmark = pytest.mark.spark
DAY = 86_400
CALENDAR = build_calendar(date(2024, 1, 21), first_event=START)
CONFIG = Config(
    history=HistoryConfig(embargo=60), segmentation=SegmentationConfig(confidence=0.6, min_events=2)
)
GAP_S = 1800.0
SEGMENTER = Paper2Fitted(np.array([1.0, -1.0, 0.0]), 0.1, 0.2, np.log([0.6, 0.4]), Readout(), "K=2 as drawn")


def rows() -> list[dict[str, Any]]:
    """Views and likes of 7 users on 20 days, some known a day late, and a conversion of each on three days."""
    rng = np.random.default_rng(3)
    found: list[dict[str, Any]] = []
    for user in range(7):
        for day in range(20):
            for _ in range(rng.integers(0, 3)):
                t = day * DAY + float(rng.integers(0, DAY - 10))
                found.append({
                    "user_id": f"u{user}", "t": t, "ingest": t + DAY * (rng.random() < 0.2),
                    "event_type": "like" if (user + (day > 9)) % 2 else "view",
                    "dwell_ms": None if rng.random() < 0.3 else int(rng.integers(100, 400_000)),
                })  # fmt: skip
        found += [{"user_id": f"u{user}", "t": day * DAY + 5.0, "event_type": "conversion", "dwell_ms": 900}
                  for day in (4, 7, 11)]  # fmt: skip
    return found


def streams(spark: SparkSession) -> DataFrame:
    named = [(0, "shop/view", False), (1, "shop/like", False), (2, "shop/conversion", True)]
    table = spark.createDataFrame(named, "stream_id int, stream string, is_conversion boolean")
    return table.withColumns({"mu": F.lit(9.0), "sigma": F.lit(1.5), "has_dwell": F.lit(True)})


def stats(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame([("u1", 0.8)], "user_id string, habit double")


def collected(frame: DataFrame) -> Any:
    return dated_events(frame.orderBy("user_id").toArrow().combine_chunks().to_batches()[0])


def test_the_events_are_those_of_the_counts_and_conversions_are_none_of_them(spark: SparkSession) -> None:
    plain = [row for row in rows() if row["event_type"] != "conversion"]
    seen = []
    for given in (plain, rows()):
        events = event_frame(spark, given)
        frame = user_events(events, streams(spark), stats(spark), config=CONFIG, calendar=CALENDAR)
        found = collected(frame)
        flat = found.flat
        users = np.array(found.users.to_pylist())
        keys = zip(
            users[flat.user], found.day, flat.part, flat.stream * N_DWELL_BINS + flat.dwell_bin, strict=True
        )
        listed: dict[tuple[str, int, int, int], int] = {}
        for user, *key in keys:
            place = (str(user), *(int(k) for k in key))
            listed[place] = listed.get(place, 0) + 1
        counts = user_counts(events, streams(spark), config=CONFIG, calendar=CALENDAR).collect()
        assert listed == {
            (r["user_id"], e["day"], e["part"], e["cell"]): e["n"] for r in counts for e in r["entries"]
        }
        seen.append((sorted(listed.items()), sorted(np.nan_to_num(flat.z, nan=9.0).tolist())))
    assert seen[0] == seen[1]
    habits = {row["user_id"]: 0.0 for row in plain} | {"u1": 0.8}
    wanted = [
        9.0 if row["dwell_ms"] is None
        else float(np.clip((np.log1p(row["dwell_ms"]) - 9.0 - habits[row["user_id"]]) / 1.5, -3, 3))
        for row in plain
    ]  # fmt: skip
    assert seen[0][1] == pytest.approx(sorted(wanted))


def test_executors_place_users_as_memory_does(spark: SparkSession) -> None:
    frame = user_events(
        event_frame(spark, rows()), streams(spark), stats(spark), config=CONFIG, calendar=CALENDAR
    )
    rule = Rule.of(CONFIG.segmentation, active_from=3.0)
    placed = event_histories(
        frame.repartition(3), SEGMENTER, rule=rule, calendar=CALENDAR, n_streams=3, gap_s=GAP_S
    ).collect()
    found = collected(frame)
    expected = at_midnights(found, SEGMENTER, n_days=21, n_streams=3, gap_s=GAP_S)
    component = decide(expected.q, expected.events, rule)
    place = {user: i for i, user in enumerate(found.users.to_pylist())}
    span: dict[tuple[str, int], int] = {}
    for row in placed:
        start = (
            int(row["valid_from"].timestamp() - row["valid_from"].replace(month=1, day=1).timestamp()) // DAY
        )
        end = 21 if row["valid_to"] is None else start + (row["valid_to"] - row["valid_from"]).days
        span |= {(row["user_id"], day): row["component"] for day in range(start, end)}
        shown = 20 if row["last"] else start
        assert [row["posterior"][k] for k in range(2)] == pytest.approx(
            expected.q[place[row["user_id"]], shown]
        )
    assert span == {(user, day): component[i, day] for user, i in place.items() for day in range(21)}
    assert len({row["component"] for row in placed}) == 3


def test_the_users_to_fit_on_are_those_of_the_least_hash_with_the_two_windows_alone(
    spark: SparkSession,
) -> None:
    frame = user_events(
        event_frame(spark, rows()), streams(spark), stats(spark), config=CONFIG, calendar=CALENDAR
    )
    chosen = [
        {row["user_id"] for row in fit_users(frame.repartition(n), at_most=4).collect()} for n in (1, 3)
    ]
    order = frame.orderBy(F.xxhash64(F.lit("fit"), "user_id")).select("user_id").collect()
    assert chosen[0] == chosen[1] == {row["user_id"] for row in order[:4]}
    inputs = window_events(fit_users(frame, at_most=4).toArrow(), n_streams=3, gap_s=GAP_S)
    every = collected(frame).flat
    inside = np.isin(every.part, (INPUT, NEXT))
    names = collected(frame).users.to_pylist()
    wanted = {u: int((inside & (every.user == names.index(u))).sum()) for u in chosen[0]}
    assert dict(zip(inputs.users.to_pylist(), inputs.events.tolist(), strict=True)) == wanted


def test_the_exposure_is_the_shrunk_mean_of_earlier_dwells(spark: SparkSession) -> None:
    told = [
        (0, "view", 20_000),
        (100, "view", 90_000),
        (200, "like", None),
        (210, "conversion", 5_000),
        (4960, "view", 300),
    ]
    events = [{"user_id": "a", "t": t, "event_type": kind, "dwell_ms": ms} for t, kind, ms in told]
    asked = {"user_id": "a", "t": 5000, "event_type": "impression", "surface": "feed", "position": 2}
    frame = event_frame(spark, [*events, asked])
    history = scaled_events(frame, segmenter_streams(streams(spark), config=CONFIG), stats(spark), CONFIG)
    impressions = frame.where("event_type = 'impression'").withColumn("label", F.lit(1.0))
    (row,) = dwell_exposures(
        history, impressions, history=CONFIG.history, n_streams=3, run_date_us=0
    ).collect()
    z = [(np.log1p(ms) - 9.0) / 1.5 for ms in (20_000, 90_000)]  # the third lies in the embargo
    assert row["x"] == pytest.approx([sum(z) / 3, 0.0, 0.0])
    assert (row["user_id"], row["label"], row["surface"], row["position"]) == ("a", 1.0, "feed", 2)
