"""The gate before a write: a Great Expectations suite generated from a table's contract.

One pass of at most two Spark jobs counts every violation; the suite runs over that one row in a context that
lives in memory only. Great Expectations on the frame itself costs several jobs an expectation and
persists it (docs/faults.md 31, 32). This module is the only importer of Great Expectations.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dynamix.contracts import Table

if TYPE_CHECKING:
    import great_expectations as gx

ROWS = "rows"
DUPLICATES = "duplicates"
_FLAGS = 62
"""Conditions in one whole number; a frame with more carries several."""
_FETCHED = re.compile(
    r"<link\b[^>]*https?:[^>]*>|<(?:img|source)\b[^>]*https?:[^>]*>|<script\b[^>]*\bsrc=[^>]*>\s*</script>"
)


@dataclass(frozen=True)
class QualityReport:
    """Verdict of a gate: `failures` are sentences, `metrics` the counted violations, `results` GX's own report.

    `page` is the data docs page that Great Expectations renders of it.
    """

    success: bool
    failures: tuple[str, ...]
    metrics: Mapping[str, int]
    results: dict[str, Any] = field(repr=False, default_factory=dict)
    page: str = field(repr=False, default="")

    def store(self, folder: Path, name: str) -> list[Path]:
        """Write `<name>.json` (the validation results) and `<name>.html` (their data docs page) into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        told = json.dumps(self.results, indent=1, sort_keys=True, default=str)
        paths = [folder / f"{name}.json", folder / f"{name}.html"]
        for path, text in zip(paths, (told, self.page), strict=True):
            path.write_text(text, encoding="utf-8")
        return paths


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
    """Check a finished frame against the contract in at most two Spark jobs; it is neither persisted nor changed.

    Rules: at least one row; key unique; no NULL where the contract has none; allowed values; checks; and
    `extra`, where a name maps to a condition that is true for a bad row. A column that the frame lacks is
    an error inside Great Expectations, and an error is a failure. Each row travels as a hash of its key and its
    broken rules as bits, 20 bytes; equal keys meet, and a partition comes back as one row of counts.
    """
    bad = conditions(frame, table, extra)
    names, whole = list(bad), set(frame.columns).issuperset(table.key)
    flags = [_bits([bad[name] for name in names[at : at + _FLAGS]]) for at in range(0, len(names), _FLAGS)]
    key = _key_hash(table) if whole else [F.lit(0).cast("bigint"), F.lit(0)]
    slim = frame.select(
        key[0].alias("long"), key[1].alias("short"), *[f.alias(f"f{i}") for i, f in enumerate(flags)]
    )
    spread = slim.repartition("long") if whole else slim
    parts = spread.mapInArrow(_counter(len(names)), "n bigint, keys bigint, bad array<bigint>").collect()
    counts = [sum(part["bad"][i] for part in parts) for i in range(len(names))]
    rows, keys = sum(part["n"] for part in parts), sum(part["keys"] for part in parts)
    metrics = {ROWS: rows, **dict(zip(names, counts, strict=True))} | (
        {DUPLICATES: rows - keys} if whole else {}
    )
    return validate(metrics, rules(table, extra=tuple(extra or ())), name=table.name)


def _bits(bad: list[Column]) -> Column:
    flags = F.lit(0).cast("bigint")
    for place, condition in enumerate(bad):  # NULL is no violation
        flags = flags + F.when(condition, F.lit(1 << place)).otherwise(F.lit(0))
    return flags


def _key_hash(table: Table) -> list[Column]:
    """96 bits that tell keys apart; NULL differs from every value."""
    key = [part for name in table.key for part in (F.col(name), F.col(name).isNull())]
    return [F.xxhash64(*key), F.hash(*key)]


def _counter(n_flags: int) -> Any:
    """Kernel: rows, distinct keys and the count of each flag of a partition, as one row."""

    def count(batches: Iterator[Any]) -> Iterator[Any]:
        held, totals = [], np.zeros(n_flags, dtype=np.int64)
        for batch in batches:
            held.append(batch.select(["long", "short"]))
            for place in range(n_flags):
                word = np.asarray(batch.column(f"f{place // _FLAGS}"))
                totals[place] += int(((word >> (place % _FLAGS)) & 1).sum())
        rows = sum(batch.num_rows for batch in held)
        keys = pa.Table.from_batches(held).group_by(["long", "short"]).aggregate([]).num_rows if held else 0
        yield pa.RecordBatch.from_pydict(
            {
                "n": pa.array([rows], pa.int64()),
                "keys": pa.array([keys], pa.int64()),
                "bad": pa.array([totals.tolist()], pa.list_(pa.int64())),
            }
        )

    return count


def rules(table: Table, *, extra: tuple[str, ...] = ()) -> list[Rule]:
    """The suite of a table as data, in the order of its columns."""
    found = [Rule(ROWS, f"{table.name} has at least one row", low=1, high=None)]
    found.append(Rule(DUPLICATES, f"key ({', '.join(table.key)}) is unique"))
    for column in table.columns:
        if not column.nullable:
            found.append(Rule(f"null:{column.name}", f"{column.name} is never NULL"))
        if column.allowed:
            found.append(Rule(f"other:{column.name}", f"{column.name} is one of {', '.join(column.allowed)}"))
        if column.check:
            found.append(Rule(f"check:{column.name}", column.check))
    return found + [Rule(f"extra:{name}", name) for name in extra]


def conditions(
    frame: DataFrame, table: Table, extra: Mapping[str, Column] | None = None
) -> dict[str, Column]:
    """What each rule of a column forbids, true for a bad row; rules whose column the frame lacks have none."""
    have = set(frame.columns)
    bad: dict[str, Column] = {}
    for column in table.columns:
        if column.name not in have:
            continue
        value = F.col(column.name)
        if not column.nullable:
            bad[f"null:{column.name}"] = value.isNull()
        if column.allowed:
            bad[f"other:{column.name}"] = ~value.isin(*column.allowed)
        if column.check:
            bad[f"check:{column.name}"] = ~F.expr(column.check)
    return bad | {f"extra:{name}": condition for name, condition in (extra or {}).items()}


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
    passed = bool(outcome.success) and complete
    return QualityReport(passed, tuple(sorted(failures)), dict(metrics), results, _page(outcome))


def _page(outcome: Any) -> str:
    """GX's own data docs page of a validation; what it would fetch from the network is left out.

    Rendered here because data docs proper need a context on disk, with a store of its own.
    """
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    outcome.meta.setdefault("run_id", {"run_name": outcome.suite_name, "run_time": None})
    document = ValidationResultsPageRenderer().render(outcome)
    page = DefaultJinjaPageView().render(document)  # type: ignore[no-untyped-call]
    return _FETCHED.sub("", cast(str, page))


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
