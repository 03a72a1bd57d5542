"""The pages in `notebooks/`: their form, and each run from end to end on one small warehouse with data to show."""

from __future__ import annotations

import ast
import builtins
import json
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cycles import SMALL, finished_cycle, open_world
from pyspark.sql import DataFrame, SparkSession

from dynamix.errors import ConfigError, GuardError
from dynamix.features.simulate import simulate
from dynamix.jobs import notebook
from dynamix.jobs import run as steps
from dynamix.jobs.context import StepResult
from dynamix.jobs.notebook import DEMO, Shown, Widgets, open_page, surroundings
from dynamix.jobs.run import run_all
from dynamix.jobs.settings import store_config

PROJECT = Path(__file__).resolve().parents[2]
PAGES = sorted((PROJECT / "notebooks").glob("[0-9]*.py"))
HEADER, BORDER = "# Databricks notebook source\n", "# COMMAND ----------"
MAY_BE_EMPTY = {"Refused raw rows"}


class Platform:
    """Stand-in for what a Databricks notebook is given: `dbutils`, `display`, `displayHTML`; it keeps what is shown."""

    def __init__(self, **values: str) -> None:
        self.values = values
        self.declared: dict[str, str] = {}
        self.frames: list[DataFrame] = []
        self.pages: list[str] = []

    def text(self, name: str, default: str, label: str) -> None:
        self.declared[name] = default

    def get(self, name: str) -> str:
        return self.values.get(name, self.declared[name])

    def names(self, spark: object) -> dict[str, Any]:
        return {
            "dbutils": SimpleNamespace(widgets=self), "spark": spark, "display": self.frames.append,
            "displayHTML": self.pages.append,
        }  # fmt: skip


