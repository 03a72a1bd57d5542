from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamix.errors import ConfigError
from dynamix.models.batch import RankBatch
from dynamix.models.dataset import JaggedRows
from dynamix.models.export import export_ranker, from_bytes, padded, run_program, to_bytes
from dynamix.models.layers.gate import StreamGate
from dynamix.models.layers.jagged import row_index, segment_softmax, segment_sum
from dynamix.models.layers.summary import N_SUMMARY, SUMMARY_CHANNELS, StreamLinear, stream_summary
from dynamix.models.ranker import Ranker, RankerConfig
from dynamix.models.trunks.din import DinTrunk

CPU = torch.device("cpu")


def double(rows: JaggedRows, at: list[int] | None = None) -> RankBatch:
    chosen = np.arange(len(rows)) if at is None else np.array(at)
    return rows.batch(chosen).check().to(CPU, torch.float64)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_removed_events_equal_masked_events(rows: JaggedRows, ranker: Ranker, seed: int) -> None:
    batch = double(rows)
    keep = torch.from_numpy(np.random.default_rng(seed).random(batch.tokens) < 0.5)
    with torch.no_grad():
        masked, removed, full = ranker(batch.masked(keep)), ranker(batch.removed(keep)), ranker(batch)
    torch.testing.assert_close(masked, removed, atol=1e-9, rtol=0)
    assert (masked - full).abs().max() > 1e-3


def test_removed_events_equal_masked_events_in_single_precision(rows: JaggedRows, ranker: Ranker) -> None:
    single, batch = ranker.float(), rows.batch(np.arange(len(rows)))
    keep = torch.from_numpy(np.random.default_rng(0).random(batch.tokens) < 0.5)
    with torch.no_grad():
        masked, removed = single(batch.masked(keep)), single(batch.removed(keep))
    torch.testing.assert_close(masked, removed, atol=2e-5, rtol=2e-5)


