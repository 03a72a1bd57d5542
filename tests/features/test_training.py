"""Training rows: quotas against a loop, parts by maturity, segments as of midnight, arrays of equal length."""

from __future__ import annotations

import random
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from event_frames import START, event_frame
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dynamix.config import AttributionConfig, Config, HistoryConfig
from dynamix.contracts import TRAINING_ROWS
from dynamix.declarations import StreamOptions
from dynamix.features import oracle
from dynamix.features.calendar import build_calendar
from dynamix.features.conversions import label_impressions
from dynamix.features.dwell import derive_dwell
from dynamix.features.quotas import CUT, KEPT, NO_LIMIT, OUTSIDE, REMOVED, apply_quotas, quota_table
from dynamix.features.sessions import assign_sessions
from dynamix.features.story import event_fates
from dynamix.features.streams import event_columns
from dynamix.features.training import holdout_users, training_rows

DAY = 86400
RUN = date(2024, 2, 12)


@given(
    st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 12), max_size=5),
    st.lists(st.lists(st.sampled_from([0, 1, 2, NO_LIMIT]), min_size=3, max_size=3), min_size=5, max_size=5),
)  # fmt: skip
def test_quotas_keep_the_newest_of_each_stream(
    streams: list[int], lengths: list[int], limits: list[list[int]]
) -> None:
    histories = [sorted(range(min(n, len(streams)))) for n in lengths]
    offsets = np.cumsum([0, *map(len, histories)]).astype(np.int64)
    index = np.array([e for h in histories for e in h], dtype=np.int64)
    bounds = np.array(limits, dtype=np.int32)[: len(lengths)]
    ends, kept = apply_quotas(offsets, index, np.array(streams, dtype=np.int16), bounds)
    for number, ((a, b), history) in enumerate(zip(pairwise(ends), histories, strict=True)):
        wanted: list[int] = []
        seen = [0, 0, 0, 0]
        for e in reversed(history):
            f = streams[e]
            seen[f] += 1
            if f > 2 or seen[f] <= limits[number][f]:  # stream 3 is not in the mask
                wanted.insert(0, e)
        assert kept[a:b].tolist() == wanted


def test_a_row_of_one_tier_wins_over_both_tiers_and_unnamed_cells_are_free() -> None:
    grid = [(1, "active", "a", 0), (1, "*", "a", 5), (0, "*", "b", 7), (1, "*", "gone", 0)]
    table = quota_table(grid, {"a": 0, "b": 1})
    free = NO_LIMIT
    assert table.tolist() == [[[free, 7], [free, 7]], [[0, free], [5, free]]]


CONFIG = Config(
    click_types=(),
    attribution=AttributionConfig(view_window=DAY),
    history=HistoryConfig(per_stream=3, total=5),
)


def world() -> list[dict[str, Any]]:
    """Two users with the same past on streams a, b; impressions in train, at a border, in test, too early."""
    rows: list[dict[str, Any]] = []
    for user in ("warm", "cold"):
        for i in range(4):
            rows.append(
                {
                    "user_id": user,
                    "t": 20 * DAY + 60 * i,
                    "surface": "a",
                    "dwell_ms": 1000,
                    "item_id": f"a{i}",
                }
            )
        rows.append({"user_id": user, "t": 20 * DAY + 300, "surface": "b", "item_id": "b0", "category": "k"})
        for name, t in (("train", 20.5), ("unripe", 29.5), ("test", 40.0), ("last", 41.5), ("early", 5.0)):
            more = {"event_id": f"{user}-{name}", "event_type": "impression", "item_id": "a3", "position": 2}
            rows.append({"user_id": user, "t": t * DAY, **more})
    rows.append({"user_id": "warm", "t": 20.6 * DAY, "event_type": "conversion", "item_id": "a3"})
    return rows


def inputs(spark: SparkSession) -> dict[str, Any]:
    raw = event_frame(spark, world())
    streams = spark.createDataFrame(
        [
            (0, "a/view", 6.0, 1.0, True),
            (1, "b/view", None, None, False),
            (2, "shop/conversion", None, None, False),
        ],
        "stream_id smallint, stream string, mu double, sigma double, has_dwell boolean",
    )
    stats = spark.createDataFrame([], "user_id string, habit double")
    segments = spark.sql(
        f"""select 'warm' user_id, 's1' segment_version, g segment_id, t tier, f valid_from, e valid_to from values
        (2, 'active', timestamp'{START}Z', timestamp'{START + timedelta(days=40)}Z'),
        (1, 'passive', timestamp'{START + timedelta(days=40)}Z', null) as v(g, t, f, e)"""
    )
    return {
        "events": event_columns(raw, streams, stats, CONFIG),
        "impressions": label_impressions(raw, config=CONFIG),
        "segments": segments,
        "streams": streams,
        "config": CONFIG,
        "calendar": build_calendar(RUN, first_event=START),
    }


