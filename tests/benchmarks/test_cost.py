"""The cost model: its fit, what it reads of Spark's event log, and the meter of processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.cost import (
    Size,
    Step,
    files_table,
    fit,
    history_tokens,
    load_size,
    measured_table,
    model_table,
    read_event_log,
    table_files,
)
from benchmarks.processes import Meter


def test_a_line_without_noise_is_found_again() -> None:
    line = fit([1e6, 5e6, 20e6], [60 + 2e-5 * n for n in (1e6, 5e6, 20e6)])
    assert line.fixed == pytest.approx(60) and line.per_unit == pytest.approx(2e-5)
    assert line.at(1e9) == pytest.approx(60 + 2e4)
    assert line.exponent == pytest.approx(math.log(460 / 80) / math.log(20))


def test_neither_part_of_a_line_is_below_zero() -> None:
    steep = fit([1.0, 10.0, 100.0], [1.0, 100.0, 10_000.0])
    assert steep.fixed == 0 and steep.per_unit > 0 and steep.exponent == pytest.approx(2)
    falling = fit([1.0, 10.0], [20.0, 10.0])
    assert falling.per_unit == 0 and 10 < falling.fixed < 20
    with pytest.raises(ValueError, match="two sizes"):
        fit([1.0], [1.0])


def test_the_event_log_is_summed_and_the_largest_task_kept(tmp_path: Path) -> None:
    def task(shuffled: int, spilled: int, read: int, fetched: int) -> str:
        metrics = {
            "Disk Bytes Spilled": spilled,
            "Shuffle Write Metrics": {"Shuffle Bytes Written": shuffled},
            "Shuffle Read Metrics": {"Total Records Read": fetched},
            "Input Metrics": {"Records Read": read},
        }
        return json.dumps({"Event": "SparkListenerTaskEnd", "Task Metrics": metrics})

    failed = json.dumps({"Event": "SparkListenerTaskEnd"})  # a task that was lost has no metrics
    job, other = ({"Event": f"SparkListener{name}"} for name in ("JobStart", "StageCompleted"))
    lines = [json.dumps(job), task(10, 1, 7, 0), task(5, 0, 0, 9), failed, json.dumps(other)]
    (tmp_path / "app").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / ".app.crc").write_text("not a log", encoding="utf-8")
    assert read_event_log(tmp_path) == {
        "jobs": 1, "tasks": 3, "shuffle_bytes": 15, "spilled_bytes": 1, "largest_task_rows": 9,
    }  # fmt: skip


def test_tokens_are_those_of_whole_segments_counted_once(tmp_path: Path) -> None:
    rows = [
        {"segment_id": g, "tier": tier, "stream": s, "label": label, "channel": channel, "half": half,
         "impressions": 10, "tokens": tokens}
        for g, s, tokens in ((0, "a", 2.0), (0, "b", 0.5), (1, "a", 1.0))
        for tier, half in (("*", -1), ("*", 0), ("active", -1))
        for label in ("click", "conversion")
        for channel in ("joint", "dwell")
    ]  # fmt: skip
    (tmp_path / "cell_stats").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "cell_stats" / "part.parquet")
    assert history_tokens(tmp_path) == 35


def sizes() -> list[Size]:
    def step(verb: str, events: int, cpu_s: float) -> Step:
        return Step(verb, events, 10 * events, cpu_s / 2, cpu_s, 2**30, 5, 50, 100 * events, 0, events // 4)

    return [
        Size(n, n // 100, n // 5, 10 * n, [step("ingest", n, 60 + n * 1e-5), step("mask", n, 80 + n * 2e-5)],
             {"events": (4, 50 * n, n // 2), "masks": (1, 10, 1)})
        for n in (1_000_000, 4_000_000)
    ]  # fmt: skip


def test_the_tables_price_events_and_tokens() -> None:
    found = sizes()
    assert list(measured_table(found))[2].startswith(
        "| ingest | 4,000,000 | 40,000,000 | 50 | 100 | 25 |  | 1.0 |"
    )
    ingest, mask = list(model_table(found, [10**9]))[1:]
    assert ingest.startswith("| ingest | events | 60 | 10.00 |") and ingest.endswith("| 2.8, 0.10 |")
    assert mask.startswith("| mask | tokens | 80 | 2.00 |")
    [line] = list(files_table(found, [10**9]))[1:]  # small tables are left out
    assert line == "| events | 0.500 | 4 | 200 | 50.0 | 0.05, 12.5 |"


def test_what_was_stored_is_read_again(tmp_path: Path) -> None:
    [size, _] = sizes()
    (tmp_path / "size.json").write_text(json.dumps(asdict(size)), encoding="utf-8")
    assert load_size(tmp_path / "size.json") == size


def test_files_of_the_log_are_no_data(tmp_path: Path) -> None:
    rows = pa.table({"x": [1, 2, 3]})
    for name in ("events/_delta_log/0.checkpoint.parquet", "events/day=1/a.parquet", "events/b.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, tmp_path / name)
    assert table_files(tmp_path) == {"events": (2, 2 * (tmp_path / name).stat().st_size, 6)}


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="no /proc on this system")
def test_the_meter_keeps_the_clock_of_a_process_that_ended() -> None:
    spin = "import time\nwhile time.process_time() < 1: pass"
    with Meter(os.getpid()) as meter:
        before = meter.cpu_s
        subprocess.run([sys.executable, "-c", spin], check=True)
        time.sleep(0.3)
        assert meter.cpu_s - before > 0.6  # by the living alone it would be next to nothing
    assert meter.peak_bytes > 2**20
