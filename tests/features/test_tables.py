"""The warehouse: replacement of ranges, refusals, pinned versions and their files."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from delta.tables import DeltaTable
from faults.things import THING, stored, things
from pyspark.sql import SparkSession

from dynamix.contracts import Column, Table
from dynamix.errors import ConfigError, EnvironmentTrouble, GuardError, InputError
from dynamix.features import tables
from dynamix.features.spark_settings import session_settings
from dynamix.features.sql_text import create_table
from dynamix.features.tables import Warehouse

pytestmark = pytest.mark.spark


def test_a_range_is_replaced_and_the_rest_stays(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    warehouse.replace(spark, THING, things(spark, ("a", 1, 1.0), ("b", 2, 1.0)))
    warehouse.replace(spark, THING, things(spark, ("b", 3, 1.0)), where="day = 'b'")
    assert stored(spark, warehouse) == [("a", 1), ("b", 3)]


def test_a_rerun_gives_the_same_rows_and_the_same_content_hash(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    rows = [("a", 1, 1.0), ("a", 2, 0.5)]
    warehouse.replace(spark, THING, things(spark, *rows), where="day = 'a'")
    first = warehouse.content_hash(spark, THING)
    warehouse.replace(spark, THING, things(spark, *rows[::-1]), where="day = 'a'")
    assert warehouse.content_hash(spark, THING) == first
    assert stored(spark, warehouse) == [("a", 1), ("a", 2)]


def test_refusals_leave_the_table_as_it_was(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    with pytest.raises(GuardError, match="run `dynamix features` first"):
        warehouse.read(spark, THING.name)
    version = warehouse.replace(spark, THING, things(spark, ("a", 1, 1.0)))
    nothing = things(spark, ("a", 1, 1.0)).limit(0)
    with pytest.raises(InputError, match="refusing to replace"):
        warehouse.replace(spark, THING, nothing, where="day = 'a'")
    with pytest.raises(InputError, match="lacks \\['size'\\]"):
        warehouse.replace(spark, THING, things(spark, ("a", 1, 1.0)).drop("size"))
    with pytest.raises(Exception, match=r"(?i)check|constraint"):
        warehouse.replace(spark, THING, things(spark, ("a", 1, -1.0)))
    with pytest.raises(Exception, match="REPLACE_WHERE"):
        warehouse.replace(spark, THING, things(spark, ("b", 1, 1.0)), where="day = 'a'")
    assert warehouse.version(spark, THING.name) == version
    assert stored(spark, warehouse) == [("a", 1)]


def test_another_definition_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    warehouse.replace(spark, THING, things(spark, ("a", 1, 1.0)), definition="one")
    with pytest.raises(ConfigError, match="definition"):
        warehouse.replace(spark, THING, things(spark, ("a", 1, 1.0)), definition="two")


@pytest.mark.parametrize("cleaned", [False, True])
def test_a_table_of_another_contract_is_refused_with_the_way_out(
    spark: SparkSession, tmp_path: Path, cleaned: bool
) -> None:
    warehouse = Warehouse(tmp_path)
    warehouse.replace(spark, THING, things(spark, ("a", 1, 1.0)))
    place = f"delta.`{warehouse.path(THING.name)}`"
    told = "'dynamix.contract' = 'of-last-year', 'delta.checkpointInterval' = '1'"
    spark.sql(f"ALTER TABLE {place} SET TBLPROPERTIES ({told})")
    if cleaned:  # a log that begins with a checkpoint does not state the properties any more
        things(spark, ("c", 3, 1.0)).write.format("delta").mode("append").save(warehouse.path(THING.name))
        log = tmp_path / THING.name / "_delta_log"
        assert list(log.glob("*3.checkpoint*.parquet"))
        for commit in sorted(log.glob("*.json"))[:-1]:
            commit.unlink()
    before = warehouse.version(spark, THING.name)
    with pytest.raises(ConfigError, match=r"other columns or another key.*remove") as refused:
        warehouse.replace(spark, THING, things(spark, ("b", 2, 1.0)))
    assert refused.value.exit_code == 2 and warehouse.version(spark, THING.name) == before


def test_files_are_those_of_the_pinned_version_and_partition_only(
    spark: SparkSession, tmp_path: Path
) -> None:
    warehouse = Warehouse(tmp_path)
    pinned = warehouse.replace(spark, THING, things(spark, ("a", 1, 1.0), ("b", 2, 1.0)))
    warehouse.replace(spark, THING, things(spark, ("a", 9, 1.0)), where="day = 'a'")
    files = warehouse.files(spark, THING.name, version=pinned, where="day = 'a'")
    ids = [i for f in files for i in pq.ParquetFile(f).read(columns=["id"])["id"].to_pylist()]
    assert ids == [1]
    for file in files:
        Path(file).unlink()
    with pytest.raises(EnvironmentTrouble, match="vacuumed"):
        warehouse.files(spark, THING.name, version=pinned, where="day = 'a'")


def test_compaction_makes_a_version_but_no_change_of_rows(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    rows = [("a", n, 1.0) for n in range(8)]
    warehouse.replace(spark, THING, things(spark, *rows).repartition(4))
    path = warehouse.path(THING.name)
    things(spark, ("a", 8, 1.0)).write.format("delta").mode("append").save(path)
    before = warehouse.data_version(spark, THING.name)
    assert before == warehouse.version(spark, THING.name)
    DeltaTable.forPath(spark, path).optimize().executeCompaction()
    assert (warehouse.version(spark, THING.name) or 0) > before
    assert warehouse.data_version(spark, THING.name) == before


@pytest.mark.parametrize(
    ("said", "tries"),
    [
        ("[DELTA_CONCURRENT_APPEND.WHOLE_TABLE_READ] files were added", 2),  # as a Connect server says it
        ("io.delta.exceptions.ConcurrentWriteException: ...", 2),
        ("[DELTA_TABLE_NOT_FOUND] no such table", 1),
    ],
)
def test_a_conflict_is_tried_again_under_either_name(
    said: str, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables.time, "sleep", lambda seconds: None)
    made: list[str] = []

    def commit() -> None:
        made.append(said)
        if len(made) == 1:
            raise RuntimeError(said)

    with contextlib.nullcontext() if tries == 2 else pytest.raises(RuntimeError):
        tables._retry(commit)
    assert len(made) == tries


def test_texts_of_a_contract_are_texts_whatever_stands_in_them(spark: SparkSession, tmp_path: Path) -> None:
    column = Column("the `id`", "string", check="`the ``id``` IN ('it''s', '${x}')")
    odd = Table("streams", key=("day",), columns=(Column("day", "string"),), comment="it's ${x} \\ ;")
    warehouse = Warehouse(tmp_path)
    warehouse.create(spark, odd, definition="'")
    assert warehouse.definition(spark, odd.name) == "'"
    (row,) = spark.sql(f"DESCRIBE DETAIL delta.`{warehouse.path(odd.name)}`").collect()
    assert row["description"] == odd.comment
    checked = create_table("p", Table("streams", key=(), columns=(column,)), properties={})
    assert r"IN (\'it\'\'s\', \'\u0024{x}\')'" in checked


def test_a_large_partition_is_shared_by_several_tasks_and_a_small_one_is_one_file(
    spark: SparkSession, tmp_path: Path
) -> None:
    """A day of a very large source must not be the work of one task (docs/experiments.md, what events cost)."""
    warehouse = Warehouse(tmp_path)
    sizes = {"large": 60_000, "small": 50, "other": 50}
    frame = spark.range(sum(sizes.values())).selectExpr(
        f"CASE WHEN id < {sizes['large']} THEN 'large' WHEN id % 2 = 0 THEN 'small' ELSE 'other' END AS day",
        "CAST(id AS INT) AS id", "rand(7) AS size",
    )  # fmt: skip
    adaptive = {
        "spark.sql.adaptive.enabled": "true",
        "spark.sql.adaptive.advisoryPartitionSizeInBytes": "300kb",
        "spark.sql.adaptive.coalescePartitions.minPartitionSize": "100kb",
    }
    with session_settings(spark, adaptive):
        warehouse.replace(spark, THING, frame.repartition(6))
    files = {day: len(list((tmp_path / THING.name / f"day={day}").glob("*.parquet"))) for day in sizes}
    assert files["large"] > 1 and files["small"] == files["other"] == 1
    counted = warehouse.read(spark, THING.name).groupBy("day").count().collect()
    assert {row["day"]: row["count"] for row in counted} == {"large": 60_000, "small": 50, "other": 50}
