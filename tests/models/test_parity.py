"""Train/serve parity: a world through Spark's training rows and through raw requests gives the same scores."""

from __future__ import annotations

import pickle
import random
from dataclasses import dataclass, replace
from datetime import UTC, date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from event_frames import START, event_frame
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dynamix.config import AttributionConfig, Config, HistoryConfig, MaskConfig, SegmentationConfig
from dynamix.contracts import N_DWELL_BINS
from dynamix.features.calendar import build_calendar
from dynamix.features.conversions import impressions_to_predict, label_impressions
from dynamix.features.dwell import derive_dwell
from dynamix.features.sessions import assign_sessions
from dynamix.features.streams import event_columns
from dynamix.features.training import COLLECTED, rows_to_score, training_rows
from dynamix.models.batch import EVENT_FIELDS
from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.dwells import DwellRule
from dynamix.models.ranker import Ranker, RankerConfig
from dynamix.models.segmenter import Segmenter
from dynamix.models.service import RankerService, request_table, write_artefacts
from dynamix.models.serving import Cell, Preparation, StreamScale, prepare
from dynamix.models.shipped import SCORED_DDL, ShippedRanker
from dynamix.models.trunks.base import TrunkConfig
from dynamix.segmentation.assign import histories
from dynamix.segmentation.counts import user_counts
from dynamix.segmentation.midnights import Rule
from dynamix.segmentation.mixture import Mixture

pytestmark = pytest.mark.spark

DAY_S = 86400
RUN = date(2024, 2, 12)
STREAMS = ("feed/view", "feed/like", "shop/view", "shop/conversion")
CAPS = {"feed/view": 30_000, "*": 120_000}
CONFIG = Config(
    click_types=(), labels=("conversion",), attribution=AttributionConfig(view_window=DAY_S),
    history=HistoryConfig(per_stream=6, total=15), segmentation=SegmentationConfig(min_events=4, confidence=0.7),
)  # fmt: skip
RULE = Rule(0.7, 4, active_from=6.0)
IDS = (3, 1, 2)
KEPT = {
    (0, "*", "feed/view"): ("category", "recency"), (0, "*", "shop/conversion"): ("category", "dwell", "recency"),
    (1, "active", "shop/view"): ("category", "dwell", "item"), (1, "passive", "feed/view"): (),
    (3, "*", "feed/view"): ("category", "item", "recency"),
}  # fmt: skip
"""Attributes of cells of the mask that do not carry all."""


def world(users: int = 24) -> list[dict[str, Any]]:
    """Users whose taste changes half way: bursts of events, some with a logged dwell, impressions inside and after."""
    rng = random.Random(5)
    rows: list[dict[str, Any]] = []
    for number in range(users):
        user = f"user{number}"
        for _ in range(rng.randint(2, 25)):
            t = rng.uniform(1, 41.9) * DAY_S
            for _ in range(rng.randint(1, 6)):
                late = t > 20 * DAY_S
                surface, _, kind = STREAMS[
                    (number + late) % 3 if rng.random() < 0.8 else rng.randrange(4)
                ].partition("/")
                dwell = rng.choice([None, None, None, 500, 45_000])
                rows.append({
                    "user_id": user, "t": round(t, 3), "surface": surface, "event_type": kind, "dwell_ms": dwell,
                    "dwell_logged_ms": dwell, "item_id": f"i{rng.randrange(5)}", "category": f"c{rng.randrange(3)}",
                })  # fmt: skip
                t += rng.choice([0.5, 20, 65, 400, 1800, 1801])
            if rng.random() < 0.7:
                after = t + rng.choice([0.1, 30, 5000, 40_000])
                rows.append({
                    "user_id": user, "t": round(min(after, 41.99 * DAY_S), 3), "event_type": "impression",
                    "surface": "feed", "item_id": f"i{rng.randrange(5)}", "category": "c1", "position": rng.randrange(9),
                })  # fmt: skip
    return rows


def mixture() -> Mixture:
    rng = np.random.default_rng(2)
    stream = np.array([[0.7, 0.2, 0.05, 0.05], [0.1, 0.7, 0.15, 0.05], [0.05, 0.1, 0.8, 0.05]])
    p = (stream[:, :, None] * rng.dirichlet(np.ones(N_DWELL_BINS), size=(3, 4))).reshape(3, -1)
    return Mixture(np.log(p), np.log(np.array([0.4, 0.4, 0.2])))


