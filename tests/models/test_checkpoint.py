"""A training that was stopped goes on from its checkpoint to the same bits; a bad checkpoint costs no training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from disks import fill, mounted

from dynamix.config import TrainConfig
from dynamix.errors import EnvironmentTrouble
from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.plugins import TrainerPlugin
from dynamix.models.ranker import Ranker
from dynamix.models.service import write_ranker
from dynamix.models.train import ArmSpec, TrainedArm, ranker_config, train_arm

CONFIG = TrainConfig(
    device="cpu", batch_size=128, item_buckets=50, threads=1, epochs=5, min_steps=1, hidden=(16,), checkpoint_s=0
)  # fmt: skip
SPEC = ArmSpec("masked", "m1", 3)


@pytest.fixture(scope="module")
def world(table: Callable[..., pa.Table]) -> JaggedRows:
    lengths = [int(k) for k in np.random.default_rng(2).integers(0, 16, 1000)]
    return rows_from_table(table(lengths, effect=4.0), heads=("click", "conversion"), item_buckets=50)


class Stopped(Exception):
    """The process dies, as far as the training is concerned."""


def trained(
    rows: JaggedRows,
    folder: Path | None,
    *,
    stop_at: int = 0,
    config: TrainConfig = CONFIG,
    plugin: bool = False,
) -> tuple[TrainedArm, list[str]]:
    """The arm and what was said; with `stop_at` the training dies in that pass."""
    said: list[str] = []

    def progress(text: str) -> None:
        said.append(text)
        if stop_at and f"epoch {stop_at} of" in text:
            raise Stopped

    shape = ranker_config(rows, n_streams=4, n_segments=3, config=config)
    plugins = [TrainerPlugin()] if plugin else []
    arm = train_arm(
        SPEC, rows, model_config=shape, config=config, progress=progress, checkpoints=folder, plugins=plugins
    )
    return arm, said


def same(one: TrainedArm, other: TrainedArm) -> bool:
    states = one.model.state_dict(), other.model.state_dict()
    return one.epochs == other.epochs and all(
        torch.equal(value, states[1][name]) for name, value in states[0].items()
    )


@pytest.mark.parametrize("trunk", ["din", "hstu"])
def test_a_training_that_died_goes_on_to_the_same_bits(world: JaggedRows, tmp_path: Path, trunk: str) -> None:
    config = CONFIG.model_copy(update={"trunk": trunk})
    whole, _ = trained(world, None, config=config)
    with pytest.raises(Stopped):
        trained(
            world, tmp_path, stop_at=4, config=config
        )  # dies after pass 4, whose state was not stored yet
    rest, said = trained(world, tmp_path, config=config)
    assert said[0] == "masked seed 3: goes on after pass 3 of 5, from a checkpoint"
    assert [text.split(":")[0] for text in said[1:]] == [
        "masked seed 3 epoch 4 of 5",
        "masked seed 3 epoch 5 of 5",
    ]
    assert same(rest, whole)
    again, said = trained(world, tmp_path, config=config)
    assert said == ["masked seed 3: goes on after pass 5 of 5, from a checkpoint"] and same(again, whole)


def test_a_checkpoint_is_of_one_training_alone(world: JaggedRows, tmp_path: Path) -> None:
    trained(world, tmp_path)
    changed = replace(world, z=world.z + np.float32(1e-3))
    for rows, config in ((changed, CONFIG), (world, CONFIG.model_copy(update={"learning_rate": 1e-3}))):
        _, said = trained(rows, tmp_path, config=config)
        assert len(said) == 5 and not any("checkpoint" in text for text in said)
    assert len(list(tmp_path.glob("*.pt"))) == 3


def test_one_that_is_torn_is_said_and_the_training_begins_anew(world: JaggedRows, tmp_path: Path) -> None:
    whole, _ = trained(world, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:2_000])
    again, said = trained(world, tmp_path)
    assert f"checkpoint {file.name} cannot be read" in said[0] and len(said) == 6 and same(again, whole)


def test_none_is_written_before_its_time_nor_with_plugins(world: JaggedRows, tmp_path: Path) -> None:
    trained(world, tmp_path, config=CONFIG.model_copy(update={"checkpoint_s": 600.0}))
    trained(world, tmp_path, plugin=True)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte with a few bytes left."""
    with mounted(tmp_path / "small", megabytes=1) as place:
        fill(place, leave=8_192)
        yield place


def test_a_full_disk_costs_the_checkpoint_and_a_model_that_cannot_be_written_is_exit_5(
    world: JaggedRows, full_disk: Path
) -> None:
    whole, _ = trained(world, None)
    arm, said = trained(world, full_disk / "checkpoints")
    assert sum("no checkpoint was written" in text for text in said) == 5 and same(arm, whole)
    assert list((full_disk / "checkpoints").iterdir()) == []
    with pytest.raises(
        EnvironmentTrouble, match=r"cannot be written .* no alias moved: free space"
    ) as refused:
        write_ranker(full_disk / "model", arm.model)
    assert refused.value.exit_code == 5


@pytest.mark.parametrize("trunk", ["din", "dlrm", "hstu"])
def test_products_in_bfloat16_train_about_the_same_ranker(world: JaggedRows, trunk: str) -> None:
    """What a GPU does by default, here on the CPU; predictions stay float32."""
    config = CONFIG.model_copy(update={"trunk": trunk, "epochs": 3})
    whole, _ = trained(world, None, config=config)
    half, _ = trained(world, None, config=config.model_copy(update={"amp": "on"}))
    assert {value.dtype for value in half.model.state_dict().values()} == {torch.float32}
    for one, other in zip(whole.epochs, half.epochs, strict=True):
        assert one["train_loss"] != other["train_loss"]
        assert other["validate_loss"] == pytest.approx(one["validate_loss"], rel=0.01)
    auto, _ = trained(world, None, config=config.model_copy(update={"amp": "auto"}))
    assert same(auto, whole)


def test_batches_made_ahead_give_the_same_bits(world: JaggedRows, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynamix.models import train
    from dynamix.models.ahead import ahead

    whole, _ = trained(world, None)
    made = []

    def always(training: Ranker, rows: JaggedRows, places: Iterator[np.ndarray], ranks: object) -> object:
        def make(at: np.ndarray) -> object:
            made.append(len(at))
            return rows.batch(at)

        return ahead(places, make)

    monkeypatch.setattr(train, "_batches", always)
    other, _ = trained(world, None)
    assert same(other, whole) and sum(made) == 5 * len(world.select("train"))


def test_the_next_is_made_while_this_one_is_in_use_and_errors_come_in_their_place() -> None:
    from dynamix.models.ahead import ahead

    made: list[int] = []

    def make(key: int) -> int:
        made.append(key)
        if key == 3:
            raise ValueError("three")
        return 10 * key

    found = ahead(range(5), make)
    assert next(found) == (0, 0)
    assert next(found) == (1, 10) and 2 in made
    assert next(found) == (2, 20)
    with pytest.raises(ValueError, match="three"):
        next(found)
