"""The plugin contract: what a plugin adds works in training and leaves with it, and without one nothing changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dynamix.config import Config, TrainConfig
from dynamix.errors import ConfigError, GuardError
from dynamix.jobs.train import _by_name, _second_opinion
from dynamix.models.batch import RankBatch
from dynamix.models.contest import hold, scored_rows
from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.evidence import compare
from dynamix.models.export import export_ranker, flat, padded
from dynamix.models.opinion import price_cells, second_opinion
from dynamix.models.plugins import Forward, Output, PluginHead, TrainerPlugin
from dynamix.models.ranker import Ranker
from dynamix.models.serving import StreamScale
from dynamix.models.stream_dropout import StreamDropout
from dynamix.models.train import (
    SEGMENT_SD,
    SHARED_SD,
    ArmSpec,
    TrainedArm,
    base_rates,
    batch_loss,
    predict,
    ranker_config,
    train_arm,
)

CONFIG = TrainConfig(
    device="cpu",
    batch_size=128,
    item_buckets=50,
    threads=1,
    bootstrap=60,
    epochs=2,
    min_steps=1,
    hidden=(16,),
)
SPEC = ArmSpec("keep-all", "keep-all", 2)


@pytest.fixture(scope="module")
def world(table: Callable[..., pa.Table]) -> JaggedRows:
    lengths = [int(k) for k in np.random.default_rng(2).integers(0, 16, 1500)]
    return rows_from_table(table(lengths, effect=4.0), heads=("click", "conversion"), item_buckets=50)


def trained(rows: JaggedRows, *plugins: TrainerPlugin, config: TrainConfig = CONFIG) -> TrainedArm:
    shape = ranker_config(rows, n_streams=4, n_segments=3, config=config)
    return train_arm(SPEC, rows, model_config=shape, config=config, plugins=plugins)


def test_without_a_plugin_the_weights_are_those_of_a_loop_that_knows_none(world: JaggedRows) -> None:
    """The loop as it was before there were plugins, written out; every bit of every weight."""
    train, validate = world.select("train"), world.select("validate")
    torch.set_num_threads(1)
    model = Ranker(ranker_config(world, n_streams=4, n_segments=3, config=CONFIG), seed=2)
    generator = torch.Generator().manual_seed(2)
    model.start(
        base_rates(train), train.batch(torch.randperm(len(train), generator=generator)[:8192].numpy())
    )
    linear = list(model.linear.parameters())
    networks = [w for w in model.parameters() if all(w is not own for own in linear)]
    rate, steps = CONFIG.learning_rate, 2 * math.ceil(len(train) / 128)
    optimizer = torch.optim.AdamW(
        [
            {"params": networks, "weight_decay": CONFIG.weight_decay, "lr": rate / 2},
            {"params": linear, "weight_decay": 0.0},
        ],
        lr=rate,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: 1 - 0.9 * min(at / steps, 1))
    kept = []
    for _ in range(2):
        for at in train.places(128, generator):
            batch = train.batch(at)
            optimizer.zero_grad()
            prior = model.linear.prior_energy(shared_sd=SHARED_SD, segment_sd=SEGMENT_SD) / len(train)
            (batch_loss(model(batch), batch, model.config.heads) + prior).backward()
            optimizer.step()
            schedule.step()
        p = predict(model, validate, batch_size=128)
        loss = np.mean(
            [F.binary_cross_entropy(torch.tensor(p[h]), torch.tensor(validate.labels[h]).double()) for h in p]
        )
        kept.append((loss, {k: v.clone() for k, v in model.state_dict().items()}))
    best = min(kept, key=lambda pair: pair[0])[1]
    found = trained(world).model.state_dict()
    assert list(found) == list(best)
    assert all(torch.equal(found[name], best[name]) for name in best)


class Teacher(TrainerPlugin):
    """Two more heads that learn the click from r; records what it is told."""

    name = "teacher"

    def __init__(self, *, serve: tuple[str, ...] = ()) -> None:
        self.serve = serve
        self.steps: list[int] = []
        self.days: list[date] = []

    def heads(self) -> Sequence[PluginHead]:
        return [PluginHead(name, serve=name in self.serve) for name in ("hint", "other")]

    def loss_terms(self, out: Output, batch: RankBatch) -> Mapping[str, Tensor]:
        y = batch.labels["click"]
        return {
            name: F.binary_cross_entropy_with_logits(out.extra[name], target)
            for name, target in (("hint", y), ("other", 1 - y))
        }

    def after_step(self, ranker: Ranker, step: int) -> None:
        self.steps.append(step)

    def on_day_end(self, ranker: Ranker, day: date) -> None:
        self.days.append(day)


def test_heads_and_terms_train_and_are_logged_by_name(world: JaggedRows) -> None:
    teacher = Teacher()
    arm = trained(world, teacher)
    assert set(arm.epochs[0]) == {"train_loss", "prior", "teacher/hint", "teacher/other", "validate_loss"}
    assert arm.epochs[1]["teacher/hint"] < arm.epochs[0]["teacher/hint"] < math.log(2)
    assert arm.plugins == ("teacher",)
    plain = trained(world).model
    assert not torch.equal(
        arm.model.trunk.stream.weight, plain.trunk.stream.weight
    )  # the terms reach the trunk
    newest = np.datetime64(int(world.select("train").event_us.max()), "us").astype("datetime64[D]")
    assert teacher.days == [newest.astype(object)]
    assert teacher.steps == list(range(1, 1 + len(teacher.steps))) and len(teacher.steps) > 2


def test_a_term_counts_once_however_many_pieces_a_batch_takes(
    world: JaggedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_step = CONFIG.model_copy(update={"epochs": 1, "batch_size": 4096})
    whole = trained(world, Teacher(), config=one_step)
    monkeypatch.setattr("dynamix.models.memory.RowsAtOnce.attempt", lambda self, work: work(100))
    parts = trained(world, Teacher(), config=one_step)
    for name in ("train_loss", "prior", "teacher/hint", "teacher/other"):
        assert parts.epochs[0][name] == pytest.approx(whole.epochs[0][name], rel=1e-5), name


@pytest.mark.parametrize(("trunk", "serve"), [("din", ()), ("din", ("other",)), ("dlrm", ()), ("hstu", ())])
def test_exactly_the_serving_heads_survive_export(
    world: JaggedRows, trunk: str, serve: tuple[str, ...]
) -> None:
    """FLOPs and signature are those of a plain ranker with as many heads."""
    config = CONFIG.model_copy(update={"trunk": trunk, "epochs": 1})
    model = trained(world, Teacher(serve=serve), config=config).model
    plain = Ranker(
        type(model.config)(model.config.trunk, ("click", "conversion", *serve), model.config.surfaces)
    )
    assert model.config == plain.config
    batch = world.batch(np.arange(6))
    mine, theirs = (measured(ranker, batch) for ranker in (model, plain))
    assert mine == theirs and mine[0] > 0
    assert mine[2] == (6, 2 + len(serve))


def measured(ranker: Ranker, batch: RankBatch) -> tuple[int, list[str], tuple[int, ...]]:
    """FLOPs of the exported program, the inputs of its signature, the shape of its output."""
    program = export_ranker(ranker, batch)
    inputs = flat(padded(batch))
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        out = program.module()(*inputs)
    names = [str(spec) for spec in program.graph_signature.input_specs]
    return flops.get_total_flops(), names, tuple(out.shape)


def test_a_serving_head_serves_what_it_learned_and_leaves_the_labels_alone(world: JaggedRows) -> None:
    longer = CONFIG.model_copy(update={"min_steps": 80})
    served, alone = (
        predict(trained(world, Teacher(serve=serve), config=longer).model, world, batch_size=256)
        for serve in (("other",), ())
    )
    assert list(served) == ["click", "conversion", "other"] and list(alone) == ["click", "conversion"]
    for head in alone:
        assert served[head] == pytest.approx(alone[head], abs=1e-6)
    assert served["other"].mean() == pytest.approx(1 - world.labels["click"].mean(), abs=0.1)


def test_two_heads_of_one_name_are_refused(world: JaggedRows) -> None:
    class Twin(Teacher):
        def heads(self) -> Sequence[PluginHead]:
            return [PluginHead("click")]

    with pytest.raises(ConfigError, match="click stand twice"):
        trained(world, Twin())


def test_a_term_that_is_not_finite_stops_by_its_name(world: JaggedRows) -> None:
    class Broken(TrainerPlugin):
        name = "broken"

        def loss_terms(self, out: Output, batch: RankBatch) -> Mapping[str, Tensor]:
            return {"nan": out.r.sum() * math.nan}

    with pytest.raises(GuardError, match="broken/nan"):
        trained(world, Broken())


def test_export_of_a_plugin_has_the_last_word_and_wraps_nest_in_order(world: JaggedRows) -> None:
    calls: list[str] = []

    class Wrap(TrainerPlugin):
        def __init__(self, name: str) -> None:
            self.name = name

        def wrap_module(self, forward: Forward) -> Forward:
            def run(batch: RankBatch) -> Output:
                calls.append(self.name)
                return forward(batch)

            return run

        def export(self, ranker: Ranker) -> Ranker:
            with torch.no_grad():
                ranker.heads.out.bias.add_(1)
            return ranker

    plain, wrapped = trained(world).model, trained(world, Wrap("a"), Wrap("b")).model
    assert calls[:2] == ["b", "a"]
    torch.testing.assert_close(wrapped.heads.out.bias, plain.heads.out.bias + 2)
    assert torch.equal(wrapped.trunk.item.weight, plain.trunk.item.weight)


def test_stream_dropout_removes_whole_cells_anew_each_step(world: JaggedRows) -> None:
    dropout = StreamDropout(n_segments=3, n_streams=4, rate=0.5, seed=0)
    seen: list[RankBatch] = []

    def forward(batch: RankBatch) -> Output:
        seen.append(batch)
        return Output(batch.z, batch.z, {})

    batch = world.batch(np.arange(200))
    run = dropout.wrap_module(forward)
    run(batch), run(batch)
    assert torch.equal(seen[0].stream, seen[1].stream)  # tried again within a step: the same
    kept, cells = dropout.kept.clone(), torch.zeros(3, 4, dtype=torch.bool)
    row = torch.repeat_interleave(seen[0].offsets.diff())
    cells[seen[0].segment[row], seen[0].stream] = True
    assert torch.equal(cells, kept) and 0 < kept.sum() < 12
    assert seen[0].check().tokens < batch.tokens and seen[0].labels.keys() == batch.labels.keys()
    draws = []
    for step in range(400):
        dropout.after_step(None, step)  # type: ignore[arg-type]
        draws.append(dropout.kept)
    share = torch.stack(draws).double().mean(0)
    assert share.min() > 0.38 and share.max() < 0.62  # 400 draws of one half: five standard errors


def test_a_price_is_the_paired_change_of_ne_without_the_cell(world: JaggedRows) -> None:
    model, rows = trained(world).model, world.select("validate")
    prices = price_cells(model, rows, "conversion", replicates=60, batch_size=512)
    assert [(p.segment_id, p.stream_id) for p in prices] != [] and len(prices) == 12
    assert sum(p.tokens for p in prices) == rows.tokens
    for price in prices[:: len(prices) - 1]:
        segment = np.repeat(rows.segment, np.diff(rows.offsets))
        cut = rows.keep_events((segment != price.segment_id) | (rows.stream != price.stream_id))
        assert rows.tokens - cut.tokens == price.tokens
        new, base = (
            scored_rows(r, "conversion", predict(model, r, batch_size=512)["conversion"]) for r in (cut, rows)
        )
        wanted = compare(new, base, replicates=60)
        found = (price.delta_ne_pct, price.low, price.high)
        assert found == pytest.approx((wanted.delta_ne_pct, wanted.low, wanted.high), abs=1e-6)


def test_the_second_opinion_finds_the_one_stream_that_matters(table: Callable[..., pa.Table]) -> None:
    """An effect is planted on the dwell of stream 0 alone; the other nine cells carry nothing."""
    lengths = [int(k) for k in np.random.default_rng(2).integers(0, 16, 6000)]
    rows = rows_from_table(table(lengths, effect=4.0), heads=("conversion",), item_buckets=50)
    config = CONFIG.model_copy(update={"stream_dropout": 0.2, "min_steps": 60})
    shape = ranker_config(rows, n_streams=4, n_segments=3, config=config)
    prices = second_opinion(rows, "conversion", model_config=shape, config=config)
    assert {p.stream_id for p in prices[:3]} == {0} and all(p.low > 0 for p in prices[:3])
    assert max(p.delta_ne_pct for p in prices[3:]) < 0.2 * min(p.delta_ne_pct for p in prices[:3])


def test_a_training_job_writes_the_prices_by_stream_name(world: JaggedRows) -> None:
    """What `dynamix train` puts into evidence.json as `second_opinion`."""
    config = Config(train=CONFIG.model_copy(update={"stream_dropout": 0.3}))
    contest = hold(
        {"keep-all": ("keep-all", world)}, n_streams=4, n_segments=3, config=config.train, progress=lambda text: None
    )  # fmt: skip
    said: list[str] = []
    run: Any = SimpleNamespace(config=config, note=said.append, folder=None)
    arms: Any = SimpleNamespace(streams={f"feed/{i}": StreamScale(i, None, None) for i in range(4)})
    found = _by_name(_second_opinion(run, contest), arms)
    assert {(p["segment_id"], p["stream"]) for p in found} == {
        (g, f"feed/{f}") for g in range(3) for f in range(4)
    }
    assert set(found[0]) == {"segment_id", "stream_id", "stream", "delta_ne_pct", "low", "high", "tokens"}
    assert any("second opinion seed 0" in text for text in said)
