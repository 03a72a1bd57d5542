"""Specs make an arm anew, and the evidence alone decides who becomes champion."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from dynamix.config import Config, TrainConfig
from dynamix.errors import GuardError
from dynamix.jobs import registration
from dynamix.jobs.registration import EVIDENCE, Registration
from dynamix.jobs.train import decide, evidence
from dynamix.models.contest import hold
from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.evidence import Check, Delta, Verdict, write_evidence
from dynamix.models.ranker import Ranker
from dynamix.models.spec import Spec, promotes, size_of
from dynamix.models.throughput import Throughput
from dynamix.models.train import ArmSpec, ranker_config, train_arm

CONFIG = TrainConfig(
    device="cpu",
    batch_size=128,
    item_buckets=50,
    threads=1,
    epochs=1,
    min_steps=1,
    hidden=(16,),
    trunk="dlrm",
)
DELTA = Delta(-1.0, -1.5, -0.5, -0.6, 0.25, None, 0.7, 5000, 1000, 200.0)


@pytest.fixture(scope="module")
def world(table: Callable[..., pa.Table]) -> JaggedRows:
    return rows_from_table(table([5, 0, 3, 8] * 100, effect=4.0), heads=("conversion",), item_buckets=50)


def content(world: JaggedRows, *, passed: bool = True) -> dict[str, Any]:
    """Evidence as `dynamix train` writes it, in the parts that the gate reads."""
    shape = ranker_config(world, n_streams=4, n_segments=3, config=CONFIG)
    trained = train_arm(ArmSpec("keep-all", "keep-all", 5), world, model_config=shape, config=CONFIG)
    checks = (Check("ne against base rate", -0.6, "< 0 %", True), Check("positives", 200.0, ">= 20", passed))
    gate = Verdict(passed, "champion" if passed else "challenger", "said", DELTA, checks)
    cost = size_of(trained.model, world) | {"train_rows_s": 10.0, "infer_rows_s": 20.0}
    return {"ranker_gate": gate, "spec": Spec.of((trained,), CONFIG), "cost": cost}


def stored(folder: Path, world: JaggedRows, *, passed: bool = True) -> dict[str, Any]:
    path = write_evidence(folder / EVIDENCE, content(world, passed=passed))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_a_stored_spec_makes_the_same_weights_again(world: JaggedRows, tmp_path: Path) -> None:
    spec = Spec.from_tree(stored(tmp_path, world)["spec"])
    assert spec.ranker["trunk"]["kind"] == "dlrm" and spec.plugins == () and spec.start is None
    assert spec.train_config() == CONFIG
    first, again = (
        train_arm(spec.trainings()[0], world, model_config=spec.ranker_config(), config=spec.train_config())
        for _ in range(2)
    )
    other = train_arm(
        replace(spec.trainings()[0], seed=6),
        world,
        model_config=spec.ranker_config(),
        config=spec.train_config(),
    )
    assert first.spec == ArmSpec("keep-all", "keep-all", 5)
    assert torch.equal(first.model.heads.out.weight, again.model.heads.out.weight)
    assert not torch.equal(first.model.heads.out.weight, other.model.heads.out.weight)


def test_cost_counts_the_products_of_a_forward_pass(world: JaggedRows) -> None:
    """A head more costs one product of its width and the summary's linear part, 2 FLOPs a multiplication and addition."""
    shape = ranker_config(world, n_streams=4, n_segments=3, config=CONFIG)
    one, two = (size_of(Ranker(replace(shape, heads=h)), world) for h in (("a",), ("a", "b")))
    summary = 4 * 11
    assert two["flops_per_row"] - one["flops_per_row"] == 2 * (shape.trunk.hidden[-1] + summary)
    assert two["parameters"] - one["parameters"] == shape.trunk.hidden[-1] + 1 + summary * (1 + 3)
    assert one["tokens_per_row"] == world.tokens_per_row


