"""Entry script of the crash tests: `dynamix` in processes of its own that are killed with SIGKILL at a commit.

Serves on standard input, one JSON object a line: {"argv": [...], "moment": "during", "point": "mask/masks",
"log": FILE, "scratch": FOLDER, "turned_down": false}. Each is a fork of this process, which has imported everything
and has no Spark yet; the fork starts its own Java and takes it along when it dies. Answers with the exit status of the
fork, -9 if killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as `pythonpath` of the tests

from faults.points import watched
from faults.two_days import turned_down

from dynamix.jobs.cli import main
from dynamix.models import evidence


def _import_all() -> None:
    """What a run imports on its way, once for all forks."""
    import great_expectations  # noqa: F401
    import mlflow.pyfunc  # noqa: F401
    import torch  # noqa: F401

    import dynamix.jobs.verbs  # noqa: F401


def _die_at(case: Mapping[str, Any]) -> None:
    """Run the command; at the point the whole process group goes, Java included."""
    os.setsid()
    os.environ["TMPDIR"] = os.environ["SPARK_LOCAL_DIRS"] = case["scratch"]
    sink = os.open(case["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(sink, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def hook(moment: str, point: str) -> None:
        print(f"hook {moment} {point}", flush=True)
        if (moment, point) == (case["moment"], case["point"]):
            os.killpg(0, signal.SIGKILL)

    with watched(hook), turned_down() if case["turned_down"] else nullcontext():
        code = main(case["argv"])
    sys.stdout.flush()
    os._exit(code)  # Java ends with its standard input


def serve() -> None:
    _import_all()
    evidence.MIN_POSITIVES = 1  # a world of a few hundred users still promotes
    print("ready", flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        fork = os.fork()
        if fork == 0:
            try:
                _die_at(case)
            finally:
                os._exit(70)
        _, status = os.waitpid(fork, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
