"""The processes that the fault tests start and kill, and warehouses that can be moved."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ANSWER_LIMIT_S = 400
LEAN = {
    "DYNAMIX_MASTER": "local[2]",
    "DYNAMIX_DRIVER_MEMORY": "1g",
    "DYNAMIX_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1",  # short lives
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Served:
    """A script that answers each line of JSON on standard input with a line on standard output."""

    def __init__(self, script: str, *arguments: str) -> None:
        self._command = [sys.executable, str(HERE / script), *arguments]
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **LEAN},
            start_new_session=True,
        )  # fmt: skip
        self.answer()  # "ready"

    def send(self, **request: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        out = self._process.stdout
        assert out is not None
        ready, _, _ = select.select([out], [], [], ANSWER_LIMIT_S)
        line = out.readline().decode().strip() if ready else ""
        assert line, f"no answer within {ANSWER_LIMIT_S} s"
        return line

    def ask(self, **request: Any) -> str:
        """The answer; where none comes, another process takes over, or the next request would get this one's."""
        self.send(**request)
        try:
            return self.answer()
        except AssertionError:
            self.end()
            self._start()
            raise

    def wait(self) -> int:
        """Exit status of a process that is about to end."""
        return self._process.wait(ANSWER_LIMIT_S)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def served(script: str, *arguments: str) -> Iterator[Served]:
    """The script as a process with its own group, which is killed at the end."""
    process = Served(script, *arguments)
    try:
        yield process
    finally:
        process.end()


def killed_run(
    server: Served, argv: Sequence[str], *, moment: str, point: str, folder: Path, turned_down: bool = False
) -> tuple[int, str]:
    """Exit status of `dynamix ARGV` in a process killed at the point (-9 if it got there), and what it printed.

    With `turned_down` the gate of that process retires whatever mask it is asked about.
    """
    scratch, log = folder / "scratch", folder / "log"
    scratch.mkdir(parents=True, exist_ok=True)
    status = server.ask(
        argv=list(argv),
        moment=moment,
        point=point,
        log=str(log),
        scratch=str(scratch),
        turned_down=turned_down,
    )
    shutil.rmtree(scratch, ignore_errors=True)
    return int(status), log.read_text(encoding="utf-8", errors="replace")


def copy_warehouse(source: Path, target: Path) -> None:
    """The warehouse at another place: the tracking store names its artefacts by absolute paths, which move along."""
    shutil.copytree(source, target)
    store = target / "_dynamix" / "mlflow.db"
    if not store.exists():
        return
    with contextlib.closing(sqlite3.connect(store)) as found, found:
        tables = [r[0] for r in found.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for column in [r[1] for r in found.execute(f'PRAGMA table_info("{table}")')]:
                found.execute(
                    f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)',
                    (str(source), str(target), str(source)),
                )