@pytest.fixture(scope="session")
def warehouse(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished warehouse of tests/e2e where that has run, else a small one of our own."""
    done = finished_cycle(tmp_path_factory)
    if done.is_dir():
        return done
    place = tmp_path_factory.mktemp("pages")
    simulate(place / "world", preset="S0", users=500, days=42, seed=3)
    run = open_world(spark, place / "world", place / "warehouse", *SMALL)
    store_config(run.warehouse.root, run.config)
    run_all(run, events=str(place / "world"))
    return run.warehouse.root


def run_page(name: str, platform: Platform, spark: object) -> dict[str, Any]:
    (page,) = (path for path in PAGES if path.name.startswith(name))
    return runpy.run_path(str(page), init_globals=platform.names(spark))


def marks(html: str) -> int:
    """Data that a figure shows: marks with a tip, cells of a table, or points of a list."""
    return len(re.findall(r"<title>|<td\b|<li>", html.split("</style>")[1]))


def calls_of_the_package(source: str) -> int:
    """Calls of names that were imported from `dynamix`."""
    tree = ast.parse(source)
    own = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dynamix")
        for alias in node.names
    }
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    roots = [func.value if isinstance(func, ast.Attribute) else func for func in called]
    return sum(isinstance(root, ast.Name) and root.id in own for root in roots)


# --- form -------------------------------------------------------------------------------------------


def test_the_seven_pages_are_there() -> None:
    assert [page.stem for page in PAGES] == [
        "01_tour", "02_events", "03_sessions_and_surfaces", "04_segments", "05_masks", "06_train_and_register",
        "07_monitor",
    ]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_short_and_in_source_form(page: Path) -> None:
    source = page.read_text(encoding="utf-8")
    assert source.startswith(HEADER + "# MAGIC %md\n# MAGIC # ")
    assert len(source.splitlines()) < 80
    borders = [line for line in source.splitlines() if "COMMAND" in line]
    assert len(borders) >= 4 and set(borders) == {BORDER}
    assert calls_of_the_package(source) >= 4
    assert 'dbutils.widgets.text("warehouse", "' + DEMO in source


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_documentation_names_the_page(page: Path) -> None:
    text = (PROJECT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert f"`notebooks/{page.name}`" in text


def test_pages_become_jupyter_notebooks_with_the_same_cells(tmp_path: Path) -> None:
    script = PROJECT / "scripts" / "notebooks_to_jupyter.py"
    subprocess.run([sys.executable, script, *PAGES, "--out", tmp_path], check=True, capture_output=True)
    for page in PAGES:
        tree = json.loads((tmp_path / f"{page.stem}.ipynb").read_text(encoding="utf-8"))
        if find_spec("nbformat"):
            from nbformat import validate

            validate(tree)
        assert (tree["nbformat"], tree["nbformat_minor"]) == (4, 5)
        assert len({cell["id"] for cell in tree["cells"]}) == len(tree["cells"])
        said = {kind: ["".join(c["source"]) for c in tree["cells"] if c["cell_type"] == kind]
                for kind in ("markdown", "code")}  # fmt: skip
        assert all(text.startswith("# ") or text.startswith("## ") for text in said["markdown"])
        source = page.read_text(encoding="utf-8")
        assert ast.dump(ast.parse("\n".join(said["code"]))) == ast.dump(ast.parse(source))
        assert "MAGIC" not in json.dumps(tree) and "COMMAND" not in json.dumps(tree)


# --- surroundings -----------------------------------------------------------------------------------


def test_without_parameters_and_without_a_demo_a_page_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GuardError, match=rf"no warehouse at '{DEMO}'.*widget `warehouse`.*make demo"):
        run_page("01", Platform(), object())


def test_a_run_date_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    with pytest.raises(ConfigError, match="widget `run_date` has value 'yesterday'; allowed: YYYY-MM-DD"):
        open_page(str(tmp_path), "yesterday")


def test_a_script_takes_parameters_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNAMIX_WAREHOUSE", "elsewhere")
    widgets = Widgets()
    widgets.text("warehouse", DEMO, "directory")
    widgets.text("run_date", "", "day")
    assert (widgets.get("warehouse"), widgets.get("run_date")) == ("elsewhere", "")
    with pytest.raises(ConfigError, match="widget 'warehose' does not exist; nearest: warehouse"):
        widgets.get("warehose")


def test_a_script_prints_what_a_notebook_draws(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, show = surroundings({"spark": object()})
    show(Shown("Title", "<b>drawn</b>", "in words"))
    show("a sentence")
    assert capsys.readouterr().out == "Title\nin words\na sentence\n"


def test_jupyter_gets_objects_that_draw_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(builtins, "display", shown.append, raising=False)
    _, _, show = surroundings({"spark": object()})
    show(Shown("Title <1>", "<b>drawn</b>"))
    html = shown[0]._repr_html_()
    assert "<b>drawn</b>" in html and "Title &lt;1&gt;" in html
    assert "http" not in html and "@import" not in html  # nothing is loaded from outside


def test_the_style_of_a_figure_stays_inside_it() -> None:
    """Every selector of the report's sheet is nested below the figure's own element."""
    style = notebook._style()
    assert style.startswith(".dynamix {")
    depths = [style[: at + 1].count("{") - style[: at + 1].count("}") for at in range(len(style) - 1)]
    assert min(depths[len(".dynamix {") :]) == 1 and style.count("{") == style.count("}")
    assert ":root" not in style and not re.search(
        r"^body", style, flags=re.M
    )  # both stand for the element itself


# --- end to end -------------------------------------------------------------------------------------


@pytest.mark.spark
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_and_every_table_and_figure_has_data(
    spark: SparkSession, warehouse: Path, page: Path
) -> None:
    platform = Platform(warehouse=str(warehouse))
    found = run_page(page.stem, platform, spark)
    assert len(platform.pages) + len(platform.frames) >= 4
    assert platform.pages
    titles = [re.findall(r"<h3>(.*?)</h3>", html)[0] for html in platform.pages]
    bare = [title for title, html in zip(titles, platform.pages, strict=True) if not marks(html)]
    assert set(bare) <= MAY_BE_EMPTY
    for frame in platform.frames:
        assert frame.columns == ["reason", "rows", "example"] or not frame.isEmpty(), frame.columns
    CHECKS.get(page.stem, lambda *_: None)(spark, found, platform)


def _events(spark: SparkSession, found: dict[str, Any], platform: Platform) -> None:
    run = found["run"]
    stored = run.warehouse.read(spark, "events").count()
    assert sum(row["events"] for row in found["counts"].collect()) == stored
    assert sum(row["events"] for row in found["daily"].collect()) == stored
    days = run.warehouse.read(spark, "ebf_surface").where("window_days = 28 AND stream NOT LIKE '%/*'")
    assert sum(row["dwells"] for row in found["dwell"].collect()) == days.agg({"n_dwell": "sum"}).first()[0]


def _sessions(spark: SparkSession, found: dict[str, Any], platform: Platform) -> None:
    stored = found["run"].warehouse.read(spark, "ebf_session").count()
    assert sum(row["sessions"] for row in found["sizes"].collect()) == stored


def _segments(spark: SparkSession, found: dict[str, Any], platform: Platform) -> None:
    shares: dict[int, float] = {}
    for row in found["streams"].collect():
        shares[row["segment_id"]] = shares.get(row["segment_id"], 0.0) + row["share"]
    assert len(shares) > 1 and list(shares.values()) == pytest.approx([1.0] * len(shares), abs=0.01)


def _masks(spark: SparkSession, found: dict[str, Any], platform: Platform) -> None:
    heat = platform.pages[0]
    cells = (
        found["run"].warehouse.read(spark, "masks").where(f"mask_version = '{found['data'].mask_version}'")
    )
    assert len(re.findall(r'<td class="v-(?!none)', heat)) == cells.count()
    assert sum(r["weight"] for r in found["costs"].collect()) == pytest.approx(1.0)


def _training(spark: SparkSession, found: dict[str, Any], platform: Platform) -> None:
    arms = {row["arm"].split(" (")[0] for row in platform.frames[0].collect()}
    assert arms >= {"keep-all", "masked"}
    assert {row["alias"] for row in platform.frames[1].collect()} >= {"challenger"}


def _monitor(spark: SparkSession, found: dict[str, Any], platform: Platform) -> None:
    kinds = {check["kind"] for check in found["found"].facts["checks"]}
    assert "churn" in kinds
    retired = any("no mask is published or proposed" in note for note in found["found"].facts["not_judged"])
    assert ("mask_age" in kinds) is not retired  # the gate of this small world may have retired its mask
    assert {row["ne_at_training"] is not None for row in found["scored"].collect()} >= {True}
    assert (found["run"].folder / "monitor.json").is_file()


CHECKS = {
    "02_events": _events, "03_sessions_and_surfaces": _sessions, "04_segments": _segments, "05_masks": _masks,
    "06_train_and_register": _training, "07_monitor": _monitor,
}  # fmt: skip


@pytest.mark.spark
@pytest.mark.parametrize(("choice", "trained"), [("yes", 1), ("no", 0), ("if needed", 0)])
def test_the_training_page_trains_where_it_is_asked_to_or_evidence_is_missing(
    spark: SparkSession, warehouse: Path, monkeypatch: pytest.MonkeyPatch, choice: str, trained: int
) -> None:
    asked = []

    def execute(run: object, verb: str, *, skip: bool) -> StepResult:
        asked.append((verb, skip))
        return StepResult(facts={"model": "m", "alias": "challenger", "ranker_gate": "as the test says"})

    monkeypatch.setattr(steps, "execute", execute)
    run_page("06", Platform(warehouse=str(warehouse), retrain=choice), spark)
    assert asked == [("train", False)] * trained


@pytest.mark.spark
def test_the_page_of_your_own_in_the_documentation_runs(spark: SparkSession, warehouse: Path) -> None:
    text = (PROJECT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    platform = Platform()
    exec(code.replace('"W"', repr(str(warehouse))), platform.names(spark))
    assert len(platform.frames) == 1 and marks(platform.pages[0]) == platform.frames[0].count() > 3
