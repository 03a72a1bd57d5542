"""The registered ranker as MLflow serves it: JSON in and out, in a process of its own where Spark cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from dynamix.config import TrainConfig
from dynamix.contracts import MASKS
from dynamix.errors import ConfigError
from dynamix.features.tables import Warehouse
from dynamix.jobs.cli import main
from dynamix.jobs.frames import table_frame
from dynamix.jobs.train import _warm_start
from dynamix.models import registry as module
from dynamix.models.dataset import rows_from_table
from dynamix.models.dwells import DwellRule
from dynamix.models.mask_reader import MaskBundle, check
from dynamix.models.ranker import Ranker
from dynamix.models.registered import load_pyfunc, log_figures
from dynamix.models.registry import Registry, artefact_folder, log_training, register_ranker
from dynamix.models.segmenter import Segmenter
from dynamix.models.service import RankerService, write_artefacts
from dynamix.models.serving import Cell, Preparation, StreamScale
from dynamix.models.train import ranker_config

HEADS = ("click", "conversion")
NOW = pd.Timestamp("2026-02-16T10:00:00")


def example() -> pd.DataFrame:
    """A request with every field, its events a second apart on the day before."""
    events = [
        {"stream": f"s{n % 4}/view", "item_id": "a", "ts": (NOW - pd.Timedelta(days=1, seconds=n)).isoformat(),
         "dwell_ms": 900.0, "category": "c", "session_id": "one"}
        for n in range(6)
    ]  # fmt: skip
    return pd.DataFrame(
        {"user_id": ["u1"], "request_ts": [NOW], "item_id": ["a"], "surface": ["feed"], "position": [3.0],
         "events": [events], "segment_id": [2.0], "tier": ["active"], "category": ["c"], "value": [1.5]}
    )  # fmt: skip


@dataclass(frozen=True)
class Served:
    """A registered version: its local MLflow model, and the service on its artefacts."""

    registry: Registry
    model: Path
    service: RankerService


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, table: Callable[..., pa.Table]) -> Served:
    place = tmp_path_factory.mktemp("pyfunc")
    rows = rows_from_table(table([3, 0, 5, 2]), heads=HEADS, item_buckets=50)
    shape = ranker_config(rows, n_streams=4, n_segments=3, config=TrainConfig(item_buckets=50, hidden=(16,)))
    ranker = Ranker(shape, seed=1)
    ranker.start({"click": 0.2, "conversion": 0.1}, rows.batch(np.arange(4)))
    log_p = np.log(np.random.default_rng(0).dirichlet(np.ones(4 * 13), size=2))
    preparation = Preparation(
        streams={f"s{i}/view": StreamScale(i, 7.0, 1.0) for i in range(4)}, surfaces=rows.surfaces, heads=HEADS,
        item_buckets=50, per_stream=4, total=9, embargo_s=60, mask_version="m1", segment_version="s1",
        cells=(Cell(2, "*", "s1/view", 0),), segmenter=Segmenter((1, 2), log_p, np.log([0.5, 0.5]), 0.6, 2, 3.0),
        dwell=DwellRule(derive=True, gap_us=1_800_000_000, length_us=86_400_000_000, caps_ms={0: 600_000}),
    )  # fmt: skip
    folder = write_artefacts(place / "model", ranker, preparation, example=rows)
    registry = Registry(place / "_dynamix")
    run_id = log_training(registry, parent="p", children=[], params={}, metrics={}, tags={})
    version = register_ranker(registry, folder=folder, run_id=run_id, metrics={}, tags={}, example=example())
    local, _ = artefact_folder(registry, version.address)
    return Served(registry, local.parents[1], RankerService.load(local))


def test_figures_lie_with_the_run_behind_the_version(served: Served, tmp_path: Path) -> None:
    (tmp_path / "arms.svg").write_text("<svg/>", encoding="utf-8")
    run_id = log_figures(served.registry, "models:/dynamix-ranker/1", tmp_path)
    (found,) = (served.registry.private / "mlruns").glob(f"**/{run_id}/artifacts/figures/*")
    assert (found.name, found.read_text(encoding="utf-8")) == ("arms.svg", "<svg/>")
    with pytest.raises(ConfigError, match="models:/dynamix-ranker/1"):
        log_figures(served.registry, "models:/dynamix-ranker/9", tmp_path)


ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pyspark", "delta", "great_expectations"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocked())
from mlflow.cli import cli
model, *names = sys.argv[1:]
for name in names:
    files = ["-i", f"{name}.json", "-o", f"{name}.out.json", "-t", "json"]
    cli(["models", "predict", "--env-manager", "local", "-m", model, *files], standalone_mode=False)
print("loaded", sorted({n.split(".")[0] for n in sys.modules} & {"pyspark", "delta", "great_expectations"}))
"""


