"""`dynamix forget` on a small warehouse: killed and gone on with, every byte looked at, pins refused, models named."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from event_frames import event_frame
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import EVENTS, EVENTS_QUARANTINE, TRAINING_ROWS, Table
from dynamix.errors import ConfigError, EnvironmentTrouble, GuardError, InputError
from dynamix.features import tables
from dynamix.features.table_files import data_files, logged_files
from dynamix.features.tables import Warehouse
from dynamix.jobs.baseline import Baseline, Mark, stored_mark
from dynamix.jobs.cli import main
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.forget import TRAINED, forget, refuse_wrong_call
from dynamix.jobs.forgotten import load_forgotten, store_forgotten
from dynamix.jobs.frames import table_frame
from dynamix.jobs.increment import choose_reading
from dynamix.jobs.user_lists import read_users
from dynamix.models.registered import versions
from dynamix.models.registry import RANKER, Registry, connected

GONE = ("u-gone-0001", "7")
STAY = ("u-stay-0001", "u-stay-0002")
DAYS = (datetime(2024, 1, 1), datetime(2024, 1, 2))


class Killed(BaseException):
    """Stands for the end of the process: nothing in the product catches it."""


@dataclass(frozen=True)
class Story:
    """A warehouse before and after: rows of the others before, what each call said, and how often one died."""

    run: Run
    request: Path
    before: dict[str, set[tuple[Any, ...]]]
    dry: StepResult
    last: StepResult
    again: StepResult
    deaths: int
    versions: dict[str, int | None]


def training_row(user: str, day: datetime) -> dict[str, Any]:
    return {
        "mask_version": "keep-all", "impression_id": f"i-{user}-{day:%d}", "user_id": user, "event_ts": day,
        "event_date": day.date(), "surface": "shop", "label_click": 0.0, "label_mature_ts": day, "weight": 1.0,
        "part": "test", "segment_id": 1, "tier": "active", "segment_version": "s1", "holdout": False,
        **{f"hist_{name}": [] for name in ("stream", "item", "category", "dwell_bin", "z", "age_s")},
    }  # fmt: skip


def quarantined(number: int, raw: str, copies: int = 1) -> dict[str, Any]:
    return {
        "row_hash": f"hash{number}", "reason": "NULL_SURFACE", "raw": raw, "copies": copies,
        "seen_date": DAYS[0].date(), "run_id": "r1",
    }  # fmt: skip


def write(run: Run, table: Table, rows: list[dict[str, Any]], **note: object) -> int:
    return run.warehouse.replace(run.spark, table, table_frame(run.spark, table, rows), metadata=note)


def write_tables(run: Run) -> None:
    """Events and quarantine with their mark, three versions of training rows of which two hold
    the users, a table of other hands with change data and a deletion vector, and a clone of it."""
    place, spark, users = run.warehouse, run.spark, (*GONE, *STAY)
    raws = [
        json.dumps({"user_id": GONE[0], "surface": None}),
        json.dumps({"_corrupt_record": '{"user_id": "7", "surf'}),
        json.dumps({"user_id": STAY[0], "position": 7}),
    ]
    write(run, EVENTS_QUARANTINE, [quarantined(n, raw, copies=2 - n % 2) for n, raw in enumerate(raws)])
    events = event_frame(spark, [{"t": 86_400.0 * d, "user_id": user} for user in users for d in range(2)])
    base = Baseline("b1", DAYS[0], DAYS[1], False, date(2024, 1, 3), {}, {})
    mark = Mark(date(2024, 1, 3), 15, 8, 5, 15, None, 1, base)  # 2 of the 15 rows read were copies
    place.replace(spark, EVENTS, events, metadata=mark.note())
    for some in (users, STAY, users):
        write(run, TRAINING_ROWS, [training_row(user, day) for user in some for day in DAYS])
    extra = spark.createDataFrame([(user, n) for n, user in enumerate(users)], "user_id string, n int")
    at = f"delta.`{place.path('extra')}`"
    extra.coalesce(1).write.format("delta").option("delta.enableChangeDataFeed", "true").option(
        "delta.enableDeletionVectors", "true"
    ).save(place.path("extra"))
    spark.sql(f"CREATE TABLE delta.`{place.path('extra_clone')}` SHALLOW CLONE {at}")
    spark.sql(f"DELETE FROM {at} WHERE n = 0")  # hides the row of GONE[0], the file still holds it


def user_ids(path: Path) -> list[str]:
    return pq.ParquetFile(path).read(columns=["user_id"])["user_id"].to_pylist()


def write_files(run: Run) -> None:
    """An orphan of a dead writer, a run's folder, and two registered rankers, of which one saw the users."""
    place = run.warehouse
    day = Path(place.path("events")) / "event_date=2024-01-01"
    orphan = day / "part-dead.parquet"
    of_day = sorted(day.glob("*.parquet"))  # several where the session writes without joining small parts
    shutil.copy(next(path for path in of_day if GONE[0] in user_ids(path)), orphan)
    os.utime(orphan, (time.time() - 100_000,) * 2)
    folder = place.private / "runs" / "r1"
    (folder / "model").mkdir(parents=True)
    (folder / "run.log").write_text(f"12:00:00 hot user '{GONE[0]}' and '7' of 7\n")
    (folder / "model" / "habits.json").write_text(json.dumps({GONE[0]: 0.1, "7": 0.2, STAY[0]: 0.3}))
    ids = [f"i-{user}-01" for user in (*GONE, *STAY)]
    pq.write_table(pa.table({"impression_id": ids, "p": [0.1] * 4}), folder / "predictions.parquet")
    artefact = place.private / "mlruns" / "models" / "m-1" / "artifacts"
    (artefact / "model").mkdir(parents=True)
    shutil.copy(folder / "model" / "habits.json", artefact / "model" / "habits.json")
    (artefact / "input_example.json").write_text(json.dumps({"columns": ["user_id"], "data": [[GONE[0]]]}))
    with connected(Registry(place.private)) as mlflow:
        client = mlflow.MlflowClient()
        client.create_registered_model(RANKER)
        for pin in (1, 2):
            client.create_model_version(RANKER, str(artefact), tags={"training_rows_version": str(pin)})


