from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from dynamix.config import TrainConfig
from dynamix.errors import EnvironmentTrouble, GuardError
from dynamix.models.baselines import fit_logistic, item_rate
from dynamix.models.contest import hold, judge_mask, judge_ranker, mask_status, same_rows
from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.metrics import NeState
from dynamix.models.plugins import TrainerPlugin
from dynamix.models.ranker import Ranker
from dynamix.models.throughput import fit_line, measure
from dynamix.models.train import ArmSpec, pick_device, predict, ranker_config, train_arm

CONFIG = TrainConfig(
    device="cpu",
    batch_size=256,
    item_buckets=50,
    threads=1,
    bootstrap=50,
    epochs=3,
    min_steps=1,
    hidden=(16,),
)
SPEC = ArmSpec("keep-all", "keep-all", 0)


def planted(table: Callable[..., pa.Table], n: int = 6000) -> JaggedRows:
    lengths = [int(k) for k in np.random.default_rng(2).integers(0, 16, n)]
    return rows_from_table(table(lengths, effect=4.0), heads=("conversion",), item_buckets=50)


def arm(rows: JaggedRows, config: TrainConfig = CONFIG) -> Ranker:
    shape = ranker_config(rows, n_streams=4, n_segments=3, config=config)
    return train_arm(SPEC, rows, model_config=shape, config=config).model


def test_learns_a_planted_dwell_effect_that_counts_do_not_show(table: Callable[..., pa.Table]) -> None:
    rows = planted(table)
    test = rows.select("test")
    y = test.labels["conversion"].astype(float)
    ranker = NeState.of(y, predict(arm(rows), test, batch_size=512)["conversion"]).ne
    logistic = NeState.of(y, fit_logistic(rows.select("train"), "conversion", n_streams=4).predict(test)).ne
    assert ranker < 0.93  # the truth has about .84 in this world, the base rate 1
    assert ranker < logistic - 0.03


@pytest.mark.parametrize("trunk", ["din", "dlrm", "hstu"])
def test_same_seed_same_logits_and_other_seed_other_logits(
    table: Callable[..., pa.Table], trunk: str
) -> None:
    rows = planted(table, 1500)
    config = CONFIG.model_copy(update={"trunk": trunk})
    shape = ranker_config(rows, n_streams=4, n_segments=3, config=config)
    assert shape.trunk.kind == trunk

    def run(seed: int) -> np.ndarray:
        trained = train_arm(ArmSpec("a", "m", seed), rows, model_config=shape, config=config)
        return predict(trained.model, rows, batch_size=16)["conversion"]

    assert np.array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(1))


def test_a_loss_that_is_not_finite_stops(rows: JaggedRows) -> None:
    broken = replace(rows, dense=np.full_like(rows.dense, np.nan))
    with pytest.raises(GuardError, match="learning_rate"):
        arm(broken)


def test_no_training_rows_is_a_guard(rows: JaggedRows) -> None:
    with pytest.raises(GuardError, match="no mature training rows"):
        arm(replace(rows, part=np.full_like(rows.part, 2)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_that_is_absent_is_an_environment_trouble() -> None:
    with pytest.raises(EnvironmentTrouble, match=r"train\.device"):
        pick_device("cuda")
    assert pick_device("auto").type == "cpu"


def test_item_rate_leaves_the_own_row_out() -> None:
    items, n, k = np.array([5, 9]), np.array([3.0, 1.0]), np.array([2.0, 1.0])
    found = item_rate(np.array([5, 9, 7, 0]), items, n, k, base_rate=0.5, own=np.array([1.0, 1.0, 0.0, 0.0]))
    assert found[0] == pytest.approx(np.log((1 + 10) / (1 + 10)))  # two others of item 5, one positive
    assert found[1:].tolist() == pytest.approx([0, 0, 0])


def test_a_label_with_one_class_is_refused(rows: JaggedRows) -> None:
    flat = replace(rows, labels={"click": np.zeros(len(rows), np.float32)})
    with pytest.raises(GuardError, match="one class"):
        fit_logistic(flat, "click", n_streams=4)


def test_contest_publishes_a_mask_of_a_useless_stream_and_promotes(table: Callable[..., pa.Table]) -> None:
    rows = planted(table)
    quotas = np.full((3, 2, 4), 1000, np.int32)
    quotas[:, :, 3] = 0
    arms = {"keep-all": ("keep-all", rows), "masked": ("m1", rows.under_mask(quotas))}
    contest = hold(arms, n_streams=4, n_segments=3, config=CONFIG, progress=lambda text: None)
    verdicts = judge_mask(contest, ne_budget=0.01, config=CONFIG)
    assert mask_status(contest, verdicts) == "published"
    gate = judge_ranker(contest, contest.arms["masked"], None, ne_budget=0.01, config=CONFIG)
    assert gate.passed, gate.reason


def test_arms_with_other_rows_are_refused(rows: JaggedRows) -> None:
    with pytest.raises(GuardError, match="same impressions"):
        same_rows({"keep-all": rows, "masked": rows.take(np.arange(10))})


def test_throughput_is_measured_for_every_arm(rows: JaggedRows) -> None:
    model = Ranker(ranker_config(rows, n_streams=4, n_segments=3, config=CONFIG))
    found = measure([("a", model, rows), ("b", model, rows)], config=CONFIG, batches=1, rounds=1)
    assert [t.arm for t in found] == ["a", "b"]
    assert min(found[0].train_rows_per_s, found[0].infer_rows_per_s, found[0].load_rows_per_s) > 0


def test_line_through_points() -> None:
    assert fit_line([1, 2, 3], [5, 7, 9]) == pytest.approx((3.0, 2.0))


def test_few_rows_get_as_many_passes_as_the_least_number_of_steps_needs(
    table: Callable[..., pa.Table],
) -> None:
    rows = planted(table, 1500)
    steps: list[int] = []
    config = CONFIG.model_copy(update={"epochs": 1, "min_steps": 5, "batch_size": 10_000})
    shape = ranker_config(rows, n_streams=4, n_segments=3, config=config)

    class Count(TrainerPlugin):
        def after_step(self, ranker: Ranker, step: int) -> None:
            steps.append(step)

    train_arm(SPEC, rows, model_config=shape, config=config, plugins=[Count()])
    assert steps == [1, 2, 3, 4, 5]  # one step a pass here


def test_an_arm_with_the_same_histories_is_not_trained_twice(table: Callable[..., pa.Table]) -> None:
    rows = planted(table, 1500)
    said: list[str] = []
    arms = {"keep-all": ("keep-all", rows), "masked": ("m1", rows.take(np.arange(len(rows))))}
    contest = hold(arms, n_streams=4, n_segments=3, config=CONFIG, progress=said.append)
    assert "masked: its histories are those of keep-all, trained once" in said
    assert contest.arms["masked"].mask_version == "m1"
    own, twin = (contest.arms[a].validate.p["conversion"] for a in ("masked", "keep-all"))
    assert np.array_equal(own, twin)
