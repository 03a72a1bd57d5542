"""Training shared by several ranks, here as threads: same rows a step, same losses and weights as one process alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Barrier, BrokenBarrierError
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from dynamix.config import TrainConfig
from dynamix.errors import ConfigError, GuardError
from dynamix.models.batch import RankBatch
from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.metrics import NeState
from dynamix.models.plugins import Output, PluginHead, TrainerPlugin
from dynamix.models.ranker import Ranker
from dynamix.models.ranks import ALONE, ProcessRanks, Ranks
from dynamix.models.stream_dropout import StreamDropout
from dynamix.models.train import ArmSpec, TrainedArm, predict, ranker_config, train_arm
from dynamix.models.warm import WarmStart

CONFIG = TrainConfig(
    device="cpu", batch_size=96, item_buckets=50, threads=1, bootstrap=50, epochs=2, min_steps=1, hidden=(16,)
)  # fmt: skip
SPEC = ArmSpec("keep-all", "keep-all", 1)


@dataclass
class Meeting:
    """Where threads leave a tensor and take those of all."""

    size: int
    barrier: Barrier = field(init=False)
    left: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.barrier, self.left = Barrier(self.size), [torch.zeros(())] * self.size


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """Ranks as threads of this process, summed in the order of the ranks."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def _all(self, value: Tensor) -> list[Tensor]:
        self.meeting.left[self.rank] = value.detach().clone()
        self.meeting.barrier.wait(timeout=30)
        found = list(self.meeting.left)
        self.meeting.barrier.wait(timeout=30)
        return found

    def total(self, values: Tensor) -> Tensor:
        first, *others = self._all(values)
        return sum(others, start=first)

    def least(self, values: Tensor) -> Tensor:
        return torch.stack(self._all(values)).amin(0)

    def begin(self, module: nn.Module) -> None:
        for value in module.state_dict().values():
            value.copy_(self._all(value)[0])


@pytest.fixture(scope="module")
def world(table: Callable[..., pa.Table]) -> JaggedRows:
    """1,202 rows, 482 of them to train on: the sixth batch has two."""
    lengths = [int(k) for k in np.random.default_rng(2).integers(0, 16, 1202)]
    rows = rows_from_table(table(lengths, effect=4.0), heads=("click", "conversion"), item_buckets=50)
    uneven = np.random.default_rng(3)
    labels = {
        h: np.where(uneven.random(len(y)) < 0.2, np.nan, y).astype(np.float32) for h, y in rows.labels.items()
    }
    return replace(rows, weight=(0.2 + uneven.random(len(rows))).astype(np.float32), labels=labels)


def together(
    rows: JaggedRows, size: int, *, config: TrainConfig = CONFIG, plugins: Callable[[], Sequence[TrainerPlugin]] = list,
    start: WarmStart | None = None, said: list[str] | None = None,
) -> list[TrainedArm]:  # fmt: skip
    """What each of `size` ranks holds at the end."""
    meeting = Meeting(size)
    shape = ranker_config(rows, n_streams=4, n_segments=3, config=config)

    def one(rank: int) -> TrainedArm:
        ranks = ALONE if size == 1 else ThreadRanks(rank, size, meeting)
        try:
            return train_arm(
                SPEC, rows, model_config=shape, config=config, plugins=plugins(), start=start, ranks=ranks,
                progress=(said if said is not None else []).append,
            )  # fmt: skip
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        tasks = [pool.submit(one, rank) for rank in range(size)]
        failed = [
            e for e in (task.exception() for task in tasks) if e and not isinstance(e, BrokenBarrierError)
        ]
        if failed:
            raise failed[0]
        return [task.result() for task in tasks]


def assert_close(arm: TrainedArm, other: TrainedArm) -> None:
    """Weights to 2e-6, losses to 1e-6 relative: float32 sums in another order."""
    own = other.model.state_dict()
    for name, value in arm.model.state_dict().items():
        torch.testing.assert_close(value, own[name], rtol=1e-5, atol=2e-6, msg=name)
    for a, b in zip(arm.epochs, other.epochs, strict=True):
        assert b == pytest.approx(a, rel=1e-6)


def assert_same_bits(arm: TrainedArm, other: TrainedArm) -> None:
    own = other.model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in arm.model.state_dict().items())


@pytest.mark.parametrize(("trunk", "size"), [("din", 2), ("dlrm", 2), ("hstu", 2), ("din", 3)])
def test_ranks_train_the_ranker_of_one_process(world: JaggedRows, trunk: str, size: int) -> None:
    """Rows have unequal weights and a fifth of the labels is unknown, so a mean of means would be another model."""
    config = CONFIG.model_copy(update={"trunk": trunk})
    (one,), several = (together(world, n, config=config) for n in (1, size))
    for arm in several:
        assert_close(one, arm)
        assert_same_bits(several[0], arm)
        assert arm.epochs == several[0].epochs
    test = world.select("test")
    for head in ("click", "conversion"):
        y = test.labels[head].astype(float)
        known = np.isfinite(y)
        weight = test.weight[known].astype(float)
        p = [predict(arm.model, test, batch_size=512)[head][known] for arm in (one, several[0])]
        ne = [NeState.of(y[known], own, weight).ne for own in p]
        assert ne[1] == pytest.approx(ne[0], rel=1e-4)


