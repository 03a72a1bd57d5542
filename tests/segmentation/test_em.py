"""Counts that EM reads, and EM over partitions: the same bits as one pass in memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from event_frames import START, event_frame
from pyspark.sql import SparkSession
from scipy import sparse

from dynamix.config import Config
from dynamix.contracts import N_DWELL_BINS
from dynamix.features.calendar import build_calendar
from dynamix.segmentation.blocks import INPUT, NEXT, OTHER, count_block
from dynamix.segmentation.counts import user_counts
from dynamix.segmentation.em import ALL, HALF_A, HALF_B, Candidate, fit, reduce_blocks, user_half
from dynamix.segmentation.mix import _seed_users
from dynamix.segmentation.mixture import Mixture, e_step, initial, m_step

WIDTH = 4
ENTRY = pa.struct([("day", pa.int32()), ("part", pa.int32()), ("cell", pa.int32()), ("n", pa.int32())])
ENTRIES = "user_id string, entries array<struct<day:int,part:int,cell:int,n:int>>"


class Frame:
    """Record batches that answer `mapInArrow(...).collect()` as a Spark frame would, a batch a partition."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def mapInArrow(self, work: Any, schema: str) -> Frame:
        return Frame([out for batch in self.batches for out in work(iter([batch]))])

    def collect(self) -> list[dict[str, Any]]:
        return [row for batch in self.batches for row in batch.to_pylist()]


def world(users: int = 240) -> list[dict[str, Any]]:
    """Users of two behaviours with entries in every part; the last user has an event on other days only."""
    rng = np.random.default_rng(5)
    rows = []
    for u in range(users):
        shares = [0.7, 0.1, 0.1, 0.1] if u % 3 else [0.1, 0.1, 0.1, 0.7]
        entries = []
        for part, day in ((INPUT, 2), (NEXT, 9), (OTHER, 15)):
            for cell, n in enumerate(rng.multinomial(6, shares)):
                if n:
                    entries.append({"day": day, "part": part, "cell": cell, "n": int(n)})
        rows.append({"user_id": f"u{u:03d}", "entries": entries})
    rows.append({"user_id": "other", "entries": [{"day": 15, "part": OTHER, "cell": 1, "n": 9}]})
    return rows


def batch_of(rows: Sequence[dict[str, Any]]) -> Any:
    users = pa.array([r["user_id"] for r in rows], pa.string())
    entries = pa.array([r["entries"] for r in rows], pa.list_(ENTRY))
    return pa.record_batch({"user_id": users, "entries": entries})


def frame_of(rows: Sequence[dict[str, Any]], size: int) -> Any:
    return Frame([batch_of(rows[i : i + size]) for i in range(0, len(rows), size)])


def dense(rows: Sequence[dict[str, Any]], *parts: int) -> Any:
    counts = np.zeros((len(rows), WIDTH))
    for u, row in enumerate(rows):
        for e in row["entries"]:
            if e["part"] in parts:
                counts[u, e["cell"]] += e["n"]
    return counts


def starts(rows: Sequence[dict[str, Any]]) -> list[Candidate]:
    counts = sparse.csr_matrix(dense(rows, INPUT))
    mixtures = [initial(counts, k=k, group=np.arange(WIDTH), prior=0.5, seed=k) for k in (1, 2, 3)]
    return [Candidate(m, half) for m in mixtures for half in (ALL, HALF_A, HALF_B)]


def same(a: Sequence[Candidate], b: Sequence[Candidate]) -> bool:
    return all(
        np.array_equal(x.mixture.log_p, y.mixture.log_p)
        and np.array_equal(x.mixture.log_pi, y.mixture.log_pi)
        and (x.loglik, x.iterations, x.converged, x.half) == (y.loglik, y.iterations, y.converged, y.half)
        for x, y in zip(a, b, strict=True)
    )