@dataclass(frozen=True)
class World:
    """The events as ingest settles them, the tables beside them, and a model with weights of its own."""

    rows: list[dict[str, Any]]
    events: DataFrame
    streams: DataFrame
    stats: DataFrame
    segments: DataFrame
    service: RankerService
    shipped: ShippedRanker


@pytest.fixture(scope="module")
def made(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> World:
    rows = world()
    calendar = build_calendar(RUN, first_event=START)
    raw = assign_sessions(event_frame(spark, rows), config=CONFIG)
    events = derive_dwell(raw, config=CONFIG, caps=CAPS).persist()
    streams = spark.createDataFrame(
        [(i, name, i == 3, 9.0 + i, 1.5, i != 1) for i, name in enumerate(STREAMS)],
        "stream_id smallint, stream string, is_conversion boolean, mu double, sigma double, has_dwell boolean",
    )
    stats = spark.createDataFrame([("user1", 0.8), ("user2", -1.3)], "user_id string, habit double")
    counts = user_counts(events, streams, config=CONFIG, calendar=calendar)
    ids = F.create_map(*[F.lit(x) for pair in ((-1, 0), *enumerate(IDS)) for x in pair])
    segments = (
        histories(counts, mixture(), rule=RULE, calendar=calendar)
        .withColumn("segment_version", F.lit("s1"))
        .withColumn("segment_id", ids[F.col("component")])
        .persist()
    )
    trunk = TrunkConfig(len(STREAMS), 1 + max(IDS), 3, 50, width=8, hidden=(16,))
    ranker = Ranker(RankerConfig(trunk, ("conversion",), ("feed", "shop")), seed=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in ranker.parameters():  # heads start at zero
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    cells = tuple(
        Cell(segment, tier, name, quota, attributes=KEPT.get((segment, tier, name)))
        for segment, tier, quotas in ((0, "*", (6, 6, 1, 6)), (1, "active", (0, 2, 6, 6)), (1, "passive", (3, 0, 6, 1)),
                                      (3, "*", (6, 0, 0, 6)))
        for name, quota in zip(STREAMS, quotas, strict=True)
    )  # fmt: skip
    since = round(calendar.first.replace(tzinfo=UTC).timestamp() * 1e6)
    preparation = Preparation(
        streams={n: StreamScale(i, None if i == 1 else 9.0 + i, 1.5, i == 3) for i, n in enumerate(STREAMS)},
        surfaces=("feed", "shop"), heads=("conversion",), item_buckets=50, per_stream=6, total=15, embargo_s=60,
        mask_version="m1", segment_version="s1", cells=cells, habits={"user1": 0.8, "user2": -1.3},
        segmenter=Segmenter(IDS, mixture().log_p, mixture().log_pi, 0.7, 4, 6.0, since_us=since),
        dwell=DwellRule(True, False, 1_800_000_000, DAY_S * 10**6, {0: 30_000, 1: 120_000, 2: 120_000, 3: 120_000}),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("parity") / "model"
    example, _ = prepare(request_table(raw_requests(rows, impressions(rows)[:4])), preparation)
    write_artefacts(folder, ranker, preparation, example=example)
    return World(
        rows, events, streams, stats, segments, RankerService.load(folder), ShippedRanker.pack(folder)
    )


def training_table(
    spark: SparkSession, made: World, preparation: Preparation, *, masked: bool, config: Config = CONFIG,
    version: str = "keep-all",
) -> JaggedRows:  # fmt: skip
    """The training rows of Spark, keep-all (or `version`) or under the mask, by impression."""
    cells = [(c.segment_id, c.tier, c.stream, c.quota, c.attributes) for c in preparation.cells]
    masks = (
        spark.createDataFrame(
            cells, "segment_id int, tier string, stream string, quota int, attributes array<string>"
        )
        if masked
        else None
    )
    frame = training_rows(
        event_columns(made.events, made.streams, made.stats, CONFIG), label_impressions(made.events, config=CONFIG),
        made.segments, masks, calendar=build_calendar(RUN, first_event=START), config=config, streams=made.streams,
        mask_version="m1" if masked else version,
    )  # fmt: skip
    return rows_from_table(
        frame.orderBy("impression_id").toArrow(), heads=preparation.heads, item_buckets=preparation.item_buckets,
        surfaces=preparation.surfaces, in_order=True,
    )  # fmt: skip


def impressions(rows: list[dict[str, Any]]) -> list[str]:
    """Ids of the impressions, as event_frame numbers them."""
    return [f"e{i}" for i, row in enumerate(rows) if row["event_type"] == "impression"]


def raw_requests(rows: list[dict[str, Any]], names: list[str]) -> pd.DataFrame:
    """What a server would be asked for these impressions: the user's raw events before, dwells as logged."""
    moment = [START + timedelta(seconds=row["t"]) for row in rows]
    asked = []
    for place in (int(name[1:]) for name in names):
        own = rows[place]
        events = [
            {"stream": f"{e['surface']}/{e['event_type']}", "ts": at.isoformat(), "item_id": e["item_id"],
             "category": e["category"], "dwell_ms": e["dwell_ms"]}
            for e, at in zip(rows, moment, strict=True)
            if e["user_id"] == own["user_id"] and at < moment[place] and e["event_type"] != "impression"
        ]  # fmt: skip
        asked.append({
            "user_id": own["user_id"], "request_ts": moment[place].replace(tzinfo=UTC), "item_id": own["item_id"],
            "surface": "feed", "position": float(own["position"]), "category": "c1", "events": events,
        })  # fmt: skip
    return pd.DataFrame(asked)


def test_scores_of_raw_requests_are_those_of_the_training_rows(spark: SparkSession, made: World) -> None:
    """Bit for bit, with segment and tier worked out from the events; stored rows masked here or by Spark alike."""
    keep_all = training_table(spark, made, made.service.preparation, masked=False)
    masked = training_table(spark, made, made.service.preparation, masked=True)
    trained = made.service.logits(masked)[:, 0]
    p = 1 / (1 + np.exp(-trained))
    raw = made.service.predict(raw_requests(made.rows, keep_all.impression.tolist()))
    assert np.array_equal(made.service.score_stored(keep_all)["conversion"], p)
    assert np.array_equal(raw["conversion"].to_numpy(), p)
    assert raw["segment_id"].tolist() == masked.segment.tolist()
    # the world has something to say: several segments, both tiers, dwells, events that the mask removes
    assert len(set(masked.segment.tolist())) == 4 and set(masked.tier.tolist()) == {0, 1}
    assert masked.tokens < 0.9 * keep_all.tokens and 0.1 < masked.usable.mean() < 0.9
    assert len(keep_all) > 80 and len(set(p.tolist())) > 60
    # and of the kept events some lose an attribute: no event of keep-all is without item, age and dwell at once
    bare = (masked.item == 0) & (masked.log_age == 0) & (masked.dwell_bin == N_DWELL_BINS - 1)
    assert (keep_all.item > 0).all() and (keep_all.log_age > 0).all()
    assert bare.any() and (masked.item == 0).sum() > bare.sum() and (masked.log_age == 0).sum() > bare.sum()
    own = made.service.preparation
    here = keep_all.under_mask(own.quotas(), own.base(), own.attributes())
    for name in ("offsets", *EVENT_FIELDS):
        assert np.array_equal(getattr(here, name), getattr(masked, name)), name
    held = replace(keep_all, holdout=np.ones(len(keep_all), bool)).under_mask(
        own.quotas(), own.base(), own.attributes()
    )
    for name in ("offsets", *EVENT_FIELDS):
        assert np.array_equal(getattr(held, name), getattr(keep_all, name)), name


def test_boosted_cells_are_the_same_in_training_rows_in_memory_in_requests_and_on_executors(
    spark: SparkSession, made: World
) -> None:
    """Quotas above the base of six, for one tier and for both; what the grid does not say keeps the base."""
    longer = CONFIG.model_copy(update={"mask": MaskConfig(boost_to=10)})
    cells = (
        Cell(0, "*", "feed/view", 10), Cell(1, "active", "feed/like", 10), Cell(1, "active", "shop/view", 0),
        Cell(2, "*", "shop/view", 10), Cell(3, "*", "feed/view", 2),
    )  # fmt: skip
    preparation = replace(made.service.preparation, cells=cells, boost_to=10)
    service = replace(made.service, preparation=preparation)
    masked = training_table(spark, made, preparation, masked=True, config=longer)
    collected = training_table(spark, made, preparation, masked=False, config=longer, version=COLLECTED)
    p = 1 / (1 + np.exp(-service.logits(masked)[:, 0]))
    requests = raw_requests(made.rows, collected.impression.tolist())
    assert np.array_equal(service.score_stored(collected)["conversion"], p)
    assert np.array_equal(service.predict(requests)["conversion"].to_numpy(), p)
    assert 6 <= masked.rank.max() < 10 and not masked.rank[masked.stream == 3].max() >= 6
    plain = training_table(spark, made, preparation, masked=False)
    assert collected.tokens > masked.tokens
    for same in (training_table(spark, made, preparation, masked=False, config=longer), collected.under_mask(
        np.zeros((0, 2, 0), np.int32), preparation.base()
    )):  # fmt: skip
        assert np.array_equal(same.offsets, plain.offsets) and np.array_equal(same.z, plain.z)
    shipped = ShippedRanker(
        {**made.shipped.files, **{n: t.encode() for n, t in preparation.to_json().items()}}
    )
    frame = rows_to_score(
        event_columns(made.events, made.streams, made.stats, CONFIG), impressions_to_predict(made.events, CONFIG),
        made.segments, config=CONFIG, streams=made.streams, then=shipped.on_executor, schema=SCORED_DDL, boost_to=10,
    )  # fmt: skip
    scored = {row[0]: row[3] for row in frame.collect()}
    wanted = dict(zip(collected.impression, p.tolist(), strict=True))
    assert {i: scored[i] for i in wanted} == pytest.approx(wanted, abs=1e-7)


def test_a_derived_dwell_is_what_the_scores_rest_on(made: World) -> None:
    """Without derivation, as before dwells were settled in serving, scores of the same requests are others."""
    asked = raw_requests(made.rows, impressions(made.rows)[:40])
    plain = replace(made.service, preparation=replace(made.service.preparation, dwell=DwellRule()))
    found, without = (service.predict(asked)["conversion"].to_numpy() for service in (made.service, plain))
    assert (found != without).mean() > 0.5


def test_scores_made_on_executors_are_those_of_the_training_rows(spark: SparkSession, made: World) -> None:
    """And of impressions that are not mature, which no training row has; the same bits whatever the partitions."""
    keep_all = training_table(spark, made, made.service.preparation, masked=False)
    wanted = dict(
        zip(keep_all.impression, made.service.score_stored(keep_all)["conversion"].tolist(), strict=True)
    )
    found = []
    for partitions in (1, 5):
        asked = impressions_to_predict(made.events, CONFIG).repartition(partitions)
        frame = rows_to_score(
            event_columns(made.events, made.streams, made.stats, CONFIG).repartition(partitions), asked, made.segments,
            config=CONFIG, streams=made.streams, then=made.shipped.on_executor, schema=SCORED_DDL, parcels=3,
        )  # fmt: skip
        found.append(sorted(map(tuple, frame.collect())))
    assert found[0] == found[1]
    own = {row[0]: row for row in found[0]}
    assert sorted(own) == sorted(impressions(made.rows)) and len(own) == len(found[0]) > len(wanted)
    assert {i: own[i][3] for i in wanted} == pytest.approx(wanted, abs=1e-7)
    segments = dict(zip(keep_all.impression, keep_all.segment.tolist(), strict=True))
    assert {i: own[i][4] for i in segments} == segments
    users = {f"e{n}": row["user_id"] for n, row in enumerate(made.rows)}
    assert all(row[1] == users[row[0]] and row[2] == "conversion" for row in found[0])


def test_a_shipped_ranker_is_tensors_and_json_and_is_opened_once(made: World) -> None:
    assert not [name for name in made.shipped.files if name.endswith(".pt2")]  # the program is code
    copy = pickle.loads(pickle.dumps(made.shipped))
    assert copy.open() is made.shipped.open()
    other = replace(copy, files={**copy.files, "habits.json": b'{"user1": 0.1}'})
    assert other.open() is not copy.open() and other.open().preparation.habits == {"user1": 0.1}
