"""Serving under declared streams: the same rows as from a request that was cut and emptied by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from dynamix.contracts import NO_DWELL_BIN
from dynamix.models.carried import CARRIED, Carried
from dynamix.models.serving import Preparation, StreamScale, prepare

NOW = datetime(2024, 1, 2, tzinfo=UTC)
SCALES = {"shop/view": StreamScale(0, 7.0, 1.0), "feed/like": StreamScale(1, 6.0, 2.0)}
PLAIN = Preparation(
    streams=SCALES,
    surfaces=("shop",),
    heads=("click",),
    item_buckets=100,
    per_stream=4,
    total=9,
    embargo_s=60,
)


def request(events: list[tuple[str, int, str | None, float | None]]) -> Any:
    listed = [
        {"stream": s, "ts": NOW - timedelta(seconds=age), "item_id": i, "dwell_ms": d, "category": i}
        for s, age, i, d in events
    ]
    one = {"user_id": "u", "request_ts": NOW, "surface": "shop", "item_id": "i1", "events": listed}
    return pa.Table.from_pylist([one])


EVENTS: list[tuple[str, int, str | None, float | None]] = [
    ("shop/view", 900, "i1", 4000.0), ("feed/like", 800, "i2", 100.0), ("shop/view", 700, "i1", 2000.0),
    ("feed/like", 600, "i1", 300.0), ("shop/view", 500, "i3", None), ("shop/view", 400, "i1", 9000.0),
]  # fmt: skip


def columns(rows: Any) -> dict[str, list[Any]]:
    names = ("stream", "item", "dwell_bin", "z", "usable", "log_age", "match", "rank")
    return {name: getattr(rows, name).tolist() for name in names}


def test_a_declared_length_cuts_its_own_stream() -> None:
    found, _ = prepare(request(EVENTS), replace(PLAIN, carried=Carried(lengths={0: 2})))
    wanted, _ = prepare(request([e for e in EVENTS if e[0] != "shop/view" or e[1] <= 500]), PLAIN)
    assert columns(found) == columns(wanted)
    longer, _ = prepare(request(EVENTS), replace(PLAIN, per_stream=1, carried=Carried(lengths={1: 2})))
    assert longer.stream.tolist() == [1, 1, 0]


def test_what_a_stream_does_not_carry_is_empty_and_the_other_stream_is_whole() -> None:
    hidden = {0: ("item", "category", "dwell", "recency")}
    found, _ = prepare(request(EVENTS), replace(PLAIN, carried=Carried(hidden=hidden)))
    emptied = [(s, age, None, None) if s == "shop/view" else (s, age, i, d) for s, age, i, d in EVENTS]
    wanted, _ = prepare(request(emptied), PLAIN)
    own = found.stream == 0
    assert found.log_age[own].tolist() == [0.0] * 4 and (found.log_age[~own] > 0).all()
    assert (found.dwell_bin[own] == NO_DWELL_BIN).all() and not found.usable[own].any()
    assert found.match[own].sum() == 0 < found.match[~own].sum()
    assert {**columns(found), "log_age": 0} == {**columns(wanted), "log_age": 0}
    assert np.array_equal(found.log_age[~own], wanted.log_age[~own])


def test_the_artefact_files_keep_it_and_older_ones_carry_everything() -> None:
    carried = Carried(lengths={0: 2}, hidden={1: ("item",)})
    files = replace(PLAIN, carried=carried).to_json()
    assert Preparation.from_json(files).carried == carried
    del files[CARRIED]
    assert Preparation.from_json(files).carried == Carried()
