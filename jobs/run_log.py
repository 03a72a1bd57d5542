"""The run log: what each step read, wrote, counted and how long it took; skipping rests on it.

A step is skipped when a `done` row with the same fingerprint exists and its output tables are still
there. The log itself is in no fingerprint. (docs/architecture.md, "Skipping")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import dynamix
import dynamix.features
import dynamix.jobs
import dynamix.models
import dynamix.segmentation
from dynamix.contracts import RUN_LOG
from dynamix.features.sql_text import equals, one_of
from dynamix.features.tables import Warehouse
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.hidden import hide

_NAMED_VERSION = {
    "masks": "mask_version",
    "segments": "segment_version",
    "segment_registry": "segment_version",
}


@dataclass(frozen=True)
class Step:
    """A verb as a node of the cycle: what it reads, what it writes, which config sections it depends on."""

    verb: str
    action: Callable[..., StepResult]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    sections: tuple[str, ...]


@cache
def source_hash() -> str:
    """SHA-256 over the package's own Python and template files, so that new code runs its steps again."""
    digest = hashlib.sha256(dynamix.__version__.encode())
    found: dict[str, bytes] = {}
    for package in (dynamix, dynamix.features, dynamix.segmentation, dynamix.models, dynamix.jobs):
        found |= _sources(files(package), package.__name__.replace(".", "/"))
    for name, text in sorted(found.items()):
        digest.update(name.encode())
        digest.update(text)
    return digest.hexdigest()[:16]


def _sources(folder: Traversable, name: str) -> dict[str, bytes]:
    """Text of each Python and template file by its name below the package, which may be a folder or a zip."""
    found: dict[str, bytes] = {}
    for one in folder.iterdir():
        if one.is_dir() and one.name != "__pycache__":
            found |= _sources(one, f"{name}/{one.name}")
        elif one.name.endswith((".py", ".j2")):
            found[f"{name}/{one.name}"] = one.read_bytes()
    return found


def content_id(spark: SparkSession, warehouse: Warehouse, name: str) -> str:
    """What a table holds, as far as a reader can tell: its named versions, else its last data-changing commit.

    Named versions are hashes of content, so that a status written beside them does not run a step again.
    """
    if not warehouse.exists(spark, name):
        return "absent"
    named = _NAMED_VERSION.get(name)
    if named is None:
        return f"v{warehouse.data_version(spark, name)}"
    found = warehouse.read(spark, name).select(named).distinct().collect()
    versions = sorted(str(row[named]) for row in found)
    digest = hashlib.sha256("|".join(versions).encode()).hexdigest()[:8]
    return f"{versions[-1] if versions else 'empty'}+{digest}"


def source_id(source: str) -> str:
    """Identity of a raw source: names, sizes and modification times of its files, or the table name."""
    root = Path(source)
    if not root.exists():
        return source
    root = root / "events" if (root / "events").is_dir() else root
    files = sorted(p for p in ([root] if root.is_file() else root.rglob("*")) if p.is_file())
    listing = [(str(p.relative_to(root.parent)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]


def fingerprint(run: Run, step: Step, *, source: str | None = None, extra: Iterable[str] = ()) -> str:
    """Hash of everything the step's result depends on."""
    parts = {
        "step": step.verb,
        "run_date": str(run.run_date),
        "config": run.config.digest(*step.sections),
        "code": source_hash(),
        "inputs": {name: content_id(run.spark, run.warehouse, name) for name in step.reads},
        "source": source_id(source) if source else "",
        "extra": sorted(extra),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def is_done(run: Run, step: Step, mark: str) -> bool:
    """True iff the newest `done` row of this step has this fingerprint and its tables still exist."""
    if not all(run.warehouse.exists(run.spark, name) for name in step.writes):
        return False
    if not run.warehouse.exists(run.spark, RUN_LOG.name):
        return False
    log = run.warehouse.read(run.spark, RUN_LOG.name)
    done = log.where((F.col("step") == step.verb) & (F.col("status") == "done"))
    last = done.orderBy(F.col("logged_at").desc()).select("fingerprint").limit(1).collect()
    return bool(last) and last[0]["fingerprint"] == mark


@dataclass(frozen=True)
class Entry:
    """What the run log says of a step of a run."""

    step: Step
    status: str
    mark: str
    result: StepResult
    seconds: float = 0.0
    message: str = ""


def record(run: Run, entries: Sequence[Entry]) -> None:
    """Write the rows of some steps of this run (replacing earlier ones of the same run and steps), in one commit."""
    frame = run.spark.createDataFrame([_row(run, entry) for entry in entries], RUN_LOG.ddl())
    where = f"{equals(run_id=run.run_id)} AND {one_of('step', [entry.step.verb for entry in entries])}"
    run.warehouse.replace(run.spark, RUN_LOG, frame, where=where, empty=not entries)


def _row(run: Run, entry: Entry) -> tuple[object, ...]:
    step, result = entry.step, entry.result
    counters = {name: float(value) for name, value in {**result.counters, **result.metrics}.items()}
    inputs = {name: content_id(run.spark, run.warehouse, name) for name in step.reads}
    return (
        run.run_id,
        step.verb,
        run.run_date,
        entry.status,
        run.config.digest(),
        entry.mark,
        inputs,
        {name: str(version) for name, version in result.tables.items()},
        result.counters.get("rows_read"),
        result.counters.get("rows_kept"),
        result.counters.get("rows_deduplicated"),
        result.counters.get("rows_quarantined"),
        counters,
        entry.seconds,
        hide(entry.message),
        datetime.now(UTC).replace(tzinfo=None),
    )


def history(run: Run) -> DataFrame:
    """All rows of the run log, newest first."""
    return run.warehouse.read(run.spark, RUN_LOG.name).orderBy(F.col("logged_at").desc())
