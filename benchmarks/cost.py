"""What events and tokens cost, and what that means for 10⁹ of them: `python -m benchmarks cost --folder F`.

A world of each size goes through the verbs of a cycle, each verb a process of its own, as a scheduled job runs it.
Processor seconds, memory, what Spark's own event log says of shuffles, spills and tasks, and the files that lie there
afterwards are fitted as a + b·events (b·tokens for the verbs whose load is histories) and extrapolated. Processor seconds
say more than wall time, which follows whatever else the machine does.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.processes import Meter
from dynamix.features.table_files import data_files, delta_folders

VERBS = ("ingest", "features", "segment", "mask", "train", "score")
PER_TOKEN = ("mask", "train", "score")
"""Verbs whose load is histories: an event is read once, but counts in the history of every later impression."""
PER_USER = 125
"""Rows a user of S0 in 42 days, impressions and conversions among them."""
TARGETS = (1_000_000_000, 40_000_000_000)
_GIB = 2**30


@dataclass
class Step:
    """One verb on one world. Bytes are those of Spark's event log: of shuffles written, of spills to disk."""

    verb: str
    events: int
    tokens: int
    wall_s: float
    cpu_s: float
    peak_bytes: int
    jobs: int
    tasks: int
    shuffle_bytes: int
    spilled_bytes: int
    largest_task_rows: int