@pytest.mark.spark
def test_keep_all_rows_carry_labels_parts_segments_and_the_whole_history(spark: SparkSession) -> None:
    given = inputs(spark)
    frame = training_rows(masks=None, mask_version="keep-all", **given)
    assert [c.split(":")[0] for c in frame.columns] == list(TRAINING_ROWS.names)
    rows = {r.impression_id: r for r in frame.collect()}
    # day 29.5 matures after the end of train, day 41.5 after the run date, day 5 is of no part
    assert set(rows) == {"warm-train", "warm-test", "cold-train", "cold-test"}
    assert {i: r.part for i, r in rows.items() if i.startswith("warm")} == {
        "warm-train": "train",
        "warm-test": "test",
    }
    train = rows["warm-train"]
    assert (train.segment_id, train.tier, train.segment_version) == (2, "active", "s1")
    assert (rows["warm-test"].segment_id, rows["warm-test"].tier) == (1, "passive")
    assert (rows["cold-train"].segment_id, rows["cold-train"].tier) == (0, "passive")
    assert (train.label_click, train.label_conversion, train.weight) == (None, 1.0, 1.0)
    assert (train.hist_stream, train.hist_item) == ([0, 0, 0, 1], ["a1", "a2", "a3", "b0"])
    assert train.hist_category == [None, None, None, "k"]
    assert train.hist_dwell_bin == [1, 1, 1, 12]
    assert train.hist_z == pytest.approx([np.log1p(1000) - 6.0] * 3 + [0.0], rel=1e-6)
    assert train.hist_age_s == pytest.approx([DAY / 2 - t for t in (60, 120, 180, 300)])
    assert rows["warm-test"].hist_stream == [0, 0, 0, 1, 2]  # the past conversion is history by then


@pytest.mark.spark
def test_a_mask_shortens_the_history_of_its_segment_and_tier_only(spark: SparkSession) -> None:
    given = inputs(spark)
    masks = spark.createDataFrame(
        [
            (2, "*", "a/view", 1),
            (2, "*", "b/view", 0),
            (0, "active", "a/view", 0),
            (0, "passive", "a/view", 2),
        ],
        "segment_id int, tier string, stream string, quota int",
    )
    rows = {r.impression_id: r for r in training_rows(masks=masks, mask_version="m1", **given).collect()}
    assert rows["warm-train"].hist_item == ["a3"]
    assert rows["warm-test"].hist_item == ["a1", "a2", "a3", "b0", "a3"]  # segment 1 is not in the mask
    assert rows["cold-train"].hist_item == ["a2", "a3", "b0"]
    assert {r.mask_version for r in rows.values()} == {"m1"}


@pytest.mark.spark
def test_holdout_users_keep_everything_and_are_about_one_and_a_half_percent(spark: SparkSession) -> None:
    users = spark.range(20_000).selectExpr("concat('u', id) user_id").where(holdout_users())
    chosen = [r.user_id for r in users.collect()]
    assert 0.012 < len(chosen) / 20_000 < 0.018
    given = inputs(spark)
    renamed = {
        name: given[name].replace("warm", chosen[0], "user_id")
        for name in ("events", "impressions", "segments")
    }
    masks = spark.createDataFrame(
        [(2, "*", "a/view", 0)], "segment_id int, tier string, stream string, quota int"
    )
    rows = training_rows(masks=masks, mask_version="m1", **{**given, **renamed}).where("holdout").collect()
    assert {len(r.hist_stream) for r in rows if r.part == "train"} == {4}


@pytest.mark.spark
def test_declared_lengths_and_attributes_shape_the_stored_history(spark: SparkSession) -> None:
    declared = {
        "a/view": StreamOptions(length=1, attributes=("dwell",)),
        "b/view": StreamOptions(attributes=("item", "recency")),
    }
    config = CONFIG.model_copy(update={"streams": declared})
    given = inputs(spark)
    stats = spark.createDataFrame([], "user_id string, habit double")
    events = event_columns(event_frame(spark, world()), given["streams"], stats, config)
    rows = training_rows(masks=None, mask_version="keep-all", **{**given, "config": config, "events": events})
    train = {r.impression_id: r for r in rows.collect()}["warm-train"]
    assert train.hist_stream == [0, 1]  # the newest of a/view alone
    assert (train.hist_item, train.hist_category) == ([None, "b0"], [None, None])
    assert train.hist_dwell_bin == [1, 12]
    assert train.hist_age_s == [None, pytest.approx(DAY / 2 - 300)]


