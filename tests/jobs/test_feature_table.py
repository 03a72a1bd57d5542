"""`features_user`: its statement, its rows and the arguments of a lookup; Unity Catalog itself is not here."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from dynamix.config import Config, load_config
from dynamix.contracts import EBF_SURFACE, MASKS, SEGMENTS
from dynamix.errors import ConfigError
from dynamix.jobs.feature_table import Feature, create_sql, lookup_arguments, user_columns, user_rows
from dynamix.jobs.frames import table_frame

TABLE = "main.ads.features_user"
PAGE = Path(__file__).resolve().parents[2] / "notebooks" / "databricks" / "feature_lookup.py"
DECLARED = {"shop/view": {"windows": [7, 0], "attributes": ["recency"]}, "feed/view": {"windows": [1]}}
CONFIG = load_config(base={"streams": DECLARED})


def column_types(features: Sequence[Feature]) -> dict[str, str]:
    """Column -> type, read off the statement."""
    return dict(re.findall(r"^  `(\w+)` ([\w<>]+)", create_sql(TABLE, features), flags=re.M))


def test_columns_are_those_that_explain_names_for_each_stream() -> None:
    features = user_columns(["shop/view", "feed/view", "shop/view"], CONFIG)
    names = [f.name for f in features]
    for stream in DECLARED:
        declared = CONFIG.declaration(stream).columns()
        assert {f.name for f in features if f.stream == stream} == set(declared)
    assert len(set(names)) == len(names)
    assert "shop_view__decayed_n__half7d" in names
    assert "feed_view__dwell_sum__1d" in names


def test_the_statement_makes_user_and_time_the_key_of_a_time_series() -> None:
    features = user_columns(["shop/view"], CONFIG)
    assert create_sql(TABLE, features) == (
        "CREATE TABLE IF NOT EXISTS `main`.`ads`.`features_user` (\n"
        "  `user_id` string NOT NULL,\n"
        "  `ts` timestamp NOT NULL,\n"
        "  `shop_view__n__7d` bigint,\n"
        "  `shop_view__last_ts__7d` timestamp,\n"
        "  `shop_view__conversions__7d` bigint,\n"
        "  `shop_view__n__half7d` bigint,\n"
        "  `shop_view__last_ts__half7d` timestamp,\n"
        "  `shop_view__decayed_n__half7d` double,\n"
        "  `shop_view__conversions__half7d` bigint,\n"
        "  `segment_id` int,\n"
        "  `tier` string,\n"
        "  `segment_version` string,\n"
        "  `mask_version` string,\n"
        "  `dropped` array<string>,\n"
        "  CONSTRAINT `features_user_key` PRIMARY KEY (`user_id`, `ts` TIMESERIES)\n"
        ") USING DELTA CLUSTER BY (`user_id`, `ts`)"
    )


@pytest.mark.parametrize("table", ["features_user", "ads.features_user", "a.b.c.d", "a..c", "a.b.c`d"])
def test_a_table_that_is_not_of_unity_catalog_is_refused(table: str) -> None:
    with pytest.raises(ConfigError, match=r"catalog\.schema\.table"):
        create_sql(table, user_columns(["shop/view"], CONFIG))


def test_without_streams_there_is_no_table() -> None:
    with pytest.raises(ConfigError, match="dynamix features"):
        user_columns([], Config())


def test_a_lookup_asks_for_columns_of_the_table_as_of_the_time_of_the_row() -> None:
    features = user_columns(["shop/view", "feed/view"], CONFIG)
    given = lookup_arguments(TABLE, features)
    columns = column_types(features)
    assert {columns[name] for name in given["feature_names"]} == {"bigint", "double", "int"}
    assert given["table_name"] == TABLE
    assert (given["lookup_key"], given["timestamp_lookup_key"]) == (["user_id"], "event_ts")


def surface(user: str, stream: str, end: date, days: int, n: int) -> dict[str, Any]:
    return {
        "user_id": user, "stream": stream, "window_end": end, "window_days": days, "n": n, "dwell_sum": 1000 * n,
        "z_sum": 0.5 * n, "z_sq_sum": 0.25, "n_dwell": n, "n_censored": 0, "conversions": 0, "decayed_n": 0.5 * n,
        "last_ts": datetime(2026, 2, 28, 12, tzinfo=UTC), "dwell_share": None, "dwell_hist": {},
    }  # fmt: skip


def valid(user: str, start: int, end: int | None, segment: int) -> dict[str, Any]:
    def day(number: int) -> datetime:
        return datetime(2026, 2, number, tzinfo=UTC)

    return {
        "user_id": user, "segment_version": "s20260301-00000000", "valid_from": day(start),
        "segment_id": segment, "segment_name": f"segment {segment}", "tier": "active", "posterior": {segment: 1.0},
        "n_events": 9, "valid_to": None if end is None else day(end),
    }  # fmt: skip


def verdict(segment: int, stream: str, keep: bool) -> dict[str, Any]:
    return {
        "mask_version": "m20260301-00000000", "seq": 1, "segment_version": "s20260301-00000000",
        "segment_id": segment, "segment_name": "", "tier": "*", "stream": stream, "keep": keep,
        "quota": 50 if keep else 0, "boost": 0.0, "positives": 0, "tokens": 1.0,
        "verdict": "keep" if keep else "drop", "reason": "", "status": "published",
        "run_date": date(2026, 3, 1), "run_id": "r",
    }  # fmt: skip


@pytest.mark.spark
def test_a_row_holds_the_windows_that_end_at_the_run_date_and_the_segment_valid_then(
    spark: SparkSession,
) -> None:
    today, before = date(2026, 3, 1), date(2026, 2, 28)
    days = [
        surface("a", "shop/view", today, 7, 3),
        surface("a", "shop/view", today, 0, 8),
        surface("a", "feed/view", before, 1, 5),  # another day's row
        surface("b", "feed/view", today, 1, 2),
    ]
    valid_rows = [valid("a", 1, 20, 1), valid("a", 20, None, 2), valid("c", 1, None, 1)]
    grid = [
        verdict(0, "shop/view", True),
        verdict(2, "shop/view", False), verdict(2, "feed/view", False), verdict(2, "mail/view", True),
    ]  # fmt: skip
    features = user_columns(["shop/view", "feed/view"], CONFIG)
    frame = user_rows(
        table_frame(spark, EBF_SURFACE, days),
        table_frame(spark, SEGMENTS, valid_rows),
        table_frame(spark, MASKS, grid),
        features=features,
        run_date=today,
    )
    types = {f.name: f.dataType.simpleString() for f in frame.schema.fields}
    assert types == column_types(features)
    rows = {row["user_id"]: row for row in frame.selectExpr("*", "unix_seconds(ts) at").collect()}
    assert set(rows) == {"a", "b"}
    assert {row["at"] for row in rows.values()} == {int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())}
    a, b = rows["a"], rows["b"]
    assert (a["shop_view__n__7d"], a["shop_view__n__half7d"], a["shop_view__decayed_n__half7d"]) == (
        3,
        8,
        4.0,
    )
    assert (a["feed_view__n__1d"], a["feed_view__last_ts__1d"]) == (0, None)
    assert (a["segment_id"], a["tier"], a["dropped"]) == (2, "active", ["feed/view", "shop/view"])
    assert (b["feed_view__dwell_sum__1d"], b["shop_view__n__7d"]) == (2000, 0)
    assert (b["segment_id"], b["tier"], b["mask_version"], b["dropped"]) == (
        0,
        None,
        "m20260301-00000000",
        [],
    )


def test_the_notebook_takes_names_that_are_there_and_says_that_it_was_not_run() -> None:
    """It cannot run here; a renamed function would at least be noticed."""
    source = PAGE.read_text(encoding="utf-8")
    assert source.startswith("# Databricks notebook source\n")
    assert "Not executed in this project" in source
    taken = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("dynamix")
        for alias in node.names
    ]
    assert len(taken) >= 7
    assert [name for module, name in taken if not hasattr(importlib.import_module(str(module)), name)] == []
