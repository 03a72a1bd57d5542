"""`dynamix score`: probabilities of the test part with the registered ranker."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from pyspark.sql import functions as F

from dynamix.contracts import SCORES, TRAINING_ROWS
from dynamix.errors import GuardError
from dynamix.features.sql_text import equals
from dynamix.jobs.arm_rows import load_version
from dynamix.jobs.context import Run, StepResult
from dynamix.models.dataset import JaggedRows
from dynamix.models.registry import CHALLENGER, CHAMPION, RANKER, Registry, artefact_folder, find
from dynamix.models.service import RankerService

_SCHEMA = pa.schema(
    [
        ("impression_id", pa.string()), ("label", pa.string()), ("score", pa.float64()), ("segment_id", pa.int32()),
        ("tier", pa.string()),
    ]
)  # fmt: skip


def score(run: Run, *, model: str | None = None, tracking_uri: str = "") -> StepResult:
    """Score the test part with `model`, by default the champion, else the challenger; says which.

    Writes one row per test impression and served label into `scores`, replacing those of this model version.
    GuardError where no model is registered; ConfigError for an address that does not exist.
    """
    registry = run.registry(tracking_uri)
    address, alias = (model, "") if model else default_model(registry)
    folder, version = artefact_folder(registry, address)
    service = RankerService.load(folder)
    pinned = run.warehouse.version(run.spark, TRAINING_ROWS.name)
    if pinned is None:
        raise GuardError("table 'training_rows' is not written yet; run `dynamix train` first")
    rows = load_version(
        run, "keep-all", pinned=pinned, surfaces=service.preparation.surfaces,
        item_buckets=service.preparation.item_buckets,
    ).select("test")  # fmt: skip
    named = f"version {version.version}{f' ({alias})' if alias else ''}"
    run.note(f"score: {len(rows)} impressions of the test part with {RANKER} {named}")
    result = StepResult(
        facts={"model": version.address, "alias": alias, "mask_version": service.preparation.mask_version}
    )
    result.counters["rows_read"] = len(rows)
    if len(rows) == 0:
        result.warnings.append("the test part holds no mature impression; nothing was scored")
        return result
    result.tables["scores"] = _write(run, service, rows, version.version)
    return result


def default_model(registry: Registry) -> tuple[str, str]:
    """Address and alias of the champion, else of the challenger. GuardError where there is neither."""
    for alias in (CHAMPION, CHALLENGER):
        if find(registry, RANKER, alias) is not None:
            return f"models:/{RANKER}@{alias}", alias
    raise GuardError(f"no version of {RANKER} carries an alias; run `dynamix train` first")


def _write(run: Run, service: RankerService, rows: JaggedRows, version: str) -> int:
    scores = service.score_stored(rows)
    tiers = np.where(rows.tier > 0, "active", "passive")
    tables = [
        pa.table(
            [pa.array(rows.impression, pa.string()), pa.array([head] * len(rows)), pa.array(p),
             pa.array(rows.segment.astype(np.int32)), pa.array(tiers)],
            schema=_SCHEMA,
        )
        for head, p in scores.items()
    ]  # fmt: skip
    frame = run.spark.createDataFrame(pa.concat_tables(tables))
    where = equals(mask_version="keep-all", part="test")
    users = run.warehouse.read(run.spark, TRAINING_ROWS.name).where(where).select("impression_id", "user_id")
    full = (
        frame.join(users, "impression_id")
        .withColumn("model_version", F.lit(version))
        .withColumn("mask_version", F.lit(service.preparation.mask_version))
        .withColumn("scored_at", F.lit(datetime.now(UTC)))
    )
    return run.warehouse.replace(run.spark, SCORES, full, where=equals(model_version=version))
