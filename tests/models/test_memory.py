"""Too little memory for a batch: the same training in pieces, said, and an end where even few rows do not fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from dynamix.config import TrainConfig
from dynamix.errors import EnvironmentTrouble
from dynamix.models.batch import RankBatch
from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.memory import LEAST_ROWS, RowsAtOnce
from dynamix.models.metrics import NeState
from dynamix.models.plugins import TrainerPlugin
from dynamix.models.ranker import Ranker
from dynamix.models.train import ArmSpec, TrainedArm, predict, ranker_config, train_arm

CONFIG = TrainConfig(
    device="cpu", batch_size=256, item_buckets=50, threads=1, bootstrap=50, epochs=2, min_steps=1, hidden=(16,)
)  # fmt: skip
SPEC = ArmSpec("keep-all", "keep-all", 0)


def planted(table: Callable[..., pa.Table], n: int = 2000) -> JaggedRows:
    lengths = [int(k) for k in np.random.default_rng(2).integers(0, 16, n)]
    return rows_from_table(table(lengths, effect=4.0), heads=("click", "conversion"), item_buckets=50)


class Steps(TrainerPlugin):
    """Writes down each step."""

    def __init__(self, seen: list[int]) -> None:
        self.seen = seen

    def after_step(self, ranker: Ranker, step: int) -> None:
        self.seen.append(step)


def trained(rows: JaggedRows, *, config: TrainConfig = CONFIG) -> tuple[TrainedArm, list[str], int]:
    """The arm, what was said of memory, and how many optimiser steps were made."""
    said: list[str] = []
    steps: list[int] = []
    shape = ranker_config(rows, n_streams=4, n_segments=3, config=config)
    arm = train_arm(
        SPEC, rows, model_config=shape, config=config, progress=said.append,
        plugins=[Steps(steps)],
    )  # fmt: skip
    return arm, [text for text in said if "out of memory" in text], len(steps)


def small_device(monkeypatch: pytest.MonkeyPatch, *, rows: int) -> list[int]:
    """The model as on a device that has no memory for more than `rows` rows; the sizes that were tried."""
    tried: list[int] = []
    represent = Ranker.represent

    def limited(self: Ranker, batch: RankBatch) -> tuple[Tensor, Tensor]:
        tried.append(batch.rows)
        if batch.rows > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. More words")
        return represent(self, batch)

    monkeypatch.setattr(Ranker, "represent", limited)
    return tried


def test_fault_38_a_batch_that_does_not_fit_goes_through_in_pieces_to_the_same_weights(
    table: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 rows do not fit, nor 128: pieces of 64 from then on. Steps, losses and weights are those of the whole."""
    rows = planted(table)
    whole, nothing, steps = trained(rows)
    assert (nothing, whole.rows_at_once) == ([], 256)
    tried = small_device(monkeypatch, rows=64)
    cut, said, cut_steps = trained(rows)
    assert (cut.rows_at_once, cut_steps) == (64, steps)
    assert [text.split("rows at once")[0].split()[-1] for text in said] == ["128", "64"]
    assert (tried.count(256), tried.count(128)) == (1, 1)  # what did not fit once is not tried again
    for name, value in whole.model.state_dict().items():
        assert torch.allclose(cut.model.state_dict()[name], value, rtol=1e-4, atol=1e-5), name
    for a, b in zip(whole.epochs, cut.epochs, strict=True):
        assert b == pytest.approx(a, rel=1e-5)


def test_fault_38_the_same_shortage_gives_the_same_bits(
    table: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = planted(table, 800)
    small_device(monkeypatch, rows=100)
    first, second = (trained(rows)[0].model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fault_38_without_the_weight_of_the_whole_batch_the_pieces_would_train_another_model(
    table: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protection taken away: each piece divided by its own weight, the gradients are several times too large."""
    from dynamix.models import train as module

    rows = planted(table, 800)
    whole = trained(rows)[0].model.state_dict()
    loss = module.batch_loss
    monkeypatch.setattr(
        module, "batch_loss", lambda logits, batch, heads, known_weight=None: loss(logits, batch, heads)
    )
    small_device(monkeypatch, rows=64)
    cut = trained(rows)[0].model.state_dict()
    assert not all(torch.allclose(cut[name], whole[name], rtol=1e-3, atol=1e-4) for name in whole)


def test_fault_38_where_even_few_rows_do_not_fit_the_way_out_is_named(
    table: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = small_device(monkeypatch, rows=LEAST_ROWS - 1)
    with pytest.raises(
        EnvironmentTrouble, match=rf"{LEAST_ROWS} rows at once .*train\.device=cpu"
    ) as refused:
        trained(planted(table, 300))
    assert refused.value.exit_code == 5
    assert min(tried) == LEAST_ROWS


def test_only_lack_of_memory_makes_pieces() -> None:
    memory, calls = RowsAtOnce(64), []

    def broken(rows: int) -> None:
        calls.append(rows)
        raise RuntimeError("another trouble")

    with pytest.raises(RuntimeError, match="another trouble"):
        memory.attempt(broken)
    assert (calls, memory.rows) == ([64], 64)


def test_predictions_in_pieces_are_those_of_the_whole(
    table: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = planted(table, 300)
    model = Ranker(ranker_config(rows, n_streams=4, n_segments=3, config=CONFIG))
    whole = predict(model, rows, batch_size=300)
    small_device(monkeypatch, rows=40)
    cut = predict(model, rows, batch_size=300)
    assert all(np.allclose(cut[head], whole[head], rtol=1e-6, atol=1e-7) for head in whole)


def test_with_one_thread_and_with_two_the_ne_is_the_same(table: Callable[..., pa.Table]) -> None:
    """Bits are promised at one number of threads; between numbers of threads, NE within 1e-4 relative."""
    rows = planted(table, 6000)
    test = rows.select("test")
    y, w = test.labels["conversion"].astype(float), test.weight.astype(float)

    def run(threads: int) -> tuple[dict[str, Tensor], float]:
        model = trained(rows, config=CONFIG.model_copy(update={"threads": threads}))[0].model
        return model.state_dict(), NeState.of(y, predict(model, test, batch_size=512)["conversion"], w).ne

    before = torch.get_num_threads()
    try:
        one, again, two = run(1), run(1), run(2)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one[0][name], again[0][name]) for name in one[0])
    assert one[1] == again[1]
    assert two[1] == pytest.approx(one[1], rel=1e-4)
