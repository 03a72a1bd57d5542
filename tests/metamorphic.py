"""Drawn event lists, their variants, and the product's way through them: what the metamorphic tests share.

A case is a short list of raw rows of two users. Many cases, and several variants of each, become one input with
disjoint users, so that one Spark job judges all of them (docs/faults.md D2).
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from dynamix.config import Config
from dynamix.features import oracle, oracle_tables
from dynamix.features.comparison import Difference, Shape, differences
from dynamix.features.dwell import cap_dwell, derive_dwell
from dynamix.features.events import close_streams, split_raw
from dynamix.features.raw import read_raw
from dynamix.features.sessions import assign_sessions, session_features
from dynamix.features.surfaces import surface_rows
from dynamix.jobs.audit_rows import COMPARED, plain_rows

Row = dict[str, Any]
SECOND, MINUTE, HOUR, DAY = 10**6, 60 * 10**6, 3600 * 10**6, 86400 * 10**6
GAP = 30 * MINUTE
EPOCH = date(1970, 1, 1)
START_US = int(datetime(2026, 1, 1, 23, 40, tzinfo=UTC).timestamp()) * SECOND
RUN_DATE = date(2026, 1, 8)
UNTIL = datetime(2027, 1, 1)
CAPS = {"feed/view": 600_000, "*": 3_600_000}
SHIFT_DAYS = 3

TYPES = {
    "user_id": pa.string(), "event_id": pa.string(), "event_ts": pa.int64(), "event_seq": pa.int64(),
    "ingest_ts": pa.int64(), "event_type": pa.string(), "surface": pa.string(), "session_id": pa.string(),
    "dwell_ms": pa.int64(), "request_id": pa.string(), "item_id": pa.string(), "category": pa.string(),
}  # fmt: skip
_GAPS = (
    0, 0, 1, SECOND - 1, SECOND, 7 * SECOND, 10 * MINUTE, GAP - 1, GAP, GAP, GAP + 1, 5 * HOUR, DAY, 25 * HOUR,
)  # fmt: skip
_INGEST = (0, 0, 0, SECOND, HOUR, 2 * DAY, -10 * MINUTE, -15 * MINUTE, -15 * MINUTE - 1)
_VALUES: tuple[Sequence[Any], ...] = (
    _GAPS,
    "aab",
    (None, None, 1, 2),
    _INGEST,
    ("view", "view", "view", "click", "impression", "conversion"),
    ("feed", "feed", "shop"),
    (None, None, "A", "B"),
    (None, None, None, None, 0, 1234, 700_000, 10**7, -1),
    (None, None, "r1", "r2"),
    (None, "i", "j"),
)
_FAULTS = ("copy", "late copy", "conflict", "no user", "blank surface", "no time", "old", "long id")


@dataclass(frozen=True)
class Case:
    """Rows of users a and b, one row picked for doubling, and the instant after which rows are `later` ones."""

    rows: tuple[Row, ...]
    picked: int
    cut_us: int


@st.composite
def cases(draw: st.DrawFn, *, most: int = 9) -> Case:
    """Gaps at, just under and just over the limit, ties, midnights, impressions, copies, conflicts, bad rows."""
    event = st.tuples(*map(st.sampled_from, _VALUES), st.integers(0, 99))
    rows: list[Row] = []
    at = START_US
    for number, drawn in enumerate(draw(st.lists(event, min_size=1, max_size=most))):
        gap, user, seq, ingest, kind, surface, source, dwell, request, item, tag = drawn
        at += gap
        rows.append(
            {
                "user_id": user, "event_id": f"{tag:02d}-{number}", "event_ts": at, "event_seq": seq,
                "ingest_ts": at + ingest, "event_type": kind, "surface": surface, "session_id": source,
                "dwell_ms": dwell, "request_id": request, "item_id": item, "category": None,
            }
        )  # fmt: skip
    for fault, place in draw(
        st.lists(st.tuples(st.sampled_from(_FAULTS), st.integers(0, most - 1)), max_size=2)
    ):
        row = dict(rows[place % len(rows)])
        rows.append(_faulty(row, fault, len(rows)))
    return Case(tuple(rows), draw(st.integers(0, len(rows) - 1)), START_US + (at - START_US) // 2)


def _faulty(row: Row, fault: str, number: int) -> Row:
    changed: dict[str, Row] = {
        "copy": {},
        "late copy": {"ingest_ts": (row["ingest_ts"] or row["event_ts"] or START_US) + DAY},
        "conflict": {"item_id": "other", "ingest_ts": (row["ingest_ts"] or START_US) + number % 2},
        "no user": {"user_id": None},
        "blank surface": {"surface": " "},
        "no time": {"event_ts": None},
        "old": {"event_ts": 1000, "ingest_ts": None},
        "long id": {"item_id": "é" * 513},
    }
    fresh = {} if fault in ("copy", "late copy", "conflict") else {"event_id": f"x-{number}"}
    return row | changed[fault] | fresh


def draw_cases(n: int, strategy: st.SearchStrategy[Case] | None = None) -> list[Case]:
    """`n` cases or more, the same ones on every machine; Hypothesis only draws, so nothing is shrunk."""
    found: list[Case] = []

    @settings(
        max_examples=n, phases=[Phase.generate], derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy or cases())
    def collect(case: Case) -> None:
        found.append(case)

    collect()
    assert len(found) >= n
    return found


# ---------------------------------------------------------------- variants


def variants(case: Case) -> dict[str, list[Row]]:
    """The case as it is, and changed in ways that must not, or must only so far, change what comes of it."""
    rows = list(case.rows)
    stranger = [row | {"user_id": "z", "event_id": f"z{row['event_id']}"} for row in rows]
    times = ("event_ts", "ingest_ts")
    return {
        "base": rows,
        "permuted": rows[::-1],
        "doubled": [*rows, rows[case.picked]],
        "crowd": rows + stranger,
        "shifted": [
            row | {n: row[n] + SHIFT_DAYS * DAY for n in times if row[n] is not None and row[n] > DAY}
            for row in rows
        ],
        "until": [row for row in rows if row["event_ts"] is None or row["event_ts"] <= case.cut_us],
    }


def named(rows: Iterable[Row], name: str) -> list[Row]:
    """The rows under user and event ids of their own."""
    return [
        row
        | {
            "user_id": row["user_id"] and f"{name}.{row['user_id']}",
            "event_id": f"{name}.{row['event_id']}",
        }
        for row in rows
    ]


def write_files(rows: Sequence[Row], folder: Path, *, files: int, seed: int) -> str:
    """The rows in shuffled order, dealt to Parquet files of unequal size."""
    folder.mkdir(parents=True)
    mixed = list(rows)
    random.Random(seed).shuffle(mixed)
    borders = [0, *sorted(random.Random(seed + 1).sample(range(1, len(mixed)), files - 1)), len(mixed)]
    for number, (low, high) in enumerate(itertools.pairwise(borders)):
        columns = {n: pa.array([row[n] for row in mixed[low:high]], kind) for n, kind in TYPES.items()}
        pq.write_table(pa.table(columns), folder / f"part-{number}.parquet")
    return str(folder)


# ---------------------------------------------------------------- the product's way


@dataclass(frozen=True)
class Outcome:
    """Fates of raw rows and the rows of three tables."""

    fates: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    sessions: list[Row] = field(default_factory=list)
    surfaces: list[Row] = field(default_factory=list)

    def by_name(self) -> dict[str, Outcome]:
        """The outcome of each name that `named` gave."""
        parts: dict[str, Outcome] = defaultdict(Outcome)
        for table in ("fates", "events", "sessions", "surfaces"):
            for row in getattr(self, table):
                own = row["event_id"] if table == "fates" else row["user_id"]
                getattr(parts[own.rpartition(".")[0]], table).append(row)
        return parts


@dataclass(frozen=True)
class Steps:
    """The product's steps; a test puts its own in their place to plant a bug."""

    prepare: Callable[[DataFrame], DataFrame] = lambda raw: raw
    settle: Callable[[DataFrame, Config], DataFrame] = lambda good, config: derive_dwell(
        assign_sessions(good, config=config), config=config
    )


