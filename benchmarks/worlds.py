"""Segments and masks on simulated worlds with known truth: `python -m benchmarks worlds [--presets S0,S8]`.

Per world: ARI of the argmax posterior over all users beside the Bayes-optimal one on the same events, coverage of
the confident rule, and the share of null tokens dropped beside that of the same rule fed with the true segments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn.metrics import adjusted_rand_score

from dynamix.config import MaskConfig, load_config
from dynamix.features.recency import BUCKETS, EDGES
from dynamix.features.simulate import bayes_segments, simulate
from dynamix.features.tables import Warehouse
from dynamix.jobs.cell_stats import Measured
from dynamix.jobs.context import Run, new_run_id
from dynamix.jobs.features import cycle_calendar, seen_events
from dynamix.jobs.mask import measure, newest_segments
from dynamix.jobs.run import execute
from dynamix.jobs.session import get_spark
from dynamix.jobs.verbs import latest_run_date
from dynamix.segmentation.cells import Statistics
from dynamix.segmentation.masks import Verdict, judge
from dynamix.segmentation.quota import Spent, quotas, tail

SETTINGS = ("mask.ne_budget=0.005", "mask.delta=0.20")
STRONG = ("strong", "match")


@dataclass(frozen=True)
class Dropped:
    """Tokens dropped by planted kind as shares of that kind's tokens, and strong cells dropped."""

    null_share: float
    weak_share: float
    all_share: float
    strong_cells: int


@dataclass(frozen=True)
class Lengths:
    """Quotas against planted horizons, over kept cells in which dwell acts and a shorter history could be shown to do.

    `within_one`: share of them whose quota lies in the horizon's bucket or the next; `exact` in the same one; `short`
    below it. `older_share`: events beyond the quotas, of all tokens.
    """

    cells: int
    within_one: float
    exact: float
    short: float
    older_share: float


def measure_world(preset: str, folder: Path, *, users: int, seed: int) -> dict[str, Any]:
    """Simulate, run the cycle up to the masks, and compare with the truth."""
    world = folder / f"{preset}-{seed}"
    if not (world / "dynamix.yaml").is_file():
        simulate(world, preset=preset, users=users, days=42, seed=seed)
    run = cycle_to_masks(world, folder / f"{preset}-{seed}-warehouse")
    truth = pd.read_parquet(world / "truth_users").rename(columns={"segment": "true"})
    cells = pd.read_parquet(world / "truth_cells")
    segments, version, names = newest_segments(run)
    found = segment_quality(run, world, truth)
    kinds = {(int(r.segment), str(r.stream)): str(r.kind) for r in cells.itertuples()}
    own, _ = measure(run, "baseline", segments, version, names)
    mapping = majority(segments.where("valid_to IS NULL").select("user_id", "segment_id").toPandas(), truth)
    planted_of = {g: mapping.get(g, 0) for g in names}
    verdicts = judge(own.statistics, run.config.mask)
    found["own"] = dropped(own.statistics, verdicts, planted_of, kinds)
    known = cells[cells["horizon"].notna() & (cells["kind"] != "u")]
    horizons = {(int(r.segment), str(r.stream)): int(r.horizon) for r in known.itertuples()}
    found["lengths"] = lengths(own, verdicts, run.config.mask, planted_of, horizons)
    planted = for_all_time(run.spark, truth.rename(columns={"true": "segment_id"}))
    ids = {int(g): f"true {g}" for g in sorted(truth["true"].unique())}
    ideal, _ = measure(run, "baseline", planted, "given", {0: "cold", **ids})
    found["true"] = dropped(
        ideal.statistics, judge(ideal.statistics, run.config.mask), {g: g for g in ids}, kinds
    )
    return found


def cycle_to_masks(events: Path, warehouse: Path, settings: Sequence[str] = SETTINGS) -> Run:
    """The cycle up to the masks on a folder of events with its dynamix.yaml; steps that are done are skipped."""
    spark, place = get_spark(), Warehouse(warehouse)
    config = load_config(files=[events / "dynamix.yaml"], settings=list(settings))
    run = Run(spark, place, config, latest_run_date(spark, place, config, str(events)), new_run_id())
    for verb in ("ingest", "features", "segment", "mask"):
        execute(run, verb, skip=True, source=str(events) if verb == "ingest" else None)
    return run


def for_all_time(spark: SparkSession, users: pd.DataFrame) -> DataFrame:
    """Rows as in `segments` that give each user (user_id, segment_id) one segment at all times."""
    return spark.createDataFrame(users[["user_id", "segment_id"]]).select(
        "user_id", F.col("segment_id").cast("int").alias("segment_id"), F.lit("passive").alias("tier"),
        F.lit("given").alias("segment_version"), F.lit("1970-01-01").cast("timestamp").alias("valid_from"),
        F.lit(None).cast("timestamp").alias("valid_to"),
    )  # fmt: skip