def test_two_ranks_are_to_the_bit_one_process_that_takes_a_batch_in_two_pieces(
    world: JaggedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    even = world.take(np.flatnonzero(np.cumsum(world.part == 0) <= 480))  # five batches of 96 rows
    shared = together(even, 2)[0]
    monkeypatch.setattr("dynamix.models.memory.RowsAtOnce.attempt", lambda self, work: work(48))
    assert_same_bits(shared, together(even, 1)[0])


def test_every_step_takes_the_rows_that_one_process_takes(
    world: JaggedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: dict[int, list[list[int]]] = {}
    share = Ranks.share

    def seen(self: Ranks, at: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        own = share(self, at)
        steps.setdefault(self.rank + 10 * self.size, []).append(own.tolist())
        return own

    monkeypatch.setattr(Ranks, "share", seen)
    together(world, 1), together(world, 3)
    alone, ranks = steps[10], [steps[30 + rank] for rank in range(3)]
    assert len(alone) == 12 and len(alone[5]) == 2  # the third rank has nothing to do there
    assert [a + b + c for a, b, c in zip(*ranks, strict=True)] == alone
    assert {len(own) for own in ranks[0]} == {32, 1} and {len(own) for own in ranks[2]} == {32, 0}


def test_a_mean_of_means_would_train_another_ranker(
    world: JaggedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protection taken away: each rank divides by the weight of its own rows."""
    from dynamix.models import train as module

    (one,) = together(world, 1)
    loss = module.batch_loss
    monkeypatch.setattr(
        module, "batch_loss", lambda logits, batch, heads, known_weight=None: loss(logits, batch, heads) / 2
    )
    with pytest.raises(AssertionError):
        assert_close(one, together(world, 2)[0])


class Teacher(TrainerPlugin):
    """A head that is served and learns the click where it is known."""

    name = "teacher"

    def heads(self) -> Sequence[PluginHead]:
        return [PluginHead("hint", serve=True)]

    def loss_terms(self, out: Output, batch: RankBatch) -> Mapping[str, Tensor]:
        y = torch.nan_to_num(batch.labels["click"])
        return {"hint": F.binary_cross_entropy_with_logits(out.extra["hint"], y)}


def test_plugins_with_heads_terms_and_draws_train_alike(world: JaggedRows) -> None:
    def plugins() -> list[TrainerPlugin]:
        return [Teacher(), StreamDropout(n_segments=3, n_streams=4, rate=0.3, seed=5)]

    (one,), (two, _) = (together(world, n, plugins=plugins) for n in (1, 2))
    assert_close(one, two)
    assert two.model.config.heads == ("click", "conversion", "hint")
    assert two.plugins == ("teacher", "stream-dropout") and "teacher/hint" in two.epochs[0]


def test_a_warm_start_begins_in_every_rank(world: JaggedRows) -> None:
    start = WarmStart(together(world, 1)[0].model, {}, "models:/dynamix-ranker/1")
    (one,), (two, _) = (together(world, n, start=start) for n in (1, 2))
    assert_close(one, two)


def test_a_plugin_that_draws_by_itself_is_noticed(world: JaggedRows) -> None:
    class Apart(TrainerPlugin):
        def __init__(self, by: float) -> None:
            self.by = by

        def after_step(self, ranker: Ranker, step: int) -> None:
            with torch.no_grad():
                ranker.heads.out.bias.add_(self.by)

    numbers = iter((0.1, 0.2))
    with pytest.raises(GuardError, match="2 training processes hold different weights"):
        together(world, 2, plugins=lambda: [Apart(next(numbers))])


def test_only_the_first_rank_speaks(world: JaggedRows) -> None:
    said: list[str] = []
    together(world, 3, said=said)
    assert [text.split(":")[0] for text in said] == [f"keep-all seed 1 epoch {n} of 2" for n in (1, 2)]


def test_fewer_training_rows_than_ranks_are_refused(world: JaggedRows) -> None:
    two = world.take(np.flatnonzero(world.part == 0)[:2])
    with pytest.raises(ConfigError, match=r"train\.processes=3, but arm 'keep-all' has 2 training rows"):
        together(two, 3)


def test_a_weight_without_a_gradient_keeps_none_and_one_rank_is_enough_for_one() -> None:
    meeting = Meeting(2)
    weights = [[nn.Parameter(torch.ones(2)) for _ in range(3)] for _ in range(2)]
    weights[0][0].grad = torch.tensor([1.0, 2.0])
    weights[1][0].grad = torch.tensor([10.0, 20.0])
    weights[1][1].grad = torch.tensor([3.0, 4.0])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda rank: ThreadRanks(rank, 2, meeting).add_gradients(weights[rank]), range(2)))
    for own in weights:
        assert own[0].grad is not None and own[0].grad.tolist() == [11, 22]
        assert own[1].grad is not None and own[1].grad.tolist() == [3, 4]
        assert own[2].grad is None


def test_the_group_of_processes_reduces_as_the_contract_says() -> None:
    """One process with torch.distributed itself; two of them are in test_launch.py."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        ranks = ProcessRanks(dist.get_rank(), dist.get_world_size())
        values = torch.tensor([1.5, -2.0])
        assert torch.equal(ranks.total(values), values) and torch.equal(ranks.least(values), values)
        assert ranks.total(values) is not values
        module = nn.Linear(2, 1)
        before = module.weight.clone()
        ranks.begin(module)
        assert torch.equal(module.weight, before)
    finally:
        ranks.leave()
    assert not dist.is_initialized()
