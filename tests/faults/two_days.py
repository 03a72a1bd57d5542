"""A small world in two deliveries, its two undisturbed cycles, and the warehouse before every step of both."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from cycles import SMALL, open_world
from faults.points import AFTER, DURING, watched
from faults.processes import copy_warehouse
from pyspark.sql import DataFrame, SparkSession

from dynamix.contracts import TABLES, Table
from dynamix.features.content import content_hash
from dynamix.features.simulate import simulate
from dynamix.features.tables import Warehouse
from dynamix.jobs.run import STEPS, run_all

SETTINGS = (*SMALL, "segmentation.k_max=2", "mask.ne_budget=0.45")
DAYS, USERS = 14, 300
_UNCOUNTED = {"scores": ("model_version",)}
"""A run that is killed after it registered a model registers another: the same model under the next number."""


@dataclass
class Cycle:
    """An undisturbed `run`: every point in order; before each step the warehouse, after it each table's content."""

    world: Path
    bases: dict[str, Path] = field(default_factory=dict)
    contents: dict[str, dict[str, str]] = field(default_factory=dict)
    points: list[str] = field(default_factory=list)

    def after(self, step: str) -> Path:
        """The warehouse as the step left it."""
        return self.bases[[*STEPS, "end"][list(STEPS).index(step) + 1]]


def simulated(out: Path) -> Path:
    """The small world."""
    simulate(out, preset="S0", users=USERS, days=DAYS, seed=3)
    return out


def deliveries(folder: Path) -> tuple[Path, Path]:
    """(world as of the last day but one, the same with the last day): its rows come in a file of their own.

    Of both a row without a user goes to quarantine, and one of two payloads under one id; the second delivery also brings
    another payload for an event of the first.
    """
    whole, first, second = simulated(folder / "whole"), folder / "first", folder / "second"
    events = pads.dataset(whole / "events", format="parquet").to_table()
    happened, told = events["event_ts"], events["ingest_ts"]
    seen = pc.if_else(pc.less(happened, told), told, happened)
    morning = pc.min(seen).as_py().replace(hour=0, minute=0, second=0, microsecond=0)
    border = morning + timedelta(days=DAYS - 1)
    (first / "events").mkdir(parents=True)
    shutil.copy2(whole / "dynamix.yaml", first)
    early = pc.less(seen, border)
    old = events.filter(early).sort_by([("event_ts", "ascending"), ("event_id", "ascending")])
    new = events.filter(pc.invert(early))
    pq.write_table(_with(old, _refused(old)), first / "events" / "1.parquet")
    shutil.copytree(first, second)
    told_again = {**_payload(old.slice(old.num_rows - 1)), "ingest_ts": border + timedelta(hours=1)}
    pq.write_table(_with(new, [*_refused(new), told_again]), second / "events" / "2.parquet")
    return first, second


def _refused(events: pa.Table) -> list[dict[str, object]]:
    """A row without a user, and another payload under the id of the second row."""
    row = events.slice(0, 1).to_pylist()[0]
    return [{**row, "event_id": f"{row['event_id']}-nobody", "user_id": ""}, _payload(events.slice(1, 1))]


def _payload(row: pa.Table) -> dict[str, object]:
    """Another payload under the id of this row."""
    return {**row.to_pylist()[0], "item_id": "of-another-payload"}


def _with(events: pa.Table, rows: list[dict[str, object]]) -> pa.Table:
    return pa.concat_tables([events, pa.Table.from_pylist(rows, schema=events.schema)])


def calm_cycle(
    spark: SparkSession, world: Path, base: Path, folder: Path, *, begin: str = next(iter(STEPS))
) -> Cycle:
    """Run the cycle from step `begin` on, on a copy of `base`, and keep what a crash is measured against."""
    cycle = Cycle(world)
    steps = list(STEPS)
    place = folder / "calm"
    if base.exists():
        copy_warehouse(base, place)
    else:
        place.mkdir(parents=True)
    keep(cycle, place, begin, folder)

    def hook(moment: str, point: str) -> None:
        if moment == DURING and point not in cycle.points:
            cycle.points.append(point)
        step, _, what = point.partition("/")
        if moment == AFTER and what == "run_log":
            cycle.contents[step] = contents(spark, place, known=_last(cycle), base=cycle.bases[step])
            keep(cycle, place, [*steps, "end"][steps.index(step) + 1], folder)

    with watched(hook):
        run_all(open_world(spark, world, place, *SETTINGS), events=str(world))
    return cycle


@contextlib.contextmanager
def turned_down() -> Iterator[None]:
    """Whatever mask is asked about, its gate retires it."""
    with patch("dynamix.jobs.train.mask_status", lambda *_: "retired"):
        yield


def keep(cycle: Cycle, place: Path, step: str, folder: Path) -> None:
    """A copy of the warehouse as it is before the step."""
    cycle.bases[step] = folder / f"before-{step}"
    copy_warehouse(place, cycle.bases[step])


def _last(cycle: Cycle) -> dict[str, str]:
    return list(cycle.contents.values())[-1] if cycle.contents else {}


def contents(spark: SparkSession, place: Path, *, known: Mapping[str, str], base: Path) -> dict[str, str]:
    """Content hash of each table; of one with the commits of `base` the `known` hash is taken.

    Statuses of masks are no content of theirs (a later step writes them) and are added in words.
    """
    warehouse, found = Warehouse(place), {}
    for name, table in TABLES.items():
        commits = warehouse.commits(name)
        if name == "run_log" or not commits:
            continue
        if name in known and [c.read_bytes() for c in commits] == [
            c.read_bytes() for c in Warehouse(base).commits(name)
        ]:
            found[name] = known[name]
            continue
        frame = warehouse.read(spark, name)
        found[name] = counted_hash(frame, table)
        if name == "masks":
            rows = frame.select("mask_version", "status").distinct().collect()
            found["masks.status"] = ", ".join(sorted(f"{r[0]} {r[1]}" for r in rows))
    if "masks" in found and "masks.status" not in found:
        found["masks.status"] = known["masks.status"]
    return found


def counted_hash(frame: DataFrame, table: Table) -> str:
    """Content hash of a table without the columns that two equal runs may differ in."""
    counted = frame.drop(*_UNCOUNTED.get(table.name, ()))
    columns = tuple(c for c in table.columns if c.name in counted.columns)
    return content_hash(counted, type(table)(table.name, table.key, columns, unhashed=table.unhashed))


def run_command(world: Path, place: Path) -> list[str]:
    """Arguments of `dynamix run` under the settings of these cycles."""
    given = [part for value in SETTINGS for part in ("--set", value)]
    return ["run", "--events", str(world), "--warehouse", str(place), "--quiet", *given]
