"""Latency and rows/s of serving: the registered pyfunc and the mask bundle's reader: `python -m benchmarks serving`.

A model of the demo's size (25 streams, 4 segments, histories of at most 200 events) with drawn weights: time does not
depend on them. Requests are raw, dwells to be derived, segment and tier to be worked out from the events.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch

from dynamix.contracts import N_DWELL_BINS
from dynamix.features.calendar import DAY_US
from dynamix.models.bundle import Origin, bundle_text
from dynamix.models.dwells import DwellRule
from dynamix.models.mask_reader import MaskBundle
from dynamix.models.ranker import Ranker, RankerConfig
from dynamix.models.registered import load_pyfunc
from dynamix.models.registry import Registry, log_training, register_ranker
from dynamix.models.segmenter import Segmenter
from dynamix.models.service import RankerService, request_table, write_artefacts
from dynamix.models.serving import Cell, Preparation, StreamScale, prepare
from dynamix.models.trunks.base import TrunkConfig

STREAMS = [f"{surface}/{kind}" for surface in ("feed", "shop", "news", "search", "shorts")
           for kind in ("view", "like", "share", "save", "comment")]  # fmt: skip
SEGMENTS, BUCKETS, DAYS = (1, 2, 3, 4), 20_000, 35
SINCE_US = 20_000 * DAY_US
NOW_US = SINCE_US + DAYS * DAY_US + DAY_US // 2
ONE_ROW, READER, BATCH = 300, 2_000, 1_000


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls of one kind (N,), after a warm-up, and the rows of one call."""

    what: str
    seconds: np.ndarray
    rows: int = 1

    def line(self) -> str:
        """Median, 99th percentile and rows/s by the median."""
        p50, p99 = np.quantile(self.seconds, [0.5, 0.99])
        size = f"{len(self.seconds)} x {self.rows:,}"
        return f"| {self.what} | {size} | {1e3 * p50:.2f} | {1e3 * p99:.2f} | {self.rows / p50:,.0f} |"


def preparation() -> Preparation:
    """History rule, streams, mask and mixture of a model like the demo's; every third cell is dropped."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(len(STREAMS) * N_DWELL_BINS, 0.2), size=len(SEGMENTS)) + 1e-6
    cells = tuple(
        Cell(segment, "*", name, 0 if (segment + i) % 3 == 0 else 50)
        for segment in (0, *SEGMENTS)
        for i, name in enumerate(STREAMS)
    )
    return Preparation(
        streams={name: StreamScale(i, 9.0, 1.4) for i, name in enumerate(STREAMS)}, surfaces=("feed", "shop"),
        heads=("click", "conversion"), item_buckets=BUCKETS, per_stream=50, total=200, embargo_s=60, mask_version="m1",
        segment_version="s1", cells=cells,
        segmenter=Segmenter(SEGMENTS, np.log(p / p.sum(axis=1, keepdims=True)), np.log(np.full(4, 0.25)), 0.9, 15, 14.0,
                            since_us=SINCE_US),
        dwell=DwellRule(derive=True, gap_us=1_800_000_000, length_us=DAY_US, caps_ms=dict.fromkeys(range(25), 600_000)),
    )  # fmt: skip


def histories(rows: int, events: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Requests of the reader's form: `events` raw events over five weeks in sessions, newest last, no dwell logged."""
    rng = np.random.default_rng(seed)
    asked = []
    for number in range(rows):
        opens = rng.random(events) < 0.2
        waits = np.where(
            opens, rng.exponential(DAYS * DAY_US / (events * 0.2), events), rng.exponential(20e6, events)
        )
        times = NOW_US - np.cumsum(np.minimum(waits, 3 * DAY_US)).astype(np.int64)[::-1]
        drawn = rng.integers(len(STREAMS), size=events)
        listed = [
            {"stream": STREAMS[f], "ts": int(t)} for f, t in zip(drawn, times, strict=True) if t > SINCE_US
        ]
        asked.append({"user_id": f"user-{number}", "request_ts": NOW_US, "events": listed})
    return asked


