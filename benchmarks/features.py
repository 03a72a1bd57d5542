"""Session and surface tables from the same events by five engines: `python -m benchmarks features --folder W`.

Each engine is a process of its own with two threads. Per workload every engine first writes both tables once, which
warms it up, and all written columns of all engines are compared; a difference ends the benchmark. Then the rounds are
timed, the engines in turn within each, so that other load hits all alike. The events hold no duplicates (no side
removes any), and no side cuts sessions by length, which `session_window` cannot. Needs duckdb and polars, which the
lock leaves out: `.venv/bin/python -m uv pip install --python .venv/bin/python --editable '.[bench]'`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.features_data import make_events
from benchmarks.features_equal import differences, rows
from benchmarks.processes import Meter

ENGINES = {
    "product": "features_spark:Product",
    "duckdb": "features_native:DuckDB",
    "polars": "features_native:Polars",
    "lag-cumsum": "features_spark:LagCumsum",
    "session-window": "features_spark:SessionWindow",
}
THREADS = 2


@dataclass
class Timing:
    """What one engine took on one workload; lists hold one entry a round."""

    engine: str
    events: int
    hot: bool
    start_s: float
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    rows: dict[str, int] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Worker:
    """A process that holds one engine and runs it on demand; its tree's memory is sampled all the time."""

    def __init__(self, engine: str, memory: str) -> None:
        began = time.perf_counter()
        env = os.environ | {
            "POLARS_MAX_THREADS": str(THREADS),
            "DYNAMIX_MASTER": f"local[{THREADS}]",
            "DYNAMIX_DRIVER_MEMORY": memory,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.features_worker", ENGINES[engine]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        self._meter = Meter(self.process.pid)
        self._meter.__enter__()
        self._answer()
        self.start_s = time.perf_counter() - began

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *trouble: object) -> None:
        self._meter.__exit__(None, None, None)
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    @property
    def peak(self) -> int:
        """Most memory of the tree so far, in bytes."""
        return self._meter.peak_bytes

    def run(self, events: Path, out: Path) -> tuple[float, float]:
        """(wall seconds, CPU seconds of the whole tree) of one build; `out` is emptied before."""
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        assert self.process.stdin is not None
        before = self._meter.cpu_s
        self.process.stdin.write(json.dumps({"events": str(events), "out": str(out)}) + "\n")
        self.process.stdin.flush()
        seconds = float(self._answer()["seconds"])
        return seconds, self._meter.cpu_s - before

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit(f"an engine ended with exit {self.process.wait()}; its error is above")


def measure(
    events: int, hot: bool, folder: Path, *, runs: int, engines: list[str], memory: str
) -> list[Timing]:
    """Equality, then the timed rounds of one workload. SystemExit names the first engines that differ."""
    source = make_events(folder / "in", events=events, hot=hot)
    with ExitStack() as stack:
        workers, found = {}, []
        for name in engines:
            workers[name] = stack.enter_context(Worker(name, memory))
            found.append(Timing(name, events, hot, workers[name].start_s))
        for timing in found:
            place = folder / "out" / timing.engine
            first, _ = workers[timing.engine].run(source, place)
            say(f"{events:,} {'hot' if hot else 'uniform'} {timing.engine}: warm-up {first:.1f} s")
            timing.rows = rows(place)
            wrong = differences(folder / "out" / engines[0], place)
            if wrong:
                raise SystemExit(
                    f"{engines[0]} and {timing.engine} differ, nothing was timed:\n" + "\n".join(wrong)
                )
        for number in range(runs):
            for step in range(len(found)):
                timing = found[(number + step) % len(found)]
                load = os.getloadavg()[0]
                seconds, cpu = workers[timing.engine].run(source, folder / "out" / timing.engine)
                timing.seconds.append(seconds)
                timing.cpu_s.append(cpu)
                timing.load.append(load)
                say(
                    f"  round {number + 1} {timing.engine}: {seconds:.2f} s, CPU {cpu:.1f} s, load {load:.1f}"
                )
        for timing in found:
            timing.peak_mb = workers[timing.engine].peak / 2**20
    shutil.rmtree(folder / "out", ignore_errors=True)
    return found


def table(found: list[Timing]) -> Iterator[str]:
    """One line an engine and workload, ratios to DuckDB, and the growth exponent over the sizes."""
    yield (
        "| events | workload | engine | min s | median s | max s | CPU s | to duckdb | peak MB | start s | load |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for t in found:
        base = next((o for o in found if (o.engine, o.events, o.hot) == ("duckdb", t.events, t.hot)), None)
        ratio = f"{t.median / base.median:.2f}" if base else ""
        yield (
            f"| {t.events:,} | {'hot' if t.hot else 'uniform'} | {t.engine} | {min(t.seconds):.2f} | {t.median:.2f} | "
            f"{max(t.seconds):.2f} | {statistics.median(t.cpu_s):.1f} | {ratio} | {t.peak_mb:,.0f} | {t.start_s:.1f} | "
            f"{min(t.load):.1f}-{max(t.load):.1f} |"
        )
    for hot in sorted({t.hot for t in found}):
        for engine in dict.fromkeys(t.engine for t in found):
            line = sorted((t.events, t.median) for t in found if (t.engine, t.hot) == (engine, hot))
            if len(line) > 1:
                (few, quick), (many, slow) = line[0], line[-1]
                exponent = math.log(slow / quick) / math.log(many / few)
                yield f"growth {few:,} to {many:,}, {'hot' if hot else 'uniform'}, {engine}: exponent {exponent:.2f}"


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def main(
    folder: Path, *, sizes: list[int], workloads: list[str], runs: int, engines: list[str], memory: str
) -> None:
    """Measure, print the table and write `features.json` into the folder."""
    unknown = [name for name in engines if name not in ENGINES]
    if unknown:
        raise SystemExit(f"engines {unknown}; allowed: {', '.join(ENGINES)}")
    gone = [name for name in ("duckdb", "polars") if name in engines and find_spec(name) is None]
    if gone:
        raise SystemExit(
            f"not installed: {', '.join(gone)}; install them by `{sys.executable} -m uv pip install --python "
            f"{sys.executable} --editable '.[bench]'`, or name the engines to measure by --engines"
        )
    found: list[Timing] = []
    for events in sizes:
        for workload in workloads:
            found += measure(events, workload == "hot", folder, runs=runs, engines=engines, memory=memory)
            (folder / "features.json").write_text(
                json.dumps([asdict(t) for t in found], indent=1), encoding="utf-8"
            )
    for line in table(found):
        print(line, flush=True)
