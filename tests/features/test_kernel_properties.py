"""NumPy kernels against the plain-Python oracle, example by example, with the relations of docs/faults.md D2."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import metamorphic as m
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dynamix.config import Config, load_config
from dynamix.contracts import EBF_SESSION, EBF_SURFACE
from dynamix.features import oracle, oracle_tables
from dynamix.features.comparison import Shape, differences
from dynamix.features.engine import rule_of
from dynamix.features.history import kept_history
from dynamix.features.session_rows import session_sums, session_table
from dynamix.features.surface_sums import Window, day_rows, surface_table, windows
from dynamix.features.timeline import blocks
from dynamix.features.user_block import CENSORED, USABLE, Block, Reading, read_block
from dynamix.features.window_plan import window_plan
from dynamix.jobs.audit_rows import COMPARED

MANY = [200, pytest.param(5_000, marks=pytest.mark.slow)]
Row = dict[str, Any]


def _hold(
    claim: Callable[[Any], None], strategy: st.SearchStrategy[Any], n: int, *, shrink: bool = True
) -> None:
    """Run the claim on `n` drawn examples; a failing one is shrunk and shown."""
    quiet = settings(
        max_examples=n,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )
    quiet(given(strategy)(claim))()


# ---------------------------------------------------------------- histories


@dataclass(frozen=True)
class Past:
    """Events and impressions of users a and b, further events, and the limits of a history."""

    events: tuple[Row, ...]
    asked: tuple[Row, ...]
    more: tuple[Row, ...]
    config: Config


_HALF_S = 500_000


@st.composite
def pasts(draw: st.DrawFn) -> Past:
    at, request = st.integers(0, 24), st.sampled_from((None, None, "r", "q"))
    event = st.tuples(
        st.sampled_from("aab"),
        at,
        st.sampled_from((None, 1, 2)),
        st.integers(0, 8),
        request,
        st.sampled_from("xyz"),
    )
    numbers = iter(range(10_000))

    def rows(found: Sequence[tuple[Any, ...]]) -> tuple[Row, ...]:
        return tuple(
            {
                "user_id": user, "event_ts": ts * _HALF_S, "event_seq": seq, "ingest_ts": (ts + late) * _HALF_S,
                "request_id": asked_in, "surface": surface, "event_type": "view", "event_id": f"e{next(numbers):04d}",
            }
            for user, ts, seq, late, asked_in, surface in found
        )  # fmt: skip

    asked = draw(st.lists(st.tuples(st.sampled_from("ab"), at, request), min_size=1, max_size=5))
    limits = draw(st.tuples(st.integers(1, 4), st.integers(1, 8), st.sampled_from((0.0, 0.5, 1.0, 3.0))))
    return Past(
        rows(draw(st.lists(event, max_size=25))),
        tuple({"user_id": u, "event_ts": t * _HALF_S, "request_id": r} for u, t, r in asked),
        rows(draw(st.lists(event, max_size=6))),
        load_config(settings=[f"history={{per_stream: {limits[0]}, total: {limits[1]}, embargo: {limits[2]}}}"]),
    )  # fmt: skip


def _histories(
    events: Sequence[Row], asked: Sequence[Row], config: Config, *, later_us: int = 0, sooner_us: int = 0
) -> list[list[str]]:
    """Event ids of each impression's history by the product's kernel; all times moved by `later_us`."""
    struct = pa.struct([("number", pa.int64())])
    numbered = [row | {"number": number, "event_id": "", "item_id": None} for number, row in enumerate(asked)]
    past = [row | {"number": None, "item_id": row["event_id"]} for row in oracle.in_order(events)]
    lines = sorted([*past, *numbered], key=lambda row: str(row["user_id"]))
    table = pa.table(
        {
            "user_id": pa.array([r["user_id"] for r in lines], pa.string()),
            "impression": pa.array(
                [None if r["number"] is None else {"number": r["number"]} for r in lines], struct
            ),
            "event_ts": _moments([r["event_ts"] + later_us for r in lines]),
            "ingest_ts": _moments([r.get("ingest_ts", 0) + later_us for r in lines]),
            "request_id": pa.array([r["request_id"] for r in lines], pa.string()),
            "item_id": pa.array([r["item_id"] for r in lines], pa.string()),
            "category": pa.nulls(len(lines), pa.string()),
            "stream_id": pa.array(["xyz".find(r.get("surface", "x")) for r in lines], pa.int16()),
            "z": pa.nulls(len(lines), pa.float64()),
            "dwell_bin": pa.nulls(len(lines), pa.int8()),
            "censored": pa.nulls(len(lines), pa.bool_()),
        }
    )
    block, seen = blocks(table)
    rule = config.history
    offsets, index = kept_history(
        block, seen, per_stream=rule.per_stream, total=rule.total,
        embargo_us=round(rule.embargo_s * 1e6) - sooner_us, run_date_us=None,
    )  # fmt: skip
    found = dict(
        zip(
            seen.frame["number"].to_pylist(),
            [block.item_name.take(pa.array(index[a:b])).to_pylist() for a, b in pairwise(offsets)],
            strict=True,
        )
    )
    return [found[number] for number in range(len(asked))]


def _moments(us: list[int]) -> Any:
    return pa.array(us, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def _expected(past: Past) -> list[list[str]]:
    return [[e["event_id"] for e in oracle.history(past.events, row, past.config)] for row in past.asked]


def history_is_the_oracles(past: Past) -> None:
    assert _histories(past.events, past.asked, past.config) == _expected(past)


def history_keeps_the_relations(past: Past) -> None:
    """Rows permuted, times shifted, other users, impressions doubled: the same; later and unknown events: nothing."""
    plain = _histories(past.events, past.asked, past.config)
    assert _histories(past.events[::-1], past.asked, past.config) == plain
    assert _histories(past.events, past.asked, past.config, later_us=3 * m.DAY) == plain
    others = tuple(row | {"user_id": "A" if row["user_id"] == "a" else "z"} for row in past.more)
    assert _histories(past.events + others, past.asked, past.config) == plain
    assert _histories(past.events, past.asked * 2, past.config) == plain * 2
    newest = max(row["event_ts"] for row in past.asked)
    embargo_us = round(past.config.history.embargo_s * 1e6)
    hidden = tuple(
        row for row in past.more if row["event_ts"] >= newest - embargo_us or row["ingest_ts"] > newest
    )
    assert _histories(past.events + hidden, past.asked, past.config) == plain


@pytest.mark.parametrize("n", MANY)
@pytest.mark.parametrize("claim", [history_is_the_oracles, history_keeps_the_relations])
def test_histories(claim: Callable[[Any], None], n: int) -> None:
    _hold(claim, pasts(), n)


def test_the_planted_bug_of_same_second_events_in_the_history_is_found() -> None:
    """`<=` instead of `<` at t less the embargo: on whole microseconds the same as an embargo of one less."""

    def bugged(past: Past) -> None:
        assert _histories(past.events, past.asked, past.config, sooner_us=1) == _expected(past)

    with pytest.raises(AssertionError):
        _hold(bugged, pasts(), 200, shrink=False)


# ---------------------------------------------------------------- feature rows


def _settled(case: m.Case, config: Config) -> list[Row]:
    kept = [row for row in map(m.parsed, case.rows) if row["event_ts"] and row["event_ts"] > m.DAY * 365]
    named = [
        row | {"event_id": f"{number:02d}", "ingest_ts": row["ingest_ts"] or row["event_ts"]}
        for number, row in enumerate(kept)
        if row["user_id"]
    ]
    return oracle.settle(named, config, caps=m.CAPS, constants=_CONSTANTS)


def _block(settled: Sequence[Row], config: Config) -> Block | None:
    """What Spark would hand to the kernel, users side by side and otherwise in no order; None without an event."""
    rows = [row for row in settled if row["session_id"] is not None]
    rows.sort(key=lambda row: (str(row["user_id"]), row["event_id"][::-1]))
    texts = ("user_id", "session_id", "source_session_id", "surface", "event_type", "event_id")
    numbers = {"us": "event_ts", "ingest": "ingest_ts", "seq": "event_seq", "start_us": "session_start"}
    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in texts}
    columns |= {name: pa.array([row[of] for row in rows], pa.int64()) for name, of in numbers.items()}
    known = [None if row["dwell_status"] == "imputed" else row["dwell_ms"] for row in rows]
    flags = [USABLE * oracle.usable(r) + CENSORED * (r["dwell_status"] == "censored") for r in rows]
    columns |= {"dwell_ms": pa.array(known, pa.int64()), "flags": pa.array(flags, pa.int8())}
    if config.streams:
        columns["stream"] = pa.array([oracle.declared(row, config) for row in rows], pa.string())
    rule = Reading(
        rule_of(config), given=config.session.rule == "given", derive=True, censor_last=True,
        conversion_types=config.conversion_types, settled=True,
    )  # fmt: skip
    return read_block(pa.table(columns), rule) if rows else None


def _plain(table: Any) -> list[Row]:
    """Rows of a table as the oracle has them: instants in microseconds, dates in days, maps as dicts."""
    kinds = {pa.timestamp("us", tz="UTC"): pa.int64(), pa.date32(): pa.int32()}
    for place, field in enumerate(table.schema):
        if field.type in kinds:
            table = table.set_column(place, field.name, table[field.name].cast(kinds[field.type]))
    maps = [field.name for field in table.schema if pa.types.is_map(field.type)]
    return [row | {name: dict(row[name]) for name in maps} for row in table.to_pylist()]


_CONSTANTS = {"feed/view": [1234]}
_DECLARED = {
    "all/look": {
        "where": {"surface": ["feed", "shop"], "event_type": "view"},
        "windows": [3, 0],
        "half_life_days": 2,
    },
    "shop/click": {"windows": [1, 14], "half_life_days": 30},
}
_RULES = {
    "gap": load_config(settings=["session.max_length_s=45m"]),
    "given": load_config(settings=["session.rule=given", "session.max_length_s=26h"]),
    "declared": load_config(settings=[f"streams={json.dumps(_DECLARED)}"]),
}


@pytest.mark.parametrize("n", MANY)
@pytest.mark.parametrize("rule", _RULES)
def test_rows_of_both_tables_are_the_oracles(rule: str, n: int) -> None:
    config = _RULES[rule]
    surface = Shape("ebf_surface", EBF_SURFACE.key, _SURFACE)

    def claim(case: m.Case) -> None:
        settled = _settled(case, config)
        block = _block(settled, config)
        if block is None:
            return
        gap_us = int(config.session.gap_s * 1e6)
        made = session_table(session_sums(block), block.names, gap_us=gap_us, given=rule == "given")
        made = made.select(list(EBF_SESSION.names))
        wanted = oracle_tables.ebf_session(settled, config)
        assert [str(d) for d in differences(_plain(made), wanted, COMPARED["ebf_session"])] == []
        end = max(row["event_ts"] for row in settled) // m.DAY + 3
        days, names = day_rows(block)
        found = [Window(1, days), *windows(days, end, names, window_plan(config))]
        rows = [r for window in found for r in _plain(surface_table(window, block.names.users, names))]
        expected = oracle_tables.surface_table(settled, config, run_day=end)
        assert [str(d) for d in differences(rows, expected, surface)] == []

    _hold(claim, m.cases(), n)


_SURFACE = tuple(name for name in EBF_SURFACE.names if name not in EBF_SURFACE.key)
