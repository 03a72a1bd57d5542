"""Writing a folder of raw events as a whole: Parquet tables and `dynamix.yaml`, or nothing at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynamix.contracts import RAW_COLUMNS
from dynamix.errors import ConfigError

OWN_NAMES = (
    "events", "truth_users", "truth_cells", "truth_impressions", "truth_segments", "truth_copies", "truth_swaps",
    "truth_turned_on", "truth_types", "truth_intent", "truth_paths", "dynamix.yaml", "world.json",
)  # fmt: skip
TIMESTAMP = pa.timestamp("us", tz="UTC")
_ARROW_TYPES = {
    "string": pa.string(),
    "timestamp": TIMESTAMP,
    "bigint": pa.int64(),
    "int": pa.int32(),
    "double": pa.float64(),
}


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends without an error.

    An earlier folder of ours at `out` is replaced. Raises ConfigError when `out` is a file or holds
    anything that this program does not write.
    """
    _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        work = stage / "new"
        work.mkdir()
        yield work
        if out.exists():
            out.rename(stage / "old")
        work.rename(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(
            f"--out {out} is a file; allowed: a folder that does not exist yet, or one written before"
        )
    foreign = sorted(child.name for child in out.iterdir() if child.name not in OWN_NAMES)
    if foreign:
        raise ConfigError(
            f"--out {out} holds {', '.join(foreign[:3])}, not written by this program; choose another folder"
        )


def raw_events(columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.Table:
    """A table with every canonical raw column, in contract order and type, then the attributes.

    Canonical columns that are not given are null. `ingest_ts` defaults to `event_ts`.
    """
    given = dict(columns)
    given.setdefault("ingest_ts", given["event_ts"])
    rows = len(given["event_ts"])
    data = {}
    for column in RAW_COLUMNS:
        arrow_type = _ARROW_TYPES[column.sql_type]
        values = given.pop(column.name, None)
        data[column.name] = pa.nulls(rows, arrow_type) if values is None else values.cast(arrow_type)
    return pa.table({**data, **given})


def write_parquet(table: pa.Table, folder: Path, *, files: int = 1) -> None:
    """`table` in row order as `files` Parquet files part-00000.parquet, … under `folder`."""
    folder.mkdir(parents=True)
    borders = np.linspace(0, table.num_rows, files + 1).astype(int)
    for number, (start, end) in enumerate(pairwise(borders.tolist())):
        part = table.slice(start, end - start)
        pq.write_table(part, folder / f"part-{number:05d}.parquet", compression="zstd")


def write_config(settings: Mapping[str, object], path: Path, *, comment: str) -> None:
    """`dynamix.yaml`: one setting a line; values are JSON, which is YAML too."""
    lines = [f"# {comment}"]
    lines += [f"{key}: {json.dumps(value)}" for key, value in settings.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