def test_the_gate_reads_checks_and_demands_spec_cost_interval_and_rows(
    world: JaggedRows, tmp_path: Path
) -> None:
    good = stored(tmp_path, world)
    assert promotes(good) is True
    assert promotes(stored(tmp_path, world, passed=False)) is False
    for part, name in (("spec", "ranker"), ("cost", "flops_per_row"), ("cost", "infer_rows_s")):
        bad = {**good, part: {k: v for k, v in good[part].items() if k != name}}
        with pytest.raises(GuardError, match=f"lacks {part}.{name}"):
            promotes(bad)
    for name in ("delta_ne_pct", "low", "high", "rows"):
        delta = {k: v for k, v in good["ranker_gate"]["delta"].items() if k != name}
        with pytest.raises(GuardError, match=f"lacks ranker_gate.delta.{name}"):
            promotes({**good, "ranker_gate": {**good["ranker_gate"], "delta": delta}})
        unknown = {**delta, name: None}  # NaN is stored as null
        assert promotes({**good, "ranker_gate": {**good["ranker_gate"], "delta": unknown}}) is False
    with pytest.raises(GuardError, match=r"lacks ranker_gate\.checks"):
        promotes({**good, "ranker_gate": {**good["ranker_gate"], "checks": []}})
    with pytest.raises(GuardError, match="contradicts itself"):
        promotes({**good, "ranker_gate": {**good["ranker_gate"], "passed": False}})


@pytest.mark.parametrize(("passed", "aliases"), [(True, ["challenger", "champion"]), (False, ["challenger"])])
def test_the_evidence_on_disk_alone_moves_the_alias(
    world: JaggedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passed: bool, aliases: list[str]
) -> None:
    """The evidence is turned after the training: what is registered follows the file, also by way of --register-from."""
    moved: list[str] = []
    version = SimpleNamespace(version="4")
    monkeypatch.setattr(registration, "log_training", lambda *a, **k: "run")
    monkeypatch.setattr(registration, "register_ranker", lambda *a, **k: version)
    monkeypatch.setattr(registration, "find", lambda *a: None)
    monkeypatch.setattr(registration, "move_alias", lambda r, n, alias, v, expected: moved.append(alias))
    request = pd.DataFrame({"user_id": ["u"], "request_ts": [pd.Timestamp("2026-02-16")]})
    folder = tmp_path / "run"
    stored(folder, world, passed=not passed)
    Registration("train", (), {}, {}, {}, request, None).store(folder)
    stored(folder, world, passed=passed)
    registry: Any = None
    assert Registration.load(tmp_path, "run").register(registry, folder) == (version, aliases[-1])
    assert moved == aliases


def test_without_a_cost_nothing_is_registered(
    world: JaggedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched: list[str] = []
    monkeypatch.setattr(registration, "log_training", lambda *a, **k: touched.append("log"))
    write_evidence(tmp_path / EVIDENCE, {k: v for k, v in content(world).items() if k != "cost"})
    registry: Any = None
    with pytest.raises(GuardError, match=r"lacks cost\.parameters"):
        Registration("train", (), {}, {}, {}, pd.DataFrame(), None).register(registry, tmp_path)
    assert touched == []


def test_the_evidence_of_a_training_holds_all_that_its_gate_demands(
    table: Callable[..., pa.Table], tmp_path: Path
) -> None:
    """What `dynamix train` writes of two arms, from their training to the file that `promotes` reads."""
    rows = rows_from_table(table([5, 0, 3, 8] * 300, effect=4.0), heads=("conversion",), item_buckets=50)
    quotas = np.full((3, 2, 4), 1000, np.int32)
    quotas[:, :, 3] = 0
    config = Config(
        labels=("conversion",), train=CONFIG.model_copy(update={"bootstrap": 50, "min_steps": 30})
    )
    arms = {"keep-all": ("keep-all", rows), "masked": ("m1", rows.under_mask(quotas))}
    contest = hold(arms, n_streams=4, n_segments=3, config=config.train, progress=lambda text: None)
    run: Any = SimpleNamespace(config=config, run_id="r", note=lambda text: None)
    told: Any = SimpleNamespace(
        table_version=7, segment_version="s1", calendar=SimpleNamespace(lost=()), cells={"m1": ()},
        boost_to=lambda run, version: 0,
    )  # fmt: skip
    decision = decide(run, contest, None, told, None)  # type: ignore[arg-type]
    speed = [Throughput(name, 11.0, 12.0, 13.0, 4.0) for name in arms]
    tests = {name: arm.part("test", batch_size=512) for name, arm in contest.arms.items()}
    path = write_evidence(tmp_path / EVIDENCE, evidence(run, contest, decision, told, speed, tests))
    found = json.loads(path.read_text(encoding="utf-8"))
    assert promotes(found) is decision.ranker.passed is True
    assert found["spec"]["arm"] == decision.winner.name and found["warm_start"] is None
    assert found["cost"]["train_rows_s"] == 11.0 and found["cost"]["flops_per_row"] > 0
    specs = [arm["spec"] for arm in found["arms"]]
    assert [s["mask_version"] for s in specs] == ["keep-all", "m1"] and specs[1]["train"]["trunk"] == "dlrm"