def others(run: Run) -> dict[str, set[tuple[Any, ...]]]:
    """Rows of the users who stay, by table."""
    found = {}
    for table in (EVENTS, TRAINING_ROWS):
        frame = run.warehouse.read(run.spark, table.name).where(F.col("user_id").isin(*STAY))
        found[table.name] = {tuple(map(str, row)) for row in frame.collect()}
    return found


def dying_at(calls: int) -> Any:
    """The writer's commit that ends the process at the given call, counted over before and after."""
    left, commit = [calls], tables._commit

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def dying(name: str, action: Any) -> None:
        count()
        commit(name, action)
        count()

    return dying


@pytest.fixture(scope="module")
def story(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Story:
    root = tmp_path_factory.mktemp("forget")
    run = Run(spark, Warehouse(root / "ware 'house"), Config(), date(2024, 1, 3), "r2", quiet=True)
    write_tables(run)
    write_files(run)
    request = root / "users.txt"
    request.write_text("\n".join([*GONE, "", "u-unknown-01"]))
    before, held = others(run), all_versions(run)
    dry = forget(run, users=request, dry_run=True)
    assert all_versions(run) == held
    deaths = 0
    for calls in (2, 9):  # after a row is hidden and before its file is written anew; between two tables
        try:
            with patch.object(tables, "_commit", dying_at(calls)):
                last = forget(run, users=request)
            break
        except Killed:
            deaths += 1
    else:
        last = forget(run, users=request)
    after = all_versions(run)
    return Story(run, request, before, dry, last, forget(run, users=request), deaths, after)


def all_versions(run: Run) -> dict[str, int | None]:
    return {
        log.parent.name: run.warehouse.version(run.spark, log.parent.name)
        for log in run.warehouse.root.glob("*/_delta_log")
    }


def every_value(column: pa.ChunkedArray) -> Iterator[str]:
    """All strings of a column at any depth."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            value = [*value.keys(), *value.values()]
        if isinstance(value, list | tuple):
            for one in value:
                yield from walk(one)
        elif value is not None:
            yield str(value)

    return walk(column.to_pylist())


@pytest.mark.spark
def test_no_byte_of_any_file_names_a_forgotten_user(story: Story) -> None:
    """Parquet is decoded as well, since its pages are compressed; `7` alone is looked for as a user id."""
    files = [path for path in story.run.warehouse.root.rglob("*") if path.is_file()]
    assert len(files) > 50
    for path in files:
        assert GONE[0].encode() not in path.read_bytes(), path
        if path.suffix == ".parquet":
            table = pq.ParquetFile(path).read()
            for name in table.column_names:
                values = set(every_value(table[name]))
                assert not [value for value in values if GONE[0] in value], (path, name)
                assert not (values & set(GONE)) or name != "user_id", path
                assert not [value for value in values if value.startswith("i-7-")], path


@pytest.mark.spark
def test_it_died_on_the_way_and_went_on(story: Story) -> None:
    assert story.deaths == 2
    assert story.again.facts["text"] == "nothing is left of the 2 users"
    assert all_versions(story.run) == story.versions
    assert story.again.warnings == ["1 of 3 users are not known here"]


@pytest.mark.spark
def test_a_dry_run_says_what_there_is_and_changes_nothing(story: Story) -> None:
    said = story.dry.facts["text"]
    for line in (
        "nothing was changed",
        "  events: 4 rows, 1 files",  # the file of the dead writer
        "  events_quarantine: 2 rows, 0 files",
        "  training_rows: 4 rows, ",
        "  extra: 2 rows",
        "  extra_clone: 2 rows",
        "  file _dynamix/runs/r1/model/habits.json",
        "  file _dynamix/runs/r1/predictions.parquet",
        "  file _dynamix/runs/r1/run.log",
        f"models:/{RANKER}/1",
    ):
        assert line in said, line


@pytest.mark.spark
def test_the_others_keep_every_row(story: Story, spark: SparkSession) -> None:
    assert others(story.run) == story.before
    left = {row["raw"] for row in story.run.warehouse.read(spark, "events_quarantine").collect()}
    assert left == {json.dumps({"user_id": STAY[0], "position": 7})}
    for name in ("extra", "extra_clone"):
        assert {row["user_id"] for row in story.run.warehouse.read(spark, name).collect()} == set(STAY)
    predictions = pq.read_table(story.run.warehouse.private / "runs" / "r1" / "predictions.parquet")
    assert len(predictions) == 2


@pytest.mark.spark
def test_older_versions_are_refused_as_pins(story: Story, spark: SparkSession) -> None:
    place = story.run.warehouse
    first = place.redacted_before(spark, TRAINING_ROWS.name)
    assert first > 3
    for version in (1, 2, first - 1):
        with pytest.raises(
            EnvironmentTrouble, match=f"version {version} is redacted.*from {first} on"
        ) as refused:
            place.read(spark, TRAINING_ROWS.name, version=version)
        assert refused.value.exit_code == 5
        with pytest.raises(EnvironmentTrouble, match="is redacted"):
            place.files(spark, TRAINING_ROWS.name, version=version, where="mask_version = 'keep-all'")
    assert place.files(spark, TRAINING_ROWS.name, version=first, where="true")


@pytest.mark.spark
def test_only_files_that_held_the_users_went(story: Story) -> None:
    """Version 2 of the training rows was of the others alone: its files are not in the newest version and stay."""
    folder = Path(story.run.warehouse.path(TRAINING_ROWS.name))
    lying = data_files(folder)
    removed = logged_files(folder) - lying
    assert removed and len(lying) > len(
        set(
            story.run.warehouse.files(
                story.run.spark,
                TRAINING_ROWS.name,
                version=story.versions["training_rows"] or 0,
                where="true",
            )
        )
    )


@pytest.mark.spark
def test_rankers_that_saw_the_users_are_listed_and_marked(story: Story) -> None:
    found = {v.version: TRAINED in v.tags for v in versions(Registry(story.run.warehouse.private), RANKER)}
    assert found == {"1": True, "2": False}
    assert story.last.facts["models"] == story.again.facts["models"] == [f"models:/{RANKER}/1"]


@pytest.mark.spark
def test_the_next_ingest_goes_on_without_them(story: Story, spark: SparkSession) -> None:
    """15 rows were read: 8 kept, 5 quarantined, 2 copies. 4 events and 3 copies of raw rows are gone."""
    mark = stored_mark(story.run.warehouse)
    assert mark is not None
    assert (mark.kept, mark.quarantined, mark.rows, mark.doubt) == (4, 2, 8, 2)
    assert story.run.warehouse.read(spark, EVENTS_QUARANTINE.name, version=mark.quarantine).count() == 1
    forgotten = load_forgotten(story.run.warehouse.private)
    raw = raw_rows(spark, [(GONE[0], 3), ("7", 2), (STAY[0], 5), (STAY[1], 3), (None, 1)])
    kept, theirs = forgotten.split(spark, raw)
    assert (kept.count(), theirs.count()) == (9, 5)
    run = replace(story.run, run_date=date(2024, 1, 4))
    for rows, wanted in ((8, "first seen since"), (6, "first seen since"), (9, "1 more rows")):
        source = raw_rows(spark, [(STAY[0], rows)])
        assert wanted in choose_reading(run, source, mark, rebuild=False).reason
    with pytest.raises(GuardError, match="would lose events"):
        choose_reading(run, raw_rows(spark, [(STAY[0], 5)]), mark, rebuild=False)


def raw_rows(spark: SparkSession, counts: list[tuple[str | None, int]]) -> DataFrame:
    rows = [(user,) for user, n in counts for _ in range(n)]
    day = F.timestamp_seconds(F.lit(1_704_070_800))  # 2024-01-01 01:00 UTC
    return spark.createDataFrame(rows, "user_id string").withColumns({"event_ts": day, "ingest_ts": day})


@pytest.mark.spark
def test_nobody_known_is_refused(story: Story, tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("u-nobody-01\n")
    with pytest.raises(InputError, match=r"none of its 1 users is known") as refused:
        forget(story.run, users=tmp_path / "users.txt")
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("content", [b"", b"\n  \n", b"\xff\xfe"])
def test_a_file_without_users_is_refused_before_spark_starts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "users.txt").write_bytes(content)
    (tmp_path / "w" / "events" / "_delta_log").mkdir(parents=True)
    with pytest.raises(InputError, match=r"users\.txt"):
        refuse_wrong_call(tmp_path / "users.txt", Warehouse(tmp_path / "w"))
    with pytest.raises(InputError, match=r"users\.txt"):
        read_users(tmp_path / "users.txt")


def test_the_command_ends_with_two_or_three_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["forget", "--warehouse", str(tmp_path), "--users", str(tmp_path / "users.txt")]
    with pytest.raises(ConfigError, match="holds no table"):
        refuse_wrong_call(tmp_path / "users.txt", Warehouse(tmp_path))
    assert main(command) == 2
    (tmp_path / "events" / "_delta_log").mkdir(parents=True)
    assert main(command) == 3
    assert "cannot be read (FileNotFoundError)" in capsys.readouterr().err
    assert not (tmp_path / "_dynamix").exists()


def test_hashes_know_the_forgotten_and_no_file_holds_their_ids(tmp_path: Path) -> None:
    first = load_forgotten(tmp_path).add(["ann"])
    store_forgotten(tmp_path, first)
    again = load_forgotten(tmp_path)
    assert again == first and again.knows("ann") and not again.knows("bob")
    assert "ann" not in (tmp_path / "forgotten.json").read_text()
    assert asdict(again)["hashes"] != asdict(load_forgotten(tmp_path / "other").add(["ann"]))["hashes"]
