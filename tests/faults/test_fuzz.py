"""Drawn raw tables through `ingest` and `features`, drawn settings through the config: an error of ours, or a balance."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dynamix.config import Config, load_config
from dynamix.contracts import RAW_COLUMNS
from dynamix.errors import DynamixError
from dynamix.features.tables import Warehouse
from dynamix.jobs.context import Run
from dynamix.jobs.features import features
from dynamix.jobs.ingest import ingest

RUN_DATE = date(2026, 2, 1)
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
TIMES = st.one_of(
    st.integers(-3, 40_000).map(lambda s: NOON + timedelta(seconds=s)),
    st.sampled_from([
        None, datetime(1, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC), datetime(1971, 1, 1, tzinfo=UTC),
        datetime(2026, 3, 29, 1, 30, tzinfo=UTC), datetime(2099, 12, 31, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC),
    ]),
)  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(["a", "b", "view", "click", "impression", "", " ", "\t", "\x00", "'", "`", "\\", "{", "NaN", "null",
                     "🗝", "ﷺ" * 9, "e\u0301", "x" * 1025, "y" * 100_000, "1767614400", "2026-01-05 12:00:00", "{}"]),
    st.text(max_size=8),
    st.none(),
)  # fmt: skip
NUMBERS = st.one_of(st.floats(width=64), st.sampled_from([0.0, -0.0, 1e308, -1.0, float("nan")]), st.none())
WHOLES = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-2, 40), st.none())
KINDS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "string": (pa.string(), TEXTS),
    "timestamp": (pa.timestamp("us", tz="UTC"), TIMES),
    "bigint": (pa.int64(), WHOLES),
    "int": (pa.int32(), st.one_of(st.integers(-(2**31), 2**31 - 1), st.none())),
    "double": (pa.float64(), NUMBERS),
    "boolean": (pa.bool_(), st.one_of(st.booleans(), st.none())),
    "date": (pa.date32(), st.one_of(st.dates(), st.none())),
    "binary": (pa.binary(), st.one_of(st.binary(max_size=9), st.none())),
    "array": (pa.list_(pa.string()), st.lists(TEXTS, max_size=2)),
    "struct": (pa.struct([("a", pa.string())]), st.one_of(st.fixed_dictionaries({"a": TEXTS}), st.none())),
}
REQUIRED = ("user_id", "event_ts", "event_type", "surface")


@dataclass(frozen=True)
class Drawn:
    table: pa.Table
    chosen: tuple[str, ...]
    """Settings under which it is read."""


@st.composite
def drawn_tables(draw: st.DrawFn) -> Drawn:
    """Up to 40 rows; each column with its own type most of the time, sometimes with any other, or left out."""
    rows = draw(st.integers(0, 40))
    columns: dict[str, pa.Array] = {}
    for column in RAW_COLUMNS:
        if column.name not in REQUIRED and draw(st.booleans()):
            continue
        usual = draw(st.integers(0, 19)) > 0
        kind, values = KINDS[column.sql_type if usual else draw(st.sampled_from(sorted(KINDS)))]
        few = draw(st.lists(values, min_size=1, max_size=6))  # few values, so that ids and times meet again
        columns[column.name] = pa.array([draw(st.sampled_from(few)) for _ in range(rows)], kind)
    if draw(st.booleans()):
        columns["attributes"] = pa.array([draw(TEXTS) for _ in range(rows)], pa.string())
    chosen = [draw(st.sampled_from(["session.rule=gap", "session.rule=given"])), "max_quarantined=1.0"]
    unit = draw(st.sampled_from([None, "s", "ms", "us"]))
    chosen += [f"time_unit={unit}"] if unit else []
    return Drawn(pa.table(columns), tuple(chosen))


def _balance(run: Run, source: str, *, build: bool) -> bool:
    """Ingest, and build features; True where it was not refused. What was read is what lies in the two tables."""
    try:
        counted = ingest(run, events=source).counters
    except DynamixError:
        return False
    kept, out = counted["rows_kept"], counted["rows_quarantined"]
    assert counted["rows_read"] == kept + counted["rows_deduplicated"] + out
    events, quarantine = (run.warehouse.read(run.spark, name) for name in ("events", "events_quarantine"))
    assert events.count() == kept
    assert (quarantine.agg(F.sum("copies")).collect()[0][0] or 0) == out
    if kept and build:
        features(run)
        sessions = run.warehouse.read(run.spark, "ebf_session").agg(F.sum("n_events")).collect()[0][0]
        assert (sessions or 0) == events.where("session_id IS NOT NULL").count()
    return True


def _fuzz(spark: SparkSession, drawn: Drawn, *, build: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "events.parquet"
        pq.write_table(drawn.table, source)
        config = load_config(settings=drawn.chosen)
        run = Run(spark, Warehouse(Path(folder) / "W"), config, RUN_DATE, "r", quiet=True)
        event("balances" if _balance(run, str(source), build=build) else "refused")


@pytest.mark.spark
@settings(max_examples=2, phases=[Phase.generate])
@given(drawn_tables())
def test_a_drawn_table_is_refused_in_our_words_or_balances(spark: SparkSession, drawn: Drawn) -> None:
    """The slow test below builds features of each as well."""
    _fuzz(spark, drawn, build=False)


@pytest.mark.slow
@pytest.mark.spark
@settings(max_examples=60, phases=[Phase.generate])
@given(drawn_tables())
def test_many_drawn_tables_are_refused_in_our_words_or_balance(spark: SparkSession, drawn: Drawn) -> None:
    """Counts: `--hypothesis-show-statistics`."""
    _fuzz(spark, drawn, build=True)


def _keys(section: Any, prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    found = []
    for name, info in section.model_fields.items():
        inner = info.annotation
        found += _keys(inner, f"{prefix}{name}.") if hasattr(inner, "model_fields") else [f"{prefix}{name}"]
    return found


VALUES = st.one_of(
    st.sampled_from(["", "null", "true", "-1", "0", "1e999", "nan", "[", "[]", "{}", "{a: b}", "[[", "2026-01-01", "- a",
                     "&x *x", "!!python/object:os.system", "'", '"', "\x00", "9" * 5000, "7d", "?", ":", "#"]),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)  # fmt: skip


@settings(max_examples=400)
@given(st.sampled_from([*_keys(Config), "no.such.key", "", ".", "train", "streams.a/b.protected"]), VALUES)
def test_drawn_settings_give_a_config_or_an_error_of_ours(key: str, value: str) -> None:
    try:
        load_config(settings=[f"{key}={value}"])
    except DynamixError as refused:
        assert refused.exit_code == 2 and "Traceback" not in refused.message


@settings(max_examples=200)
@given(st.one_of(VALUES, st.text(max_size=60), st.binary(max_size=40)))
def test_a_drawn_file_gives_a_config_or_an_error_of_ours(content: str | bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dynamix.yaml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        try:
            load_config(files=[file])
        except DynamixError as refused:
            assert refused.exit_code == 2
