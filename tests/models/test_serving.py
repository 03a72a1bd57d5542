"""A raw request against what wrote the training rows: dwells as the oracle has them, segments as the table has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynamix.config import Config, DwellConfig, SessionConfig
from dynamix.contracts import N_DWELL_BINS, NO_DWELL_BIN, TIERS
from dynamix.features import oracle
from dynamix.features.calendar import DAY_US
from dynamix.features.quotas import apply_quotas
from dynamix.models.dataset import JaggedRows
from dynamix.models.dwells import DWELL, DwellRule, Logged, settle
from dynamix.models.ranker import Ranker
from dynamix.models.segmenter import Past, Segmenter, assign, recent_events
from dynamix.models.service import CONFIG, STATE, RankerService
from dynamix.models.serving import Cell, Preparation, StreamScale, prepare
from dynamix.models.train import predict
from dynamix.segmentation.assign import assigned
from dynamix.segmentation.blocks import CountBlock
from dynamix.segmentation.midnights import Rule
from dynamix.segmentation.mixture import Mixture

NAMES = ("shop/view", "feed/like")
CAPS = {"shop/view": 4_000, "*": 9_000}
CONSTANTS = {"feed/like": [3_000]}
NOW_US = 50_000_000
waits_us = st.sampled_from([0, 1, 999_999, 1_000_000, 1_500_000, 4_000_000, 5_000_000, 5_000_001, 9_000_000])
logged_ms = st.sampled_from([None, None, None, 0, 1_000, 3_000, 4_000, 4_001, 20_000])
rows = st.lists(
    st.tuples(waits_us, st.booleans(), logged_ms, st.sampled_from([None, None, "a", "b"])), max_size=12
)


@given(rows, st.sampled_from(["gap", "given"]), st.booleans(), st.sampled_from([6_000_000, 10_000_000]))
def test_dwells_of_a_request_are_those_that_ingest_settles_as_far_as_they_are_told(
    drawn: list[tuple[int, bool, int | None, str | None]], sessions: Any, derive: bool, length_us: int
) -> None:
    config = Config(
        session=SessionConfig(rule=sessions, gap_s=5, max_length_s=length_us / 1e6),
        dwell=DwellConfig(derive=derive),
    )
    times = np.cumsum([wait for wait, *_ in drawn]).astype(np.int64)
    events: list[dict[str, Any]] = []
    for i, (us, (_, second, ms, session)) in enumerate(zip(times.tolist(), drawn, strict=True)):
        surface, _, kind = NAMES[second].partition("/")
        events.append({
            "event_id": f"{i:03d}", "user_id": "u", "event_ts": us, "ingest_ts": us, "surface": surface,
            "event_type": kind, "dwell_ms": ms, "dwell_logged_ms": ms, "source_session_id": session,
        })  # fmt: skip
    settled = {e["event_id"]: e for e in oracle.settle(events, config, caps=CAPS, constants=CONSTANTS)}
    impression = {"event_ts": NOW_US}
    wanted = [
        float(e["dwell_ms"]) if oracle.usable(e) and oracle.told(e, impression, config) else np.nan
        for e in (settled[one["event_id"]] for one in events)
    ]
    codes = {None: -1, "a": 0, "b": 1}
    asked = Logged(
        np.zeros(len(drawn), np.int64), times, np.array([int(second) for _, second, *_ in drawn], np.int64),
        np.array([np.nan if ms is None else ms for *_, ms, _ in drawn], float),
        np.array([codes[session] for *_, session in drawn], np.int64),
    )  # fmt: skip
    rule = DwellRule(derive, sessions == "given", 5_000_000, length_us, {0: 4_000, 1: 9_000}, {1: (3_000,)})
    found = settle(asked, np.full(len(drawn), NOW_US), DwellRule.from_tree(rule.to_tree()))
    assert np.array_equal(found, np.array(wanted, float), equal_nan=True)


K, STREAMS, DAYS = 3, 4, 9


def mixture(seed: int) -> Mixture:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(STREAMS * N_DWELL_BINS, 0.05), size=K) + 1e-9
    return Mixture(np.log(p / p.sum(axis=1, keepdims=True)), np.log(np.array([0.5, 0.3, 0.2])))


@given(st.integers(0, 10_000), st.sampled_from([1, 4]), st.sampled_from([0.5, 0.9]))
def test_the_segment_and_tier_of_a_request_are_those_of_the_table(
    seed: int, least: int, confidence: float
) -> None:
    """Users whose taste turns half way, so that many leave a segment for another or none."""
    rng = np.random.default_rng(seed)
    model, n_users = mixture(seed), 12
    user, day = rng.integers(0, n_users, 150), rng.integers(0, DAYS, 150)
    taste = np.where(day < DAYS // 2, user % K, (user + user % 2) % K)
    cell = np.array([rng.choice(STREAMS * N_DWELL_BINS, p=np.exp(model.log_p[k])) for k in taste])
    ids = pa.array([f"u{i}" for i in range(n_users)])
    block = CountBlock(ids, user, day, np.zeros_like(day), cell, np.ones_like(day))
    rule = Rule(confidence, least, active_from=4.0)
    _, component, _, active = assigned(block, model, rule, DAYS + 1)
    segmenter = Segmenter((7, 5, 9), model.log_p, model.log_pi, confidence, least, 4.0)
    for at in range(DAYS + 1):
        before = day < at
        past = Past(
            user[before], cell[before] // N_DWELL_BINS, cell[before] % N_DWELL_BINS, at - 1 - day[before]
        )
        found = assign(past, n_users, Segmenter.from_tree(segmenter.to_tree()))
        wanted = np.array([7, 5, 9, 0])[component[:, at]]
        assert found.tolist() == wanted.tolist()
        busy = (recent_events(past, n_users) >= 4) & (found > 0)
        assert busy.tolist() == active[:, at].tolist()


def test_requests_are_worked_on_in_pieces_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    past = Past(*(rng.integers(0, top, 400) for top in (20, STREAMS, N_DWELL_BINS, DAYS)))
    model = mixture(0)
    segmenter = Segmenter((1, 2, 3), model.log_p, model.log_pi, 0.6, 3, 4.0)
    whole = assign(past, 20, segmenter)
    monkeypatch.setattr("dynamix.models.segmenter._STATES", 1)
    assert assign(past, 20, segmenter).tolist() == whole.tolist() and len(set(whole.tolist())) > 2


SCALES = {"shop/view": StreamScale(0, 7.0, 1.0), "feed/like": StreamScale(1, 6.0, 2.0)}
PLAIN = Preparation(
    streams=SCALES, surfaces=("shop",), heads=("click",), item_buckets=100, per_stream=50, total=99, embargo_s=0,
)  # fmt: skip
MIDNIGHT = 20_000 * DAY_US


def request(n: int, **more: Any) -> pa.Table:
    """n views on the day before, asked for at noon."""
    listed = [{"stream": "shop/view", "ts": MIDNIGHT - 1_000_000 * (i + 1)} for i in range(n)]
    event = pa.struct([("stream", pa.string()), ("ts", pa.timestamp("us"))])
    columns: dict[str, Any] = {
        "user_id": ["u"], "request_ts": pa.array([MIDNIGHT + DAY_US // 2], pa.timestamp("us")), "surface": ["shop"],
        "events": pa.array([listed], pa.list_(event)),
    }  # fmt: skip
    return pa.table(columns | {name: [value] for name, value in more.items()})


@pytest.mark.parametrize(
    ("n", "given_", "wanted"),
    [
        (6, {}, (1, 1)),
        (2, {}, (0, 0)),
        (6, {"segment_id": 2}, (2, 1)),  # another than the estimate: its tier still follows the events
        (3, {"segment_id": 2}, (2, 0)),
        (6, {"segment_id": 0}, (0, 0)),  # a cold user is passive, however busy
        (2, {"segment_id": 2, "tier": "active"}, (2, 1)),
        (6, {"segment_id": 2, "tier": "passive"}, (2, 0)),
        (6, {"segment_id": None, "tier": None}, (1, 1)),
    ],
)
def test_tier_follows_the_segment_that_is_served(
    n: int, given_: dict[str, Any], wanted: tuple[int, int]
) -> None:
    p = np.full((1, 2 * N_DWELL_BINS), 1 / (2 * N_DWELL_BINS))
    one = Segmenter((1,), np.log(p), np.zeros(1), 0.9, min_events=3, active_from=5.0)
    found, _ = prepare(request(n, **given_), replace(PLAIN, segmenter=one))
    assert (found.segment.tolist(), found.tier.tolist()) == ([wanted[0]], [wanted[1]])


def test_events_of_a_session_kind_count_as_those_of_their_stream_in_the_segmenter() -> None:
    kinded = {
        "shop/view#buy": StreamScale(2, None, None),
        **SCALES,
        "shop/view#open": StreamScale(3, None, None),
    }
    own = replace(PLAIN, streams=kinded)
    assert own.counted_as().tolist() == [0, 1, 0, 0]
    p = np.full((2, 2 * N_DWELL_BINS), 1e-6)
    p[0, :N_DWELL_BINS], p[1, N_DWELL_BINS:] = 1, 1  # one segment views, the other likes
    segmenter = Segmenter((1, 2), np.log(p / p.sum(axis=1, keepdims=True)), np.log([0.5, 0.5]), 0.9, 3, 5.0)
    asked = request(4)
    events = asked["events"].combine_chunks()
    listed = [{**e, "stream": "shop/view#buy"} for e in events.to_pylist()[0]]
    table = asked.set_column(3, "events", pa.array([listed], events.type))
    assert prepare(table, replace(own, segmenter=segmenter))[0].segment.tolist() == [1]


@pytest.mark.parametrize("tier", TIERS)
def test_a_quota_of_one_tier_cuts_that_tier_in_training_in_memory_and_in_serving(
    tier: str, rows: JaggedRows
) -> None:
    cells = tuple(Cell(0, tier, f"{s}/x", quota) for s, quota in enumerate((0, 1, 2, 50)))
    scales = {f"{s}/x": StreamScale(s, None, None) for s in range(4)}
    own = replace(rows, segment=np.zeros_like(rows.segment), tier=np.arange(len(rows)) % 2)
    quotas = replace(PLAIN, streams=scales, cells=cells).quotas()
    code = np.where(own.tier == 1, TIERS.index("active"), TIERS.index("passive"))
    ends, kept = apply_quotas(
        own.offsets, np.arange(own.tokens), own.stream, quotas[0, code]
    )  # as training rows
    cut = own.under_mask(quotas)
    assert np.array_equal(cut.offsets, ends) and np.array_equal(cut.stream, own.stream[kept])
    assert cut.tokens < own.tokens
    prepared = replace(PLAIN, streams=scales, cells=cells)
    for name in TIERS:
        asked = request(4, segment_id=0, tier=name)
        events = asked["events"].combine_chunks()
        listed = [{**e, "stream": "1/x"} for e in events.to_pylist()[0]]
        table = asked.set_column(3, "events", pa.array([listed], events.type))
        assert prepare(table, prepared)[0].tokens == (1 if name == tier else 4)


def test_a_stored_ranker_of_each_trunk_scores_as_it_did(
    rows: JaggedRows, ranker: Ranker, tmp_path: Path
) -> None:
    """Rows alone, without a history, and all together, through the files that a service reads."""
    torch.save(ranker.float().state_dict(), tmp_path / STATE)
    (tmp_path / CONFIG).write_text(ranker.config.to_json(), encoding="utf-8")
    for name, text in PLAIN.to_json().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    service = RankerService.load(tmp_path)
    empty = rows.keep_events(np.zeros(rows.tokens, bool))
    for own in (rows, rows.take(np.array([0])), rows.take(np.array([5])), empty.take(np.array([3]))):
        p = service.score(own)
        wanted = predict(ranker, own, batch_size=4096)
        for head in ranker.config.heads:
            assert p[head] == pytest.approx(wanted[head], abs=2e-5)


def test_models_stored_before_dwells_were_derived_take_them_as_they_come() -> None:
    files = replace(
        PLAIN, dwell=DwellRule(derive=True, gap_us=10**9, caps_ms={0: 5}, imputed_ms={1: (7,)})
    ).to_json()
    assert Preparation.from_json(files).dwell == DwellRule(True, False, 10**9, 1, {0: 5}, {1: (7,)})
    del files[DWELL]
    older = Preparation.from_json(files)
    assert prepare(request(3), older)[0].dwell_bin.tolist() == [NO_DWELL_BIN] * 3
    derived = prepare(
        request(3), replace(older, dwell=DwellRule(derive=True, gap_us=10**9, length_us=10**12))
    )[0]
    assert derived.dwell_bin.tolist() == [1, 1, NO_DWELL_BIN]
