"""The warehouse by names, `catalog.schema`: what holds of folders holds of names, on the session's own metastore."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from faults.things import THING, stored, things
from pyspark.sql import SparkSession

from dynamix.errors import ConfigError, EnvironmentTrouble, GuardError, InputError
from dynamix.features.named_tables import Schema, open_schema
from dynamix.features.sql_text import is_schema_name
from dynamix.features.tables import Warehouse

pytestmark = pytest.mark.spark

NAME = "spark_catalog.named_ads"


@pytest.fixture
def place(spark: SparkSession, tmp_path: Path) -> Iterator[Schema]:
    spark.sql(f"CREATE SCHEMA `spark_catalog`.`named_ads` LOCATION '{tmp_path.as_uri()}'")
    yield open_schema(spark, NAME)
    spark.sql("DROP SCHEMA `spark_catalog`.`named_ads` CASCADE")


def test_a_range_is_replaced_pinned_versions_stay_and_the_name_answers_in_sql(
    spark: SparkSession, place: Schema, tmp_path: Path
) -> None:
    first = place.replace(spark, THING, things(spark, ("a", 1, 1.0), ("b", 2, 1.0)), definition="one")
    second = place.replace(
        spark, THING, things(spark, ("b", 3, 1.0)), where="day = 'b'", metadata={"state": 7}
    )
    assert second > first and stored(spark, place) == [("a", 1), ("b", 3)]
    assert stored(spark, place, first) == [("a", 1), ("b", 2)]
    assert spark.sql("SELECT count(*) AS n FROM `spark_catalog`.`named_ads`.streams").collect()[0]["n"] == 2
    assert (place.version(spark, THING.name), place.data_version(spark, THING.name)) == (second, second)
    assert place.definition(spark, THING.name) == "one"
    assert place.note(THING.name, "state") == {"state": 7} and place.note(THING.name, "other") is None
    assert place.note("masks", "state") is None
    assert place.changed_partitions(THING.name, "day", since=second) == set()
    assert place.changed_partitions(THING.name, "day", since=first) is None  # anything may have changed
    folder = Warehouse(tmp_path / "folders")
    folder.replace(spark, THING, things(spark, ("a", 1, 1.0), ("b", 2, 1.0)))
    folder.replace(spark, THING, things(spark, ("b", 3, 1.0)), where="day = 'b'")
    assert place.content_hash(spark, THING) == folder.content_hash(spark, THING)


def test_a_write_without_a_range_keeps_the_table_its_properties_and_its_history(
    spark: SparkSession, place: Schema
) -> None:
    first = place.replace(spark, THING, things(spark, ("a", 1, 1.0)), definition="one")
    place.replace(spark, THING, things(spark, ("c", 9, 1.0)))
    assert stored(spark, place) == [("c", 9)] and stored(spark, place, first) == [("a", 1)]
    assert place.definition(spark, THING.name) == "one"
    with pytest.raises(ConfigError, match="definition"):
        place.replace(spark, THING, things(spark, ("a", 1, 1.0)), definition="two")


def test_refusals_leave_the_table_as_it_was(spark: SparkSession, place: Schema) -> None:
    with pytest.raises(GuardError, match=r"not in spark_catalog\.named_ads; run `dynamix features` first"):
        place.read(spark, THING.name)
    assert not place.has_tables()
    version = place.replace(spark, THING, things(spark, ("a", 1, 1.0)))
    with pytest.raises(InputError, match="refusing to replace"):
        place.replace(spark, THING, things(spark, ("a", 1, 1.0)).limit(0), where="day = 'a'")
    with pytest.raises(GuardError, match="breaks the check"):
        place.replace(spark, THING, things(spark, ("a", 1, -1.0)))
    with pytest.raises(Exception, match="REPLACE_WHERE"):
        place.replace(spark, THING, things(spark, ("b", 1, 1.0)), where="day = 'a'")
    assert place.version(spark, THING.name) == version and stored(spark, place) == [("a", 1)]


def test_files_are_those_of_the_version_and_maintenance_changes_no_row(
    spark: SparkSession, place: Schema
) -> None:
    pinned = place.replace(spark, THING, things(spark, ("a", 1, 1.0), ("b", 2, 1.0)))
    place.replace(spark, THING, things(spark, ("a", 9, 1.0)), where="day = 'a'")
    files = place.files(spark, THING.name, version=pinned, where="day = 'a'")
    assert [i for f in files for i in pq.ParquetFile(f).read(columns=["id"])["id"].to_pylist()] == [1]
    before = place.data_version(spark, THING.name)
    spark.sql(f"ALTER TABLE {place.sql(THING.name)} SET TBLPROPERTIES ('x' = 'y')")
    assert (place.version(spark, THING.name) or 0) > before
    assert place.data_version(spark, THING.name) == before
    assert place.folders() == [place.folder(THING.name)] and place.folder(THING.name).is_dir()
    place.drop(THING.name)
    assert not place.exists(spark, THING.name) and not place.has_tables()


def test_redacted_versions_are_refused(spark: SparkSession, place: Schema) -> None:
    first = place.replace(spark, THING, things(spark, ("a", 1, 1.0)))
    second = place.replace(spark, THING, things(spark, ("a", 2, 1.0)))
    place.redact(spark, THING.name, before=second)
    with pytest.raises(EnvironmentTrouble, match="is redacted"):
        place.read(spark, THING.name, version=first)


class Far(SparkSession):
    """A session whose metastore keeps its tables in a bucket, as far as these questions go."""

    def __init__(self) -> None:
        """Starts nothing."""

    def sql(self, sqlQuery: str, *rest: object, **named: object) -> Any:  # Spark's own name
        answer = (
            [{"location": "s3://bucket/far"}]
            if "DETAIL" in sqlQuery
            else [("RootLocation", "s3://bucket/far")]
        )
        told = SimpleNamespace(collect=lambda: answer)
        return SimpleNamespace(select=lambda *columns: told, collect=told.collect)


def test_a_schema_that_is_not_there_and_one_without_a_folder(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"--warehouse spark_catalog\.nowhere: no such schema") as refused:
        open_schema(spark, "spark_catalog.nowhere")
    assert refused.value.exit_code == 2
    with pytest.raises(EnvironmentTrouble, match=r"lie at s3://bucket/far.*make the volume") as blocked:
        open_schema(Far(), "main.far", volumes=tmp_path)
    assert blocked.value.exit_code == 5
    volume = tmp_path / "main" / "far" / "dynamix"
    volume.mkdir(parents=True)
    far = open_schema(Far(), "main.far", volumes=tmp_path)
    assert far.private == volume / "_dynamix"
    with pytest.raises(EnvironmentTrouble, match=r"main\.far\.events lies at s3://bucket/far"):
        far.folder("events")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.b").mkdir()
    told = [is_schema_name(text) for text in ("a.b", "a.c", "a.b.c", "x/a.b", "a", "/a.b")]
    assert told == [False, True, False, False, False, False]  # a folder that is there is a folder
