"""`dynamix-task`: a verb as the task of a Databricks job. A failure is raised, a finding becomes a task value.

A wheel task calls the entry point and drops what it returns, so an exit code alone would count as success
(docs/decisions/0009).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Protocol

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dynamix.contracts import MASKS
from dynamix.features.tables import Warehouse
from dynamix.jobs.cli import perform
from dynamix.jobs.options import build_parser
from dynamix.jobs.session import get_spark

CHANGED_CELLS = "changed_cells"
"""Task value of `mask`, read by the condition in resources/daily.yml."""


class TaskFailed(RuntimeError):
    """The verb ended with an exit code other than 0; the message carries it."""


class TaskValues(Protocol):
    """`dbutils.jobs.taskValues`, as far as it is used."""

    def set(self, key: str, value: int) -> None: ...


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb with the options of the `dynamix` command; nothing is returned.

    After `mask` the task value `changed_cells` is set where the platform has task values. Raises TaskFailed
    for every exit code but 0, wrong usage included.
    """
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as stopped:
        if stopped.code:
            raise TaskFailed(f"exit code {stopped.code}: wrong usage, see standard error") from None
        return  # --help, --version
    outcome = perform(arguments)
    if outcome.exit_code:
        raise TaskFailed(f"dynamix {outcome.verb}: exit code {outcome.exit_code}: {outcome.message}")
    if outcome.verb == "mask":
        spark = get_spark()
        masks = Warehouse(arguments.warehouse).read(spark, MASKS.name)
        changed = changed_cells(masks, str(outcome.facts["mask_version"]))
        values = task_values(spark)
        if values is None:
            print(
                f"{CHANGED_CELLS} = {changed}; no task value set: this is no Databricks job", file=sys.stderr
            )
        else:
            values.set(key=CHANGED_CELLS, value=changed)


def changed_cells(masks: DataFrame, version: str) -> int:
    """Cells (segment, tier, stream) that this version drops and the published one keeps, or the reverse.

    Without a published version every dropped cell counts; a published version counts 0 against itself.
    """
    either = (F.col("mask_version") == version) | (F.col("status") == "published")
    rows = masks.where(~F.col("keep") & either)
    columns = ("mask_version", "status", "segment_id", "tier", "stream")
    cells = [row.asDict() for row in rows.select(*columns).collect()]

    def dropped(chosen: list[dict[str, object]]) -> set[tuple[object, ...]]:
        return {(c["segment_id"], c["tier"], c["stream"]) for c in chosen}

    own = dropped([c for c in cells if c["mask_version"] == version])
    published = dropped([c for c in cells if c["status"] == "published"])
    return len(own ^ published)


def task_values(spark: SparkSession) -> TaskValues | None:
    """The platform's task values; None outside a Databricks runtime, where there are none to set."""
    if "DATABRICKS_RUNTIME_VERSION" not in os.environ:
        return None
    from pyspark.dbutils import DBUtils  # type: ignore[import-not-found]  # only the runtime's pyspark has it

    values: TaskValues = DBUtils(spark).jobs.taskValues
    return values
