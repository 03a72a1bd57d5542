"""What is predicted without the history, which relevance starts from: fitted on the rows, or the champion's scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.errors import ConfigError
from dynamix.features.relevance import Prediction, rate_table
from dynamix.jobs.context import Run
from dynamix.segmentation.given import Rates, fit_given


def prediction_without_history(
    run: Run, rows: DataFrame, given: str, labels: Sequence[str], n_segments: int
) -> tuple[Prediction, DataFrame]:
    """p of every label without history, and the rows with whatever it needs."""
    if given == "champion":
        return Prediction(column="given"), _with_scores(run, rows, run.config.heads())
    found = rate_table(rows, labels).orderBy("surface", "position", "segment_id").collect()
    rates = Rates(
        [str(r["surface"]) for r in found],
        np.array([r["position"] for r in found], np.int64),
        np.array([r["segment_id"] for r in found], np.int64),
        np.array([r["n"] for r in found], np.float64),
        {label: np.array([r[label] for r in found], np.float64) for label in labels},
    )
    return fit_given(rates, kind=given, n_segments=n_segments), rows


def _with_scores(run: Run, rows: DataFrame, heads: Sequence[str]) -> DataFrame:
    """Rows with given_<head> from the newest scores; impressions without a score are left out."""
    if not run.warehouse.exists(run.spark, "scores"):
        raise ConfigError("--given champion needs scores; run `dynamix score` first, or use --given baseline")
    scores = run.warehouse.read(run.spark, "scores")
    newest = scores.agg(F.max_by("model_version", "scored_at").alias("v"))
    scores = scores.join(F.broadcast(newest), F.col("model_version") == F.col("v"))
    for head in heads:
        own = scores.where(F.col("label") == head).select(
            F.col("impression_id").alias("event_id"), F.col("score").alias(f"given_{head}")
        )
        rows = rows.join(own, "event_id")
    if rows.limit(1).isEmpty():
        raise ConfigError(
            "--given champion: no impression of the statistics period has a score; score those days, or use "
            "--given baseline"
        )
    return rows
