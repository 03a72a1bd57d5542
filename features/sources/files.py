"""What the importers of public data sets share: finding the file, checking its columns, hashing ids."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from dynamix.errors import InputError

_SEPARATOR, _NULL = "\x1f", "\x00"
_READERS = {
    ".parquet": lambda path: pq.read_table(path),
    ".csv": lambda path: _read_text(path, ","),
    ".tsv": lambda path: _read_text(path, "\t"),
}


@dataclass(frozen=True)
class ImportSummary:
    """What an import read and wrote; `counts` holds the events by event_type."""

    source: Path
    out: Path
    rows_read: int
    events: int
    counts: dict[str, int] = field(default_factory=dict)


def read_source(src: Path, *, name: str, columns: Mapping[str, str]) -> tuple[Path, pa.Table]:
    """The file `src`, or `name` (else the only readable file) in the folder `src`, with just `columns`.

    columns: name -> "integer" or "text"; text columns come back as strings, integers as int64.
    Raises InputError: no such file, several candidates, missing columns, wrong types, no rows, nulls in integers.
    """
    path = _find(src, name)
    try:
        table = _READERS[path.suffix.lower()](path)
    except (pa.ArrowInvalid, OSError) as trouble:
        raise InputError(f"{path}: cannot be read as {path.suffix}: {str(trouble).splitlines()[0]}") from None
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise InputError(
            f"{path}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"found {', '.join(table.column_names)}; is this the file {name}?"
        )
    if table.num_rows == 0:
        raise InputError.empty(str(path))
    wrong = [
        problem for column, kind in columns.items() if (problem := _wrong(table.column(column), column, kind))
    ]
    if wrong:
        raise InputError(f"{path}: {'; '.join(wrong)}; is this the file {name}?")
    kinds = {"integer": pa.int64(), "text": pa.string()}
    data = {
        column: table.column(column).cast(kinds[kind]).combine_chunks() for column, kind in columns.items()
    }
    return path, pa.table(data)


def hash_ids(*columns: pa.Array | pa.ChunkedArray) -> pa.Array:
    """First 32 hex digits of SHA-256 over the row's values as text, separated so that `a,bc` is not `ab,c`."""
    texts = [column.cast(pa.string()).fill_null(_NULL).to_pylist() for column in columns]
    digests = [
        hashlib.sha256(_SEPARATOR.join(row).encode()).hexdigest()[:32] for row in zip(*texts, strict=True)
    ]
    return pa.array(digests, pa.string())


def repeat(value: str, n: int) -> pa.Array:
    """`value` n times."""
    return pa.array([value]).take(pa.array(np.zeros(n, dtype=np.int64)))


def _read_text(path: Path, delimiter: str) -> pa.Table:
    return pc_csv.read_csv(
        path,
        parse_options=pc_csv.ParseOptions(delimiter=delimiter),
        convert_options=pc_csv.ConvertOptions(strings_can_be_null=True),
    )


def _find(src: Path, name: str) -> Path:
    if src.is_file():
        if src.suffix.lower() not in _READERS:
            raise InputError(f"{src}: file type {src.suffix!r}; allowed: {', '.join(_READERS)}")
        return src
    if not src.is_dir():
        raise InputError(f"{src}: no such file or folder; give the file {name} or the folder that holds it")
    if (src / name).is_file():
        return src / name
    found = sorted(path for path in src.iterdir() if path.is_file() and path.suffix.lower() in _READERS)
    if len(found) == 1:
        return found[0]
    listed = ", ".join(path.name for path in found[:5]) or "no data file"
    raise InputError(f"{src}: {name} not found (there is {listed}); give the file itself")


def _wrong(column: pa.ChunkedArray, name: str, kind: str) -> str:
    if kind == "integer" and not pa.types.is_integer(column.type):
        return f"column {name} has type {column.type}, expected integer"
    if kind == "integer" and column.null_count:
        return f"column {name} has {column.null_count} empty values"
    return ""
