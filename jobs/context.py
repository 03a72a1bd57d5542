"""What every verb gets (`Run`) and gives back (`StepResult`)."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from dynamix.config import Config
from dynamix.features.tables import Warehouse
from dynamix.jobs.hidden import shown
from dynamix.jobs.progress_bar import CLEAR
from dynamix.models.model_names import stated_schema
from dynamix.models.registry import Registry
from dynamix.models.stated_store import STATED


@dataclass(frozen=True)
class Run:
    """One run of one or more verbs: session, places, config, and the date that it may see up to."""

    spark: SparkSession
    warehouse: Warehouse
    config: Config
    run_date: date
    run_id: str
    quiet: bool = False

    @property
    def folder(self) -> Path:
        """`W/_dynamix/runs/<run_id>`, made on first use."""
        path = self.warehouse.private / "runs" / self.run_id
        path.mkdir(parents=True, exist_ok=True)
        return path

    def registry(self, tracking_uri: str = "") -> Registry:
        """The store at `tracking_uri`, else at MLFLOW_TRACKING_URI, else SQLite in the warehouse."""
        return registry_of(self.warehouse.private, tracking_uri)

    def note(self, text: str) -> None:
        """A line of progress on standard error and in the run's log, without secrets."""
        text = shown(text)
        if not self.quiet:
            print(f"{CLEAR}{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)
        with (self.folder / "run.log").open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC):%H:%M:%S} {text}\n")


def registry_of(private: Path, tracking_uri: str = "") -> Registry:
    """As `Run.registry`, for verbs that need no session; `private` is `W/_dynamix`."""
    return Registry(private, tracking_uri or os.environ.get(STATED, ""), stated_schema(os.environ))


@dataclass
class StepResult:
    """What a verb wrote and found; `tables` maps a table to its new version."""

    tables: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    verdicts: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def new_run_id() -> str:
    """`YYYYMMDDTHHMMSSZ-<6 hex>`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.urandom(3).hex()}"
