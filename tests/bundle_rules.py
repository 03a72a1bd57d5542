"""The Databricks bundle as plain data, and what must hold of it: each rule gives one sentence per violation.

Fields of resources come from the dataclasses of the package databricks-bundles, which are generated from the
platform's own description. Those of databricks.yml have no such class; ROOT, TARGET and ARTIFACT are the keys that
the JSON schema of the Databricks CLI (bundle/schema/jsonschema.json in its repository, August 2026) knows there.
"""

from __future__ import annotations

import contextlib
import io
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from databricks.bundles.core import Resource
from databricks.bundles.experiments import MlflowExperiment
from databricks.bundles.jobs import Job
from databricks.bundles.registered_models import RegisteredModel
from databricks.bundles.schemas import Schema
from pydantic import ValidationError

from dynamix.config import load_config
from dynamix.errors import ConfigError
from dynamix.jobs.options import build_parser
from dynamix.jobs.task import CHANGED_CELLS, REFIT_DUE
from dynamix.models.registry import RANKER, SEGMENTER

PROJECT = Path(__file__).resolve().parents[1]
Tree = dict[str, Any]

CLASSES: Mapping[str, type[Resource]] = {
    "jobs": Job,
    "registered_models": RegisteredModel,
    "schemas": Schema,
    "experiments": MlflowExperiment,
}
ROOT = {
    "artifacts": "type build path files executable dynamic_version",
    "bundle": "name uuid git databricks_cli_version deployment cluster_id compute_id engine",
    "variables": "default description lookup type",
    "sync": "include exclude paths",
    "targets": (
        "artifacts bundle default git mode permissions presets resources run_as sync variables workspace cluster_id "
        "compute_id"
    ),
}
"""Sections of databricks.yml; those of named things (artifacts, variables, targets) list the keys of one."""
NAMED = {"artifacts", "variables", "targets"}
TARGET = {
    "workspace": "root_path file_path artifact_path state_path resource_path",
    "presets": "name_prefix trigger_pause_status jobs_max_concurrent_runs tags source_linked_deployment",
    "run_as": "service_principal_name user_name",
    "git": "branch origin_url",
}
"""Sections of a target; keys of `workspace` that name an address or a way to sign in are left out on purpose."""
TASK_VALUES = {"mask": {CHANGED_CELLS}, "monitor": {REFIT_DUE}}
"""Verb -> the task values that `dynamix-task` sets after it."""
PLATFORM_VALUES = {"job.trigger.time.iso_date": "2026-03-01"}
"""Dynamic values in use, with a sample; the platform's list is longer."""
BUNDLE_VALUES = {"bundle.name", "bundle.target"}
SAMPLES = {
    "events": "events",
    "warehouse": "warehouse",
    "catalog": "main",
    "node_type": "a",
    "gpu_node_type": "b",
}
"""Values for variables without a default."""
ADDRESS = re.compile(r"https?://|\.databricks\.(com|net)|azuredatabricks|\bdapi[0-9a-f]", re.IGNORECASE)


@dataclass
class Bundle:
    """databricks.yml and the files that it includes; `files` is keyed by the path from the project's root."""

    root: Tree
    files: dict[str, Tree]
    project: Path = PROJECT

    @classmethod
    def load(cls, project: Path = PROJECT) -> Bundle:
        root = yaml.safe_load((project / "databricks.yml").read_text(encoding="utf-8"))
        paths = [path for pattern in root["include"] for path in sorted(project.glob(pattern))]
        files = {
            p.relative_to(project).as_posix(): yaml.safe_load(p.read_text(encoding="utf-8")) for p in paths
        }
        return cls(root, files, project)

    def resources(self, kind: str) -> Iterator[tuple[str, str, Tree]]:
        """(file, key, tree) of every resource of a kind."""
        for path, tree in self.files.items():
            for key, one in tree["resources"].get(kind, {}).items():
                yield path, key, one

    def tasks(self) -> Iterator[tuple[str, str, Tree, Tree]]:
        """(file, job key, job, task) of every task."""
        for path, key, job in self.resources("jobs"):
            for task in job["tasks"]:
                yield path, key, job, task

    def variables(self, target: str) -> dict[str, Any]:
        """Value of every variable in a target; a sample where a deployment has to give it."""
        declared = {
            name: one.get("default", SAMPLES.get(name)) for name, one in self.root["variables"].items()
        }
        return declared | self.root["targets"][target].get("variables", {})

    def argv(self, job: Tree, task: Tree, target: str) -> list[str]:
        """The command line of a wheel task with every reference replaced by its value or a sample."""
        values = self.variables(target)
        given = {p["name"]: str(p["default"]) for p in job.get("parameters", [])}

        def filled(text: str) -> str:
            text = re.sub(r"\{\{job\.parameters\.(\w+)\}\}", lambda m: given.get(m[1], m[0]), text)
            text = re.sub(r"\$\{var\.(\w+)\}", lambda m: str(values.get(m[1], m[0])), text)
            return re.sub(r"\{\{([\w.]+)\}\}", lambda m: PLATFORM_VALUES.get(m[1], m[0]), text)

        return [filled(filled(str(part))) for part in task["python_wheel_task"]["parameters"]]

    def paths(self, file: str, pattern: str) -> Path:
        """A path of a resource file, which counts from that file's folder."""
        return ((self.project / file).parent / pattern).resolve()


