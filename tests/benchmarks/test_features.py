"""The features benchmark notices what differs, says what is missing and draws the same events again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from benchmarks import features
from benchmarks.features_data import GAP_US, make_events
from benchmarks.features_equal import differences

SESSION = {
    "user_id": ["a", "a", "b"],
    "session_start": pa.array([1, 2, 1], pa.timestamp("us", tz="UTC")),
    "surface_entropy": [0.1, 0.0, 0.7],
    "gap_before_ms": pa.array([None, 5, None], pa.int64()),
}
SURFACE = {
    "user_id": ["a", "b"],
    "window_end": pa.array([1, 1], pa.date32()),
    "stream": ["feed/view", "feed/view"],
    "dwell_hist": pa.array([[(1, 2), (4, 1)], []], pa.map_(pa.int32(), pa.int64())),
}


def output(place: Path, session: dict[str, Any], surface: dict[str, Any]) -> Path:
    for name, columns in (("sessions", session), ("surfaces", surface)):
        (place / name).mkdir(parents=True)
        pq.write_table(pa.table(columns), place / name / "0.parquet")
    return place


def test_rows_in_another_order_and_another_writers_types_are_equal(tmp_path: Path) -> None:
    ours = output(tmp_path / "ours", SESSION, SURFACE)
    pairs = pa.list_(pa.struct([("key", pa.int32()), ("value", pa.int64())]))
    listed = [[{"key": 1, "value": 2}, {"key": 4, "value": 1}], []]
    theirs = {
        **SURFACE,
        "user_id": pa.array(["a", "b"], pa.large_string()),
        "dwell_hist": pa.array(listed, pairs),
    }
    turned = pa.table(SESSION).take([2, 0, 1])
    other = output(tmp_path / "theirs", {name: turned.column(name) for name in turned.column_names}, theirs)
    assert differences(ours, other) == []


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("surface_entropy", [math.nextafter(0.1, 1), 0.0, 0.7]),
        ("gap_before_ms", pa.array([None, 5, 0], pa.int64())),
        ("dwell_hist", pa.array([[(1, 2), (4, 2)], []], pa.map_(pa.int32(), pa.int64()))),
        ("dwell_hist", pa.array([[(1, 2)], [(4, 1)]], pa.map_(pa.int32(), pa.int64()))),
    ],
)
def test_a_column_that_differs_in_one_row_is_named(tmp_path: Path, column: str, values: Any) -> None:
    ours = output(tmp_path / "ours", SESSION, SURFACE)
    changed = [{**table, **({column: values} if column in table else {})} for table in (SESSION, SURFACE)]
    found = differences(ours, output(tmp_path / "theirs", *changed))
    assert len(found) == 1 and f".{column}:" in found[0]


def test_a_missing_row_is_noticed(tmp_path: Path) -> None:
    ours = output(tmp_path / "ours", SESSION, SURFACE)
    fewer = {name: values[:1] for name, values in SURFACE.items()}
    found = differences(ours, output(tmp_path / "theirs", SESSION, fewer))
    assert found == ["surfaces: 2 rows against 1"]


def test_engines_that_are_not_installed_are_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "find_spec", lambda name: None if name == "polars" else object())
    with pytest.raises(SystemExit, match=r"not installed: polars; install them by .*uv pip install"):
        features.main(
            tmp_path, sizes=[1], workloads=["hot"], runs=1, engines=["duckdb", "polars"], memory="1g"
        )


@pytest.mark.parametrize("hot", [False, True])
def test_the_events_are_seeded_and_hold_the_edges_of_the_rule(tmp_path: Path, hot: bool) -> None:
    first, again = (
        ds.dataset(make_events(tmp_path / name, events=20_000, hot=hot), format="parquet").to_table()
        for name in ("a", "b")
    )
    assert first.equals(again)
    assert len(set(first.column("event_id").to_pylist())) == len(first)
    table = first.sort_by([("user_id", "ascending"), ("event_ts", "ascending")])
    user, us = np.asarray(table.column("user_id")), np.asarray(table.column("event_ts").cast(pa.int64()))
    waits = np.diff(us)[user[1:] == user[:-1]]
    assert {0, GAP_US, GAP_US + 1} <= set(waits.tolist())
    most = np.unique(user, return_counts=True)[1].max() / len(user)
    assert (most == pytest.approx(0.25)) if hot else (most < 0.02)
    delay = np.asarray(table.column("ingest_ts").cast(pa.int64())) - us
    assert (delay >= 3_600_000_000).mean() == pytest.approx(0.02, abs=0.005)
