"""The Databricks bundle without a workspace: every rule of tests/bundle_rules.py holds, and each can fail."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
from bundle_rules import (
    CLASSES,
    RULES,
    Bundle,
    Rule,
    Tree,
    compute_is_there,
    failures_are_told,
    fields_are_known,
    models_have_the_product_names,
    no_address_is_stated,
    notebooks_are_there,
    references_are_declared,
    targets_are_complete,
    tasks_hang_together,
    wheel_tasks_run,
)

BUNDLE = Bundle.load()
DAILY, SERVERLESS = "resources/daily.yml", "resources/daily_serverless.yml"


def daily(bundle: Bundle) -> Tree:
    job: Tree = bundle.files[DAILY]["resources"]["jobs"]["dynamix_daily"]
    return job


def task(bundle: Bundle, key: str) -> Tree:
    (one,) = (one for one in daily(bundle)["tasks"] if one["task_key"] == key)
    return one


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_bundle_keeps(rule: Rule) -> None:
    assert list(rule(BUNDLE)) == []


def test_all_files_are_included_and_all_kinds_of_resources_are_there() -> None:
    on_disk = {path.name for path in (BUNDLE.project / "resources").iterdir()}
    assert {path.split("/")[1] for path in BUNDLE.files} == on_disk
    assert {kind for tree in BUNDLE.files.values() for kind in tree["resources"]} == set(CLASSES)


@pytest.mark.parametrize("path", [DAILY, SERVERLESS])
def test_the_daily_job_has_the_tasks_in_order_with_the_condition_before_training(path: str) -> None:
    (job,) = BUNDLE.files[path]["resources"]["jobs"].values()
    after = {t["task_key"]: [d["task_key"] for d in t.get("depends_on", [])] for t in job["tasks"]}
    assert after == {
        "ingest": [],
        "features": ["ingest"],
        "segment": ["features"],
        "mask": ["segment"],
        "mask_is_new": ["mask"],
        "train": ["mask_is_new"],
        "score": ["mask", "train"],
    }
    (score,) = (t for t in job["tasks"] if t["task_key"] == "score")
    assert (
        score["run_if"] == "NONE_FAILED"
    )  # the day's scores are asked for whether or not a ranker was trained
    assert BUNDLE.argv(job, score, "prod")[-1] == "--yesterday"


def test_both_daily_jobs_run_the_same_commands_but_for_the_device() -> None:
    clusters = daily(BUNDLE)
    (serverless,) = BUNDLE.files[SERVERLESS]["resources"]["jobs"].values()
    assert clusters["parameters"] == serverless["parameters"]
    for one, other in zip(clusters["tasks"], serverless["tasks"], strict=True):
        if one["task_key"] == "train":
            assert BUNDLE.argv(clusters, one, "prod")[-1] == "train.device=cuda"
            assert BUNDLE.argv(serverless, other, "prod")[-1] == "train.device=cpu"
        elif "python_wheel_task" in one:
            assert one["python_wheel_task"] == other["python_wheel_task"]
        else:
            assert one["condition_task"] == other["condition_task"]


def test_training_alone_takes_the_gpu_cluster() -> None:
    keys = {t["task_key"]: t["job_cluster_key"] for t in daily(BUNDLE)["tasks"] if "job_cluster_key" in t}
    assert [name for name, key in keys.items() if key == "gpu"] == ["train"]


def test_the_monitor_starts_the_refit_only_where_its_task_value_asks_for_it() -> None:
    job = BUNDLE.files["resources/monitor.yml"]["resources"]["jobs"]["dynamix_monitor"]
    monitor, condition, refit = job["tasks"]
    assert BUNDLE.argv(job, monitor, "prod")[0] == "monitor"
    asked = condition["condition_task"]
    assert (asked["op"], asked["left"], asked["right"]) == (
        "EQUAL_TO", "{{tasks.monitor.values.refit_due}}", "1"
    )  # fmt: skip
    assert refit["depends_on"] == [{"task_key": "refit_is_due", "outcome": "true"}]
    assert refit["run_job_task"] == {"job_id": "${resources.jobs.dynamix_refit.id}"}


def test_a_backfill_fills_the_run_date_of_every_step() -> None:
    job = copy.deepcopy(daily(BUNDLE))
    (run_date,) = (p for p in job["parameters"] if p["name"] == "run_date")
    run_date["default"] = "2025-12-24"
    lines = [BUNDLE.argv(job, t, "dev") for t in job["tasks"] if "python_wheel_task" in t]
    assert len(lines) == 6
    assert {line[line.index("--run-date") + 1] for line in lines} == {"2025-12-24"}


def _wheel(bundle: Bundle, key: str) -> Tree:
    call: Tree = task(bundle, key)["python_wheel_task"]
    return call


def _parameters(bundle: Bundle, key: str) -> list[Any]:
    listed: list[Any] = _wheel(bundle, key)["parameters"]
    return listed


BROKEN: list[tuple[Rule, Callable[[Bundle], object], str]] = [
    (fields_are_known, lambda b: task(b, "mask").update(python_wheel_taks={}), "python_wheel_taks"),
    (fields_are_known, lambda b: task(b, "mask_is_new")["condition_task"].update(op="MORE"), "MORE"),
    (fields_are_known, lambda b: daily(b).update(max_concurrent_runs="many"), "many"),
    (fields_are_known, lambda b: daily(b)["schedule"].pop("timezone_id"), "timezone_id"),
    (fields_are_known, lambda b: b.root.update(resource={}), "unknown section resource"),
    (fields_are_known, lambda b: b.root["artifacts"]["wheel"].update(kind="whl"), "unknown field kind"),
    (
        fields_are_known,
        lambda b: b.root["targets"]["prod"].update(mod="x"),
        "targets.prod: unknown field mod",
    ),
    (
        fields_are_known,
        lambda b: b.root["targets"]["prod"]["workspace"].update(host="x"),
        "unknown field host",
    ),
    (references_are_declared, lambda b: b.root["variables"].pop("notify"), "variable notify is not declared"),
    (references_are_declared, lambda b: b.root["variables"].update(idle={}), "variable idle is used nowhere"),
    (references_are_declared, lambda b: b.root["targets"]["dev"]["variables"].update(shema="x"), "shema"),
    (references_are_declared, lambda b: daily(b)["parameters"].pop(), "train_from is not declared"),
    (
        references_are_declared,
        lambda b: daily(b)["parameters"].append({"name": "day"}),
        "day is used nowhere",
    ),
    (
        references_are_declared,
        lambda b: _parameters(b, "mask").append("{{job.day}}"),
        "dynamic value job.day",
    ),
    (
        references_are_declared,
        lambda b: _parameters(b, "mask").append("{{tasks.mask.x}}"),
        "value tasks.mask.x",
    ),
    (references_are_declared, lambda b: daily(b).update(name="${bundle.targt}"), "bundle.targt"),
    (
        references_are_declared,
        lambda b: b.files[DAILY]["resources"].pop("jobs"),
        "jobs.dynamix_daily does not",
    ),
    (
        tasks_hang_together,
        lambda b: task(b, "mask")["depends_on"][0].update(task_key="seg"),
        "does not exist",
    ),
    (
        tasks_hang_together,
        lambda b: task(b, "ingest").update(depends_on=[{"task_key": "score"}]),
        "on itself",
    ),
    (tasks_hang_together, lambda b: task(b, "train")["depends_on"][0].pop("outcome"), "outcome"),
    (tasks_hang_together, lambda b: task(b, "mask_is_new").pop("depends_on"), "need not have run"),
    (tasks_hang_together, lambda b: _parameters(b, "mask").__setitem__(0, "segment"), "sets no value"),
    (compute_is_there, lambda b: task(b, "train").update(job_cluster_key="tpu"), "no job_cluster_key tpu"),
    (compute_is_there, lambda b: task(b, "train").update(job_cluster_key="cpu"), "gpu is used nowhere"),
    (compute_is_there, lambda b: task(b, "mask").pop("libraries"), "nothing installs the wheel"),
    (
        compute_is_there,
        lambda b: task(b, "mask")["libraries"][0].update(whl="dist/*.whl"),
        "not what the artifact",
    ),
    (wheel_tasks_run, lambda b: _wheel(b, "mask").update(package_name="dynamix"), "package dynamix"),
    (wheel_tasks_run, lambda b: _wheel(b, "mask").update(entry_point="mask"), "entry point mask"),
    (wheel_tasks_run, lambda b: _parameters(b, "mask").append("--speed"), "--speed"),
    (wheel_tasks_run, lambda b: _parameters(b, "mask").__setitem__(0, "mantain"), "mantain"),
    (wheel_tasks_run, lambda b: _parameters(b, "train").__setitem__(-1, "train.devise=cpu"), "train.devise"),
    (wheel_tasks_run, lambda b: b.root["targets"]["prod"]["variables"].update(train_device="tpu"), "tpu"),
    (notebooks_are_there, lambda b: _page(b).update(notebook_path="../notebooks/x.py"), "no notebook"),
    (notebooks_are_there, lambda b: _page(b).update(notebook_path="../setup.py"), "by its first line"),
    (
        notebooks_are_there,
        lambda b: _page(b)["base_parameters"].pop("warehouse"),
        "warehouse is not filled",
    ),
    (notebooks_are_there, lambda b: _page(b)["base_parameters"].update(days="1"), "no widget days"),
    (targets_are_complete, lambda b: b.root["targets"].pop("staging"), "targets are dev, prod"),
    (targets_are_complete, lambda b: b.root["targets"]["prod"].pop("run_as"), "service principal"),
    (targets_are_complete, lambda b: b.root["targets"]["prod"]["variables"].pop("train_device"), "GPU"),
    (
        targets_are_complete,
        lambda b: b.root["targets"]["dev"].update(mode="production"),
        "has mode production",
    ),
    (
        targets_are_complete,
        lambda b: b.root["targets"]["prod"].update(presets={"name_prefix": "p"}),
        "rename the",
    ),
    (
        targets_are_complete,
        lambda b: daily(b)["schedule"].update(pause_status="UNPAUSED"),
        "dev runs dynamix_daily",
    ),
    (no_address_is_stated, lambda b: daily(b).update(description="see https://example.org"), "example.org"),
    (no_address_is_stated, lambda b: b.root.update(workspace={"profile": "mine"}), "names a profile"),
    (failures_are_told, lambda b: daily(b).pop("email_notifications"), "tells nobody"),
    (failures_are_told, lambda b: daily(b).update(max_concurrent_runs=2), "twice at once"),
    (models_have_the_product_names, lambda b: _ranker(b).update(name="ranker"), "dynamix-segmenter, ranker"),
]


def _page(bundle: Bundle) -> Tree:
    """A notebook in place of a task's wheel, with the widgets that it has: no job of the bundle runs one."""
    job = bundle.files["resources/maintenance.yml"]["resources"]["jobs"]["dynamix_maintenance"]
    job["tasks"][0].pop("python_wheel_task")
    widgets = dict.fromkeys(("warehouse", "table", "run_date"), "x")
    call: Tree = {"notebook_path": "../notebooks/databricks/feature_lookup.py", "base_parameters": widgets}
    job["tasks"][0]["notebook_task"] = call
    assert not list(notebooks_are_there(bundle))
    return call


def _ranker(bundle: Bundle) -> Tree:
    one: Tree = bundle.files["resources/models.yml"]["resources"]["registered_models"]["dynamix_ranker"]
    return one


@pytest.mark.parametrize(("rule", "spoil", "said"), BROKEN, ids=[f"{r.__name__}-{s}" for r, _, s in BROKEN])
def test_a_spoilt_bundle_is_noticed(rule: Rule, spoil: Callable[[Bundle], object], said: str) -> None:
    bundle = copy.deepcopy(BUNDLE)
    spoil(bundle)
    sentences = list(rule(bundle))
    assert any(said in sentence for sentence in sentences), sentences


def test_every_rule_is_shown_to_fail() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)


def test_the_page_on_deploying_names_every_variable_and_job() -> None:
    page = (BUNDLE.project / "docs" / "deploy.md").read_text(encoding="utf-8")
    table = page.split("| variable | meaning |")[1].split("\n\n")[0]
    first = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert {name for cell in first for name in re.findall(r"`(\w+)`", cell)} == set(BUNDLE.root["variables"])
    jobs = {key for _, key, _ in BUNDLE.resources("jobs")}
    assert set(re.findall(r"\| job `(\w+)` \|", page)) == jobs