def through_the_product(
    spark: SparkSession, source: str, config: Config, *, steps: Steps | None = None, events_only: bool = False
) -> Outcome:
    """Read, judge, sessionise, settle and sum up a source as `ingest` and `features` do, caps given."""
    steps = steps or Steps()
    raw = steps.prepare(read_raw(spark, source, config=config))
    split = split_raw(raw, config=config, run_id="r", until=UNTIL)
    judged = split.judged.persist()
    good = close_streams(split.good, config=config)
    settled = cap_dwell(steps.settle(good, config), caps=CAPS).persist()
    try:
        return Outcome(
            fates=[] if events_only else plain_rows(judged.select("event_id", "ingest_ts", "fate", "reason")),
            events=plain_rows(settled.select("user_id", *SETTLED.key, *SETTLED.columns)),
            sessions=plain_rows(session_features(settled, config=config)) if not events_only else [],
            surfaces=plain_rows(surface_rows(settled, RUN_DATE, config=config)) if not events_only else [],
        )
    finally:
        settled.unpersist()
        judged.unpersist()


# ---------------------------------------------------------------- the oracle's way

SETTLED = Shape("events", ("event_id",), ("session_id", "session_start", "dwell_ms", "dwell_status"))


def parsed(row: Row) -> Row:
    """A raw row as the oracle takes it: a dwell that is no length of time is missing and marked."""
    bad = row["dwell_ms"] is not None and row["dwell_ms"] < 0
    plain = {name: value for name, value in row.items() if name != "session_id"}
    return plain | {
        "source_session_id": row["session_id"],
        "dwell_ms": None if bad else row["dwell_ms"],
        "bad_dwell": bad or None,
    }


