"""`audit`: a sound warehouse passes, each planted corruption is found and shown from both sides."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dynamix.config import load_config
from dynamix.contracts import SEGMENTS, TRAINING_ROWS
from dynamix.errors import GuardError
from dynamix.features.conversions import label_impressions
from dynamix.features.simulate import simulate
from dynamix.features.streams import event_columns
from dynamix.features.tables import Warehouse
from dynamix.features.training import training_rows
from dynamix.jobs.audit import audit
from dynamix.jobs.cli import main
from dynamix.jobs.context import Run
from dynamix.jobs.features import cycle_calendar, seen_events
from dynamix.jobs.run import execute
from dynamix.jobs.settings import store_config
from dynamix.jobs.verbs import latest_run_date

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def sound(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A simulated world of 12 days through ingest and features, with keep-all rows of one cold segment."""
    folder = tmp_path_factory.mktemp("audit")
    simulate(folder / "world", preset="S0", users=30, days=12, seed=5)
    config = load_config(files=[folder / "world" / "dynamix.yaml"])
    place = Warehouse(folder / "W")
    day = latest_run_date(spark, place, config, str(folder / "world"))
    run = Run(spark, place, config, day, "r1", quiet=True)
    store_config(place.root, config)
    execute(run, "ingest", skip=False, source=str(folder / "world"))
    execute(run, "features", skip=False)
    events = seen_events(run)
    streams, stats = place.read(spark, "streams"), place.read(spark, "user_stats")
    rows = training_rows(
        event_columns(events, streams, stats, config), label_impressions(events, config=config),
        spark.createDataFrame([], SEGMENTS.ddl()), None,
        calendar=cycle_calendar(run, events), config=config, streams=streams, mask_version="keep-all",
    )  # fmt: skip
    place.replace(spark, TRAINING_ROWS, rows)
    return run


def test_a_sound_warehouse_passes_and_says_what_was_compared(
    sound: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """By way of the command line: every user, each table, JSON on standard output."""
    place = str(sound.warehouse.root)
    assert main(["audit", "--warehouse", place, "--users", "1000", "--json", "--quiet"]) == 0
    shown = json.loads(capsys.readouterr().out)
    counters = shown["facts"]["counters"]
    stored = {name: sound.warehouse.read(sound.spark, name).count() for name in
              ("events", "ebf_session", "ebf_surface", "user_stats", "training_rows")}  # fmt: skip
    assert {name: counters[f"rows_{name}"] for name in stored} == stored
    assert (counters["users"], counters["sessions"]) == (30, stored["ebf_session"])
    assert counters["history_events"] > 100
    text = shown["facts"]["text"]
    for said in ("rows read = ", "no history event at or after", "session_end", "not compared: "):
        assert said in text
    few = audit(sound, users=3, seed=1).counters
    assert few["users"] == 3 and 0 < few["rows_events"] < stored["events"]


def _tampered(sound: Run, folder: Path) -> Run:
    shutil.copytree(sound.warehouse.root, folder / "W")
    return replace(sound, warehouse=Warehouse(folder / "W"))


def _table(run: Run, name: str) -> DeltaTable:
    return DeltaTable.forPath(run.spark, run.warehouse.path(name))


def _one(frame: DataFrame, key: str, *order: str) -> str:
    return str(frame.orderBy(*order, key).select(key).limit(1).collect()[0][key])


def _session_end(run: Run) -> None:
    own = F.col("session_id") == _one(run.warehouse.read(run.spark, "ebf_session"), "session_id")
    _table(run, "ebf_session").update(own, {"session_end": "session_end + INTERVAL 1 SECOND"})


def _ghost(run: Run, *, n_events: int) -> None:
    rows = run.warehouse.read(run.spark, "ebf_session")
    ghost = rows.where("n_events = 2").orderBy("session_id").limit(1)
    ghost = ghost.withColumns({"session_id": F.lit("ghost"), "n_events": F.lit(n_events).cast("bigint")})
    ghost.write.format("delta").mode("append").save(run.warehouse.path("ebf_session"))


def _dwell_zero(run: Run) -> None:
    derived = run.warehouse.read(run.spark, "events").where("dwell_status = 'derived' AND dwell_ms > 0")
    own = F.col("event_id") == _one(derived, "event_id")
    _table(run, "events").update(own, {"dwell_ms": F.lit(0).cast("bigint")})


def _above_cap(run: Run) -> None:
    known = run.warehouse.read(run.spark, "events").where("dwell_status IN ('derived', 'observed')")
    own = F.col("event_id") == _one(known, "event_id")
    _table(run, "events").update(own, {"dwell_ms": F.lit(10**12)})


_LONGER = {
    "hist_stream": "concat(hist_stream, array(cast(0 as smallint)))",
    "hist_item": "concat(hist_item, array(cast(null as string)))",
    "hist_category": "concat(hist_category, array(cast(null as string)))",
    "hist_dwell_bin": "concat(hist_dwell_bin, array(cast(12 as tinyint)))",
    "hist_z": "concat(hist_z, array(cast(0 as float)))",
}


def _history_event(run: Run, age_s: float) -> None:
    own = F.col("impression_id") == _one(run.warehouse.read(run.spark, "training_rows"), "impression_id")
    aged = {"hist_age_s": f"concat(hist_age_s, array(cast({age_s} as float)))"}
    _table(run, "training_rows").update(own, _LONGER | aged)


def _no_day_row(run: Run) -> None:
    days = run.warehouse.read(run.spark, "ebf_surface").where("window_days = 1 AND stream LIKE '%/*'")
    first = days.orderBy("user_id", "window_end", "stream").limit(1).collect()[0]
    gone = (F.col("user_id") == first["user_id"]) & (F.col("window_end") == F.lit(first["window_end"]))
    _table(run, "ebf_surface").delete(
        gone & (F.col("stream") == first["stream"]) & (F.col("window_days") == 1)
    )


CORRUPTIONS = {
    "a session's end": (_session_end, "table 'ebf_session'.*columns session_end differ"),
    "a ghost session": (
        lambda run: _ghost(run, n_events=0),
        "table 'ebf_session'.*ghost.*rules do not give",
    ),
    "a ghost session with events": (lambda run: _ghost(run, n_events=2), "rows do not balance.*n_events"),
    "a dwell above its cap": (_above_cap, "table 'events'.*the frozen cap"),
    "a dwell of 0": (_dwell_zero, "table 'events'.*columns dwell_ms differ"),
    "a future event in a history": (
        lambda run: _history_event(run, -5.0),
        "leak in table 'training_rows'.*embargo",
    ),
    "an event that was not known": (
        lambda run: _history_event(run, 86_400.5),
        "leak in table 'training_rows'.*could not know",
    ),
    "no day row": (_no_day_row, "table 'ebf_surface'.*rules give one"),
}


FURTHER = ("a ghost session with events", "an event that was not known")


@pytest.mark.parametrize(
    "what", [pytest.param(w, marks=[pytest.mark.slow] if w in FURTHER else []) for w in CORRUPTIONS]
)
def test_a_planted_corruption_is_found_and_shown(sound: Run, tmp_path: Path, what: str) -> None:
    corrupt, said = CORRUPTIONS[what]
    run = _tampered(sound, tmp_path)
    corrupt(run)
    with pytest.raises(GuardError, match=f"(?s){said}") as refused:
        audit(run, users=1000)
    assert refused.value.exit_code == 4
    if "differ" in said:  # the rows of both sides
        assert refused.value.message.count("\n  stored   {") == 1
        assert refused.value.message.count("\n  expected {") == 1