Rule = Callable[[Bundle], Iterator[str]]


def texts(tree: object) -> Iterator[str]:
    """Every piece of text in a tree, keys included."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield str(key)
            yield from texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from texts(value)
    else:
        yield str(tree)


def found(pattern: str, tree: object) -> set[str]:
    """First groups of a pattern in all texts of a tree."""
    return {match for text in texts(tree) for match in re.findall(pattern, text)}


def fields_are_known(bundle: Bundle) -> Iterator[str]:
    """Every field and value is one that the platform's classes or the CLI's schema know."""
    for path, tree in bundle.files.items():
        for kind, resources in tree["resources"].items():
            if kind not in CLASSES:
                yield f"{path}: unknown kind of resource {kind}"
                continue
            for key, one in resources.items():
                try:
                    CLASSES[kind].from_dict(one)  # type: ignore[attr-defined]
                except (ValueError, TypeError) as trouble:
                    yield f"{path}: {kind}.{key}: {trouble}"
    for section, tree in bundle.root.items():
        if section != "include" and section not in ROOT:
            yield f"databricks.yml: unknown section {section}"
            continue
        parts = tree.items() if section in NAMED else [("", tree)] if section != "include" else []
        for name, part in parts:
            for key in sorted(set(part) - set(ROOT[section].split())):
                yield f"databricks.yml: {section}.{name}: unknown field {key}"
    for name, target in bundle.root["targets"].items():
        for section, fields in TARGET.items():
            for key in sorted(set(target.get(section, {})) - set(fields.split())):
                yield f"databricks.yml: targets.{name}.{section}: unknown field {key}"


def references_are_declared(bundle: Bundle) -> Iterator[str]:
    """Variables, resources, job parameters and dynamic values that are named exist, and none is idle."""
    whole = [bundle.root, *bundle.files.values()]
    declared = set(bundle.root["variables"])
    named = found(r"\$\{var\.(\w+)", whole)
    set_by_targets = {name for t in bundle.root["targets"].values() for name in t.get("variables", {})}
    yield from (f"variable {name} is not declared" for name in sorted((named | set_by_targets) - declared))
    yield from (f"variable {name} is used nowhere" for name in sorted(declared - named))
    known = {f"{kind}.{key}" for kind in CLASSES for _, key, _ in bundle.resources(kind)}
    for name in sorted(found(r"\$\{resources\.(\w+\.\w+)", whole) - known):
        yield f"resource {name} does not exist"
    for name in sorted(found(r"\$\{(?!var\.|resources\.)([^}]+)\}", whole) - BUNDLE_VALUES):
        yield f"${{{name}}} is none of {', '.join(sorted(BUNDLE_VALUES))}"
    for path, key, job in bundle.resources("jobs"):
        mine = {p["name"] for p in job.get("parameters", [])}
        asked = found(r"\{\{job\.parameters\.(\w+)\}\}", job)
        yield from (f"{path}: {key}: job parameter {name} is not declared" for name in sorted(asked - mine))
        yield from (f"{path}: {key}: job parameter {name} is used nowhere" for name in sorted(mine - asked))
        others = found(r"\{\{(?!job\.parameters\.\w+\}\}|tasks\.\w+\.values\.\w+\}\})([^}]*)\}\}", job) - set(
            PLATFORM_VALUES
        )
        yield from (f"{path}: {key}: unknown dynamic value {name}" for name in sorted(others))
        for call in (t["run_job_task"] for t in job["tasks"] if "run_job_task" in t):
            callee = re.fullmatch(r"\$\{resources\.jobs\.(\w+)\.id\}", str(call["job_id"]))
            jobs = {k: j for _, k, j in bundle.resources("jobs")}
            takes = (
                {p["name"] for p in jobs[callee[1]].get("parameters", [])}
                if callee and callee[1] in jobs
                else set()
            )
            for name in sorted(set(call.get("job_parameters", {})) - takes):
                yield f"{path}: {key}: the called job has no parameter {name}"


def before(job: Tree, key: str) -> set[str]:
    """Keys of all tasks that have ended when this one starts."""
    direct = {t["task_key"]: [d["task_key"] for d in t.get("depends_on", [])] for t in job["tasks"]}
    seen: set[str] = set()
    todo = list(direct.get(key, []))
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += direct.get(name, [])
    return seen


def tasks_hang_together(bundle: Bundle) -> Iterator[str]:
    """Dependencies exist and have no cycle, outcomes are those of conditions, task values are set upstream."""
    for path, key, job, task in bundle.tasks():
        where = f"{path}: {key}.{task['task_key']}"
        others = {t["task_key"]: t for t in job["tasks"]}
        for need in task.get("depends_on", []):
            if need["task_key"] not in others:
                yield f"{where}: depends on {need['task_key']}, which does not exist"
            elif ("outcome" in need) != ("condition_task" in others[need["task_key"]]):
                yield f"{where}: an outcome is that of a condition, and a condition has one"
        if task["task_key"] in before(job, task["task_key"]):
            yield f"{where}: depends on itself"
        for reference in sorted(found(r"\{\{tasks\.(\w+\.values\.\w+)\}\}", task)):
            name, value = reference.split(".values.")
            if name not in before(job, task["task_key"]):
                yield f"{where}: reads a value of {name}, which need not have run"
            elif value not in TASK_VALUES.get(verb_of(others[name]), ()):
                yield f"{where}: task {name} sets no value {value}"


def verb_of(task: Tree) -> str:
    """The verb of a wheel task, empty for other tasks."""
    return str(task.get("python_wheel_task", {}).get("parameters", [""])[0])


def compute_is_there(bundle: Bundle) -> Iterator[str]:
    """Every cluster and environment key exists and is used; wheels come from where the artifact is built."""
    (artifact,) = bundle.root["artifacts"].values()
    built = {(bundle.project / file["source"]).resolve() for file in artifact["files"]}
    for path, key, job in bundle.resources("jobs"):
        for field, section in (("job_cluster_key", "job_clusters"), ("environment_key", "environments")):
            have = {one[field] for one in job.get(section, [])}
            used = {task[field] for task in job["tasks"] if field in task}
            yield from (f"{path}: {key}: no {field} {name}" for name in sorted(used - have))
            yield from (f"{path}: {key}: {field} {name} is used nowhere" for name in sorted(have - used))
        wheels = [one["whl"] for task in job["tasks"] for one in task.get("libraries", [])]
        wheels += [text for env in job.get("environments", []) for text in env["spec"]["dependencies"]]
        for pattern in wheels:
            if bundle.paths(path, pattern) not in built:
                yield f"{path}: {key}: {pattern} is not what the artifact builds"
        for task in job["tasks"]:
            installs = "environment_key" in task or task.get("libraries")
            if ("python_wheel_task" in task or "notebook_task" in task) and not installs:
                yield f"{path}: {key}.{task['task_key']}: nothing installs the wheel"


def wheel_tasks_run(bundle: Bundle) -> Iterator[str]:
    """Package and entry point are those of pyproject.toml; the options parse, and so do their config settings."""
    about = tomllib.loads((bundle.project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for path, key, job, task in bundle.tasks():
        where = f"{path}: {key}.{task['task_key']}"
        call = task.get("python_wheel_task")
        if call is None:
            continue
        if call["package_name"] != about["name"]:
            yield f"{where}: package {call['package_name']}, the project is {about['name']}"
        if call["entry_point"] not in about["scripts"]:
            yield f"{where}: entry point {call['entry_point']} is not in pyproject.toml"
        for target in bundle.root["targets"]:
            argv = bundle.argv(job, task, target)
            said = io.StringIO()
            try:
                with contextlib.redirect_stderr(said):
                    arguments = build_parser().parse_args(argv)
                load_config(settings=arguments.settings)
            except SystemExit:
                yield f"{where}: {' '.join(argv)}: {said.getvalue().strip().splitlines()[-1]}"
            except (ConfigError, ValidationError) as trouble:
                yield f"{where}: {' '.join(argv)}: {trouble}"


def notebooks_are_there(bundle: Bundle) -> Iterator[str]:
    """Every notebook exists, is one by its first line, and has exactly the widgets that the task fills."""
    for path, key, _, task in bundle.tasks():
        where = f"{path}: {key}.{task['task_key']}"
        call = task.get("notebook_task")
        if call is None:
            continue
        page = bundle.paths(path, call["notebook_path"])
        if not page.is_file():
            yield f"{where}: no notebook {call['notebook_path']}"
            continue
        source = page.read_text(encoding="utf-8")
        if not source.startswith("# Databricks notebook source\n"):
            yield f"{where}: {call['notebook_path']} is no notebook by its first line"
        widgets = set(re.findall(r'dbutils\.widgets\.text\("(\w+)"', source))
        given = set(call.get("base_parameters", {}))
        yield from (f"{where}: the notebook has no widget {name}" for name in sorted(given - widgets))
        yield from (f"{where}: widget {name} is not filled" for name in sorted(widgets - given))


def schedules(bundle: Bundle, target: str) -> dict[str, str]:
    """Job key -> PAUSED or UNPAUSED in a target."""
    values = bundle.variables(target)
    return {
        key: re.sub(r"\$\{var\.(\w+)\}", lambda m: str(values[m[1]]), job["schedule"]["pause_status"])
        for _, key, job in bundle.resources("jobs")
    }


def targets_are_complete(bundle: Bundle) -> Iterator[str]:
    """dev is the default; staging and prod run as a principal; prod alone is scheduled and asks for a GPU."""
    targets = bundle.root["targets"]
    if set(targets) != {"dev", "staging", "prod"}:
        yield f"targets are {', '.join(targets)}"
    if [name for name, one in targets.items() if one.get("default")] != ["dev"]:
        yield "dev alone is the default target"
    for name, one in targets.items():
        if one.get("mode") != ("development" if name == "dev" else "production"):
            yield f"target {name} has mode {one.get('mode')}"
        if name != "dev" and one.get("run_as") != {"service_principal_name": "${var.service_principal}"}:
            yield f"target {name} does not run as the service principal"
        if "name_prefix" in one.get("presets", {}):
            yield f"target {name} has a name_prefix, which would rename the registered models"
        running = sorted(key for key, status in schedules(bundle, name).items() if status != "PAUSED")
        scheduled = ["dynamix_daily", "dynamix_maintenance", "dynamix_monitor", "dynamix_refit"]
        wanted = scheduled if name == "prod" else []
        if running != wanted:
            yield f"target {name} runs {', '.join(running) or 'nothing'} on schedule"
    if "prod" in targets and bundle.variables("prod").get("train_device") != "cuda":
        yield "prod does not ask for a GPU"


def no_address_is_stated(bundle: Bundle) -> Iterator[str]:
    """No host, profile or token: where the bundle goes is the deployer's affair."""
    for path in ("databricks.yml", *bundle.files):
        tree = bundle.root if path == "databricks.yml" else bundle.files[path]
        yield from (f"{path}: {text}" for text in texts(tree) if ADDRESS.search(text))
        yield from (f"{path}: names a {text}" for text in texts(tree) if text in ("host", "profile", "token"))


def failures_are_told(bundle: Bundle) -> Iterator[str]:
    """Every job writes to the addresses of `notify`, and runs once at a time."""
    for path, key, job in bundle.resources("jobs"):
        if job.get("email_notifications", {}).get("on_failure") != "${var.notify}":
            yield f"{path}: {key} tells nobody of a failure"
        if job.get("max_concurrent_runs") != 1:
            yield f"{path}: {key} may run twice at once"


def models_have_the_product_names(bundle: Bundle) -> Iterator[str]:
    """The registered models are those that models/registry.py registers."""
    names = {one["name"] for _, _, one in bundle.resources("registered_models")}
    if names != {RANKER, SEGMENTER}:
        yield f"registered models are {', '.join(sorted(names))}"


RULES: tuple[Rule, ...] = (
    fields_are_known, references_are_declared, tasks_hang_together, compute_is_there, wheel_tasks_run,
    notebooks_are_there, targets_are_complete, no_address_is_stated, failures_are_told,
    models_have_the_product_names,
)  # fmt: skip
