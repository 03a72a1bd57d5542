"""Three trained rankers in one registry: the first is champion, a worse one is refused, a better one takes over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stand_ins import tracking_server

from dynamix.config import TrainConfig
from dynamix.jobs.context import registry_of
from dynamix.jobs.registration import EVIDENCE, MODEL, Registration
from dynamix.jobs.rollback import rollback
from dynamix.jobs.train import _write_predictions
from dynamix.models.contest import KEEP_ALL, hold, judge_ranker
from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.evidence import Verdict, write_evidence
from dynamix.models.registry import CHALLENGER, CHAMPION, RANKER, artefact_folder, find
from dynamix.models.service import RankerService, write_artefacts
from dynamix.models.serving import Preparation, StreamScale
from dynamix.models.spec import Spec, size_of

CONFIG = TrainConfig(
    device="cpu",
    batch_size=256,
    item_buckets=50,
    threads=1,
    bootstrap=200,
    epochs=3,
    min_steps=1,
    hidden=(16,),
)
HEAD, BUDGET = "conversion", 0.001
REQUEST = pd.DataFrame(
    {"user_id": ["u"], "request_ts": [pd.Timestamp("2026-02-16")], "surface": ["feed"],
     "events": [[{"stream": "s0", "ts": "2026-02-15T00:00:00", "dwell_ms": 900.0}]]}
)  # fmt: skip


@dataclass(frozen=True)
class Chapter:
    """One training of the story: its folder, what the gate said, the version it became and the alias it got."""

    folder: Path
    verdict: Verdict
    version: str
    alias: str


class Story:
    """One registry, and trainings on the same validation rows that differ in what they may learn from."""

    def __init__(self, place: Path, rows: JaggedRows) -> None:
        self.place, self.rows = place, rows
        self.registry = registry_of(place / "_dynamix")

    def champion(self) -> str | None:
        found = find(self.registry, RANKER, CHAMPION)
        return None if found is None else found.version

    def train(self, name: str, *, config: TrainConfig, rows: JaggedRows | None = None) -> Chapter:
        """Train, judge against the champion of now, keep everything on disk, register."""
        own, folder = self.rows if rows is None else rows, self.place / name
        contest = hold(
            {KEEP_ALL: ("keep-all", own)},
            n_streams=4,
            n_segments=3,
            config=config,
            progress=lambda text: None,
        )
        winner, champion = contest.arms[KEEP_ALL], self.champion()
        p = None
        if champion is not None:
            artefacts, _ = artefact_folder(self.registry, f"models:/{RANKER}/{champion}")
            validate = self.rows.select("validate", holdout=False)
            p = RankerService.load(artefacts).score_stored(validate)[HEAD]
        verdict = judge_ranker(contest, winner, p, ne_budget=BUDGET, config=config)
        preparation = Preparation(
            streams={f"s{i}": StreamScale(i, 7.0, 1.0) for i in range(4)}, surfaces=own.surfaces, heads=(HEAD,),
            item_buckets=50, per_stream=50, total=200, embargo_s=60,
        )  # fmt: skip
        write_artefacts(folder / MODEL, winner.best().model, preparation, example=own)
        run = cast(Any, SimpleNamespace(folder=folder))
        _write_predictions(run, contest, {KEEP_ALL: winner.part("test", batch_size=512)})
        cost = size_of(winner.best().model, own) | {"train_rows_s": 1.0, "infer_rows_s": 1.0}
        content = {"ranker_gate": verdict, "spec": Spec.of(winner.trained, config), "cost": cost}
        write_evidence(folder / EVIDENCE, content)
        kept = Registration(f"train {name}", (), {}, {}, {"run_id": name}, REQUEST, champion)
        version, alias = kept.register(self.registry, folder)
        return Chapter(folder, verdict, version.version, alias)


def stored_losses(folder: Path) -> pd.DataFrame:
    """Impression, y and cross-entropy of the stored validation predictions of one training."""
    table = pq.read_table(folder / "predictions.parquet").to_pandas()
    own = table[(table["part"] == "validate") & (table["arm"] == KEEP_ALL)].set_index("impression_id")
    y, p = own["y"].astype(float), own["p"]
    return pd.DataFrame({"y": y, "loss": -(y * np.log(p) + (1 - y) * np.log1p(-p))})


def recomputed(new: Path, base: Path) -> tuple[float, float, float]:
    """(delta_ne_pct, its standard error over users by linearisation, positives) from two stored prediction files."""
    both = stored_losses(new).join(stored_losses(base), rsuffix="_base", how="inner")
    assert (both["y"] == both["y_base"]).all() and len(both) == len(stored_losses(new))
    ratio = both["loss"].sum() / both["loss_base"].sum()
    user = (
        both.index.str[1:].astype(int) // 4
    ).to_numpy()  # four impressions a user, see tests/models/conftest.py
    residual = (both["loss"] - ratio * both["loss_base"]).groupby(user).sum()
    se = float(np.sqrt((residual**2).sum()) / both["loss_base"].sum())
    return 100 * (float(ratio) - 1), 100 * se, float(both["y"].sum())


def hold_gate(chapter: Chapter, base: Path) -> None:
    """The gate's numbers, as stored in the evidence, against those recomputed from the stored predictions."""
    gate = json.loads((chapter.folder / EVIDENCE).read_text(encoding="utf-8"))["ranker_gate"]
    delta_pct, se, positives = recomputed(chapter.folder, base)
    found = gate["delta"]
    assert found["delta_ne_pct"] == pytest.approx(delta_pct, abs=1e-4)
    assert found["positives"] == positives
    assert found["user_se"] == pytest.approx(se, rel=0.2)  # 200 replicates: an SE has a relative error of 5 %
    limit = max(100 * BUDGET, (1.6449 + 1.2816) * found["user_se"])
    assert gate["passed"] == (found["delta_ne_pct"] + 1.6449 * found["user_se"] <= limit)
    assert found["upper95"] == pytest.approx(found["delta_ne_pct"] + 1.6449 * found["user_se"], rel=1e-9)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SQLite in the warehouse, or a real tracking server that MLFLOW_TRACKING_URI names."""
    if request.param == "sqlite":
        yield
        return
    with tracking_server(tmp_path / "server") as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield
    assert not (tmp_path / "_dynamix" / "mlflow.db").exists()


@pytest.mark.parametrize("store", ["sqlite", pytest.param("server", marks=pytest.mark.slow)], indirect=True)
def test_first_becomes_champion_worse_is_refused_better_takes_over_and_back(
    tmp_path: Path, store: None, table: Callable[..., pa.Table]
) -> None:
    lengths = [int(k) for k in np.random.default_rng(2).integers(0, 16, 8000)]
    rows = rows_from_table(table(lengths, effect=4.0), heads=(HEAD,), item_buckets=50)
    story = Story(tmp_path, rows)

    first = story.train("first", config=CONFIG.model_copy(update={"epochs": 2}))
    assert (first.alias, story.champion()) == (CHAMPION, "1"), first.verdict.reason

    blind = rows.keep_events(rows.stream != 0)  # without the stream that acts
    worse = story.train("worse", config=CONFIG, rows=blind)
    assert (worse.alias, story.champion()) == (CHALLENGER, "1"), worse.verdict.reason
    assert worse.verdict.delta.low > 0 and "stays challenger" in worse.verdict.reason
    hold_gate(worse, first.folder)

    better = story.train("better", config=CONFIG.model_copy(update={"epochs": 10}))
    assert (better.alias, story.champion()) == (CHAMPION, "3"), better.verdict.reason
    assert better.verdict.delta.high < 0
    hold_gate(better, first.folder)

    assert rollback(story.registry).facts["to"] == story.champion() == "1"
    back, _ = artefact_folder(story.registry, f"models:/{RANKER}@{CHAMPION}")
    validate = rows.select("validate", holdout=False)
    again = RankerService.load(back).score_stored(validate)[HEAD]
    told = pq.read_table(first.folder / "predictions.parquet").to_pandas().query("part == 'validate'")
    assert again == pytest.approx(told["p"].to_numpy(), abs=1e-6)