def frame(requests: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The same requests as rows of the pyfunc."""

    def event(raw: dict[str, Any]) -> dict[str, str]:
        return {
            "stream": raw["stream"],
            "ts": pd.Timestamp(raw["ts"], unit="us").isoformat(),
            "item_id": "i1",
        }

    return pd.DataFrame({
        "user_id": [r["user_id"] for r in requests],
        "request_ts": [pd.Timestamp(r["request_ts"], unit="us") for r in requests],
        "surface": "feed", "item_id": "i1",
        "events": [[event(raw) for raw in r["events"]] for r in requests],
    })  # fmt: skip


def service(place: Path) -> RankerService:
    """A ranker with drawn weights, written and loaded as a registered one is."""
    own = preparation()
    trunk = TrunkConfig(len(STREAMS), 1 + max(SEGMENTS), 3, BUCKETS)
    rows, _ = prepare(request_table(frame(histories(4, 20))), own)
    ranker = Ranker(RankerConfig(trunk, own.heads, own.surfaces), seed=0)
    return RankerService.load(write_artefacts(place / "model", ranker, own, example=rows))


def registered(place: Path) -> Any:
    """That ranker as MLflow loads it from a registry of its own."""
    registry = Registry(place / "_dynamix")
    run_id = log_training(registry, parent="benchmark", children=[], params={}, metrics={}, tags={})
    example = frame(histories(1, 20))
    version = register_ranker(
        registry, folder=place / "model", run_id=run_id, metrics={}, tags={}, example=example
    )
    return load_pyfunc(registry, version.address)


def timed(work: Callable[[Any], object], inputs: Sequence[Any]) -> np.ndarray:
    """Seconds of each call after a tenth of the calls as a warm-up."""
    for one in inputs[: max(2, len(inputs) // 10)]:
        work(one)
    seconds = []
    for one in inputs:
        start = perf_counter()
        work(one)
        seconds.append(perf_counter() - start)
    return np.array(seconds)


def timings(pyfunc: Any, served: RankerService, *, events: int, scale: float = 1.0) -> Iterator[Timing]:
    """Reader and pyfunc on one row, the pyfunc's parts on a batch; `scale` shrinks the number of calls."""
    bundle = MaskBundle(bundle_text(served.preparation, Origin("benchmark", "published", "", "")))
    requests = histories(max(4, round(ONE_ROW * scale)), events)
    calls = [requests[i % len(requests)] for i in range(max(4, round(READER * scale)))]
    yield Timing("mask bundle's reader, one row", timed(lambda r: bundle.apply(**r), calls))
    known = [{**r, "segment_id": 1, "tier": "active"} for r in calls]
    yield Timing("the same, segment handed in", timed(lambda r: bundle.apply(**r), known))
    yield Timing("pyfunc, one row", timed(pyfunc.predict, [frame([r]) for r in requests]))
    batch = max(4, round(BATCH * scale))
    many = frame(histories(batch, events))
    yield Timing("pyfunc, batch", timed(pyfunc.predict, [many] * 5), batch)
    table = request_table(many)
    yield Timing(
        "of it: preparation in NumPy", timed(lambda t: prepare(t, served.preparation), [table] * 5), batch
    )
    rows = prepare(table, served.preparation)[0]
    yield Timing("of it: exported program", timed(served.score, [rows] * 5), batch)


def main(events: Sequence[int] = (50, 200), *, scale: float = 1.0) -> None:
    """Print one table per history length; torch takes two threads, as in training."""
    torch.set_num_threads(2)
    for length in events:
        print(f"{length} raw events a request", flush=True)
        print("| what | calls x rows | p50 ms | p99 ms | rows/s |\n|---|---|---|---|---|", flush=True)
        with tempfile.TemporaryDirectory() as place:
            served = service(Path(place))
            for timing in timings(registered(Path(place)), served, events=length, scale=scale):
                print(timing.line(), flush=True)
