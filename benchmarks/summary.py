"""What a warehouse holds after a cycle, as the lines that docs/experiments.md shows: `python -m benchmarks summary`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dynamix.features.tables import Warehouse
from dynamix.jobs.session import get_spark


def main(root: Path) -> None:
    """Print rows, sessions, segments, verdicts with reasons and the arms of the newest training."""
    spark, place = get_spark(), Warehouse(root)
    for line in (*data_lines(spark, place), *mask_lines(spark, place), *arm_lines(newest_evidence(place))):
        print(line, flush=True)


def data_lines(spark: SparkSession, place: Warehouse) -> Iterator[str]:
    """Rows of the last ingest, sessions, and users per segment at the run date."""
    log = place.read(spark, "run_log").where("step = 'ingest' AND status = 'done'")
    row = log.orderBy(F.col("logged_at").desc()).limit(1).collect()[0]
    yield (
        f"rows in {row['rows_read']:,} = {row['rows_kept']:,} kept + {row['rows_deduplicated']:,} deduplicated + "
        f"{row['rows_quarantined']:,} quarantined; sessions {place.read(spark, 'ebf_session').count():,}"
    )
    now = place.read(spark, "segments").where("valid_to IS NULL")
    rows = now.groupBy("segment_id", "segment_name").count().orderBy("segment_id").collect()
    yield "users: " + "; ".join(f"{r['segment_name']} {r['count']:,}" for r in rows)


def mask_lines(spark: SparkSession, place: Warehouse) -> Iterator[str]:
    """Verdicts of the newest mask version with what their reasons begin with."""
    proposals = place.read(spark, "masks").where("status <> 'control'")
    newest = proposals.agg(F.max_by("mask_version", F.struct("run_date", "seq")).alias("v")).collect()[0]["v"]
    rows = proposals.where(F.col("mask_version") == newest).select("verdict", "reason", "status").collect()
    kinds = Counter((r["verdict"], r["reason"].split(":")[0].split(";")[0]) for r in rows)
    yield f"mask {newest} ({rows[0]['status']}): " + ", ".join(
        f"{sum(n for (v, _), n in kinds.items() if v == verdict)} {verdict}"
        for verdict in ("keep", "drop", "undecided")
    )
    for (verdict, reason), n in sorted(kinds.items(), key=lambda item: (item[0][0], -item[1])):
        yield f"  {n:4d} {verdict}: {reason}"


def newest_evidence(place: Warehouse) -> dict[str, Any]:
    """The newest evidence.json of the warehouse."""
    pages = sorted((place.private / "runs").glob("*/evidence.json"), key=lambda p: p.stat().st_mtime)
    found: dict[str, Any] = json.loads(pages[-1].read_text(encoding="utf-8"))
    return found


def arm_lines(evidence: dict[str, Any]) -> Iterator[str]:
    """Arms on validation and test rows, baselines, throughput ratios, gates."""
    label = evidence["label"]
    arms = {a["arm"]: a for a in evidence["arms"]}
    base = arms["keep-all"]
    for part, listed in (("validate", arms), ("test", evidence["test"])):
        simple = evidence["baselines"][part][label]
        some = listed["keep-all"]
        yield (
            f"{part}: {some['rows']:,} rows, {some['positives']:,.0f} positives; NE of the base rate "
            f"{simple['base_rate']['ne']:.4f}, of logistic regression {simple['logistic']['ne']:.4f}"
        )
        for name, arm in listed.items():
            low, high = arm["ne_ci"]
            closure = arm.get("oracle_gap_closure")
            yield (
                f"  {name:9s} NE {arm['ne']:.4f} [{low:.4f}, {high:.4f}], AUC {arm['auc']:.4f}, calibration "
                f"{arm['calibration']:.3f}, {arm['tokens_per_impression']:.1f} tokens an impression"
                + (f", oracle gap closed {closure:.3f}" if closure is not None else "")
            )
    yield f"test rows with a warm segment: {evidence['test_rows_warm']:,}"
    for name, arm in arms.items():
        tokens = 1 - arm["tokens_per_impression"] / base["tokens_per_impression"]
        train, infer = (arm[k] / base[k] for k in ("train_rows_s", "infer_rows_s"))
        yield (
            f"  {name:9s} tokens removed {tokens:6.1%}; rows/s against keep-all: training {train:.2f}, inference "
            f"{infer:.2f}; {arm['train_rows_s']:,.0f}, {arm['infer_rows_s']:,.0f}, loader {arm['load_rows_s']:,.0f}"
        )
    fit = evidence["batch_seconds"]
    yield (
        f"a training batch of {fit['batch_size']:,} rows: {1e3 * fit['intercept']:.2f} ms + "
        f"{1e9 * fit['per_token']:.0f} ns a token"
    )
    yield f"mask gate: {evidence.get('reason', 'no masked arm')}"
    if "worth_of_segments_pct" in evidence:
        low, high = evidence["worth_ci"]
        yield f"masked against one mask for all: {evidence['worth_of_segments_pct']:+.3f} % [{low:+.3f}, {high:+.3f}]"
    yield f"ranker gate: {evidence['ranker_gate']['reason']}"
