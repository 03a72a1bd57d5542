"""`dynamix segment` by every method on one small world: table, registry, serving and memory agree; labels stay out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cycles import open_world
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.errors import GuardError
from dynamix.features.calendar import instant_sql
from dynamix.features.simulate import simulate
from dynamix.jobs import segment_fit
from dynamix.jobs.arm_rows import _segmenter
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.features import cycle_calendar, seen_events
from dynamix.jobs.run import execute
from dynamix.jobs.segment import segment
from dynamix.jobs.segmenters import read_segmenter
from dynamix.models import segmenter as served_by
from dynamix.models.event_segmenter import EventSegmenter
from dynamix.models.registered import load_pyfunc, versions
from dynamix.models.registry import SEGMENTER
from dynamix.models.segmenter import Past, assign, segment_users
from dynamix.segmentation.blocks import INPUT
from dynamix.segmentation.jagged import FlatEvents, Jagged, jagged
from dynamix.segmentation.neural import Neural
from dynamix.segmentation.prefixes import DatedEvents
from dynamix.segmentation.segmenters import MixMerge, Paper2, Segmenter
from dynamix.segmentation.train import TrainConfig
from dynamix.segmentation.user_events import dated_events, user_events

pytestmark = [pytest.mark.spark, pytest.mark.slow]
SETTINGS = ("segmentation.min_events=10", "segmentation.confidence=0.6")
METHODS = ("mix-merge", "neural", "paper2")
SEEN = "dynamix.jobs.segment.seen_events"


def short(config: Config) -> Segmenter:
    """The configured recipe with a given number of segments, since a world this small has no K of its own."""
    own = config.segmentation
    recipes: dict[str, Segmenter] = {
        "mix-merge": MixMerge(own, start=6, k=3),
        "neural": Neural(own, TrainConfig(steps=30, batch=100, restarts=1), k=3),
        "paper2": Paper2(),
    }
    return recipes[own.method]


@pytest.fixture(scope="module", autouse=True)
def short_fits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_fit, "_recipe", short)
        yield


@pytest.fixture(scope="module")
def folder(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world that is ingested and has its features."""
    place = tmp_path_factory.mktemp("methods")
    simulate(place / "world", preset="S0", users=260, days=42)
    run = open_world(spark, place / "world", place / "W")
    execute(run, "ingest", skip=False, source=str(place / "world"))
    execute(run, "features", skip=False)
    return place


@pytest.fixture(scope="module")
def ran(spark: SparkSession, folder: Path) -> Iterator[dict[str, tuple[Run, StepResult]]]:
    """Every method after the other; a later one replaces the rows of the same run date, files and models stay."""
    found = {}
    for name in METHODS:
        run = opened(spark, folder, name)
        result = segment(run)
        rows = {
            table: run.warehouse.read(spark, table).toPandas() for table in ("segments", "segment_registry")
        }
        found[name] = (run, StepResult(**{**vars(result), "facts": result.facts | rows}))
    yield found


def opened(spark: SparkSession, folder: Path, method: str, *more: str) -> Run:
    return open_world(
        spark, folder / "world", folder / "W", *SETTINGS, f"segmentation.method={method}", *more
    )


def all_events(run: Run) -> DatedEvents:
    """Every usable event of every user, on the driver."""
    events = seen_events(run)
    calendar = cycle_calendar(run, events)
    stats = run.warehouse.read(run.spark, "user_stats").where(
        F.col("baseline_version") == calendar.baseline_version
    )
    streams = run.warehouse.read(run.spark, "streams")
    frame = user_events(events, streams, stats, config=run.config, calendar=calendar)
    return dated_events(frame.orderBy("user_id").toArrow().combine_chunks().to_batches()[0])


def in_memory(found: DatedEvents, n_streams: int) -> Jagged:
    flat = FlatEvents(*(vars(found.flat) | {"part": np.full(len(found.day), INPUT)}).values())
    return jagged(flat, users=found.users, n_streams=n_streams)


@pytest.mark.parametrize("name", METHODS)
def test_table_memory_and_serving_agree(name: str, ran: dict[str, tuple[Run, StepResult]]) -> None:
    run, result = ran[name]
    rows = result.facts["segments"]
    last = rows[rows["valid_to"].isna()].sort_values("user_id")
    found = all_events(run)
    assert last["user_id"].tolist() == found.users.to_pylist()
    served = read_segmenter(run, result.facts["segment_version"])
    if isinstance(served, EventSegmenter):
        assert name == served.fitted.name != "mix-merge"
        q = served.fitted.posterior(in_memory(found, served.fitted.n_streams))
    else:
        assert isinstance(served, served_by.Segmenter) and name == "mix-merge" and served.group
        counts = inputs_counts(found, served.log_emission.shape[1])
        q = served.posterior(counts @ served.log_emission.T + served.log_prior)
    stored = np.array([[dict(p)[i] for i in served.ids] for p in last["posterior"]])
    assert stored == pytest.approx(q, abs=5e-6)
    # the run date's segments, by the events before it alone
    days = int((pd.Timestamp(run.run_date) - pd.Timestamp(rows["valid_from"].min()).tz_localize(None)).days)
    flat = found.flat
    past = Past(flat.user, flat.stream, flat.dwell_bin, days - 1 - found.day, flat.ts_s, flat.z)
    assert assign(past, len(found.users), served).tolist() == last["segment_id"].tolist()
    calendar = cycle_calendar(run, seen_events(run))
    assert served.since_us == round(calendar.first.replace(tzinfo=UTC).timestamp() * 1e6)


