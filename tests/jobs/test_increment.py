"""Ingest and features day by day: row for row what a build of everything at once gives."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from dynamix.config import Config, load_config
from dynamix.contracts import EBF_SESSION, EBF_SURFACE, EVENTS, EVENTS_QUARANTINE, USER_STATS, Table
from dynamix.errors import GuardError
from dynamix.features.imputed import Imputed
from dynamix.features.tables import Warehouse
from dynamix.jobs.baseline import Baseline, Mark, stored_mark
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.features import features
from dynamix.jobs.increment import choose_reading
from dynamix.jobs.ingest import _frozen, ingest

pytestmark = pytest.mark.spark

DAY = timedelta(days=1)
FIRST = datetime(2026, 1, 1)
COMPARED = (EVENTS, EVENTS_QUARANTINE, EBF_SESSION, EBF_SURFACE, USER_STATS)
SCHEMA = (
    "event_id string, user_id string, event_ts timestamp, ingest_ts timestamp, event_type string, "
    "surface string, dwell_ms double, item_id string, session_id string"
)


@dataclass(frozen=True)
class World:
    """Raw rows as they arrive: (row, first moment a run can see it)."""

    rows: list[tuple[Any, ...]]

    def seen(self, since: date | None, until: date) -> list[tuple[Any, ...]]:
        """Rows first seen in [since, until); rows without a time from the beginning."""
        found = []
        for row in self.rows:
            moment = max(row[2], row[3]).date() if row[2] else None
            if (moment is None and since is None) or (
                moment and (since is None or moment >= since) and moment < until
            ):
                found.append(row)
        return found


def world(*, seed: int, days: int = 6, users: int = 5) -> World:
    """Visits of a few events around the clock; some rows late, doubled, torn, or of one endless visit."""
    rng = random.Random(seed)
    rows: list[tuple[Any, ...]] = []

    def add(user: str, at: datetime, *, late: timedelta, visit: str) -> None:
        kind = rng.choice(["view", "view", "click", "conversion", "impression"])
        dwell = rng.choice([None, None, None, 1500.0, 9e6, -1.0])
        row = (
            f"e{len(rows)}", user, at, at + late, kind, rng.choice(["feed", "shop"]), dwell,
            rng.choice([None, "i1", "i2"]), visit,
        )  # fmt: skip
        rows.append(row)
        fate = rng.random()
        if fate < 0.05:  # delivered again later
            rows.append((*row[:3], row[3] + rng.choice([1, 2]) * DAY, *row[4:]))
        elif fate < 0.08:  # another payload under the same id
            rows.append((*row[:3], row[3] + DAY, *row[4:7], "other", row[8]))
        elif fate < 0.10:
            rows.append((f"t{len(rows)}", user, None, None, *row[4:]))

    for user in range(users):
        for day in range(days):
            for visit in range(rng.randint(0, 2)):
                at = FIRST + day * DAY + timedelta(minutes=rng.choice([2, 300, 700, 1100, 1435]))
                for _ in range(rng.randint(1, 5)):
                    late = rng.choice([0, 0, 0, 0, 0, 1, 2]) * DAY + timedelta(seconds=rng.randint(0, 3))
                    add(f"u{user}", at, late=late, visit=f"v{user}-{day}-{visit}")
                    at += timedelta(seconds=rng.choice([0, 20, 600, 1799, 1800, 1801]))
    at = FIRST + timedelta(hours=20)
    for _ in range(130):  # one user never stops: cut by the maximum length, across three midnights
        add("always", at, late=timedelta(seconds=1), visit="endless")
        at += timedelta(minutes=29)
    return World(rows)


def _source(spark: SparkSession, folder: Path, rows: list[tuple[Any, ...]]) -> str:
    target = str(folder)
    spark.createDataFrame(rows, SCHEMA).coalesce(1).write.mode("overwrite").parquet(target)
    return target


def _run(spark: SparkSession, place: Path, day: date, config: Config) -> Run:
    return Run(spark, Warehouse(place), config, day, f"r{day:%d}", quiet=True)


def _build(run: Run, source: str) -> StepResult:
    found = ingest(run, events=source)
    features(run)
    return found


def _differences(spark: SparkSession, left: Warehouse, right: Warehouse) -> dict[str, list[Any]]:
    def rows(place: Warehouse, table: Table) -> DataFrame:
        names = [n for n in table.names if n not in table.unhashed]
        frame = place.read(spark, table.name)
        maps = [f.name for f in frame.schema.fields if f.dataType.typeName() == "map"]
        for name in maps:
            frame = frame.withColumn(name, frame[name].cast("string"))
        return frame.select(*names)

    found = {}
    for table in COMPARED:
        one, other = rows(left, table), rows(right, table)
        apart = one.exceptAll(other).limit(3).collect() + other.exceptAll(one).limit(3).collect()
        if apart:
            found[table.name] = apart
    return found


def _fixed_baseline(monkeypatch: pytest.MonkeyPatch, place: Warehouse, other: Warehouse) -> None:
    """The population's baseline, session kinds among it, is held fixed in the comparison (docs/faults.md D2)."""
    mark = stored_mark(place)
    assert mark is not None and mark.baseline.imputed_ms == {"feed/view": [1500]}
    monkeypatch.setattr("dynamix.jobs.ingest._fit_baseline", lambda *_: mark.baseline)
    shutil.copytree(place.private / "session_kinds", other.private / "session_kinds")