@dataclass
class Size:
    """A world of one size: what its verbs took, and rows, files and bytes by table afterwards."""

    events: int
    users: int
    impressions: int
    tokens: int
    steps: list[Step] = field(default_factory=list)
    tables: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Files, bytes and rows by table."""


@dataclass(frozen=True)
class Line:
    """a + b·load, fitted so that relative errors count alike; `exponent` is the slope of the logarithms."""

    fixed: float
    per_unit: float
    exponent: float

    def at(self, load: float) -> float:
        return self.fixed + self.per_unit * load


def fit(loads: Sequence[float], values: Sequence[float]) -> Line:
    """Least squares of (a + b·load) / value - 1, neither below 0. ValueError for fewer than two sizes.

    The exponent is that of the largest size against the smallest.
    """
    if len(loads) < 2 or len(loads) != len(values):
        raise ValueError(f"{len(loads)} loads and {len(values)} values; needed are two sizes or more of each")
    x, y = np.asarray(loads, float), np.asarray(values, float)
    design = np.column_stack([np.ones_like(x), x]) / y[:, None]
    (fixed, slope), *_ = np.linalg.lstsq(design, np.ones_like(y), rcond=None)
    if fixed < 0:  # growth above linear: all of it per unit
        fixed, slope = 0.0, float((design[:, 1]).sum() / (design[:, 1] ** 2).sum())
    elif slope < 0:
        fixed, slope = float(1 / np.mean(1 / y)), 0.0
    span = math.log(x.max() / x.min())
    exponent = math.log(y[x.argmax()] / y[x.argmin()]) / span if span and y.min() > 0 else math.nan
    return Line(float(fixed), float(slope), exponent)


def read_event_log(folder: Path) -> Counter[str]:
    """Jobs, tasks, bytes shuffled and spilled, and the rows of the largest task, over all applications in the folder."""
    found: Counter[str] = Counter()
    for file in sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
    ):
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                if '"SparkListenerJobStart"' in line[:60]:
                    found["jobs"] += 1
                elif '"SparkListenerTaskEnd"' in line[:60]:
                    _add_task(found, json.loads(line).get("Task Metrics") or {})
    return found


def _add_task(found: Counter[str], metrics: Mapping[str, object]) -> None:
    def number(*names: str) -> int:
        value: object = metrics
        for name in names:
            value = value.get(name, 0) if isinstance(value, Mapping) else 0
        return int(value) if isinstance(value, int | float) else 0

    found["tasks"] += 1
    found["shuffle_bytes"] += number("Shuffle Write Metrics", "Shuffle Bytes Written")
    found["spilled_bytes"] += number("Disk Bytes Spilled")
    rows = max(number("Input Metrics", "Records Read"), number("Shuffle Read Metrics", "Total Records Read"))
    found["largest_task_rows"] = max(found["largest_task_rows"], rows)


def run_verb(verb: str, size: Size, folder: Path, settings: Sequence[str]) -> Step:
    """One verb as a process of its own. SystemExit with the end of its output where it fails."""
    conf, logs = folder / "conf", folder / "event-log" / verb
    conf.mkdir(parents=True, exist_ok=True)
    logs.mkdir(parents=True, exist_ok=True)
    (conf / "spark-defaults.conf").write_text(
        f"spark.eventLog.enabled true\nspark.eventLog.dir {logs.absolute().as_uri()}\n"
        "spark.eventLog.rolling.enabled false\nspark.eventLog.compress false\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "dynamix.jobs.cli", verb, "--warehouse", str(folder / "W")]
    command += ["--events", str(folder / "world")] if verb == "ingest" else []
    command += [part for one in settings for part in ("--set", one)]
    began = time.perf_counter()
    with (folder / f"{verb}.log").open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env=os.environ | {"SPARK_CONF_DIR": str(conf)}
        )
        with Meter(process.pid) as meter:
            code = process.wait()
            cpu_s, peak = meter.cpu_s, meter.peak_bytes
    wall = time.perf_counter() - began
    if code:
        last = (folder / f"{verb}.log").read_text(encoding="utf-8")[-1_000:]
        raise SystemExit(f"dynamix {verb} on {size.events:,} events ended with exit {code}:\n{last}")
    told = read_event_log(logs)
    return Step(
        verb, size.events, size.tokens, wall, cpu_s, peak, told["jobs"], told["tasks"], told["shuffle_bytes"],
        told["spilled_bytes"], told["largest_task_rows"],
    )  # fmt: skip


def measure(folder: Path, *, events: int, seed: int, verbs: Iterable[str], settings: Sequence[str]) -> Size:
    """A world of about so many rows through the verbs; what is there of an earlier call is taken, not run again."""
    from dynamix.features.simulate import simulate

    kept = folder / "size.json"
    if kept.is_file():
        size = load_size(kept)
    else:
        made = simulate(folder / "world", preset="S0", users=max(1, events // PER_USER), days=42, seed=seed)
        size = Size(made.events, made.users, made.impressions, 0)
        say(f"world of {size.events:,} rows, {size.users:,} users")
    have = {step.verb for step in size.steps}
    for verb in verbs:
        if verb in have:
            continue
        step = run_verb(verb, size, folder, settings)
        size.steps.append(step)
        if verb == "mask":
            size.tokens = history_tokens(folder / "W")
        kept.write_text(json.dumps(asdict(size), indent=1), encoding="utf-8")
        say(f"  {verb}: {step.wall_s:.0f} s, CPU {step.cpu_s:.0f} s, {step.peak_bytes / _GIB:.1f} GiB")
    for step in size.steps:
        step.tokens = size.tokens
    return replace(size, tables=table_files(folder / "W"))


def load_size(file: Path) -> Size:
    """What `measure` stored."""
    tree = json.loads(file.read_text(encoding="utf-8"))
    tree["steps"] = [Step(**step) for step in tree["steps"]]
    tree["tables"] = {name: tuple(found) for name, found in tree["tables"].items()}
    return Size(**tree)


def history_tokens(warehouse: Path) -> int:
    """Events in the histories that `mask` scanned: impressions of a segment times its mean length, from `cell_stats`."""
    columns = ["segment_id", "tier", "stream", "label", "channel", "half", "impressions", "tokens"]
    rows = pq.ParquetDataset(warehouse / "cell_stats", filters=[("half", "=", -1), ("tier", "=", "*")]).read(
        columns
    )
    cells = {
        (r["segment_id"], r["stream"]): r["impressions"] * r["tokens"]
        for r in rows.to_pylist()
        if r["channel"] == "joint"
    }  # the same for every label
    return round(sum(cells.values()))


def table_files(warehouse: Path) -> dict[str, tuple[int, int, int]]:
    """Data files, their bytes and rows by table; older versions lie there too where a verb wrote twice."""
    found = {}
    for table in delta_folders(warehouse):
        files = sorted(data_files(table))
        rows = sum(pq.read_metadata(path).num_rows for path in files)
        found[table.name] = (len(files), sum(path.stat().st_size for path in files), rows)
    return found


def measured_table(sizes: Sequence[Size]) -> Iterator[str]:
    """One line a verb and size."""
    yield (
        "| verb | events | tokens | wall s | CPU s | µs an event | µs a token | memory GiB | jobs | tasks | "
        "shuffled MB | spilled MB | rows of the largest task |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for verb in VERBS:
        for step in (step for size in sizes for step in size.steps if step.verb == verb):
            token = f"{1e6 * step.cpu_s / step.tokens:.2f}" if verb in PER_TOKEN and step.tokens else ""
            yield (
                f"| {verb} | {step.events:,} | {step.tokens:,} | {step.wall_s:.0f} | {step.cpu_s:.0f} | "
                f"{1e6 * step.cpu_s / step.events:.0f} | {token} | {step.peak_bytes / _GIB:.1f} | {step.jobs} | "
                f"{step.tasks:,} | {step.shuffle_bytes / 1e6:.0f} | {step.spilled_bytes / 1e6:.0f} | "
                f"{step.largest_task_rows:,} |"
            )


def model_table(sizes: Sequence[Size], targets: Sequence[int] = TARGETS) -> Iterator[str]:
    """Lines of the model: fixed and per million of the load, growth, and what the targets take."""
    ratio = sizes[-1].tokens / sizes[-1].events
    heads = " | ".join(f"CPU h at {n:.0e}, shuffled TB" for n in targets)
    yield (
        f"| verb | load | fixed CPU s | CPU s a million | growth exponent | shuffled bytes a unit | {heads} |\n"
        f"|{'---|' * (6 + len(targets))}"
    )
    for verb in VERBS:
        steps = [step for size in sizes for step in size.steps if step.verb == verb]
        if len(steps) < 2:
            continue
        by_token = verb in PER_TOKEN
        loads = [float(step.tokens if by_token else step.events) for step in steps]
        cpu = fit(loads, [step.cpu_s for step in steps])
        shuffled = fit(loads, [max(step.shuffle_bytes, 1) for step in steps])
        wanted = [n * ratio if by_token else float(n) for n in targets]
        told = " | ".join(f"{cpu.at(n) / 3600:,.1f}, {shuffled.at(n) / 1e12:.2f}" for n in wanted)
        yield (
            f"| {verb} | {'tokens' if by_token else 'events'} | {cpu.fixed:.0f} | {1e6 * cpu.per_unit:.2f} | "
            f"{cpu.exponent:.2f} | {shuffled.per_unit:.1f} | {told} |"
        )


def files_table(sizes: Sequence[Size], targets: Sequence[int] = TARGETS) -> Iterator[str]:
    """Bytes and files by table at the largest size, and bytes at the targets, in proportion."""
    largest = sizes[-1]
    heads = " | ".join(f"TB at {n:.0e}, GB a file as laid out now" for n in targets)
    yield f"| table | rows an event | files | MB | bytes an event | {heads} |\n|{'---|' * (5 + len(targets))}"
    for name, (files, size, rows) in sorted(largest.tables.items(), key=lambda item: -item[1][1]):
        if size < 1_000_000:
            continue
        each = size / largest.events
        told = " | ".join(f"{each * n / 1e12:.2f}, {each * n / files / 1e9:.1f}" for n in targets)
        more = f"{rows / largest.events:.3f} | {files}"
        yield f"| {name} | {more} | {size / 1e6:.0f} | {each:.1f} | {told} |"


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def main(
    folder: Path, *, events: Sequence[int], seed: int, verbs: Sequence[str], settings: Sequence[str]
) -> None:
    """Measure every size, then print what was measured, the model and the files."""
    sizes = [
        measure(folder / str(n), events=n, seed=seed, verbs=verbs, settings=settings) for n in sorted(events)
    ]
    for table in (measured_table(sizes), model_table(sizes), files_table(sizes)):
        for line in table:
            print(line, flush=True)
        print(flush=True)