@pytest.mark.spark
def test_the_fate_of_every_event_is_that_of_the_stored_rows(spark: SparkSession) -> None:
    given = inputs(spark)
    grid = [(2, "*", "a/view", 1), (2, "*", "b/view", 0), (0, "passive", "a/view", 2)]
    masks = spark.createDataFrame(grid, "segment_id int, tier string, stream string, quota int")
    whole = training_rows(masks=None, mask_version="keep-all", **given).persist()
    masked = training_rows(masks=masks, mask_version="m1", **given).collect()
    quotas = quota_table(grid, {"a/view": 0, "b/view": 1, "shop/conversion": 2})
    found: dict[str, list[Any]] = {}
    for row in event_fates(given["events"], whole, quotas=quotas, history=CONFIG.history).collect():
        found.setdefault(row.impression_id, []).append(row)
    for stored in whole.collect():
        inside = [r for r in found[stored.impression_id] if r.fate != OUTSIDE]
        assert [r.stream_id for r in inside] == stored.hist_stream
        assert [r.age_s for r in inside] == pytest.approx(stored.hist_age_s, rel=1e-6)
        assert [r.usable for r in inside] == [b < 12 for b in stored.hist_dwell_bin]
    for stored in masked:
        kept = [r.stream_id for r in found[stored.impression_id] if r.fate == KEPT]
        assert kept == stored.hist_stream
    warm = [(r.stream_id, r.fate) for r in found["warm-train"]]  # three of four fit into the history
    assert warm == [(0, OUTSIDE), (0, CUT), (0, CUT), (0, KEPT), (1, REMOVED)]
    assert {r.fate for r in found["warm-test"]} == {OUTSIDE, KEPT}  # segment 1 is not in the mask
    nothing = event_fates(given["events"], whole, quotas=None, history=CONFIG.history).collect()
    assert {r.fate for r in nothing} == {OUTSIDE, KEPT}


def _past_and_future(user: str, asked_s: float, rng: random.Random) -> list[dict[str, Any]]:
    """Views before and after one impression, close enough that sessions and dwells reach across it."""
    rows: list[dict[str, Any]] = [
        {"event_id": f"{user}-asked", "t": asked_s, "event_type": "impression", "item_id": "i"}
    ]
    for number in range(rng.randint(1, 12)):
        t = asked_s + rng.choice((-1, -1, 1)) * rng.choice((0, 0.001, 1, 30, 90, 900, 1700, 1800, 1801, 4000))
        logged = {"dwell_ms": rng.choice((0, 500, 60_000, 900_000, 5_000_000))} if rng.random() < 0.4 else {}
        surface = rng.choice("ab")
        rows.append(
            {"event_id": f"{user}-{number:02d}", "t": t, "surface": surface, "item_id": "i", **logged}
        )
    return [row | {"user_id": user} for row in rows]


def test_no_history_knows_what_happened_after_its_impression(spark: SparkSession) -> None:
    """Rows of worlds cut off at the impression, of whole worlds, and of the oracle are equal, dwell by dwell."""
    config = CONFIG.model_copy(update={"history": HistoryConfig(per_stream=3, total=5, embargo=0)})
    asked_s, rng, caps = 20.5 * DAY, random.Random(5), {"a/view": 800_000, "*": 950_000}
    rows = [row for n in range(150) for row in _past_and_future(f"u{n}", asked_s, rng)]
    given = inputs(spark)
    calendar = build_calendar(RUN, first_event=START)
    scales = {r["stream"]: r.asDict() for r in given["streams"].collect()}
    habits = spark.createDataFrame([], "user_id string, habit double")

    def made(events: list[dict[str, Any]]) -> dict[str, Any]:
        raw = event_frame(spark, events).withColumn("dwell_logged_ms", F.col("dwell_ms"))
        own = [name for name in raw.columns if name not in ("session_id", "session_start", "dwell_status")]
        settled = derive_dwell(assign_sessions(raw.select(own), config=config), config=config, caps=caps)
        named = given | {
            "events": event_columns(settled, given["streams"], habits, config),
            "impressions": label_impressions(settled, config=config), "calendar": calendar, "config": config,
        }  # fmt: skip
        found = training_rows(masks=None, mask_version="keep-all", **named).collect()
        return {r["impression_id"]: r.asDict() for r in found}

    def history(row: dict[str, Any]) -> list[tuple[Any, ...]]:
        return list(zip(*(row[name] for name in ("hist_stream", "hist_dwell_bin", "hist_z")), strict=True))

    whole = made(rows)
    # events of the instant itself are after it too
    cut = made([row for row in rows if row["t"] < asked_s or row["event_id"].endswith("asked")])
    assert {i: history(r) for i, r in whole.items()} == {i: history(r) for i, r in cut.items()}
    absent = dict.fromkeys(("request_id", "category", "source_session_id", "attributes", "dwell_ms"))
    plain = [absent | {"surface": "shop", "event_type": "view"} | row for row in rows]
    for row in plain:
        row["event_ts"] = row["ingest_ts"] = round(row["t"] * 1e6)
        row["dwell_logged_ms"] = row["dwell_ms"]
    settled = oracle.settle(plain, config, caps=caps)
    dwells = 0
    for asked in (row for row in settled if row["event_type"] == "impression"):
        kept = oracle.history(settled, asked, config)
        wanted = oracle.history_columns(kept, asked, config, scales=scales, habit=0.0)
        found = whole[asked["event_id"]]
        assert (found["hist_stream"], found["hist_dwell_bin"]) == (
            wanted["hist_stream"],
            wanted["hist_dwell_bin"],
        )
        assert found["hist_z"] == pytest.approx(wanted["hist_z"], rel=1e-6)
        dwells += sum(1 for b in wanted["hist_dwell_bin"] if b < 12)
    assert dwells > 50
