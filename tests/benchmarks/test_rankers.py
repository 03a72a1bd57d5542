"""The rankers' benchmark on a world made up in memory: the same rows for all, fits kept, the table."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from headline_rows import HEAD, acting_rows

from benchmarks import rankers, rankers_fuxictr, rankers_tabular
from benchmarks.headline_world import HeadlineWorld
from dynamix.config import Config, TrainConfig
from dynamix.models.metrics import NeState
from dynamix.models.trunks.build import TRUNKS

TRAIN = TrainConfig(
    batch_size=128, epochs=1, min_steps=60, threads=1, embedding_dim=4, hidden=(8,), item_buckets=10, bootstrap=50
)  # fmt: skip
IDS = {"acts": 0, "null": 1, "rare": 2}
NAMES = [n for n in rankers.ARMS if n != "fuxictr" and (n != "lightgbm" or find_spec("lightgbm"))]


@pytest.fixture(name="world")
def fixture_world(tmp_path: Path) -> HeadlineWorld:
    rows = acting_rows(1600, effect=3.0)
    return HeadlineWorld(
        name="made", folder=tmp_path, config=Config(labels=(HEAD,), train=TRAIN), rows=rows, n_segments=2, ids=IDS,
        shuffled={}, planted={}, true_p=None, cells=None,
    )  # fmt: skip


def test_every_model_is_judged_on_the_same_rows_against_the_best_baseline(world: HeadlineWorld) -> None:
    assert set(TRUNKS) < set(NAMES)
    fitted = {name: rankers.of_seeds(world, name, 2 if name == "din" else 1) for name in NAMES}
    lines = {x["arm"]: x for x in rankers.compared(world, fitted)}
    assert fitted["din"].test.shape[0] == 2 and not np.array_equal(*fitted["din"].test)
    assert lines["constant"]["ne_labels"] == pytest.approx(1, abs=0.02)
    assert all(lines[name]["ne"] < 0.97 for name in ("ridge", *TRUNKS))  # the stream acts by its dwell
    best = lines["din"]["best"]
    assert best in NAMES and rankers.ARMS[best].baseline
    tuned = {n: lines[n]["ne_validate"] for n in NAMES if rankers.ARMS[n].baseline}
    assert min(tuned, key=lambda n: tuned[n]) == best and lines[best]["delta"] == 0
    ratio = 100 * (lines["hstu"]["ne_labels"] / lines[best]["ne_labels"] - 1)
    assert lines["hstu"]["delta"] == pytest.approx(ratio, abs=1e-6)
    assert rankers.twins(world, fitted["din"], fitted["din"]).endswith("+0.000 [+0.000, +0.000]")
    told = rankers.table(world, list(lines.values()), 1)
    assert len(told) == 3 + len(NAMES) and told[0].count(rankers.ARMS[best].says) == 1


def test_what_was_fitted_is_not_fitted_again(world: HeadlineWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rankers.fitted(world, "ridge", 0)

    def refuse(*given: object, **named: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(rankers_tabular, "fit_ridge", refuse)
    again = rankers.fitted(world, "ridge", 0)
    assert np.array_equal(first.test, again.test) and first.rows_per_s == again.rows_per_s
    with pytest.raises(AssertionError, match="fitted again"):
        rankers.fitted(world, "ridge", 1)


def test_the_design_leaves_the_own_label_out_and_holds_every_summary(world: HeadlineWorld) -> None:
    train = world.rows.select("train")
    y = train.labels[HEAD].astype(float)
    shape = rankers_tabular.Shape(3, 2, rankers_tabular.fit_product(world.rows, HEAD, n_streams=3))
    x = shape.design(train, own=y)
    assert x.shape == (len(train), 3 * 11 + 4 + 1 + len(train.surfaces) + 2 + 1)
    other = shape.design(train, own=1 - y)
    assert (np.abs(x - other).max(0) > 0).sum() <= 1  # the item rate alone knows a label


def test_tuning_reads_validation_rows_only(world: HeadlineWorld) -> None:
    """With other test labels every fit is the same."""
    part = world.rows.part == 2
    turned = np.where(part, 1 - world.rows.labels[HEAD], world.rows.labels[HEAD])
    blind = replace(world.rows, labels={HEAD: turned})
    test = world.rows.select("test")
    for name in ("logistic", "ridge"):
        a, b = (rankers.ARMS[name].fit(replace(world, rows=r), 0).predict(test) for r in (world.rows, blind))
        assert np.array_equal(a, b)
    assert NeState.of(test.labels[HEAD].astype(float), a).ne < 0.95  # the ridge sees what acts


def test_the_ranker_without_a_trunk_has_learned_and_has_none(world: HeadlineWorld) -> None:
    model = rankers.ARMS["linear"].fit(world, 0)
    assert isinstance(model, rankers.Trained)
    assert not model.ranker.heads.out.weight.any() and model.ranker.linear.shared.any()


def test_an_arm_that_is_unknown_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(rankers_fuxictr.PYTHON, raising=False)
    assert rankers.chosen(None) == [name for name in rankers.ARMS if name != "fuxictr"]
    with pytest.raises(SystemExit, match="allowed: all, constant"):
        rankers.chosen("dhen")
