"""One more day beside a build of everything: `python -m benchmarks increment --days 30,90 --per-day 100000 --folder W`.

A warehouse is built up to a day; then further days arrive, each with rows of earlier days that come late, and `ingest`
and `features` run once a day. Everything up to the last day is then built anew, by the same process and under the same
baseline. The rows of all tables must be equal before a ratio is printed. Bytes are those of the files that the commits
of a day added; seconds are wall time, the JVM long warm.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from unittest.mock import patch

from benchmarks.features_data import FIRST_DAY, make_days
from dynamix.config import Config, load_config
from dynamix.contracts import EBF_SESSION, EBF_SURFACE, EVENTS, EVENTS_QUARANTINE, USER_STATS
from dynamix.features.tables import Warehouse
from dynamix.jobs.baseline import stored_mark
from dynamix.jobs.context import Run
from dynamix.jobs.features import features
from dynamix.jobs.ingest import ingest
from dynamix.jobs.session import get_spark

TABLES = (EVENTS, EVENTS_QUARANTINE, EBF_SESSION, EBF_SURFACE, USER_STATS)
_MORE = 3
"""Days that arrive one by one after the first build."""


@dataclass(frozen=True)
class Build:
    """Seconds of the two verbs, bytes of the files added, and the days of `events` that were replaced."""

    ingest_s: float
    features_s: float
    added_bytes: int
    replaced_days: int

    @property
    def seconds(self) -> float:
        return self.ingest_s + self.features_s


@dataclass(frozen=True)
class Outcome:
    """One table age: the build of everything, and the days that came one by one."""

    days: int
    events: int
    late_days: int
    whole: Build
    increments: list[Build]

    @property
    def ratio(self) -> float:
        """Seconds of the median day over those of the whole build."""
        return statistics.median(b.seconds for b in self.increments) / self.whole.seconds


def measure(folder: Path, *, days: int, per_day: int, late_days: int) -> Outcome:
    """Both ways to the same tables. SystemExit names the tables whose rows differ."""
    source = make_days(folder / "in", days=days, per_day=per_day, late_days=late_days)
    config = load_config(settings=[f"calendar.days={days}"])
    daily, once = Warehouse(folder / "daily"), Warehouse(folder / "once")
    for place in (daily, once):
        shutil.rmtree(place.root, ignore_errors=True)
    last = FIRST_DAY + timedelta(days=days)
    arrivals = [last - timedelta(days=_MORE - k) for k in range(_MORE + 1)]
    first = build(daily, config, source, arrivals[0])
    say(f"{days} days: first build {first.seconds:.1f} s")
    found = []
    for day in arrivals[1:]:
        found.append(build(daily, config, source, day))
        say(f"  {day}: {found[-1]}")
    mark = stored_mark(daily)
    assert mark is not None  # just written
    shutil.copytree(daily.private / "session_kinds", once.private / "session_kinds")
    with patch("dynamix.jobs.ingest._fit_baseline", lambda *_: mark.baseline):
        whole = build(once, config, source, last)
    say(f"  everything: {whole}")
    spark = get_spark()
    differ = [t.name for t in TABLES if daily.content_hash(spark, t) != once.content_hash(spark, t)]
    if differ:
        raise SystemExit(f"rows of {', '.join(differ)} differ between both ways; no ratio is shown")
    events = daily.read(spark, EVENTS.name).count()
    return Outcome(days, events, late_days, whole, found)


def build(place: Warehouse, config: Config, source: Path, day: date) -> Build:
    """`ingest` and `features` for a run date, timed."""
    spark = get_spark("increment-bench")
    before = {t.name: len(place.commits(t.name)) for t in TABLES}
    run = Run(spark, place, config, day, f"bench-{day}", quiet=True)
    began = time.perf_counter()
    done = ingest(run, events=str(source))
    middle = time.perf_counter()
    features(run)
    ended = time.perf_counter()
    added = sum(added_bytes(path) for t in TABLES for path in place.commits(t.name)[before[t.name] :])
    replaced = len(str(done.facts["days"]).split(", ")) if done.facts.get("days") else -1
    return Build(middle - began, ended - middle, added, replaced)


def added_bytes(commit: Path) -> int:
    """Bytes of the data files that a commit added."""
    actions = (json.loads(line) for line in commit.read_text(encoding="utf-8").splitlines())
    return sum(int(action["add"]["size"]) for action in actions if "add" in action)


def table(found: list[Outcome]) -> Iterator[str]:
    """One line an age of the table."""
    yield (
        "| days | events | late by up to | everything s | MB | a day s (min, median, max) | ingest s | features s | MB | "
        "days replaced | day to everything |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for o in found:
        times = sorted(b.seconds for b in o.increments)
        middle = statistics.median(times)
        yield (
            f"| {o.days} | {o.events:,} | {o.late_days} d | {o.whole.seconds:.1f} | {o.whole.added_bytes / 1e6:.1f} | "
            f"{times[0]:.1f}, {middle:.1f}, {times[-1]:.1f} | "
            f"{statistics.median(b.ingest_s for b in o.increments):.1f} | "
            f"{statistics.median(b.features_s for b in o.increments):.1f} | "
            f"{statistics.median(b.added_bytes for b in o.increments) / 1e6:.1f} | "
            f"{', '.join(str(b.replaced_days) for b in o.increments)} | 1/{1 / o.ratio:.1f} |"
        )


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def main(folder: Path, *, days: list[int], per_day: int, late_days: int) -> None:
    """Measure every age, print the table and write `increment.json` into the folder."""
    found = []
    for age in days:
        found.append(measure(folder / str(age), days=age, per_day=per_day, late_days=late_days))
        (folder / "increment.json").write_text(
            json.dumps([asdict(o) for o in found], indent=1), encoding="utf-8"
        )
    for line in table(found):
        print(line, flush=True)