def through_the_oracle(rows: Sequence[Row], config: Config) -> Outcome:
    given = [parsed(row) for row in rows]
    judged = oracle.fates(given, config)
    kept = [row for row, (fate, _) in zip(given, judged, strict=True) if fate == "kept"]
    settled = oracle.settle(kept, config, caps=CAPS)
    return Outcome(
        fates=[
            {"event_id": row["event_id"], "ingest_ts": _known(row), "fate": fate, "reason": reason}
            for row, (fate, reason) in zip(given, judged, strict=True)
        ],
        events=settled,
        sessions=oracle_tables.ebf_session(settled, config),
        surfaces=oracle_tables.surface_table(settled, config, run_day=(RUN_DATE - EPOCH).days),
    )


def _known(row: Row) -> int | None:
    """ingest_ts as the judged row shows it: event_ts stands in, a time outside 1971-2099 is none."""
    times = [at for at in (row["ingest_ts"], row["event_ts"]) if at is not None and at > 365 * DAY]
    return times[0] if times else None


def disagreement(found: Outcome, wanted: Outcome, *, events_only: bool = False) -> str:
    """The first difference in words, empty where both are one."""
    if not events_only and sorted(map(str, map(_fate, found.fates))) != sorted(
        map(str, map(_fate, wanted.fates))
    ):
        return f"fates\n  stored   {found.fates}\n  expected {wanted.fates}"
    pairs = [(found.events, wanted.events, SETTLED)]
    if not events_only:
        pairs += [
            (found.sessions, wanted.sessions, COMPARED["ebf_session"]),
            (found.surfaces, wanted.surfaces, with_share(COMPARED["ebf_surface"], found.surfaces)),
        ]
    for have, want, shape in pairs:
        first: Difference | None = next(iter(differences(have, want, shape)), None)
        if first is not None:
            return str(first)
    return ""


def _fate(row: Row) -> tuple[Any, ...]:
    return row["event_id"], row["ingest_ts"], row["fate"], row["reason"]


def with_share(shape: Shape, rows: Sequence[Mapping[str, Any]]) -> Shape:
    """The shape with `dwell_share` where the rows have it."""
    more = ("dwell_share",) if rows and "dwell_share" in rows[0] else ()
    return Shape(shape.table, shape.key, (*shape.columns, *more), shape.slack)


def days_later(day: int) -> date:
    return EPOCH + timedelta(days=day)
