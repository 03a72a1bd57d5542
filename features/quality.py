"""The gate before a write: a Great Expectations suite generated from a table's contract.

One Spark aggregate counts every violation; the suite runs over that one-row frame in a context that
lives in memory only. Great Expectations on the frame itself costs several jobs an expectation and
persists it (docs/faults.md 31, 32). This module is the only importer of Great Expectations.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.contracts import Table

if TYPE_CHECKING:
    import great_expectations as gx

ROWS = "rows"


@dataclass(frozen=True)
class QualityReport:
    """Verdict of a gate: `failures` are sentences, `metrics` the counted violations, `results` GX's own report."""

    success: bool
    failures: tuple[str, ...]
    metrics: Mapping[str, int]
    results: dict[str, Any] = field(repr=False, default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """One expectation: metric `name` counts violations (`rows` counts rows) and must lie in [low, high]."""

    name: str
    sentence: str
    low: int = 0
    high: int | None = 0


def load_early() -> None:
    """Import Great Expectations beside the Spark jobs that come before the gate; it takes seconds."""
    Thread(target=import_module, args=("great_expectations",), daemon=True).start()


def gate(frame: DataFrame, table: Table, *, extra: Mapping[str, Column] | None = None) -> QualityReport:
    """Check a finished frame against the contract. One Spark action; the frame is neither persisted nor changed.

    Rules: at least one row; key unique; no NULL where the contract has none; allowed values; checks; and
    `extra`, where a name maps to a condition that is true for a bad row. A column that the frame lacks is
    an error inside Great Expectations, and an error is a failure.
    """
    counted = frame.agg(*[column.alias(name) for name, column in metric_columns(frame, table, extra).items()])
    if set(frame.columns).issuperset(table.key):
        counted = counted.crossJoin(_distinct_keys(frame, table)).withColumn(
            "duplicates", F.col(ROWS) - F.col("_distinct")
        )
    row = counted.drop("_distinct").head()
    assert row is not None  # an aggregate without groups has one row
    metrics = {name: int(value or 0) for name, value in row.asDict().items()}
    return validate(metrics, rules(table, extra=tuple(extra or ())), name=table.name)


def rules(table: Table, *, extra: tuple[str, ...] = ()) -> list[Rule]:
    """The suite of a table as data, in the order of its columns."""
    found = [Rule(ROWS, f"{table.name} has at least one row", low=1, high=None)]
    found.append(Rule("duplicates", f"key ({', '.join(table.key)}) is unique"))
    for column in table.columns:
        if not column.nullable:
            found.append(Rule(f"null:{column.name}", f"{column.name} is never NULL"))
        if column.allowed:
            found.append(Rule(f"other:{column.name}", f"{column.name} is one of {', '.join(column.allowed)}"))
        if column.check:
            found.append(Rule(f"check:{column.name}", column.check))
    return found + [Rule(f"extra:{name}", name) for name in extra]


def metric_columns(
    frame: DataFrame, table: Table, extra: Mapping[str, Column] | None = None
) -> dict[str, Column]:
    """Aggregates that count what each rule of a column forbids; rules whose column the frame lacks have none."""
    have = set(frame.columns)
    metrics = {ROWS: F.count(F.lit(1))}
    for column in table.columns:
        if column.name not in have:
            continue
        value = F.col(column.name)
        if not column.nullable:
            metrics[f"null:{column.name}"] = F.count_if(value.isNull())
        if column.allowed:
            metrics[f"other:{column.name}"] = F.count_if(~value.isin(*column.allowed))
        if column.check:
            metrics[f"check:{column.name}"] = F.count_if(~F.expr(column.check))
    return metrics | {f"extra:{name}": F.count_if(bad) for name, bad in (extra or {}).items()}


def _distinct_keys(frame: DataFrame, table: Table) -> DataFrame:
    """One row: the number of distinct keys, told apart by 96 bits of hash.

    Apart from the other metrics, which would else be kept for every single key.
    """
    key = [part for name in table.key for part in (F.col(name), F.col(name).isNull())]
    hashes = frame.select(F.xxhash64(*key).alias("long"), F.hash(*key).alias("short"))
    return hashes.distinct().agg(F.count(F.lit(1)).alias("_distinct"))


def validate(metrics: Mapping[str, int], suite: list[Rule], *, name: str) -> QualityReport:
    """Run the suite through Great Expectations over one row of metrics; an expectation that errors has failed."""
    import great_expectations as gx  # seconds of import, only for those who write
    from great_expectations.data_context.types.base import ProgressBarsConfig

    with _quiet():
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        asset = context.data_sources.add_pandas("metrics").add_dataframe_asset(name)
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch(
            batch_parameters={"dataframe": pd.DataFrame([dict(metrics)])}
        )
        outcome = batch.validate(_suite(gx, suite, name))
    results = outcome.to_json_dict()  # type: ignore[no-untyped-call]
    sentences = {rule.name: rule.sentence for rule in suite}
    failures = [_sentence(sentences, metrics, result) for result in outcome.results if not result.success]
    complete = len(outcome.results) == len(suite)
    if not complete:
        failures.append(f"{len(suite) - len(outcome.results)} expectations gave no result")
    return QualityReport(bool(outcome.success) and complete, tuple(sorted(failures)), dict(metrics), results)


def _suite(library: Any, suite: list[Rule], name: str) -> gx.ExpectationSuite:
    built = library.ExpectationSuite(name=f"dynamix.{name}")
    for rule in suite:
        built.add_expectation(
            library.expectations.ExpectColumnValuesToBeBetween(
                column=rule.name, min_value=rule.low, max_value=rule.high, meta={"rule": rule.sentence}
            )
        )
    return cast("gx.ExpectationSuite", built)


def _sentence(sentences: Mapping[str, str], metrics: Mapping[str, int], result: Any) -> str:
    metric = str(result.expectation_config.kwargs["column"])
    if metric not in metrics:
        return f"not checkable, the column is missing: {sentences[metric]}"
    if metric == ROWS:
        return f"violated: {sentences[metric]}"
    return f"violated by {metrics[metric]} rows: {sentences[metric]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Great Expectations logs an INFO line per object; warnings still come through."""
    logger = logging.getLogger("great_expectations")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
