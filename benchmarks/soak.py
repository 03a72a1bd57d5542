"""Thirty days, one by one: `python -m benchmarks soak --days 30 --users 300 --folder F` (docs/faults.md D2).

A world with late, doubled, contradictory and torn rows, a bot, a new column and a day that is found late
(soak_world.py) is lived twice. Every day runs `ingest` and `features`, every week `segment`, `mask`, `train` and `score`
as well. The first life has a crash a week: a process that runs the day's verb is killed with SIGKILL, and the day is
run again; the second has none. Before every run that reads the whole source anew, and at the end, the five tables of
the first life are held against a build of everything at once under the same frozen baseline; on days of note and at
the end every table of one life is held against the other's. What differs is named and ends with exit code 1.

A soak can be stopped: the same command goes on after the last finished day. With `--minutes` it stops by itself, says
what was found so far, and ends with exit code 75.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
from pyspark.sql import DataFrame

from benchmarks.increment import added_bytes, say
from benchmarks.processes import Meter
from benchmarks.soak_table import DAILY, WEEKLY, Day, report
from benchmarks.soak_world import Plan, write_world
from dynamix.config import Config, load_config
from dynamix.contracts import EBF_SESSION, EBF_SURFACE, EVENTS, EVENTS_QUARANTINE, TABLES, USER_STATS, Table
from dynamix.features.content import content_hash
from dynamix.features.table_files import delta_folders
from dynamix.features.tables import Warehouse
from dynamix.jobs.baseline import stored_mark
from dynamix.jobs.context import Run, StepResult, new_run_id
from dynamix.jobs.features import features
from dynamix.jobs.ingest import ingest
from dynamix.jobs.run import execute
from dynamix.jobs.session import get_spark
from dynamix.models.registry import RANKER
from tests.faults.processes import killed_run, served

SETTINGS = (
    "train.epochs=1", "train.min_steps=1", "train.bootstrap=50", "train.threads=1", "mask.delta=0.6",
    "mask.ne_budget=0.45", "segmentation.k_max=2",
)  # fmt: skip
"""A few hundred users: one pass of training, and gates that such a world can pass."""
COMPARED = (EVENTS, EVENTS_QUARANTINE, EBF_SESSION, EBF_SURFACE, USER_STATS)
LIVES = ("with crashes", "undisturbed")
UNFINISHED = 75
_UNCOUNTED = {"scores": ("model_version",)}
"""A training that is killed after it registered a model registers another: the same model under the next number."""


@dataclass(frozen=True)
class Crash:
    """The process that runs `verb` on the day is killed at the point (tests/faults/points.py)."""

    day: int
    verb: str
    moment: str
    point: str


CRASHES = (
    Crash(4, "ingest", "during", "ingest/events"),
    Crash(11, "features", "during", "features/ebf_surface"),
    Crash(21, "train", "during", f"train/alias {RANKER}@challenger"),
    Crash(25, "ingest", "after", "ingest/events"),
)
"""One a week, and one of a weekly step."""


@dataclass
class Life:
    """A warehouse, the source as it grows, and the days that are behind it."""

    name: str
    folder: Path
    plan: Plan
    days: list[Day]
    crashes: tuple[Crash, ...]

    @property
    def place(self) -> Warehouse:
        return Warehouse(self.folder / "W")

    @property
    def source(self) -> Path:
        return self.folder / "in"

    def config(self) -> Config:
        return load_config(files=[self.source / "dynamix.yaml"], settings=SETTINGS)

    def run(self, day: int, *, place: Warehouse | None = None) -> Run:
        spark = get_spark("soak")
        return Run(
            spark, place or self.place, self.config(), self.plan.run_date(day), new_run_id(), quiet=True
        )

    def crash_of(self, day: int) -> Crash | None:
        return next((crash for crash in self.crashes if crash.day == day), None)


def main(folder: Path, plan: Plan, *, minutes: float = 0.0) -> int:
    """Live both lives to their end, print days and verdict. 0 where all is equal, 1 where not, 75 when time is up."""
    # thousands of tiny plans: the optimising compiler would be busy for days and make the later ones shorter
    os.environ.setdefault("DYNAMIX_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")
    until = time.monotonic() + 60 * minutes if minutes else float("inf")
    files = write_world(folder, plan)
    lives = load(folder, plan)
    fresh = True
    with patch(
        "dynamix.models.evidence.MIN_POSITIVES", 1
    ):  # so few users still promote, as in the killed ones
        for life in lives:
            for number in range(len(life.days), plan.days + 1):
                if time.monotonic() > until:
                    tell(lives, {})
                    return UNFINISHED
                day = live(life, files, number)
                day.warm, fresh = not fresh, False
                life.days.append(day)
                store(folder, plan, lives)
                say(f"{life.name} {number}: {said(day)}")
    return int(bool(tell(lives, quarantined(lives[0]))))


def tell(lives: list[Life], quarantine: Mapping[str, int]) -> list[str]:
    """Print the days that were lived, what differs, and the verdict; the differences."""
    differ = differences(lives)
    for line in report({life.name: life.days for life in lives}, quarantine=quarantine):
        print(line)
    for line in differ:
        print(f"DIFFERS: {line}")
    print(verdict(lives, differ), flush=True)
    return differ


def load(folder: Path, plan: Plan) -> list[Life]:
    """Both lives as far as they have come. SystemExit where the folder holds a soak of another plan."""
    state = folder / "soak.json"
    told: dict[str, Any] = json.loads(state.read_text(encoding="utf-8")) if state.exists() else {}
    if told and told["plan"] != asdict(plan):
        raise SystemExit(f"{state} is of another plan, {told['plan']}; take another --folder")
    return [
        Life(
            name, folder / name.replace(" ", "-"), plan,
            [Day(**day) for day in told.get("lives", {}).get(name, [])], CRASHES if name == LIVES[0] else (),
        )
        for name in LIVES
    ]  # fmt: skip


def store(folder: Path, plan: Plan, lives: list[Life]) -> None:
    """The state of both lives, whole or as it was."""
    told = {"plan": asdict(plan), "lives": {life.name: [asdict(day) for day in life.days] for life in lives}}
    draft = folder / "soak.json.new"
    draft.write_text(json.dumps(told, indent=1), encoding="utf-8")
    draft.replace(folder / "soak.json")


def live(life: Life, files: list[tuple[int, Path]], number: int) -> Day:
    """One day: its rows arrive, its verbs run, and what there is to compare is looked at (in nobody's time)."""
    deliver(life, files, number)
    day = Day(number, str(life.plan.run_date(number)))
    before = {folder.name: len(life.place.commits(folder.name)) for folder in delta_folders(life.place.root)}
    if number == life.plan.found_day:  # the day whose rows were missing, as a job with that run date
        day.seconds["backfill"] = timed(lambda: _daily(life, life.plan.lost_day, Day(0, "")))
    crash = life.crash_of(number)
    with Meter(os.getpid()) as meter:
        before = meter.cpu_s
        _daily(life, number, day, crash)
        day.cpu_s = meter.cpu_s - before
    trained = _weekly(life, number, day, crash) if life.plan.is_weekly(number) else None
    place = life.place
    new = [
        path for folder in delta_folders(place.root) for path in place.commits(folder.name)[before.get(folder.name, 0) :]
    ]  # fmt: skip
    day.added_bytes = sum(added_bytes(path) for path in new)
    logs = [path for folder in delta_folders(place.root) for path in (folder / "_delta_log").iterdir()]
    day.commits = sum(len(place.commits(folder.name)) for folder in delta_folders(place.root))
    day.log_files, day.log_bytes = len(logs), sum(path.stat().st_size for path in logs if path.is_file())
    if is_of_note(life.plan, number):
        day.contents = contents(life, trained)
    if life.crashes and is_last_before_whole(life, number):
        day.apart = apart_from_one_build(life, number)
    return day


def deliver(life: Life, files: list[tuple[int, Path]], number: int) -> None:
    """The files of all days up to this one lie in the source; those that do so already stay."""
    target = life.source / "events"
    target.mkdir(parents=True, exist_ok=True)
    for day, path in files:
        if day <= number and not (target / path.name).exists():
            shutil.copy2(path, target / path.name)
    shutil.copy2(files[0][1].parents[1] / "dynamix.yaml", life.source)


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _daily(life: Life, number: int, day: Day, crash: Crash | None = None) -> None:
    for verb in DAILY:
        if crash is not None and crash.verb == verb:
            kill(life, crash, day)
        done = _step(life, number, verb, day)
        if verb == "ingest":
            day.reading = str(done.facts.get("reading", "skipped"))
            day.replaced_days = len(str(done.facts["days"]).split(", ")) if "days" in done.facts else -1
            day.rows_read = done.counters.get("rows_read", 0)
            day.warnings = list(done.warnings)


def _weekly(life: Life, number: int, day: Day, crash: Crash | None) -> Path:
    """The weekly steps; the folder of the run that trained."""
    trained = life.place.private
    for verb in WEEKLY:
        if crash is not None and crash.verb == verb:
            kill(life, crash, day)
        run = life.run(number)
        _step(life, number, verb, day, run)
        trained = run.folder if verb == "train" else trained
    return trained


def _step(life: Life, number: int, verb: str, day: Day, run: Run | None = None) -> StepResult:
    """The verb as `dynamix run` calls it, with its row in the run log; of a stopped day the daily ones are skipped."""
    done: list[StepResult] = []
    source = str(life.source) if verb == "ingest" else None
    run = run or life.run(number)
    day.seconds[verb] = timed(lambda: done.append(execute(run, verb, skip=verb in DAILY, source=source)))
    return done[0]


def kill(life: Life, crash: Crash, day: Day) -> None:
    """Run the verb in a process of its own that dies at the crash's point. SystemExit where it did not get there."""
    given = [part for value in SETTINGS for part in ("--set", value)]
    argv = [crash.verb, "--warehouse", str(life.place.root), "--run-date", day.run_date, "--quiet", *given]
    argv += ["--config", str(life.source / "dynamix.yaml")]
    argv += ["--events", str(life.source)] if crash.verb == "ingest" else []
    case = life.folder / "killed"

    def killed() -> None:
        with served("killed.py") as server:
            status, printed = killed_run(server, argv, moment=crash.moment, point=crash.point, folder=case)
        if status != -9:
            raise SystemExit(f"{crash} was not reached, the process ended with {status}:\n{printed[-3000:]}")

    day.seconds["crash"] = timed(killed)
    day.crash = f"{crash.moment} {crash.point}"
    shutil.rmtree(case, ignore_errors=True)


def is_of_note(plan: Plan, number: int) -> bool:
    """Days on which both lives are compared: of weekly steps, crashes and the backfill, and the last."""
    crashed = any(crash.day == number for crash in CRASHES)
    return crashed or plan.is_weekly(number) or number in (plan.found_day, plan.days)


def is_last_before_whole(life: Life, number: int) -> bool:
    """True on the last day and before one that reads everything anew: what increments built ends there."""
    mark = stored_mark(life.place)
    assert mark is not None  # the day has just been ingested
    due = mark.baseline.fitted + timedelta(days=life.config().calendar.refit_days)
    whole = due <= life.plan.run_date(number + 1) or number + 1 == life.plan.found_day
    return number == life.plan.days or (whole and number > 0)


def contents(life: Life, trained: Path | None) -> dict[str, str]:
    """Content hash of every table, statuses of masks in words, and of the predictions of a training."""
    spark, found = get_spark(), {}
    for name, table in TABLES.items():
        if name == "run_log" or not life.place.exists(spark, name):
            continue
        frame = life.place.read(spark, name).drop(*_UNCOUNTED.get(name, ()))
        columns = tuple(column for column in table.columns if column.name in frame.columns)
        found[name] = content_hash(frame, Table(name, table.key, columns, unhashed=table.unhashed))
        if name == "masks":
            rows = frame.select("mask_version", "status").distinct().collect()
            found["masks.status"] = ", ".join(sorted(f"{row[0]} {row[1]}" for row in rows))
    if trained is not None:
        keys = ("arm", "part", "label", "impression_id")
        rows = pq.read_table(trained / "predictions.parquet").sort_by([(key, "ascending") for key in keys])
        found["predictions"] = hashlib.sha256(repr(rows.to_pylist()).encode()).hexdigest()
    return found


def apart_from_one_build(life: Life, number: int) -> dict[str, str]:
    """By table what differs from a build of all rows at once under the life's frozen baseline; empty where nothing."""
    once, mark = Warehouse(life.folder / "once"), stored_mark(life.place)
    assert mark is not None  # there are events
    shutil.rmtree(once.root, ignore_errors=True)
    shutil.copytree(life.place.private / "session_kinds", once.private / "session_kinds")
    run = life.run(number, place=once)
    with patch("dynamix.jobs.ingest._fit_baseline", lambda *_: mark.baseline):
        ingest(run, events=str(life.source))
        features(run)
    found = {}
    for table in COMPARED:
        hashes = {place.content_hash(run.spark, table) for place in (life.place, once)}
        if len(hashes) > 1:
            found[table.name] = unequal_rows(
                _plain(life.place.read(run.spark, table.name), table),
                _plain(once.read(run.spark, table.name), table),
            )
    return found


def _plain(frame: DataFrame, table: Table) -> DataFrame:
    """The compared columns, maps as text."""
    maps = [f.name for f in frame.schema.fields if f.dataType.typeName() == "map"]
    texts = {name: frame[name].cast("string") for name in maps}
    return frame.withColumns(texts).select(*[name for name in table.names if name not in table.unhashed])


def unequal_rows(one: DataFrame, other: DataFrame) -> str:
    """How many rows are on one side alone, with an example of each."""
    left, right = one.exceptAll(other), other.exceptAll(one)
    return (
        f"{left.count()} rows only day by day, as {left.take(1)}; "
        f"{right.count()} only in one build, as {right.take(1)}"
    )


def differences(lives: list[Life]) -> list[str]:
    """Every difference that was found, in words; empty where the soak is sound."""
    first, second = lives
    found = [
        f"day {day.number}, {name}: {what}" for day in first.days for name, what in (day.apart or {}).items()
    ]
    for one, other in zip(first.days, second.days, strict=False):  # the second may not have come as far
        for name in sorted(one.contents.keys() | other.contents.keys()):
            if one.contents.get(name) != other.contents.get(name):
                found.append(f"day {one.number}, {name}: {first.name} and {second.name} are not equal")
    return found


def verdict(lives: list[Life], differ: list[str]) -> str:
    """The last line of the output."""
    first, second = (life.days for life in lives)
    built = [day.number for day in first if day.apart is not None]
    held = [day.number for day in first[: len(second)] if day.contents]
    names = sorted(set().union(*(first[number].contents for number in held)))
    crashes = [day.number for day in first if day.crash]
    wanted = lives[0].plan.days + 1
    done = "" if len(second) == wanted else f"UNFINISHED, {len(first)} and {len(second)} of {wanted} days; "
    if differ:
        return f"{done}NOT EQUAL: {len(differ)} differences"
    return (
        f"{done}EQUAL: {', '.join(t.name for t in COMPARED)} to one build on days {_listed(built)}; "
        f"{', '.join(names) or 'nothing yet'} to a second life on days {_listed(held)}; "
        f"killed on days {_listed(crashes)}"
    )


def _listed(days: list[int]) -> str:
    return ", ".join(map(str, days)) or "none"


def quarantined(life: Life) -> Mapping[str, int]:
    """Raw rows in quarantine at the end, by reason."""
    spark = get_spark()
    rows = life.place.read(spark, EVENTS_QUARANTINE.name).groupBy("reason").sum("copies").collect()
    return {row[0]: int(row[1]) for row in sorted(rows)}


def said(day: Day) -> str:
    """A line of progress."""
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in day.seconds.items())
    return f"{seconds} s; {day.reading}{'; killed ' + day.crash if day.crash else ''}"