CONFIG = ("max_quarantined=0.5", "dwell.cap_quantile=0.9")
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("rule", "seed", "steps", "chunks"),
    [
        ("gap", 3, (4, 9), (False, True)),
        pytest.param("gap", 3, (3, 6, 9), (False, False, True), marks=SLOW),
        pytest.param("given", 3, (3, 4, 6, 9), (False, False, True, True), marks=SLOW),
        *[pytest.param("gap", seed, (2, 3, 4, 5, 6, 8), (False,) * 6, marks=SLOW) for seed in range(4, 8)],
    ],
)
def test_day_by_day_equals_one_build(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    rule: str, seed: int, steps: tuple[int, ...], chunks: tuple[bool, ...],
) -> None:  # fmt: skip
    """Sessions across midnight, late events that bridge two of them, later copies, rows without a time."""
    config = load_config(settings=[*CONFIG, f"session.rule={rule}"])
    constant = Imputed("feed/view", 1500, 30, 60)  # so few events prove none
    monkeypatch.setattr("dynamix.jobs.ingest.find_imputed", lambda *_, **__: [constant])
    events = world(seed=seed)
    days = [FIRST.date() + k * DAY for k in steps]
    since: date | None = None
    for day, chunk in zip(days, chunks, strict=True):
        rows = events.seen(since if chunk else None, day)
        found = _build(_run(spark, tmp_path / "daily", day, config), _source(spark, tmp_path / "raw", rows))
        if since is not None:
            assert found.facts["days"], "an increment names the days that it rewrote"
        since = day
    daily = Warehouse(tmp_path / "daily")
    once = _run(spark, tmp_path / "once", days[-1], config)
    _fixed_baseline(monkeypatch, daily, once.warehouse)
    _build(once, _source(spark, tmp_path / "raw", events.seen(None, days[-1])))
    assert _differences(spark, daily, once.warehouse) == {}


def _state(until: date, *, rows: int, rows_new: int, since: date | None, fitted: date) -> Mark:
    start = datetime.combine(fitted - 7 * DAY, time())
    baseline = Baseline("b", start, start + 7 * DAY, True, fitted, {}, {})
    return Mark(until, rows, rows, 0, rows_new, since, 1, baseline)


@pytest.mark.parametrize(
    ("mark", "run_day", "reads", "why"),
    [
        (None, 5, None, "no events stored yet"),
        (_state(date(2026, 1, 4), rows=3, rows_new=3, since=None, fitted=date(2026, 1, 4)), 5, 4, "first seen"),
        (_state(date(2026, 1, 4), rows=3, rows_new=3, since=None, fitted=date(2025, 12, 29)), 5, None, "refit"),
        (_state(date(2026, 1, 4), rows=2, rows_new=2, since=None, fitted=date(2026, 1, 4)), 5, None, "1 more"),
        (_state(date(2026, 1, 1), rows=9, rows_new=9, since=None, fitted=date(2026, 1, 1)), 5, 1, "a chunk"),
        (_state(date(2026, 1, 5), rows=9, rows_new=4, since=date(2026, 1, 1), fitted=date(2026, 1, 1)), 5, 1,
         "in the table already"),
        (_state(date(2026, 1, 5), rows=4, rows_new=4, since=None, fitted=date(2026, 1, 5)), 4, None, "asks for"),
    ],
)  # fmt: skip
def test_what_is_read_follows_from_the_state_of_the_table(
    spark: SparkSession, tmp_path: Path, mark: Mark | None, run_day: int, reads: int | None, why: str
) -> None:
    """One event a day from the 1st on, seen on its own day; `reads` is the first day read, None the whole."""
    raw = _frame(spark, 4)
    run = _run(spark, tmp_path, date(2026, 1, run_day), Config())
    reading = choose_reading(run, raw, mark, rebuild=False)
    assert reading.since == (reads and date(2026, 1, reads))
    assert why in reading.reason


@pytest.mark.parametrize(
    ("until", "fitted", "kept"),
    [(5, 4, True), (5, 5, False), (4, 4, False), (6, 4, False)],
)
def test_a_repeat_of_an_increment_keeps_its_baseline(until: int, fitted: int, kept: bool) -> None:
    """As after a crash behind the commit of events: the run of the 5th again, whatever table it finds."""
    mark = _state(date(2026, 1, until), rows=3, rows_new=1, since=None, fitted=date(2026, 1, fitted))
    assert _frozen(date(2026, 1, 5), mark) == (mark.baseline if kept else None)
    assert _frozen(date(2026, 1, 5), None) is None


def test_a_source_that_lost_rows_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    mark = _state(date(2026, 1, 4), rows=9, rows_new=9, since=None, fitted=date(2026, 1, 4))
    run = _run(spark, tmp_path, date(2026, 1, 5), Config())
    with pytest.raises(GuardError, match="3 of the 9 rows"):
        choose_reading(run, _frame(spark, 4), mark, rebuild=False)
    assert choose_reading(run, _frame(spark, 4), mark, rebuild=True).since is None


def _frame(spark: SparkSession, days: int) -> DataFrame:
    moments = [FIRST + k * DAY + timedelta(hours=5) for k in range(days)]
    rows = [(f"e{k}", "u", at, at, "view", "feed", None, None, None) for k, at in enumerate(moments)]
    return spark.createDataFrame(rows, SCHEMA)
