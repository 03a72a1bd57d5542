"""Names, ids and paths that would be code where they are pasted into SQL: they stay values, on real Spark and Delta."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults.things import stored, things, write
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dynamix.conditions import condition_trouble
from dynamix.config import Config, load_config
from dynamix.contracts import MASKS, RUN_LOG
from dynamix.errors import ConfigError
from dynamix.features.sql_text import equals, named, one_of, quoted
from dynamix.features.tables import Warehouse
from dynamix.jobs.arm_rows import set_status
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.feature_table import create_sql, user_columns
from dynamix.jobs.features import features
from dynamix.jobs.frames import table_frame
from dynamix.jobs.ingest import ingest
from dynamix.jobs.run import STEPS
from dynamix.jobs.run_log import Entry, record
from dynamix.jobs.user_lists import read_users
from dynamix.models.registry import Registry, artefact_folder

DAY = date(2026, 2, 1)
EVIL = (
    "x' OR '1'='1", 'x" OR "1"="1', "x` OR 1=1 --", "x\\' OR 1=1 --", "x\\", "x'; DROP TABLE events; --", "/* x */",
    "x' --\nAND '1'='2", "’ OR ‘1’=‘1", "${spark.app.name}", "%_", "\u2028x\u0085", "{x}", "SELECT 1", "x', 'y",
)  # fmt: skip
JAVA = "reflect('java.lang.System', 'getProperty', 'user.home') IS NOT NULL"


@pytest.mark.spark
def test_quoted_text_is_itself_and_nothing_else(spark: SparkSession) -> None:
    literals = [f"{quoted(text)} AS c{i}" for i, text in enumerate(EVIL)]
    assert list(spark.range(1).selectExpr(*literals).collect()[0]) == list(EVIL)
    rows = spark.createDataFrame([(text,) for text in (*EVIL, "other")], "name string")
    hits = [f"count_if({equals(name=text)}) AS c{i}" for i, text in enumerate(EVIL)]
    found = rows.selectExpr(
        *hits, f"count_if({one_of('name', EVIL)}) AS every", f"count_if({one_of('name', [])})"
    )
    assert list(found.collect()[0]) == [1] * len(EVIL) + [len(EVIL), 0]


@pytest.mark.spark
def test_a_quoted_name_is_that_column(spark: SparkSession) -> None:
    row = spark.range(1).select(*[F.lit(i).alias(name) for i, name in enumerate(EVIL)])
    again = row.select(*[F.col(named(name)).alias(f"c{i}") for i, name in enumerate(EVIL)])
    assert list(again.collect()[0]) == list(range(len(EVIL)))


@pytest.mark.spark
def test_columns_users_streams_and_items_of_any_name_go_through_ingest_and_features(
    spark: SparkSession, tmp_path: Path
) -> None:
    """One user a name, each on its own surface with its own event type; the columns have such names as well.

    Of the source folder, not of the pattern that its name is; columns that nothing reads are part of a row's hash.
    """
    own = {"user_id": EVIL[2], "event_ts": EVIL[0], "event_type": EVIL[5], "surface": "`", "item_id": "a.b"}
    ids = {own[name]: list(EVIL) for name in ("user_id", "surface", "item_id")}
    strangers = {name: ["x"] * len(EVIL) for name in EVIL if name not in own.values()}
    times = pa.array([1_767_225_600_000_000 + i for i in range(len(EVIL))], pa.timestamp("us", tz="UTC"))
    types = [f"{text}'`" for text in EVIL]
    rows = pa.table({**ids, **strangers, own["event_ts"]: times, own["event_type"]: types})
    for place, some in (("ev[12]", rows), ("ev1", rows.slice(0, 1))):
        (tmp_path / place).mkdir()
        pq.write_table(some, tmp_path / place / "x.parquet")
    run = Run(
        spark, Warehouse(tmp_path / "it's; -- “W” a%20b #1?"), Config(columns=own), DAY, EVIL[0], quiet=True
    )
    result = ingest(run, events=str(tmp_path / "ev[12]"))
    assert result.counters["rows_kept"] == result.counters["rows_read"] == len(EVIL)
    features(run)
    streams = {row["stream"] for row in run.warehouse.read(spark, "streams").select("stream").collect()}
    assert streams == {f"{text}/{text}'`" for text in EVIL}
    users = run.warehouse.read(spark, "ebf_session").select("user_id").distinct().collect()
    assert {row["user_id"] for row in users} == set(EVIL)


def _mask(version: str) -> dict[str, Any]:
    return {
        "mask_version": version, "seq": 1, "segment_version": "s", "segment_id": 1, "segment_name": EVIL[0],
        "tier": "*", "stream": EVIL[1], "keep": True, "quota": 5, "boost": 0.0, "positives": 0, "tokens": 1.0,
        "verdict": "keep", "reason": "", "status": "proposed", "run_date": DAY, "run_id": "r",
    }  # fmt: skip


@pytest.mark.spark
def test_a_mask_version_and_a_run_id_name_their_own_rows(spark: SparkSession, tmp_path: Path) -> None:
    run = Run(spark, Warehouse(tmp_path), Config(), DAY, EVIL[0], quiet=True)
    run.warehouse.replace(spark, MASKS, table_frame(spark, MASKS, [_mask("m1"), _mask(EVIL[0])]))
    set_status(run, EVIL[0], "published")
    found = run.warehouse.read(spark, "masks").select("mask_version", "status").collect()
    assert {(row["mask_version"], row["status"]) for row in found} == {
        ("m1", "proposed"),
        (EVIL[0], "published"),
    }
    for one in ("r1", EVIL[0]):
        record(
            Run(spark, run.warehouse, Config(), DAY, one, quiet=True),
            [Entry(STEPS["ingest"], "done", "f", StepResult())],
        )
    kept = run.warehouse.read(spark, RUN_LOG.name).select("run_id").collect()
    assert {row["run_id"] for row in kept} == {"r1", EVIL[0]}


@pytest.mark.spark
def test_a_warehouse_in_a_folder_of_any_name_is_written_read_and_purged(
    spark: SparkSession, tmp_path: Path
) -> None:
    warehouse = Warehouse(tmp_path / "it's; -- “q\" OR 1=1\n a%20b [x]* #1? \\")
    write(spark, warehouse, [("a", 1, 1.0), (EVIL[0], 2, 1.0), ("b", 3, 1.0)])
    write(spark, warehouse, [("a", 4, 1.0)], day="a")
    assert stored(spark, warehouse) == [("a", 4), ("b", 3), (EVIL[0], 2)]
    assert len(warehouse.files(spark, "streams", version=None, where=equals(day=EVIL[0]))) == 1
    warehouse.erase(spark, "streams", things(spark, (EVIL[0], 2, 1.0)).select("day"))
    assert stored(spark, warehouse) == [("a", 4), ("b", 3)]
    version = warehouse.version(spark, "streams")
    warehouse.redact(spark, "streams", before=version or 0)
    warehouse.apply_vectors(spark, "streams")
    assert warehouse.redacted_before(spark, "streams") == version


@pytest.mark.parametrize("name", ["back`tick", "${user.home}"])
def test_a_folder_that_delta_cannot_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--warehouse") as refused:
        Warehouse(tmp_path / name)
    assert refused.value.exit_code == 2


def test_a_line_of_a_list_is_one_user_whatever_is_in_it(tmp_path: Path) -> None:
    """Cut at U+2028 or U+0085, an id would be two others, and those would be forgotten."""
    path = tmp_path / "users.txt"
    users = {text for text in EVIL if "\n" not in text}
    path.write_text("\r\n".join(sorted(users)), encoding="utf-8")
    assert read_users(path) == users


@pytest.mark.parametrize(
    "address",
    ["models:/x' OR name LIKE '%/1", "models:/x'@champion", "models:/x@a' --", "models:/x/1; --", "x"],
)
def test_a_model_address_holds_no_filter(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="dynamix-ranker@champion"):
        artefact_folder(Registry(tmp_path), address)


@pytest.mark.parametrize("table", ["a.b.c d", "a.b.${x}", "a.b.c;--", "a.b.c\n", "a.b.c') --", "a.b.c`"])
def test_a_feature_table_is_named_by_letters_digits_and_two_signs(table: str) -> None:
    with pytest.raises(ConfigError, match=r"catalog\.schema\.table"):
        create_sql(table, user_columns(["shop/view"], Config()))


def test_columns_of_the_feature_table_hold_no_character_of_a_stream() -> None:
    statement = create_sql("a.b.c", user_columns(EVIL, Config()))
    assert statement.count("`") % 2 == 0
    assert not {*"';\"$\\"} & {*statement}


@pytest.mark.parametrize(
    "condition",
    [
        JAVA, "java_method('java.lang.Math', 'abs', -1) = '1'", f"NOT ({JAVA})", f"position < 3 OR {JAVA}",
        "`reflect`('java.lang.System', 'exit', 0) = 1", "system.builtin.reflect('a', 'b') = 1", "reflect\n('a') = 1",
        "(SELECT count(*) FROM text.`x`) > 0", "EXISTS (SELECT 1)", "item_id IN (SELECT 1)", "(FROM x) = 1",
        "position < 3; DROP TABLE events", "position < 3 -- AND x", "position /* x */ < 3", "'${user.home}' = ''",
        "item_id = r'\\' OR reflect('a')", "x = '\\' OR reflect(1) = '", "item_id = ‘x’", "position < 3) OR (1 = 1",
        "(position < 3", "spark_catalog.default.lower('x') = 1",
    ],
)  # fmt: skip
def test_prediction_rows_that_are_more_than_a_condition_are_refused(condition: str) -> None:
    assert condition_trouble(condition)
    with pytest.raises(ConfigError, match=r"prediction_rows.*allowed: a condition") as refused:
        load_config(base={"prediction_rows": condition})
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    "condition",
    [
        "", "position < 3", "surface = 'search' AND NOT (position >= 3 OR item_id IS NULL)", "item_id IN ('a', 'it''s')",
        "attributes['brand'] LIKE 'a%'", "coalesce(value, 0.5) * 2 > 1e3",
        "CASE WHEN (value > 1) THEN true ELSE false END",
        "`select` = \"x\"", "hour(event_ts) BETWEEN 8 AND 20", "surface = 'SELECT reflect(1); --'",
        "cast(value AS decimal(3, 1)) > 1", "category LIKE ANY ('a', 'b')",
    ],
)  # fmt: skip
def test_plain_conditions_are_taken(condition: str) -> None:
    assert condition_trouble(condition) == ""
    assert load_config(base={"prediction_rows": condition}).prediction_rows == condition


@pytest.mark.spark
def test_without_the_look_at_the_condition_spark_would_call_java(spark: SparkSession) -> None:
    """Why the condition is looked at: nothing in Spark stops it."""
    assert spark.range(1).where(JAVA).count() == 1
