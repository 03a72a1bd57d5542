"""One engine of the features benchmark: says when it is ready, then builds both tables for each line it reads."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path


def main(engine: str) -> None:
    """`engine` is module:class below `benchmarks`."""
    module, _, name = engine.partition(":")
    made = getattr(importlib.import_module(f"benchmarks.{module}"), name)()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        began = time.perf_counter()
        made.run(Path(job["events"]), Path(job["out"]))
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