def inputs_counts(found: DatedEvents, width: int) -> np.ndarray:
    counts = np.zeros((len(found.users), width))
    np.add.at(counts, (found.flat.user, found.flat.stream * 13 + found.flat.dwell_bin), 1)
    return counts


@pytest.mark.parametrize("name", METHODS)
def test_registry_and_model_say_method_evidence_and_what_it_was_fitted_on(
    name: str, ran: dict[str, tuple[Run, StepResult]]
) -> None:
    run, result = ran[name]
    registry = result.facts["segment_registry"]
    assert set(registry["method"]) == {name} and set(registry["segment_version"]) == {
        result.facts["segment_version"]
    }
    guards = dict(registry["guards"].iloc[0])
    assert guards["k"] == (2 if name == "paper2" else 3)
    assert guards["k"] == len(registry) - 1 and 200 < guards["fit_users"] <= 260
    assert {"min_share", "length_eta2", "measured_users", "active_from"} <= set(guards)
    assert all(p.sum() == pytest.approx(1.0) for p in registry["prototype"] if len(p))
    address = result.facts["segmenter_model"].rpartition("/")[2]
    version = next(v for v in versions(run.registry(), SEGMENTER) if v.version == address)
    assert version.tags["method"] == name
    assert version.tags["evidence"].startswith("conversion 2026-01-12 to 2026-01-19")
    assert result.counters["evidence_positives"] > 10


def test_the_registered_model_places_users_as_the_stored_segmenter(
    ran: dict[str, tuple[Run, StepResult]],
) -> None:
    run, result = ran["neural"]
    served = read_segmenter(run, result.facts["segment_version"])
    found = all_events(run)
    flat, asked = found.flat, []
    for user in range(20):
        own = np.flatnonzero(flat.user == user)
        asked.append([
            {"stream_id": int(flat.stream[i]), "dwell_bin": int(flat.dwell_bin[i]), "ts_s": float(flat.ts_s[i]),
             "z": None if np.isnan(flat.z[i]) else float(flat.z[i])}
            for i in own
        ])  # fmt: skip
    users = {"user_id": found.users.to_pylist()[:20], "events": asked}
    answered = load_pyfunc(run.registry(), result.facts["segmenter_model"]).predict(pd.DataFrame(users))
    assert dict(answered) == segment_users(served.to_tree(), users)


def test_conversions_of_the_segmenters_windows_reach_nothing(
    spark: SparkSession, folder: Path, ran: dict[str, tuple[Run, StepResult]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """E23: all conversions from the input window on taken out, and one put behind every impression there."""
    run = opened(spark, folder, "paper2")
    border = cycle_calendar(run, seen_events(run)).segment_input.start
    later = F.expr(f"event_ts >= {instant_sql(border)}")

    def none(run: Run) -> DataFrame:
        events = seen_events(run)
        return events.where(~((F.col("event_type") == "conversion") & later))

    def every(run: Run) -> DataFrame:
        events = none(run)
        made = events.where((F.col("event_type") == "impression") & later)
        kind = {"event_type": F.lit("conversion"), "event_id": F.concat(F.lit("made-"), "event_id")}
        return events.unionByName(made.withColumns(kind))

    fits: list[Any] = []
    for flipped in (seen_events, none, every):
        monkeypatch.setattr(SEEN, flipped)
        again = opened(spark, folder, "paper2")
        fits.append(read_segmenter(again, segment(again).facts["segment_version"]).to_tree())
    assert fits[0] == fits[1] == fits[2] and fits[0]["fitted"]["beta"] != [0.0] * len(
        fits[0]["fitted"]["beta"]
    )


def test_the_same_data_give_the_same_version(
    spark: SparkSession, folder: Path, ran: dict[str, tuple[Run, StepResult]]
) -> None:
    again = opened(spark, folder, "mix-merge")
    assert segment(again).facts["segment_version"] == ran["mix-merge"][1].facts["segment_version"]
    newest = again.warehouse.read(spark, "segment_registry").agg(F.max("segment_version")).collect()[0][0]
    calendar = cycle_calendar(again, seen_events(again))
    assert isinstance(_segmenter(again, str(newest), calendar), served_by.Segmenter)


def test_a_cap_on_users_is_kept_and_no_event_in_the_window_is_refused(
    spark: SparkSession, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = opened(spark, folder, "paper2", "segmentation.fit_users=50")
    segment(few)
    guards = few.warehouse.read(spark, "segment_registry").select("guards").collect()[0][0]
    assert guards["fit_users"] == 50.0
    border = cycle_calendar(few, seen_events(few)).segment_input.start
    monkeypatch.setattr(SEEN, lambda run: seen_events(run).where(f"event_ts < {instant_sql(border)}"))
    with pytest.raises(GuardError, match="no user has a usable event"):
        segment(opened(spark, folder, "paper2"))
