"""Our sums beside the package mrmr-selection where the criteria coincide: picks, seconds and Spark jobs.

`python -m benchmarks mrmr`. The case in which they coincide: one label, no clusters, one channel a stream,
a constant prediction; criterion F statistic over mean absolute correlation (`classic(..., criterion="miq")`, mRMR's
"FCQ"). The package is not among the project's dependencies; where it cannot be imported its rows are left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame

from dynamix.contracts import CHANNELS
from dynamix.features.gram import GramSums, gram_sums
from dynamix.features.recency import SHARED
from dynamix.jobs.session import get_spark
from dynamix.segmentation.selection import classic

Floats = npt.NDArray[np.float64]
MISSING = "mrmr-selection is not installed: its rows are left out (install it beside this environment, not into the lock)"
PER_GROUP = 4
"""Streams that share a latent exposure: redundancy is there to be found."""


@dataclass(frozen=True)
class Run:
    """One way of picking: what it took, how long, and in how many Spark jobs."""

    name: str
    picks: tuple[int, ...]
    seconds: float
    jobs: int


def drawn(rows: int, streams: int, *, seed: int) -> tuple[Floats, Floats]:
    """Exposures (B, F), alike in groups of PER_GROUP, and labels (B,) that follow them."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(rows, -(-streams // PER_GROUP)))
    x = shared[:, np.arange(streams) // PER_GROUP] + rng.normal(size=(rows, streams))
    line = -2.5 + x @ rng.normal(0, 0.15, streams)
    return x, (rng.random(rows) < 1 / (1 + np.exp(-line))).astype(np.float64)


def packed(x: Floats, y: Floats, rate: float) -> Floats:
    """`GramSums` of impressions with one exposure a stream, in the place of the dwell, each of its own user."""
    block = np.zeros((*x.shape, len(CHANNELS)))
    block[:, :, CHANNELS.index("dwell")] = x
    return gram_sums(block, np.zeros((len(y), SHARED)), y, np.full(len(y), rate), np.arange(len(y)))


def ours(x: Floats, y: Floats, k: int) -> tuple[int, ...]:
    """Picks from one pass over the arrays."""
    sums = GramSums.unpack(packed(x, y, float(y.mean())))
    return tuple(classic(sums, range(x.shape[1]), k=k))


def ours_on_spark(frame: DataFrame, streams: int, k: int) -> tuple[int, ...]:
    """Picks from one pass over a Spark frame with columns y, f0, f1, …; the base rate is one aggregate before it."""
    rate = float(frame.agg({"y": "avg"}).collect()[0][0])

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        total: Floats | None = None
        for batch in batches:
            x = np.column_stack([batch.column(f"f{f}").to_numpy() for f in range(streams)])
            own = packed(x, batch.column("y").to_numpy(), rate)
            total = own if total is None else total + own
        if total is not None:
            yield pa.record_batch({"sums": pa.array([total])})

    rows = frame.mapInArrow(work, "sums array<double>").collect()
    total = sum(np.asarray(r["sums"]) for r in rows)
    return tuple(classic(GramSums.unpack(total), range(streams), k=k))


def package(module: str) -> Any | None:
    """Module of the package (`mrmr`, `mrmr.spark`), None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        return None


def main(
    *, rows: int = 50_000, streams: int = 60, k: int = 10, spark_streams: int = 20, spark_k: int = 5
) -> None:
    """Print picks, seconds and jobs of both sides, in memory and on Spark; SystemExit where the picks differ."""
    x, y = drawn(rows, streams, seed=0)
    peer = package("mrmr")
    if peer is None:
        print(MISSING)
    runs = [_timed("ours, one pass in NumPy", lambda: ours(x, y, k))]
    if peer is not None:
        table, label = pd.DataFrame(x, columns=[str(f) for f in range(streams)]), pd.Series(y)
        runs.append(
            _timed(
                "mrmr-selection, pandas",
                lambda: _numbers(peer.mrmr_classif(table, label, K=k, n_jobs=1, show_progress=False)),
            )
        )
    _print(f"{rows:,} rows, {streams} streams, {k} picks", runs)
    spark = get_spark("mrmr-bench")
    names = {f: f"f{f}" for f in range(spark_streams)}
    frame = spark.createDataFrame(
        pd.DataFrame(x[:, :spark_streams]).rename(columns=names).assign(y=y)
    ).persist()
    frame.count()
    runs = []
    for warm in (False, True):
        said = "warm" if warm else "cold"
        runs.append(_on_spark(f"ours, Spark, {said}", lambda: ours_on_spark(frame, spark_streams, spark_k)))
    if peer is not None:
        other = importlib.import_module("mrmr.spark")
        runs.append(
            _on_spark(
                "mrmr-selection, Spark",
                lambda: _numbers(
                    other.mrmr_classif(frame, K=spark_k, target_column="y", show_progress=False)
                ),
            )
        )
    _print(f"{rows:,} rows, {spark_streams} streams, {spark_k} picks", runs)


def _numbers(picks: list[str]) -> tuple[int, ...]:
    return tuple(int(name.removeprefix("f")) for name in picks)


def _timed(name: str, run: Callable[[], tuple[int, ...]]) -> Run:
    began = perf_counter()
    picks = run()
    return Run(name, picks, perf_counter() - began, 0)


def _on_spark(name: str, run: Callable[[], tuple[int, ...]]) -> Run:
    spark = get_spark("mrmr-bench")
    spark.sparkContext.setJobGroup(name, name)
    done = _timed(name, run)
    return Run(
        name, done.picks, done.seconds, len(spark.sparkContext.statusTracker().getJobIdsForGroup(name))
    )


def _print(said: str, runs: list[Run]) -> None:
    print(f"{said}\n| | s | Spark jobs | picks |\n|---|---|---|---|")
    for run in runs:
        print(f"| {run.name} | {run.seconds:.2f} | {run.jobs or ''} | {' '.join(map(str, run.picks))} |")
    if len({run.picks for run in runs}) > 1:
        raise SystemExit(f"the picks differ: {[run.picks for run in runs]}")
