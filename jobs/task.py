"""`dynamix-task`: a verb as the task of a Databricks job. A failure is raised, a finding becomes a task value.

A wheel task calls the entry point and drops what it returns, so an exit code alone would count as success
(docs/decisions/0009).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dynamix.contracts import MASKS
from dynamix.jobs.cli import perform
from dynamix.jobs.diff import changes
from dynamix.jobs.options import build_parser
from dynamix.jobs.places import place_of
from dynamix.jobs.report_data import cells_from_rows
from dynamix.jobs.session import get_spark
from dynamix.jobs.settings import resolve_config

CHANGED_CELLS = "changed_cells"
"""Task value of `mask`, read by the condition in resources/daily.yml."""
REFIT_DUE = "refit_due"
"""Task value of `monitor`, 1 or 0, read by the condition in resources/monitor.yml."""


class TaskFailed(RuntimeError):
    """The verb ended with an exit code other than 0; the message carries it."""


class TaskValues(Protocol):
    """`dbutils.jobs.taskValues`, as far as it is used."""

    def set(self, key: str, value: int) -> None: ...


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb with the options of the `dynamix` command; nothing is returned.

    After `mask` the task value `changed_cells` is set, after `monitor` the task value `refit_due`, where the platform
    has task values. Raises TaskFailed for every exit code but 0, wrong usage included; a refit that is due is no
    failure, though the command ends with 4 then.
    """
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as stopped:
        if stopped.code:
            raise TaskFailed(f"exit code {stopped.code}: wrong usage, see standard error") from None
        return  # --help, --version
    outcome = perform(arguments)
    if REFIT_DUE in outcome.facts:
        _set_value(get_spark(), REFIT_DUE, int(outcome.facts[REFIT_DUE]))
    elif outcome.exit_code:
        raise TaskFailed(f"dynamix {outcome.verb}: exit code {outcome.exit_code}: {outcome.message}")
    if outcome.verb == "mask":
        spark = get_spark()
        place = place_of(arguments.warehouse)
        masks = place.read(spark, MASKS.name)
        config = resolve_config(
            warehouse=place.root, events=None, files=arguments.config, settings=arguments.settings
        )
        changed = changed_cells(
            masks, str(outcome.facts["mask_version"]), whole=lambda stream: config.declaration(stream).length
        )
        _set_value(spark, CHANGED_CELLS, changed)


def _set_value(spark: SparkSession, key: str, value: int) -> None:
    values = task_values(spark)
    if values is None:
        print(f"{key} = {value}; no task value set: this is no Databricks job", file=sys.stderr)
    else:
        values.set(key=key, value=value)


def changed_cells(masks: DataFrame, version: str, *, whole: Callable[[str], int]) -> int:
    """Cells (segment, tier, stream) whose quota, boost or attributes differ between this version and the published one.

    A cell that one of them lacks is kept as a whole there (jobs/diff.py). So without a published version every
    dropped, cut or boosted cell counts, as one that loses attributes, and a published version counts 0 against itself.
    """
    own, published = (
        cells_from_rows(row.asDict() for row in masks.where(where).collect())
        for where in (F.col("mask_version") == version, F.col("status") == "published")
    )
    return len(changes(published, own, whole=whole))


def task_values(spark: SparkSession) -> TaskValues | None:
    """The platform's task values; None outside a Databricks runtime, where there are none to set."""
    if "DATABRICKS_RUNTIME_VERSION" not in os.environ:
        return None
    from pyspark.dbutils import DBUtils  # type: ignore[import-not-found]  # only the runtime's pyspark has it

    values: TaskValues = DBUtils(spark).jobs.taskValues
    return values
