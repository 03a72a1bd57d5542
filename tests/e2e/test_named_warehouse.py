"""The cycle with `--warehouse catalog.schema` gives the tables of one in a folder, and every verb takes the name.

The metastore is the session's own; Unity Catalog is not at hand (docs/deploy.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cycles import open_world
from faults.two_days import SETTINGS, counted_hash, run_command, simulated
from pyspark.sql import SparkSession

from dynamix.contracts import RUN_LOG, TABLES
from dynamix.features.named_tables import Schema, open_schema
from dynamix.features.tables import Warehouse
from dynamix.jobs.cli import main
from dynamix.jobs.run import run_all
from dynamix.models.registry import CHAMPION, RANKER, Registry, find

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.e2e, pytest.mark.usefixtures("as_configured")]

NAME = "spark_catalog.ads"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("named") / "world")


@pytest.fixture(scope="module")
def by_name(spark: SparkSession, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Schema]:
    """A schema in which `dynamix run` has run."""
    place = tmp_path_factory.mktemp("schema")
    spark.sql(f"CREATE SCHEMA {NAME} LOCATION '{place.as_uri()}'")
    assert main([*run_command(world, Path(NAME))]) == 0
    yield open_schema(spark, NAME)
    spark.sql(f"DROP SCHEMA {NAME} CASCADE")


def test_all_tables_equal_those_of_a_folder(
    spark: SparkSession, world: Path, by_name: Schema, tmp_path: Path
) -> None:
    folder = Warehouse(tmp_path / "W")
    run_all(open_world(spark, world, folder.root, *SETTINGS), events=str(world))
    compared = [t for t in TABLES.values() if t is not RUN_LOG and folder.exists(spark, t.name)]
    assert len(compared) >= 13
    for table in compared:
        frames = [place.read(spark, table.name) for place in (folder, by_name)]
        one, other = (counted_hash(frame, table) for frame in frames)
        assert one == other, table.name
    there, here = (find(Registry(place.private), RANKER, CHAMPION) for place in (folder, by_name))
    assert (there is None) == (here is None)


def test_a_second_run_has_nothing_to_do(
    world: Path, by_name: Schema, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = {name: by_name.version(by_name.spark, name) for name in TABLES if name != RUN_LOG.name}
    assert main([*run_command(world, Path(NAME)), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["skipped"]) >= {"ingest", "features", "segment", "mask", "train", "score"}
    assert versions == {name: by_name.version(by_name.spark, name) for name in TABLES if name != RUN_LOG.name}


@pytest.mark.parametrize(
    "command",
    [
        ["plan"], ["report"], ["power"], ["audit", "--users", "5"], ["explain", "shop/view"], ["score"], ["bundle"],
        ["maintain"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_verbs_take_the_name(
    command: list[str], by_name: Schema, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--events", str(world)] if command == ["plan"] else []
    code = main([*command, "--warehouse", NAME, *source, "--quiet", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (code, told["exit_code"]) == (0, 0), told["message"]


def test_users_are_forgotten_there_too(by_name: Schema, tmp_path: Path) -> None:
    spark = by_name.spark
    user = by_name.read(spark, "events").agg({"user_id": "min"}).collect()[0][0]
    (tmp_path / "users.txt").write_text(f"{user}\n", encoding="utf-8")
    assert main(["forget", "--warehouse", NAME, "--users", str(tmp_path / "users.txt"), "--quiet"]) == 0
    left = [
        name
        for name, table in TABLES.items()
        if "user_id" in table.names
        and by_name.exists(spark, name)
        and not by_name.read(spark, name).where(f"user_id = '{user}'").isEmpty()
    ]
    assert left == []


def test_a_name_that_is_not_there_ends_with_two(
    capsys: pytest.CaptureFixture[str], spark: SparkSession
) -> None:
    assert main(["report", "--warehouse", "spark_catalog.nothing"]) == 2
    assert "no such schema in this session's metastore" in capsys.readouterr().err
