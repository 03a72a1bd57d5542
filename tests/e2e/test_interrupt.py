"""Ctrl-C in every phase of `dynamix run`: exit 130, a sentence and no trace, and the next run goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cycles import SMALL
from faults.processes import LEAN

from dynamix.features.simulate import simulate

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

PHASES = {
    "ingest: started": 6.0,
    "features: one pass": 1.0,
    "segment: posterior": 0.5,
    "mask: one scan": 0.5,
    "epoch 1 of": 0.0,
    "score: started": 0.2,
}
"""What is said when a phase begins, and the seconds from then on to the interruption."""
LIMIT_S = 400


def run(world: Path, place: Path, *, until: str = "", wait_s: float = 0.0) -> tuple[int, str]:
    """Exit status and standard error of `dynamix run`, interrupted as a terminal does it: its whole process group."""
    settings = [part for one in SMALL for part in ("--set", one)]
    command = [
        sys.executable,
        "-m",
        "dynamix.jobs.cli",
        "run",
        "--events",
        str(world),
        "--warehouse",
        str(place),
    ]
    process = subprocess.Popen(
        [*command, *settings], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **LEAN},
        start_new_session=True,
    )  # fmt: skip
    watchdog = threading.Timer(LIMIT_S, lambda: os.killpg(process.pid, signal.SIGKILL))
    watchdog.start()
    said = []
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if until and until in line:
            until = ""
            time.sleep(wait_s)
            os.killpg(process.pid, signal.SIGINT)
    watchdog.cancel()
    assert not until, f"never said: {until}\n{''.join(said)[-2000:]}"
    return process.wait(), "".join(said)


def test_an_interrupted_run_says_so_and_the_next_one_goes_on(tmp_path: Path) -> None:
    world, place = tmp_path / "world", tmp_path / "W"
    simulate(world, users=250, days=14, seed=3)
    finished: list[str] = []
    for phase, wait_s in PHASES.items():
        code, said = run(world, place, until=phase, wait_s=wait_s)
        assert code == 130, said
        assert said.rstrip().endswith(
            "dynamix run: interrupted; what was written stays, run again to go on from there"
        )
        assert "Traceback" not in said and "Exception" not in said, said
        assert all(f"{verb}: skipped" in said for verb in finished), said
        finished = [
            line.split(":")[0] for line in said.splitlines() if ": done in" in line or ": skipped" in line
        ]
    code, said = run(world, place)
    assert code == 0, said
    assert "train: skipped" in said and "score: done in" in said