def requests() -> list[dict[str, Any]]:
    """Raw JSON requests: whole, without what is optional, without a past, busy and unsorted."""
    whole = json.loads(example().to_json(orient="records", date_format="iso"))[0]
    bare = {"user_id": "u2", "request_ts": "2026-02-16T10:00:00.000", "surface": "feed", "events": []}
    busy = [
        {"stream": f"s{n % 5}/view", "ts": f"2026-02-{10 + n % 6}T0{n % 7}:30:0{n % 10}"} for n in range(30)
    ]
    return [whole, bare, {**bare, "user_id": "u3", "events": busy}]


def asked(records: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(records)
    return frame.assign(request_ts=pd.to_datetime(frame["request_ts"], format="ISO8601", utc=True))


@pytest.mark.parametrize("rows", [[0], [1], [2], [0, 1, 2]], ids=["one row", "no past", "busy", "together"])
def test_the_pyfunc_gives_what_the_service_gives(served: Served, rows: list[int]) -> None:
    chosen = asked([requests()[i] for i in rows])
    loaded = load_pyfunc(served.registry, "models:/dynamix-ranker/1")
    found = loaded.predict(chosen.assign(request_ts=chosen["request_ts"].dt.tz_localize(None)))
    wanted = served.service.predict(chosen)
    assert found.to_dict("records") == wanted.to_dict("records")
    assert list(found.columns) == [*HEADS, "segment_id"]


def test_mlflow_predicts_from_json_in_a_process_without_spark(served: Served, tmp_path: Path) -> None:
    """`mlflow models predict` of one row without a past, and of several."""
    calls = {"one": requests()[1:2], "several": requests()}
    for name, records in calls.items():
        text = json.dumps({"dataframe_records": records})
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", ALONE, str(served.model), *calls]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "loaded []" in done.stdout
    for name, records in calls.items():
        answer = json.loads((tmp_path / f"{name}.out.json").read_text(encoding="utf-8"))["predictions"]
        assert answer == served.service.predict(asked(records)).to_dict("records")


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What the command line prints as JSON."""
    code = main([*arguments, "--json", "--quiet"])
    outcome: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == outcome["exit_code"]
    return outcome


@pytest.mark.spark
def test_the_command_writes_bundle_vectors_and_reader_and_says_that_the_mask_is_not_in_force(
    spark: SparkSession, served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Warehouse(served.registry.private.parent)
    with module.connected(served.registry) as store:
        store.MlflowClient().set_registered_model_alias("dynamix-ranker", "challenger", "1")
    command = ["bundle", "--warehouse", str(place.root), "--run-date", "2026-02-16"]
    unknown = told(capsys, *command)
    assert unknown["facts"]["mask_status"] == "unknown" and "stands in no table" in unknown["warnings"][0]
    masks = {
        "mask_version": "m1", "seq": 1, "segment_version": "s1", "segment_id": 2, "segment_name": "two", "tier": "*",
        "stream": "s1/view", "keep": False, "quota": 0, "boost": 0.0, "positives": 1, "tokens": 1.0, "verdict": "drop",
        "reason": "as drawn", "status": "retired", "run_date": date(2026, 2, 16), "run_id": "r",
    }  # fmt: skip
    place.replace(spark, MASKS, table_frame(spark, MASKS, [masks]), where="mask_version = 'm1'")
    retired = told(capsys, *command, "--out", str(tmp_path / "out"))
    assert retired["warnings"] == ["mask version m1 was retired"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["mask-bundle.golden.json", "mask-bundle.json", "mask_reader.py"]
    with pytest.warns(UserWarning, match="m1 was retired"):
        found = MaskBundle.load(tmp_path / "out" / "mask-bundle.json")
    assert found.content["model"] == "models:/dynamix-ranker/1" == retired["facts"]["model"]
    vectors = json.loads((tmp_path / "out" / "mask-bundle.golden.json").read_text(encoding="utf-8"))
    assert check(found, vectors) == [] and len(vectors) > 20
    absent = told(capsys, *command, "--model", "models:/dynamix-ranker/9")
    assert absent["exit_code"] == 2 and "models:/dynamix-ranker/1" in absent["message"]


def test_a_first_training_has_no_champion_to_begin_from() -> None:
    with pytest.raises(ConfigError, match="leave --warm-start out for the first training"):
        _warm_start(cast(Any, None), cast(Any, None), None)
