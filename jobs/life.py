"""The watch over the published mask: reads the newest windows, keeps what comes back, retires what is obsolete.

`mask` watches and writes what it saw to `mask_audit`; `train` alone moves a status (docs/method.md A.7, A.11).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import COLD_SEGMENT, MASK_AUDIT, MASKS
from dynamix.errors import GuardError
from dynamix.features.calendar import Calendar, Period, midnight
from dynamix.features.conversions import longest_window_s
from dynamix.features.sql_text import equals
from dynamix.features.training import holdout_users
from dynamix.jobs.cell_stats import TIER
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.frames import table_frame
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.life import HOLD_OUT, UNDER_THE_MASK, Restoration, Watch, restorations, watch
from dynamix.segmentation.masks import REDUNDANT, Check

RowsOf = Callable[[DataFrame, Calendar], DataFrame]
"""(labelled impressions, calendar) -> those that count, with `half`."""
Noted = tuple[int, str, Check]
"""Segment, stream and rule of a row of `mask_audit`."""
COST, RESTORED = "cost", "restored by "
"""Rules of `mask_audit`: what the drops cost (one row a version), and who showed that a cell has to come back."""
EVERY_STREAM = "*"


@dataclass(frozen=True)
class Published:
    """The mask in force: version, the run date that made it, and the cells it drops but for redundant ones.

    What a redundant cell tells alone, a kept stream tells too: alone it would be found to matter.
    """

    version: str
    run_date: date
    dropped: frozenset[Cell]


@dataclass(frozen=True)
class Watched:
    """What a run knows of the mask in force: cells that stay because a watch brought them back, and today's watch."""

    restored: Mapping[Cell, Restoration] = field(default_factory=dict)
    published: Published | None = None
    today: Watch | None = None

    def fresh(self, run_date: date) -> list[Noted]:
        """Audit rows of the cells that came back on this run date; later runs read them (`still_restored`)."""
        return [
            (*cell, Check(RESTORED + r.by, r.relevance, r.budget, False))
            for cell, r in sorted(self.restored.items())
            if r.day == run_date
        ]


def watch_published(run: Run, read: Callable[[RowsOf], Statistics]) -> Watched:
    """Watch over the mask published before this run date, beside what earlier watches brought back.

    `read` gives the statistics of the rows that `RowsOf` chooses. Without a published mask there is nothing to watch;
    without a mature impression or a positive in the newest windows nothing is shown, and age alone counts.
    """
    kept = still_restored(run)
    published = in_force(run)
    if published is None:
        return Watched(kept)
    run.note(f"mask: watch over {published.version} of {published.run_date}")
    try:
        statistics = read(lambda rows, _: watch_rows(rows, run.run_date, run.config))
    except GuardError as nothing:
        run.note(f"mask: nothing to watch by: {nothing.message}")
        statistics = Statistics({}, tuple(run.config.heads()))
    said = watch(
        statistics,
        published.dropped,
        age_days=(run.run_date - published.run_date).days,
        config=run.config.mask,
    )
    run.note(f"mask: {published.version} is {said.reason}")
    back = restorations(said, day=run.run_date, days=run.config.calendar.days)
    return Watched({**kept, **back}, published, said)


def watch_rows(labelled: DataFrame, run_date: date, config: Config) -> DataFrame:
    """Labelled impressions of the newest two windows whose labels are final on the run date, with `half`.

    The windows end where the longest attribution window before the run date begins. half: HOLD_OUT or UNDER_THE_MASK.
    """
    end = midnight(run_date) - timedelta(seconds=longest_window_s(config))
    period = Period(end - timedelta(days=2 * config.mask.window_days), end)
    half = F.when(holdout_users(), F.lit(HOLD_OUT)).otherwise(F.lit(UNDER_THE_MASK)).cast("int")
    return labelled.where(period.sql("event_ts")).withColumn("half", half)


def in_force(run: Run) -> Published | None:
    """The newest mask version with status `published` from before the run date."""
    if not run.warehouse.exists(run.spark, MASKS.name):
        return None
    masks = run.warehouse.read(run.spark, MASKS.name)
    rows = masks.where((F.col("status") == "published") & (F.col("run_date") < F.lit(run.run_date)))
    redundant = F.col("reason").contains(REDUNDANT)
    rows = rows.groupBy("mask_version", "run_date", "seq").agg(
        F.collect_list(F.when(~F.col("keep") & ~redundant, F.struct("segment_id", "stream"))).alias("dropped")
    )
    newest = rows.orderBy(F.col("run_date").desc(), F.col("seq").desc(), "mask_version").limit(1).collect()
    if not newest:
        return None
    row = newest[0]
    dropped = frozenset((int(c["segment_id"]), str(c["stream"])) for c in row["dropped"])
    return Published(str(row["mask_version"]), row["run_date"], dropped)


def still_restored(run: Run) -> dict[Cell, Restoration]:
    """Cells that a watch of the last `calendar.days` days brought back, this run date's own watch included."""
    if not run.warehouse.exists(run.spark, MASK_AUDIT.name):
        return {}
    audit = run.warehouse.read(run.spark, MASK_AUDIT.name).where(F.col("rule").startswith(RESTORED))
    dates = run.warehouse.read(run.spark, MASKS.name).select("mask_version", "run_date").distinct()
    stay = timedelta(days=run.config.calendar.days)
    rows = (
        audit.join(dates, "mask_version")
        .where((F.col("run_date") > F.lit(run.run_date - stay)) & (F.col("run_date") <= F.lit(run.run_date)))
        .orderBy("run_date", "mask_version", "segment_id", "stream", "rule")
        .collect()
    )
    return {
        (int(r["segment_id"]), str(r["stream"])): Restoration(
            r["run_date"], str(r["rule"]).removeprefix(RESTORED), float(r["value"]), float(r["limit"]),
            r["run_date"] + stay,
        )
        for r in rows
    }  # fmt: skip


def write_watch(run: Run, watched: Watched, result: StepResult) -> None:
    """Note in `mask_audit` what the published mask's drops are shown to cost, in place of the note before."""
    if watched.published is None or watched.today is None:
        return
    result.facts["watch"] = f"{watched.published.version} {watched.today.reason}"
    version, limit = watched.published.version, run.config.mask.ne_budget
    row: dict[str, Any] = {
        "mask_version": version, "segment_id": COLD_SEGMENT, "tier": TIER, "stream": EVERY_STREAM, "rule": COST,
        "value": watched.today.cost, "limit": limit, "passed": watched.today.cost <= limit,
    }  # fmt: skip
    where = equals(mask_version=version, rule=COST)
    note = table_frame(run.spark, MASK_AUDIT, [row])
    result.tables["mask_audit"] = run.warehouse.replace(run.spark, MASK_AUDIT, note, where=where)


def obsolete(run: Run) -> tuple[str, str] | None:
    """(version, why) of the published mask that has to be retired on this run date; None where it stays in force."""
    published = in_force(run)
    if published is None:
        return None
    age, ttl = (run.run_date - published.run_date).days, run.config.mask.ttl_days
    if age >= ttl:
        return published.version, f"expired: {age} days old, retired from {ttl} on"
    audit = run.warehouse.read(run.spark, MASK_AUDIT.name)
    own = audit.where((F.col("mask_version") == published.version) & (F.col("rule") == COST))
    for row in own.where(~F.col("passed")).collect():
        cost, limit = float(row["value"]), float(row["limit"])
        return published.version, f"harmful: what it drops costs {cost:.3%} NE, budget {limit:.3%}"
    return None