def test_counts_of_a_block_are_those_of_the_named_parts() -> None:
    rows = world(20)
    block = count_block(batch_of(rows))
    for parts in ((INPUT,), (INPUT, NEXT), (OTHER,)):
        assert np.array_equal(block.matrix(WIDTH, *parts).toarray(), dense(rows, *parts))
    assert np.array_equal(block.matrix(WIDTH).toarray(), dense(rows, INPUT, NEXT, OTHER))


def test_a_sliced_batch_keeps_its_own_rows() -> None:
    rows = world(20)
    block = count_block(batch_of(rows).slice(5, 7))
    assert block.users.to_pylist() == [r["user_id"] for r in rows[5:12]]
    assert np.array_equal(block.matrix(WIDTH, INPUT).toarray(), dense(rows[5:12], INPUT))


def test_candidates_advance_as_if_each_were_fitted_alone_in_memory() -> None:
    rows = world()
    half = user_half(pa.array([r["user_id"] for r in rows]))
    counts = dense(rows, INPUT)
    options: dict[str, Any] = {"width": WIDTH, "parts": (INPUT,), "max_iter": 7, "prior": 0.5}
    for candidate, found in zip(starts(rows), fit(frame_of(rows, 50), starts(rows), **options), strict=True):
        own = counts if candidate.half == ALL else counts[half == candidate.half]
        mixture = candidate.mixture
        for _ in range(found.iterations):
            mixture = m_step(e_step(mixture, sparse.csr_matrix(own)), prior=0.5)
        assert np.array_equal(found.mixture.log_p, mixture.log_p)
        assert np.array_equal(found.mixture.log_pi, mixture.log_pi)


def test_one_block_in_memory_gives_the_same_bits_as_partitions() -> None:
    rows = world()
    options: dict[str, Any] = {"width": WIDTH, "parts": (INPUT, NEXT), "max_iter": 3, "prior": 0.5}
    block = count_block(batch_of(rows))
    assert same(fit(block, starts(rows), **options), fit(frame_of(rows, 70), starts(rows), **options))


def test_iteration_stops_when_every_candidate_has_converged() -> None:
    rows = world()
    found = fit(frame_of(rows, 90), starts(rows), width=WIDTH, parts=(INPUT,), max_iter=500, prior=0.5)
    assert all(c.converged for c in found)
    assert found[0].iterations == 2  # one component starts at its optimum; a second pass sees it stand still


def test_both_halves_hold_every_user_once_and_are_about_equal() -> None:
    half = user_half(pa.array([f"user-{i}" for i in range(4000)]))
    assert set(half.tolist()) == {0, 1}
    assert abs(half.mean() - 0.5) < 4 * 0.5 / 4000**0.5


def test_no_user_at_all_leaves_the_zero() -> None:
    assert reduce_blocks(Frame([]), lambda block: 1, lambda a, b: a + b, 0) == 0  # type: ignore[arg-type]


@pytest.mark.spark
def test_fit_on_spark_gives_the_same_bits_for_any_partitioning(spark: SparkSession) -> None:
    rows = world()
    expected = fit(
        frame_of(rows, 1000), starts(rows)[3:6], width=WIDTH, parts=(INPUT, NEXT), max_iter=2, prior=0.5
    )
    records = [(r["user_id"], [(e["day"], e["part"], e["cell"], e["n"]) for e in r["entries"]]) for r in rows]
    stored = spark.createDataFrame(records, ENTRIES).persist()
    try:
        for partitions in (1, 3):
            found = fit(
                stored.repartition(partitions, "user_id"),
                starts(rows)[3:6],
                width=WIDTH,
                parts=(INPUT, NEXT),
                max_iter=2,
                prior=0.5,
            )
            assert same(found, expected)
    finally:
        stored.unpersist()


@pytest.mark.spark
def test_the_users_that_seed_a_fit_are_the_same_on_spark_and_in_memory(spark: SparkSession) -> None:
    rows = world(40)
    records = [(r["user_id"], [(e["day"], e["part"], e["cell"], e["n"]) for e in r["entries"]]) for r in rows]
    on_spark, half = _seed_users(spark.createDataFrame(records, ENTRIES).repartition(3), WIDTH)
    in_memory, own_half = _seed_users(count_block(batch_of(rows)), WIDTH)
    assert on_spark.shape == (40, WIDTH)
    assert np.array_equal(on_spark.toarray(), in_memory.toarray())
    assert np.array_equal(half, own_half)