def segment_quality(run: Run, world: Path, truth: pd.DataFrame) -> dict[str, Any]:
    """ARI of the argmax posterior at the run date, the Bayes-optimal ARI on the same events, coverage, events."""
    current = run.warehouse.read(run.spark, "segments").where("valid_to IS NULL")
    best = F.array_max(F.transform(F.map_entries("posterior"), lambda e: F.struct(e["value"], e["key"])))[
        "key"
    ]
    rows = current.select("user_id", "segment_id", "n_events", best.alias("argmax")).toPandas()
    joined = truth.merge(rows, on="user_id", how="left")
    argmax = joined["argmax"].fillna(0).astype(int)
    mixes = pd.read_parquet(world / "truth_segments")
    streams = sorted(mixes["stream"].unique())
    mix = mixes.pivot(index="segment", columns="stream", values="mix")[streams]
    share = mixes.groupby("segment")["share"].first()
    events = run.warehouse.read(run.spark, "events").where(
        F.col("event_type").isin(*run.config.impression_types, *run.config.conversion_types) == F.lit(False)
    )
    name = F.concat_ws("/", "surface", "event_type")
    long = events.groupBy("user_id", name.alias("stream")).count().toPandas()
    wide = long.pivot(index="user_id", columns="stream", values="count").reindex(columns=streams)
    counts = wide.reindex(truth["user_id"]).fillna(0).to_numpy(np.int64)
    optimal, _ = bayes_segments(mix.to_numpy(), share.to_numpy(), counts)
    confident = joined["segment_id"].fillna(0) > 0
    calendar = cycle_calendar(run, seen_events(run))
    start, end = calendar.segment_input.start, calendar.next_window.end
    in_fit = events.where((F.col("event_ts") >= F.lit(start)) & (F.col("event_ts") < F.lit(end))).count()
    return {
        "users": len(truth),
        "ari": adjusted_rand_score(joined["true"], argmax),
        "bayes_ari": adjusted_rand_score(joined["true"], optimal),
        "coverage": float(confident.mean()),
        "confident_ari": adjusted_rand_score(joined["true"][confident], joined["segment_id"][confident]),
        "events_per_user": float(joined["n_events"].fillna(0).mean()),
        "fit_events_per_user": in_fit / len(truth),
    }


def majority(assigned: pd.DataFrame, truth: pd.DataFrame) -> dict[int, int]:
    """Segment id -> the planted segment most of its users have."""
    joined = assigned.merge(truth, on="user_id")
    warm = joined[joined["segment_id"] > 0]
    return {int(g): int(x["true"].mode().iloc[0]) for g, x in warm.groupby("segment_id")}


def dropped(
    statistics: Statistics, verdicts: Sequence[Verdict], planted: Mapping[int, int],
    kinds: Mapping[tuple[int, str], str],
) -> Dropped:  # fmt: skip
    """What the rule drops, against the planted kinds; cold cells count in `all_share` only."""
    tokens: dict[tuple[str, bool], float] = {}
    strong = 0
    for v in verdicts:
        kind = kinds.get((planted.get(v.segment_id, 0), v.stream), "none")
        sums = statistics.of((v.segment_id, v.stream), v.head)
        gone = v.verdict == "drop"
        tokens[kind, gone] = tokens.get((kind, gone), 0.0) + (sums.tokens if sums else 0.0)
        strong += gone and kind in STRONG

    def share(*names: str) -> float:
        total = sum(x for (k, _), x in tokens.items() if not names or k in names)
        return sum(x for (k, g), x in tokens.items() if g and (not names or k in names)) / max(total, 1e-12)

    return Dropped(share("null"), share("weak"), share(), strong)


def lengths(
    measured: Measured, verdicts: Sequence[Verdict], config: MaskConfig, planted: Mapping[int, int],
    horizons: Mapping[tuple[int, str], int],
) -> Lengths:  # fmt: skip
    """What the quotas are against the planted horizons; shares are NaN where no cell can be judged."""
    spent = Spent.by_drops(measured.statistics, verdicts)
    cuts = quotas(measured.statistics, verdicts, config, spent=spent)
    chosen = {(q.segment_id, q.stream): EDGES.index(q.events) + 1 for q in cuts}
    steps = []
    for v in verdicts:
        sums = measured.statistics.by_recency((v.segment_id, v.stream), v.head)
        horizon = horizons.get((planted.get(v.segment_id, 0), v.stream))
        if v.verdict == "drop" or sums is None or horizon is None:
            continue
        right = int(np.searchsorted(EDGES, horizon)) + 1
        if right == BUCKETS:
            continue
        beyond = tail(sums, right)
        if beyond.positives >= beyond.needed(config):
            steps.append(chosen.get((v.segment_id, v.stream), BUCKETS) - right)
    head = measured.statistics.heads[0]
    every = sum(s.tokens for s in measured.statistics.by_cell(head).values())
    off = np.array(steps or [np.nan])
    shares = [float(x.mean()) if steps else np.nan for x in (abs(off) <= 1, off == 0, off < 0)]
    return Lengths(len(steps), *shares, sum(q.tokens for q in cuts) / every)


def main(presets: list[str], folder: Path, users: int, seeds: list[int]) -> None:
    for preset in presets:
        for seed in seeds:
            found = measure_world(preset, folder, users=users, seed=seed)
            own, true = found["own"], found["true"]
            print(
                f"{preset} seed {seed}: {found['users']:,} users, {found['events_per_user']:.0f} events a user, "
                f"{found['fit_events_per_user']:.0f} of them in the fit window; "
                f"ARI {found['ari']:.3f} (Bayes-optimal {found['bayes_ari']:.3f}, ratio "
                f"{found['ari'] / found['bayes_ari']:.3f}); coverage {found['coverage']:.3f}, ARI there "
                f"{found['confident_ari']:.3f}"
            )
            print(
                f"  null tokens dropped {own.null_share:.3f}, with the true segments {true.null_share:.3f} (ratio "
                f"{own.null_share / max(true.null_share, 1e-9):.2f}); weak {own.weak_share:.3f} / {true.weak_share:.3f}; "
                f"all {own.all_share:.3f} / {true.all_share:.3f}; strong cells dropped {own.strong_cells} / "
                f"{true.strong_cells}",
                flush=True,
            )
            long: Lengths = found["lengths"]
            print(
                f"  quotas of {long.cells} cells with a horizon that can be shown: within one bucket of it "
                f"{long.within_one:.3f}, equal {long.exact:.3f}, too short {long.short:.3f}; older events cut "
                f"{long.older_share:.3f} of all tokens",
                flush=True,
            )