def test_removing_everything_equals_an_empty_history(rows: JaggedRows, ranker: Ranker) -> None:
    batch = double(rows)
    nothing = torch.zeros(batch.tokens, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(
            ranker(batch.masked(nothing)), ranker(batch.removed(nothing)), atol=1e-9, rtol=0
        )


def test_a_row_scores_the_same_alone_and_in_a_batch(rows: JaggedRows, ranker: Ranker) -> None:
    with torch.no_grad():
        together = ranker(double(rows))
        alone = torch.cat([ranker(double(rows, [i])) for i in range(len(rows))])
    torch.testing.assert_close(alone, together, atol=1e-9, rtol=0)


def test_starts_as_the_base_rate_of_each_head(rows: JaggedRows, ranker: Ranker) -> None:
    fresh = Ranker(ranker.config, seed=1)
    fresh.start({"click": 0.25, "conversion": 0.01}, rows.batch(np.arange(len(rows))))
    p = torch.sigmoid(fresh(rows.batch(np.arange(len(rows)))))
    torch.testing.assert_close(p, torch.tensor([[0.25, 0.01]]).expand(len(rows), 2), atol=1e-6, rtol=0)


def test_the_seed_alone_decides_the_start(ranker: Ranker) -> None:
    def weights(seed: int) -> torch.Tensor:
        return torch.cat([w.flatten() for w in Ranker(ranker.config, seed=seed).parameters()])

    assert torch.equal(weights(5), weights(5))
    assert not torch.equal(weights(5), weights(6))


def test_config_survives_json(ranker: Ranker) -> None:
    assert RankerConfig.from_json(ranker.config.to_json()) == ranker.config


def test_a_config_stored_before_there_were_trunks_is_din(ranker: Ranker) -> None:
    tree = json.loads(ranker.config.to_json())
    for name in ("kind", "layers", "attention_heads"):
        del tree["trunk"][name]
    older = RankerConfig.from_json(json.dumps(tree))
    assert older == replace(ranker.config, trunk=replace(ranker.config.trunk, kind="din"))
    assert isinstance(Ranker(older).trunk, DinTrunk)


def test_a_trunk_that_is_unknown_is_refused_with_those_that_are(ranker: Ranker) -> None:
    other = replace(ranker.config, trunk=replace(ranker.config.trunk, kind="dhen"))
    with pytest.raises(ConfigError, match="'dhen' is unknown; allowed: din, dlrm, hstu"):
        Ranker(other)


def test_segment_and_tier_enter_by_embedding_gate_and_bias(rows: JaggedRows, ranker: Ranker) -> None:
    """With the embeddings at zero and gates and biases as they start, nobody's segment or tier matters."""
    batch = double(rows)
    other = replace(batch, segment=(batch.segment + 1) % 3, tier=1 - batch.tier)
    tables = ["trunk.gate.log_weight", *TIER_AND_BIAS.get(ranker.config.trunk.kind, ())]
    with torch.no_grad():
        ranker.linear.by_segment.zero_()
        for name in ("trunk.segment.weight", "trunk.tier.weight", *tables):
            ranker.get_parameter(name).zero_()
        torch.testing.assert_close(ranker(other), ranker(batch), atol=0, rtol=0)
        for name in (*tables, "trunk.segment.weight", "trunk.tier.weight"):
            weight = ranker.get_parameter(name)
            weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
            assert (ranker(other) - ranker(batch)).abs().max() > 1e-4, name
            weight.zero_()


TIER_AND_BIAS = {
    "dlrm": ("trunk.tier_gate.log_weight",),
    "hstu": ("trunk.cell_bias.segment_bias", "trunk.cell_bias.tier_bias"),
}


def test_gates_and_biases_start_at_zero(ranker: Ranker) -> None:
    fresh = Ranker(ranker.config, seed=1)
    tables = ["trunk.gate.log_weight", *TIER_AND_BIAS.get(ranker.config.trunk.kind, ())]
    assert not any(fresh.get_parameter(name).any() for name in tables)


def test_a_boost_of_the_mask_weighs_as_the_gate_does(rows: JaggedRows, ranker: Ranker) -> None:
    batch = double(rows)
    boosted = replace(batch, log_boost=0.7 * (batch.stream == 2).double())
    gate = ranker.get_parameter("trunk.gate.log_weight")
    with torch.no_grad():
        found, plain = ranker(boosted), ranker(batch)
        gate.view(3, 4)[:, 2] += 0.7
        torch.testing.assert_close(found, ranker(batch), atol=1e-9, rtol=0)
    assert (found - plain).abs().max() > 1e-3


def test_gate_starts_as_the_identity() -> None:
    gate = StreamGate(3, 4)
    assert torch.equal(
        gate(torch.tensor([2, 1]), torch.tensor([0, 3, 1]), torch.tensor([0, 0, 1])), torch.zeros(3)
    )


def test_gate_weighs_by_segment_and_stream() -> None:
    gate = StreamGate(2, 3)
    with torch.no_grad():
        gate.log_weight.view(2, 3)[1, 2] = 0.7
    found = gate(torch.tensor([1, 0]), torch.tensor([2, 0, 2]), torch.tensor([0, 0, 1]))
    assert found.tolist() == pytest.approx([0.7, 0.0, 0.0])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_jagged_sum_and_softmax_equal_a_loop(lengths: list[int]) -> None:
    n = sum(lengths)
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    x = torch.linspace(-3, 5, max(n, 1), dtype=torch.float64)[:n].flip(0)
    row = row_index(offsets, n)
    pieces = [x[a:b] for a, b in pairwise(offsets)]
    expected = torch.cat([torch.softmax(p, 0) for p in pieces]) if n else x
    torch.testing.assert_close(segment_softmax(x, offsets, row), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(segment_sum(x, offsets, row), torch.stack([p.sum() for p in pieces]))


def test_gradients_equal_finite_differences(rows: JaggedRows, ranker: Ranker) -> None:
    batch = double(rows, [0, 3, 7])
    ranker.train()
    ranker(batch).sum().backward()
    own = {"din": "attention.query.weight", "dlrm": "interaction.pairs.weight", "hstu": "layers.0.time.bias"}
    for name in ("trunk.gate.log_weight", f"trunk.{own[ranker.config.trunk.kind]}", "linear.by_segment"):
        weight = ranker.get_parameter(name)
        assert weight.grad is not None
        at = int(weight.grad.abs().argmax())
        found, step = float(weight.grad.flatten()[at]), 1e-6
        with torch.no_grad():
            weight.view(-1)[at] += step
            up = float(ranker(batch).sum())
            weight.view(-1)[at] -= 2 * step
            down = float(ranker(batch).sum())
            weight.view(-1)[at] += step
        assert found == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-8)


def test_summary_equals_a_plain_loop(rows: JaggedRows) -> None:
    batch = double(rows)
    x = stream_summary(batch, row_index(batch.offsets, batch.tokens), 4)
    for i in range(len(rows)):
        at = range(int(batch.offsets[i]), int(batch.offsets[i + 1]))
        for f in range(4):
            own = [j for j in at if int(batch.stream[j]) == f]
            assert x[i, f].tolist() == pytest.approx(plain_summary(batch, own), abs=1e-12)


def plain_summary(batch: RankBatch, own: list[int]) -> list[float]:
    """SUMMARY_CHANNELS of one row and stream from the places of its events, oldest first."""
    if not own:
        return [0.0] * len(SUMMARY_CHANNELS)
    dwell = []
    for m in (3, 10, 30, len(own)):
        z = [float(batch.z[j]) for j in own[-m:] if bool(batch.usable[j])]
        dwell.append(sum(z) / (len(z) + 1))
    dead = sum(not bool(batch.usable[j]) for j in own)
    item = sum(int(batch.match[j]) & 1 for j in own)
    category = sum(int(batch.match[j]) >> 1 for j in own)
    rest = [dwell[1] ** 2, np.log1p(len(own)), -float(batch.log_age[own[-1]]) / 10, dead / len(own), 1.0]
    return [*dwell, *rest, np.log1p(item), np.log1p(category)]


def test_exported_program_serves_one_row_and_empty_histories(rows: JaggedRows, ranker: Ranker) -> None:
    single = ranker.float()
    program = from_bytes(to_bytes(export_ranker(single, rows.batch(np.arange(8)))))
    empty = rows.keep_events(np.zeros(rows.tokens, bool))
    for source, at in (
        (rows, range(1)),
        (rows, range(2, 3)),
        (rows, range(40)),
        (empty, range(1)),
        (empty, range(5)),
    ):
        batch = source.batch(np.array(at))
        with torch.no_grad():
            torch.testing.assert_close(run_program(program, batch), single(batch), atol=2e-5, rtol=0)


def test_padding_adds_a_row_that_owns_its_events(rows: JaggedRows) -> None:
    batch = padded(rows.batch(np.array([0])))
    assert batch.check().rows == 2
    assert padded(rows.batch(np.arange(4))).rows == 4


def test_a_stream_that_few_rows_have_is_not_blown_up() -> None:
    linear = StreamLinear(n_segments=1, n_streams=3, n_heads=1)
    x = torch.zeros(4096, 3, N_SUMMARY)
    x[:2048, 0] = 2.0  # common: sd 1
    x[:8, 1] = 2.0  # in one of 512 rows: sd .09
    linear.fit_scale(x)
    common, rare, absent = linear.scale.view(3, N_SUMMARY).unbind()
    assert torch.allclose(common, torch.ones(N_SUMMARY))
    assert torch.allclose(rare, torch.full((N_SUMMARY,), 2.0))  # as in a sixteenth of the rows
    assert torch.equal(absent, torch.ones(N_SUMMARY))
