"""Warm start: the champion's predictions to begin with, also where the data have grown, and refusals with a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from dynamix.config import TrainConfig
from dynamix.errors import ConfigError
from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.ranker import Ranker, RankerConfig
from dynamix.models.train import ArmSpec, TrainedArm, predict, ranker_config, train_arm
from dynamix.models.warm import _GROWS, WarmStart

CONFIG = TrainConfig(
    device="cpu", batch_size=128, item_buckets=50, threads=1, epochs=2, min_steps=1, hidden=(16,)
)
NO_STEPS = CONFIG.model_copy(update={"epochs": 0, "min_steps": 0})
STREAMS = {f"s{i}": i for i in range(4)}


TRUNKS = ("din", "dlrm", "hstu")


@pytest.fixture(scope="module")
def world(table: Callable[..., pa.Table]) -> JaggedRows:
    lengths = [int(k) for k in np.random.default_rng(2).integers(0, 16, 1200)]
    return rows_from_table(table(lengths, effect=4.0), heads=("conversion",), item_buckets=50)


def trained(rows: JaggedRows, *, config: TrainConfig = CONFIG, streams: int = 4, segments: int = 3,
            start: WarmStart | None = None) -> TrainedArm:  # fmt: skip
    if start is not None:
        config = config.model_copy(update={"trunk": start.model.config.trunk.kind})
    shape = ranker_config(rows, n_streams=streams, n_segments=segments, config=config)
    return train_arm(ArmSpec("keep-all", "keep-all", 7), rows, model_config=shape, config=config, start=start)


@pytest.fixture(scope="module", params=TRUNKS)
def champion(world: JaggedRows, request: pytest.FixtureRequest) -> WarmStart:
    config = CONFIG.model_copy(update={"trunk": request.param})
    return WarmStart(trained(world, config=config).model, STREAMS, "models:/dynamix-ranker/1")


def scores(model: Ranker, rows: JaggedRows) -> np.ndarray:
    return predict(model, rows, batch_size=256)["conversion"]


def test_without_a_further_step_it_predicts_what_the_champion_predicts(
    world: JaggedRows, champion: WarmStart
) -> None:
    begun = trained(world, config=NO_STEPS, start=champion)
    assert begun.epochs == []
    assert np.array_equal(scores(begun.model, world), scores(champion.model, world))
    cold = trained(world, config=NO_STEPS.model_copy(update={"trunk": champion.model.config.trunk.kind}))
    assert not np.array_equal(scores(cold.model, world), scores(begun.model, world))


def test_further_steps_change_it_and_begin_where_the_champion_ended(
    world: JaggedRows, champion: WarmStart
) -> None:
    config = CONFIG.model_copy(update={"trunk": champion.model.config.trunk.kind})
    cold, warm = trained(world, config=config), trained(world, start=champion)
    first = [arm.epochs[0]["train_loss"] for arm in (cold, warm)]
    assert first[1] < first[0]
    assert not np.array_equal(scores(warm.model, world), scores(champion.model, world))


def test_new_streams_segments_and_surfaces_do_not_move_what_was_known(
    world: JaggedRows, champion: WarmStart
) -> None:
    """A surface whose name comes first shifts the numbers of all others; rows of known things score as before."""
    names = ("a-new-one", *world.surfaces)
    moved = replace(world, surfaces=names, surface=np.where(world.surface > 0, world.surface + 1, 0))
    grown = trained(moved, config=NO_STEPS, streams=6, segments=5, start=champion).model
    assert grown.config.trunk.n_streams == 6 and grown.config.surfaces[0] == "a-new-one"
    assert scores(grown, moved) == pytest.approx(scores(champion.model, world), abs=1e-6)
    cold = replace(world, segment=np.minimum(world.segment, 1))
    fewer = trained(cold, config=NO_STEPS, segments=2, start=champion).model
    assert scores(fewer, cold) == pytest.approx(scores(champion.model, cold), abs=1e-6)


def test_every_weight_that_follows_the_data_is_named(champion: WarmStart, world: JaggedRows) -> None:
    """A layer added later whose size follows streams, segments or surfaces has to be listed in models/warm.py."""
    trunk = champion.model.config.trunk
    larger = replace(trunk, n_streams=9, n_segments=8, n_surfaces=7)
    grown = Ranker(RankerConfig(larger, ("conversion",))).state_dict()
    own = champion.model.state_dict()
    assert {name for name in own if own[name].shape != grown[name].shape} == set(_GROWS) & set(own)


@pytest.mark.parametrize(
    ("change", "heads", "streams", "said"),
    [
        ({"item_buckets": 60}, ("conversion",), STREAMS, "train.item_buckets is 50 there, 60 here"),
        ({"hidden": (8,)}, ("conversion",), STREAMS, r"train.hidden is \(16,\) there, \(8,\) here"),
        ({"embedding_dim": 8}, ("conversion",), STREAMS, "train.embedding_dim is 16 there, 8 here"),
        ({}, ("click", "conversion"), STREAMS, "labels is"),
        ({}, ("conversion",), {**STREAMS, "s1": 2, "s2": 1}, r"stream ids are others \(s1, s2\)"),
    ],
)
def test_another_contract_is_refused_with_what_differs(
    champion: WarmStart, change: dict[str, object], heads: tuple[str, ...], streams: dict[str, int], said: str
) -> None:
    here = CONFIG.model_copy(update={"trunk": champion.model.config.trunk.kind, **change})
    with pytest.raises(
        ConfigError, match=f"models:/dynamix-ranker/1 has another contract: {said}"
    ) as refused:
        champion.refuse_other_contract(config=here, heads=heads, streams=streams)
    assert "leave --warm-start out" in refused.value.message


def test_another_trunk_or_depth_is_refused(champion: WarmStart) -> None:
    own = champion.model.config.trunk.kind
    change = {"trunk": "hstu", "layers": 5} if own == "hstu" else {"trunk": TRUNKS[own == "din"]}
    said = "train.layers is 2 there, 5 here" if own == "hstu" else f"train.trunk is {own} there"
    with pytest.raises(ConfigError, match=said):
        champion.refuse_other_contract(
            config=CONFIG.model_copy(update=change), heads=("conversion",), streams=STREAMS
        )


def test_the_same_contract_with_a_new_stream_is_taken(champion: WarmStart) -> None:
    here = CONFIG.model_copy(update={"trunk": champion.model.config.trunk.kind})
    champion.refuse_other_contract(config=here, heads=("conversion",), streams={**STREAMS, "new": 4})
