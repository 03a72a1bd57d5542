"""Segmenters of events where there is no Spark: the segment of the table, stored and read back, and asked by MLflow."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from dynamix.contracts import N_DWELL_BINS
from dynamix.models.event_segmenter import EventSegmenter
from dynamix.models.segmenter import Past, Segmenter, assign, segment_users, stored_segmenter
from dynamix.segmentation.assign import assigned
from dynamix.segmentation.blocks import INPUT, CountBlock
from dynamix.segmentation.encoder import EncoderConfig, SessionEncoder
from dynamix.segmentation.fitted import FittedSegmenter, Paper2Fitted
from dynamix.segmentation.jagged import FlatEvents, jagged
from dynamix.segmentation.midnights import Rule, decide
from dynamix.segmentation.mixture import Mixture
from dynamix.segmentation.neural_fitted import NeuralFitted
from dynamix.segmentation.prefixes import DatedEvents, at_midnights
from dynamix.segmentation.readout import Readout

STREAMS, DAYS, USERS, GAP_S = 4, 9, 12, 900.0
IDS = (7, 5)
RULE = Rule(0.7, 3, active_from=4.0)


@cache
def fitted(name: str) -> FittedSegmenter:
    """With drawn weights, large enough that posteriors leave the middle."""
    rng = np.random.default_rng(0)
    if name == "paper2":
        return Paper2Fitted(
            rng.normal(size=STREAMS), 0.0, 0.1, np.log([0.5, 0.5]), Readout(0.2, 0.0), "K=2 as drawn"
        )
    import torch

    config = EncoderConfig(k=2, n_streams=STREAMS, dim=8, hidden=8)
    encoder = SessionEncoder(config, torch.Generator().manual_seed(0))
    weights = {
        n: (w.detach().numpy() + 0.9 * rng.normal(size=w.shape)).astype(np.float32)
        for n, w in encoder.state_dict().items()
    }
    return NeuralFitted(config, weights, Readout(), "K=2 as drawn", {})


def served(name: str) -> EventSegmenter:
    return EventSegmenter(IDS, fitted(name), RULE.confidence, RULE.min_events, RULE.active_from, GAP_S)


def drawn(seed: int = 0) -> DatedEvents:
    rng = np.random.default_rng(seed)
    n = 160
    user, ts = rng.integers(0, USERS, n), rng.uniform(0, DAYS, n) * 86_400
    stream = np.where(ts < DAYS * 43_200, user % 2, (user + 1) % 2) + 2 * rng.integers(0, 2, n)
    z = np.where(rng.random(n) < 0.3, np.nan, rng.normal(size=n) + 1.5 * (stream % 2) - 0.7)
    dwell_bin = np.where(np.isnan(z), 12, np.clip(np.nan_to_num(z) * 2 + 5, 0, 11)).astype(np.int64)
    flat = FlatEvents(user, ts, stream, dwell_bin, z, np.zeros(n, np.int64))
    return DatedEvents(pa.array([f"u{i}" for i in range(USERS)]), flat, (ts // 86_400).astype(np.int64))


@pytest.mark.parametrize("name", ["neural", "paper2"])
def test_the_segment_of_a_request_is_that_of_the_table(name: str) -> None:
    """At every midnight, after the segmenter was stored and read back; a younger stream says nothing."""
    events = drawn()
    found = at_midnights(events, fitted(name), n_days=DAYS + 1, n_streams=STREAMS, gap_s=GAP_S)
    component = decide(found.q, found.events, RULE)
    segmenter = stored_segmenter(json.loads(json.dumps(served(name).to_tree())))
    flat = events.flat
    for at in range(DAYS + 1):
        past = events.day < at
        own = (flat.user, flat.stream, flat.dwell_bin, at - 1 - events.day, flat.ts_s, flat.z)
        young = (0, STREAMS, 3, 0, at * 86_400.0 - 1, 1.0)  # of user 0, on the day before
        request = Past(*(np.append(values[past], one) for values, one in zip(own, young, strict=True)))
        wanted = np.array([*IDS, 0])[component[:, at]]
        assert assign(request, USERS, segmenter).tolist() == wanted.tolist()
    assert set(np.unique(component)) == {-1, 0, 1}
    assert (component[:, 1:] != component[:, :-1]).sum() > USERS  # some change their segment again


def test_requests_are_worked_on_in_pieces_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    flat, day = drawn().flat, drawn().day
    past = Past(flat.user, flat.stream, flat.dwell_bin, DAYS - 1 - day, flat.ts_s, flat.z)
    whole = assign(past, USERS, served("paper2"))
    monkeypatch.setattr("dynamix.models.event_segmenter._STATES", 1)
    assert assign(past, USERS, served("paper2")).tolist() == whole.tolist() and len(set(whole.tolist())) > 1


def test_counts_alone_are_refused() -> None:
    flat, day = drawn().flat, drawn().day
    with pytest.raises(ValueError, match=r"give Past\.ts_s and Past\.z"):
        assign(Past(flat.user, flat.stream, flat.dwell_bin, DAYS - 1 - day), USERS, served("paper2"))


@pytest.mark.parametrize("name", ["neural", "paper2"])
def test_asked_by_mlflow_a_user_gets_the_sure_segment_of_the_posterior(name: str) -> None:
    events = drawn(3)
    flat = FlatEvents(*(vars(events.flat) | {"part": np.full(len(events.day), INPUT)}).values())
    inputs = jagged(flat, users=events.users, n_streams=STREAMS, gap_s=GAP_S)
    q = fitted(name).posterior(inputs)
    sure = (q.max(axis=1) >= RULE.confidence) & (inputs.events >= RULE.min_events)
    rows = [
        [
            {"stream_id": int(flat.stream[i]), "dwell_bin": int(flat.dwell_bin[i]), "ts_s": float(flat.ts_s[i]),
             "z": None if np.isnan(flat.z[i]) else float(flat.z[i])}
            for i in np.flatnonzero(flat.user == user)
        ]
        for user in range(USERS)
    ]  # fmt: skip
    found = segment_users(served(name).to_tree(), {"user_id": events.users.to_pylist(), "events": rows})
    assert found["user_id"] == events.users.to_pylist()
    assert found["segment_id"] == np.where(sure, np.array(IDS)[q.argmax(axis=1)], 0).tolist()
    assert len(set(found["segment_id"])) > 1


def test_components_of_one_segment_add_up_in_serving_as_in_the_table() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.full(STREAMS * N_DWELL_BINS, 0.3), size=3)
    mixture, group = Mixture(np.log(p), np.log([0.4, 0.3, 0.3])), np.array([0, 1, 0])
    flat, day = drawn(4).flat, drawn(4).day
    block = CountBlock(
        drawn(4).users,
        flat.user,
        day,
        flat.part,
        flat.stream * N_DWELL_BINS + flat.dwell_bin,
        np.ones_like(day),
    )
    q, component, _, _ = assigned(block, mixture, RULE, DAYS + 1, group)
    parts = assigned(block, mixture, RULE, DAYS + 1)[0]
    assert q[..., 0] == pytest.approx(parts[..., 0] + parts[..., 2])
    merged = Segmenter(
        IDS, mixture.log_p, mixture.log_pi, RULE.confidence, RULE.min_events, 4.0, group=tuple(group.tolist())
    )
    again = stored_segmenter(json.loads(json.dumps({**merged.to_tree(), "method": "mix-merge"})))
    past = Past(flat.user, flat.stream, flat.dwell_bin, DAYS - 1 - day)
    wanted = np.array([*IDS, 0])[component[:, -1]]
    assert assign(past, USERS, again).tolist() == wanted.tolist()
    counts = block.matrix(STREAMS * N_DWELL_BINS).toarray()
    asked = segment_users(merged.to_tree(), {"user_id": ["u"] * USERS, "counts": counts})
    sure = (q[:, -1].max(axis=1) >= 0.7) & (counts.sum(axis=1) >= 3)
    assert asked["segment_id"] == np.where(sure, np.array(IDS)[q[:, -1].argmax(axis=1)], 0).tolist()