def test_a_candidate_without_users_in_its_half_keeps_a_proper_mixture() -> None:
    rows = [r for r in world(40) if user_half(pa.array([r["user_id"]]))[0] == HALF_A]
    empty = Candidate(Mixture(np.log(np.full((2, WIDTH), 0.25)), np.log([0.5, 0.5])), HALF_B)
    found = fit(frame_of(rows, 10), [empty], width=WIDTH, parts=(INPUT,), max_iter=3, prior=0.5)[0]
    assert np.exp(found.mixture.log_p) == pytest.approx(np.full((2, WIDTH), 0.25))
    assert np.isfinite(found.loglik)


DAY = 86_400
STREAMS = [(0, "shop/view", False), (1, "shop/conversion", True), (2, "news/view", False)]


def event_rows() -> list[dict[str, Any]]:
    """Two users over 20 days: input window 2024-01-08 to 11, next window to 13; late and conversion events among them."""
    rows: list[dict[str, Any]] = []
    for day in range(20):
        rows.append({"user_id": "a", "t": day * DAY + 50, "dwell_ms": 1500 * day or None})
        rows.append({"user_id": "b", "t": day * DAY + 60, "surface": "news"})
        rows.append({"user_id": "b", "t": day * DAY + 70, "event_type": "impression"})
    rows.append(
        {"user_id": "a", "t": 7 * DAY, "ingest": 9 * DAY + 5, "surface": "news"}
    )  # known two days later
    rows.append({"user_id": "a", "t": 8 * DAY, "surface": "unseen"})  # of no known stream
    rows.append({"user_id": "a", "t": 20 * DAY + 1})  # on the run date
    return rows


def counted(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, int, int, int]]]:
    """user -> sorted (day, part, cell, n), by a loop over the rows."""
    calendar = build_calendar(date(2024, 1, 21), first_event=START)
    edges = (0, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900)
    ids = {name: number for number, name, conversion in STREAMS if not conversion}
    found: dict[str, dict[tuple[int, int, int], int]] = {}
    for row in rows:
        stream = f"{row.get('surface', 'shop')}/{row.get('event_type', 'view')}"
        if row["t"] >= 20 * DAY or stream not in ids:
            continue
        at = START + timedelta(seconds=row["t"])
        part = INPUT if at in calendar.segment_input else NEXT if at in calendar.next_window else OTHER
        dwell = row.get("dwell_ms")
        place = N_DWELL_BINS - 1 if dwell is None else sum(dwell > e * 1000 for e in edges)
        key = (int(row.get("ingest", row["t"]) // DAY), part, ids[stream] * N_DWELL_BINS + place)
        own = found.setdefault(row["user_id"], {})
        own[key] = own.get(key, 0) + 1
    return {u: sorted((*key, n) for key, n in own.items()) for u, own in found.items()}


@pytest.mark.spark
def test_counts_equal_a_loop_and_are_blind_to_conversions(spark: SparkSession) -> None:
    calendar = build_calendar(date(2024, 1, 21), first_event=START)
    streams = spark.createDataFrame(STREAMS, "stream_id int, stream string, is_conversion boolean")
    plain = event_rows()
    converted = plain + [
        {"user_id": user, "t": day * DAY + 99, "event_type": "conversion", "dwell_ms": 700}
        for user, day in (("a", 7), ("a", 9), ("b", 8), ("c", 8))
    ]
    found = []
    for rows in (plain, converted):
        counts = user_counts(event_frame(spark, rows), streams, config=Config(), calendar=calendar).collect()
        found.append({r["user_id"]: [tuple(e) for e in r["entries"]] for r in counts})
    assert found[0] == found[1] == counted(plain)
    assert {part for entries in found[0].values() for _, part, _, _ in entries} == {INPUT, NEXT, OTHER}
