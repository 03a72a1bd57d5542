"""A driver of its own: `dynamix ARGV`, then where the workers found the package, as JSON in the file named first."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from dynamix.jobs.cli import main
from dynamix.jobs.session import get_spark


def origins(batches: Iterator[Any]) -> Iterator[Any]:
    """The package's file on the worker, and the folder that the worker runs in."""
    import dynamix.features.history as module

    for _ in batches:
        yield pa.RecordBatch.from_pydict({"file": [module.__file__], "folder": [os.getcwd()]})


if __name__ == "__main__":
    code = main(sys.argv[2:])
    if code == 0:
        frame = get_spark().range(64, numPartitions=16).mapInArrow(origins, "file string, folder string")
        found = [row.asDict() for row in frame.distinct().collect()]
        Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
    raise SystemExit(code)
