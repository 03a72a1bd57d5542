"""The fences between the folders, read from the source: which line breaks which rule.

A rule takes one parsed module and gives its violations. Each rule is also shown small sources that break it
and close ones that do not. An exception is an entry of an allow-list with its reason; an entry that nothing
uses any more fails as well. Files may come and go: the rules walk whatever is there.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeGuard

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1]
LAYERS = ("core", "features", "segmentation", "models", "jobs")  # imports go to the left or stay
ROOTS = {"src/dynamix": "dynamix"} | {name: f"dynamix.{name}" for name in LAYERS[1:]}
MAX_LINES = 400

THIRD_PARTY: Mapping[str, frozenset[str]] = {
    "core": frozenset({"pydantic", "yaml"}),
    "features": frozenset({"pyspark", "numpy", "pyarrow"}),
    "segmentation": frozenset({"pyspark", "numpy", "pyarrow", "scipy", "sklearn", "torch"}),
    "models": frozenset({"torch", "numpy", "pyarrow", "sklearn"}),
}
"""jobs may import every declared dependency."""
ONLY_IN = {
    "delta": "features/tables.py",
    "great_expectations": "features/quality.py",
    "mlflow": "models/registry.py",
}
"""Packages with one importer in the whole project."""
EXTRA_IMPORTS = {
    "features/quality.py pandas": "Great Expectations takes the one row of metrics as a pandas frame",
    "models/hashing.py pandas": "ids become integers by pandas' hash of strings",
    "models/kernels/triton_attention.py triton": "torch brings it on Linux; imported only where it runs",
    "models/launch.py pyspark": "Spark's TorchDistributor starts processes; imported only where the config asks for it",
    "models/service.py pandas": "a registered pyfunc is called with a pandas frame",
}
EXTRA_ACTIONS = {
    "features/engine_hot.py hot_users": "at most a few users and their hours; only where a hot one is looked for",
    "features/events.py latest_ingest": "the default run date: one aggregate, before a run is planned",
    "features/named_tables.py open_schema": "one row a property of a schema, from the metastore",
    "features/named_tables.py Schema._tables": "the names of a schema's tables",
    "features/named_tables.py Schema.folder": "one row: where a table lies",
    "features/named_tables.py Schema._history": "a row a commit that the log holds",
    "features/named_tables.py Schema._properties": "one row a property of a table",
    "features/quality.py gate": "the gate is one aggregate row, which Great Expectations judges",
    "features/raw.py _demand_unit": "one example value for the sentence of an error",
    "features/tables.py Warehouse.data_version": "one row of the Delta log",
    "features/tables.py Warehouse._properties": "one row of table properties",
    "features/tables.py Warehouse.replace": "the writer: refuses an empty frame, then writes",
    "features/content.py content_hash": "256 hashes of a table, for reports and tests",
    "features/training.py stream_ids": "tens of rows, travel in the kernel's closure",
    "features/training.py _grid": "the mask grid, a few hundred rows, travels in the kernel's closure",
    "segmentation/em.py reduce_blocks": "the reduce of every fit: one row of sums a partition",
    "segmentation/mix.py _most_active_rows": "a bounded number of users, from which the fit starts",
}
EXTRA_AMBIENT = {
    "features/tables.py time.sleep": "the pause before a conflicting commit is tried again",
    "models/checkpoint.py time.monotonic": "a checkpoint is written once a minute, not once a pass",
    "models/launched.py sys.argv": "the entry point of a training process, which torchrun starts",
    "models/registry.py os.environ": "sets GIT_PYTHON_REFRESH, the only way to quiet MLflow's git client",
    "models/stated_store.py os.environ": "puts back the one variable that MLflow writes",
    "models/throughput.py time.perf_counter": "a measured rate is its result",
}
EXTRA_LENGTH = {"src/dynamix/contracts.py": "every table as data: a long list, no logic"}
EXTRA_SILENT: dict[str, str] = {}


Scope: TypeAlias = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True)
class Module:
    """One source file; `path` is relative to the project, with forward slashes."""

    path: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, self.path)

    @property
    def layer(self) -> str:
        return "core" if self.path.startswith("src/") else self.path.split("/")[0]

    @property
    def name(self) -> str:
        root = next(root for root in ROOTS if self.path.startswith(root + "/"))
        inner = self.path[len(root) + 1 :].removesuffix(".py").removesuffix("__init__").strip("/")
        return ".".join([ROOTS[root], *filter(None, inner.split("/"))])

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """(line, full name) of everything imported anywhere in the file; a name from a module is `module.name`."""
        found: list[tuple[int, str]] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                dots = "." * node.level
                found += [(node.lineno, f"{dots}{node.module or ''}.{alias.name}") for alias in node.names]
        return found

    @cached_property
    def origins(self) -> dict[str, str]:
        """Local name -> what was imported under it."""
        named: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                whole = [(a.asname, a.name) if a.asname else (a.name.split(".")[0],) * 2 for a in node.names]
                named |= dict(whole)
            elif isinstance(node, ast.ImportFrom):
                named |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        return named

    def dotted(self, node: ast.AST) -> str:
        """Full name of `F.count` or `datetime.now` by the file's imports, empty for anything computed."""
        if isinstance(node, ast.Name):
            return self.origins.get(node.id, "")
        if isinstance(node, ast.Attribute):
            base = self.dotted(node.value)
            return f"{base}.{node.attr}" if base else ""
        return ""

    def called(self, node: ast.Call) -> str:
        """Full name of what is called, or the bare name of a built-in."""
        return self.dotted(node.func) or (node.func.id if isinstance(node.func, ast.Name) else "")

    def with_scope(self) -> Iterator[tuple[ast.AST, list[Scope]]]:
        """Every node with the classes and functions around it, outermost first."""

        def walk(node: ast.AST, scope: list[Scope]) -> Iterator[tuple[ast.AST, list[Scope]]]:
            yield node, scope
            inner = [*scope, node] if isinstance(node, Scope) else scope
            for child in ast.iter_child_nodes(node):
                yield from walk(child, inner)

        return walk(self.tree, [])


class Violation(NamedTuple):
    path: str
    line: int
    what: str
    key: str = ""
    """Entry of an allow-list that would permit it."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


Rule = Callable[[Module], Iterator[Violation]]


def layer_of(name: str) -> str:
    """Layer of an imported `dynamix...` name."""
    second = name.partition(".")[2].partition(".")[0]
    return second if second in LAYERS else "core"


def imports_go_down(module: Module) -> Iterator[Violation]:
    """A folder imports folders below it by their full name."""
    own = LAYERS.index(module.layer)
    for line, name in module.imports:
        top = name.split(".")[0]
        if not top:
            yield Violation(module.path, line, f"relative import {name}; write dynamix.…")
        elif top in LAYERS[1:]:
            yield Violation(
                module.path, line, f"imports {name}; write dynamix.{name}: else a class exists twice"
            )
        elif top == "dynamix" and LAYERS.index(layer_of(name)) > own:
            yield Violation(module.path, line, f"{module.layer} imports {name}, which lies above it")


def third_party_stays_in_its_folder(module: Module) -> Iterator[Violation]:
    """Packages of THIRD_PARTY for the folder, those of ONLY_IN in their one file."""
    for line, name in module.imports:
        top = name.split(".")[0]
        if top in sys.stdlib_module_names or top in ("", "dynamix", *LAYERS):
            continue
        if top in ONLY_IN:
            if module.path != ONLY_IN[top]:
                yield Violation(module.path, line, f"imports {top}; only {ONLY_IN[top]} may")
        elif module.layer != "jobs" and top not in THIRD_PARTY[module.layer]:
            allowed = ", ".join(sorted(THIRD_PARTY[module.layer]))
            key = f"{module.path} {top}"
            yield Violation(module.path, line, f"{module.layer} imports {top}; allowed: {allowed}", key)


def no_hidden_imports(module: Module) -> Iterator[Violation]:
    """No import by a computed name: the other rules could not see it."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            name = module.called(node)
            if name in ("importlib.import_module", "__import__", "exec", "eval"):
                yield Violation(module.path, node.lineno, f"{name} hides what is imported")


SPARK_CORE = frozenset({"rdd", "sparkContext", "_jvm", "_jsc", "_sc", "_jdf", "udf"})


def no_rdd_no_context_no_row_udf(module: Module) -> Iterator[Violation]:
    """Only what Spark Connect has; a Python function sees Arrow batches, never rows."""
    for line, name in module.imports:
        if name in ("pyspark.sql.functions.udf", "pyspark.SparkContext", "pyspark.RDD", "pyspark.sql.udf"):
            yield Violation(module.path, line, f"imports {name}")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr in SPARK_CORE:
            yield Violation(module.path, node.lineno, f"uses .{node.attr}")


ACTIONS = frozenset({
    "collect", "toPandas", "toArrow", "toLocalIterator", "head", "tail", "show", "isEmpty", "foreach",
    "foreachPartition", "checkpoint", "localCheckpoint",
})  # fmt: skip
BARE_ACTIONS = frozenset({"count", "first"})  # of a frame: without an argument; F.count("x") is a column


def is_action(node: ast.AST) -> TypeGuard[ast.Call]:
    """`frame.collect()` and its like; `take` where the argument is a literal number of rows."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    rows = [*node.args, *(word.value for word in node.keywords)]
    if node.func.attr == "take":
        return len(rows) == 1 and isinstance(rows[0], ast.Constant)
    return node.func.attr in ACTIONS or (node.func.attr in BARE_ACTIONS and not rows)


def no_action_below_jobs(module: Module) -> Iterator[Violation]:
    """Transformations are lazy; a function that has to act is named with its reason and size."""
    if module.layer == "jobs":
        return
    for node, scope in module.with_scope():
        if is_action(node):
            where = ".".join(part.name for part in scope)
            what = f"action {ast.unparse(node)[-40:]!r} in {where or 'the module'}"
            yield Violation(module.path, node.lineno, what, f"{module.path} {where}")


WRITERS = frozenset({"writeTo", "writeStream", "saveAsTable", "insertInto"})


def tables_alone_touches_delta(module: Module) -> Iterator[Violation]:
    """Frames are written, and Delta is read, by features/tables.py and its twin for names."""
    if module.path in (ONLY_IN["delta"], "features/named_tables.py"):
        return
    called = {id(node.func) for node in ast.walk(module.tree) if isinstance(node, ast.Call)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            if node.attr in WRITERS or (node.attr == "write" and id(node) not in called):
                yield Violation(module.path, node.lineno, f"writes a frame (.{node.attr})")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            given = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            if node.func.attr == "format" and given == ["delta"]:
                yield Violation(module.path, node.lineno, "reads or writes Delta")
        elif isinstance(node, ast.Constant) and re.search(r"\bdelta\.`", str(node.value)):
            yield Violation(module.path, node.lineno, "names a Delta path in SQL")


AMBIENT = re.compile(
    r"time\.(?!struct_time)\w+|datetime\.datetime\.(now|utcnow|today)|datetime\.date\.today|sys\.argv|argparse\b.*"
    r"|os\.(environb?|getenvb?|putenv|getcwdb?|getlogin)|pathlib\.(Path|PosixPath)\.(cwd|home)|os\.path\.expanduser"
    r"|getpass\..*|socket\.gethostname"
    r"|pyspark\.sql\.functions\.(current_timestamp|current_date|curdate|now|localtimestamp)"
)
AMBIENT_SQL = re.compile(
    r"\b(current_timestamp|current_date|curdate|now|localtimestamp)\s*\(\s*\)", re.IGNORECASE
)


def no_clock_no_argv_no_environment(module: Module) -> Iterator[Violation]:
    """Below jobs a result depends on the arguments alone."""
    if module.layer == "jobs":
        return
    for node in ast.walk(module.tree):
        names = [module.dotted(node)] if isinstance(node, ast.Attribute | ast.Name) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name in ("argparse", "getpass")]
        line = getattr(node, "lineno", 0)
        for name in names:
            if AMBIENT.fullmatch(name):
                yield Violation(module.path, line, f"reads {name}", f"{module.path} {name}")
        if isinstance(node, ast.Attribute) and node.attr == "expanduser":
            yield Violation(module.path, line, "reads the home folder (expanduser)")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and AMBIENT_SQL.search(node.value):
            yield Violation(module.path, line, f"reads the clock in SQL: {node.value[:60]!r}")


def modules_are_short_and_say_what_they_are(module: Module) -> Iterator[Violation]:
    """A docstring, and no more than MAX_LINES lines."""
    lines = len(module.source.splitlines())
    if lines > MAX_LINES:
        yield Violation(module.path, lines, f"longer than {MAX_LINES} lines", module.path)
    if not ast.get_docstring(module.tree):
        yield Violation(module.path, 1, "no docstring")


def public_functions_say_what_they_give(module: Module) -> Iterator[Violation]:
    """Functions at module level of features, segmentation and models have a docstring."""
    if module.layer not in ("features", "segmentation", "models"):
        return
    for node in module.tree.body:
        if (
            isinstance(node, ast.FunctionDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ):
            key = f"{module.path} {node.name}"
            yield Violation(module.path, node.lineno, f"{node.name} has no docstring", key)


RULES: dict[Rule, Mapping[str, str]] = {
    imports_go_down: {},
    third_party_stays_in_its_folder: EXTRA_IMPORTS,
    no_hidden_imports: {},
    no_rdd_no_context_no_row_udf: {},
    no_action_below_jobs: EXTRA_ACTIONS,
    tables_alone_touches_delta: {},
    no_clock_no_argv_no_environment: EXTRA_AMBIENT,
    modules_are_short_and_say_what_they_are: EXTRA_LENGTH,
    public_functions_say_what_they_give: EXTRA_SILENT,
}
"""Each rule with its allow-list: key -> reason."""


def project() -> list[Module]:
    """Every module of the five folders as it lies on disk now."""
    return [
        Module(path.relative_to(PROJECT).as_posix(), path.read_text(encoding="utf-8"))
        for root in ROOTS
        for path in sorted((PROJECT / root).rglob("*.py"))
        if "__pycache__" not in path.parts
    ]


MODULES = project()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps(rule: Rule) -> None:
    broken = [found for module in MODULES for found in rule(module) if found.key not in RULES[rule]]
    assert not broken, "\n" + "\n".join(map(str, broken))


@pytest.mark.parametrize("rule", [rule for rule in RULES if RULES[rule]], ids=lambda rule: rule.__name__)
def test_every_exception_is_still_needed(rule: Rule) -> None:
    used = {found.key for module in MODULES for found in rule(module)}
    assert set(RULES[rule]) - used == set()


def test_a_package_with_one_importer_has_it() -> None:
    """Else the fence guards a file that no longer exists."""
    for package, path in ONLY_IN.items():
        (module,) = (m for m in MODULES if m.path == path)
        assert any(name.split(".")[0] == package for _, name in module.imports), path


def test_the_walk_covers_the_folders_that_are_installed() -> None:
    assert {module.layer for module in MODULES} == set(LAYERS)
    names = {module.name for module in MODULES}
    assert {"dynamix", "dynamix.config", "dynamix.features.sources.files", "dynamix.models.trunks"} <= names
    installed = re.search(r"^FOLDERS = (\(.*\))$", (PROJECT / "setup.py").read_text(encoding="utf-8"), re.M)
    assert installed is not None
    assert ast.literal_eval(installed[1]) == LAYERS[1:]


def undeclared(modules: list[Module], declared: Collection[str]) -> set[str]:
    """Imported third-party packages whose distribution is not among the declared ones."""
    owners = metadata.packages_distributions()
    tops = {name.split(".")[0] for module in modules for _, name in module.imports}
    foreign = tops - set(sys.stdlib_module_names) - {"", "dynamix", *LAYERS}
    return {
        top
        for top in foreign
        if not any(canonicalize_name(owner) in declared for owner in owners.get(top, []))
    }


def declared_dependencies() -> Collection[str]:
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    return {
        canonicalize_name(Requirement(need).name) for need in tomllib.loads(text)["project"]["dependencies"]
    }


def test_what_is_imported_is_declared() -> None:
    by_jinja = {"markupsafe"}  # the type of jinja2's safe text: jinja2 requires it and does not re-export it
    by_torch = {"triton"}  # comes with torch where torch can use it; asked for by find_spec before
    assert undeclared(MODULES, declared_dependencies()) - by_jinja - by_torch == set()


def test_an_undeclared_package_is_noticed() -> None:
    module = Module("jobs/x.py", "import requests\nimport os\nimport yaml\nfrom sklearn import svm\n")
    assert undeclared([module], declared_dependencies()) == {"requests"}


def reaches(name: str, package: str, modules: Mapping[str, Module]) -> list[str]:
    """Chain of modules by which `name` comes to import `package`; empty if it does not."""
    seen, todo = {name}, [[name]]
    while todo:
        chain = todo.pop(0)
        for _, imported in modules[chain[-1]].imports:
            if imported.split(".")[0] == package:
                return [*chain, imported]
            for candidate in (imported, imported.rpartition(".")[0]):
                if candidate in modules and candidate not in seen:
                    seen.add(candidate)
                    todo.append([*chain, candidate])
    return []


def test_a_ranker_is_trained_and_served_without_spark() -> None:
    """models sees masks and histories as arrays: not even an import on the way down starts Spark's package.

    But for the launcher `spark`, which imports it inside the function that the config asks for.
    """
    modules = {module.name: module for module in MODULES}
    launcher = ["dynamix.models.launch", "pyspark.ml.torch.distributor.TorchDistributor"]
    chains = [reaches(name, "pyspark", modules) for name in modules if name.startswith("dynamix.models")]
    assert not [" -> ".join(chain) for chain in chains if chain and chain[-2:] != launcher]
    at_once = [
        node for node in modules[launcher[0]].tree.body if isinstance(node, ast.ImportFrom | ast.Import)
    ]
    assert not [ast.unparse(node) for node in at_once if "pyspark" in ast.unparse(node)]


def test_spark_behind_another_module_is_noticed() -> None:
    sources = {
        "models/a.py": "from dynamix.features.b import f",
        "features/b.py": "from dynamix.features import c",
        "features/c.py": "import pyspark.sql",
        "models/d.py": "import numpy",
    }
    modules = {m.name: m for m in (Module(path, source) for path, source in sources.items())}
    expected = ["dynamix.models.a", "dynamix.features.b", "dynamix.features.c", "pyspark.sql"]
    assert reaches("dynamix.models.a", "pyspark", modules) == expected
    assert reaches("dynamix.models.d", "pyspark", modules) == []


LONG = '"""Docstring."""\n' + "x = 1\n" * (MAX_LINES - 1)
BROKEN: list[tuple[Rule, str, str]] = [
    (imports_go_down, "features/x.py", "from dynamix.models.batch import RankBatch"),
    (imports_go_down, "features/x.py", "from dynamix import segmentation"),
    (imports_go_down, "segmentation/x.py", "def f():\n    import dynamix.jobs.session"),
    (imports_go_down, "src/dynamix/x.py", "from dynamix.features.calendar import Period"),
    (imports_go_down, "models/layers/x.py", "from ..batch import RankBatch"),
    (imports_go_down, "jobs/x.py", "from features.events import stream_name"),
    (third_party_stays_in_its_folder, "features/x.py", "import torch"),
    (third_party_stays_in_its_folder, "features/x.py", "import pandas as pd"),
    (third_party_stays_in_its_folder, "features/x.py", "from delta.tables import DeltaTable"),
    (third_party_stays_in_its_folder, "jobs/x.py", "import delta"),
    (third_party_stays_in_its_folder, "jobs/x.py", "def f():\n    import great_expectations as gx"),
    (third_party_stays_in_its_folder, "models/x.py", "import mlflow.pyfunc"),
    (third_party_stays_in_its_folder, "models/x.py", "from pyspark.sql import DataFrame"),
    (third_party_stays_in_its_folder, "segmentation/x.py", "import polars"),
    (third_party_stays_in_its_folder, "src/dynamix/x.py", "import numpy as np"),
    (no_hidden_imports, "features/x.py", "import importlib\nimportlib.import_module('torch')"),
    (no_hidden_imports, "models/x.py", "from importlib import import_module as load\nload('pyspark')"),
    (no_hidden_imports, "models/x.py", "__import__('pyspark')"),
    (no_rdd_no_context_no_row_udf, "jobs/x.py", "n = frame.rdd.getNumPartitions()"),
    (no_rdd_no_context_no_row_udf, "features/x.py", "spark.sparkContext.broadcast(w)"),
    (no_rdd_no_context_no_row_udf, "features/x.py", "f = F.udf(lambda x: x)"),
    (no_rdd_no_context_no_row_udf, "segmentation/x.py", "from pyspark.sql.functions import udf"),
    (no_rdd_no_context_no_row_udf, "segmentation/x.py", "from pyspark import SparkContext"),
    (no_action_below_jobs, "features/x.py", "def f(frame):\n    return frame.where('a').count()"),
    (no_action_below_jobs, "features/x.py", "def f(frame):\n    'One action.'\n    return frame.collect()"),
    (no_action_below_jobs, "features/x.py", "rows = frame.take(5)"),
    (no_action_below_jobs, "features/x.py", "first = frame.first()"),
    (no_action_below_jobs, "segmentation/x.py", "def fit(frame):\n    return frame.toArrow()"),
    (no_action_below_jobs, "segmentation/x.py", "class A:\n    def f(self):\n        return x.toPandas()"),
    (tables_alone_touches_delta, "jobs/x.py", "frame.write.parquet(path)"),
    (tables_alone_touches_delta, "jobs/x.py", "spark.read.format('delta').load(path)"),
    (tables_alone_touches_delta, "features/x.py", "frame.writeTo('t').append()"),
    (tables_alone_touches_delta, "features/x.py", "spark.sql(f'SELECT * FROM delta.`{path}`')"),
    (no_clock_no_argv_no_environment, "features/x.py", "from datetime import datetime\nnow = datetime.now()"),
    (no_clock_no_argv_no_environment, "models/x.py", "import datetime as d\nday = d.date.today()"),
    (no_clock_no_argv_no_environment, "models/x.py", "import time\nstart = time.time()"),
    (no_clock_no_argv_no_environment, "models/x.py", "from time import monotonic as tick"),
    (no_clock_no_argv_no_environment, "src/dynamix/x.py", "import os\nhome = os.environ['HOME']"),
    (no_clock_no_argv_no_environment, "src/dynamix/x.py", "from os import getenv"),
    (no_clock_no_argv_no_environment, "segmentation/x.py", "import sys\nprint(sys.argv[1])"),
    (no_clock_no_argv_no_environment, "segmentation/x.py", "import argparse"),
    (no_clock_no_argv_no_environment, "features/x.py", "from pathlib import Path\nhere = Path.cwd()"),
    (no_clock_no_argv_no_environment, "features/x.py", "import pyspark.sql.functions as F\nF.current_date()"),
    (no_clock_no_argv_no_environment, "features/x.py", "F.expr('event_ts < now()')"),
    (modules_are_short_and_say_what_they_are, "jobs/x.py", "x = 1"),
    (modules_are_short_and_say_what_they_are, "jobs/x.py", LONG + "x = 1\n"),
    (public_functions_say_what_they_give, "features/x.py", "def f(frame): return frame"),
]
KEPT: list[tuple[Rule, str, str]] = [
    (imports_go_down, "jobs/x.py", "from dynamix.models.batch import RankBatch\nimport dynamix.features"),
    (imports_go_down, "models/x.py", "from dynamix.config import Config\nfrom dynamix import __version__"),
    (third_party_stays_in_its_folder, "features/tables.py", "from delta.tables import DeltaTable"),
    (third_party_stays_in_its_folder, "jobs/x.py", "import pandas, torch, json"),
    (no_hidden_imports, "models/x.py", "from importlib import metadata\nmetadata.version('torch')\nm.eval()"),
    (no_rdd_no_context_no_row_udf, "features/x.py", "frame.mapInArrow(work, schema)"),
    (no_action_below_jobs, "features/x.py", "F.count('x') + F.first('y') + names.count('z')\ntable.take(order)"),
    (no_action_below_jobs, "jobs/x.py", "frame.count()"),
    (tables_alone_touches_delta, "jobs/x.py", "log.write('text')\nspark.read.parquet(path)\n'{}'.format(delta)"),
    (no_clock_no_argv_no_environment, "features/x.py", "from datetime import datetime, time\ntime()\ndatetime(1, 1, 1)"),
    (no_clock_no_argv_no_environment, "features/x.py", "'what is known now (at the run date)'"),
    (no_clock_no_argv_no_environment, "jobs/x.py", "import sys, time\nsys.argv, time.time()"),
    (modules_are_short_and_say_what_they_are, "jobs/x.py", LONG),
    (public_functions_say_what_they_give, "features/x.py", "def _f(): ...\ndef g():\n    'Ten.'\n    return 10"),
    (public_functions_say_what_they_give, "jobs/x.py", "def f(): ..."),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "path", "source"), BROKEN)
def test_a_source_that_breaks_the_rule_is_named_with_its_line(rule: Rule, path: str, source: str) -> None:
    found = list(rule(Module(path, source)))
    last = len(source.splitlines())  # where every sample has its fault
    assert {(one.path, one.line) for one in found} == {(path, last)}


@pytest.mark.parametrize(("rule", "path", "source"), KEPT)
def test_a_source_that_comes_close_is_left_alone(rule: Rule, path: str, source: str) -> None:
    assert [str(found) for found in rule(Module(path, source))] == []


def test_an_exception_permits_one_function_and_not_its_file() -> None:
    source = "def gate(frame):\n    return frame.head()\n\ndef other(frame):\n    return frame.head()"
    found = no_action_below_jobs(Module("features/quality.py", source))
    assert [one.line for one in found if one.key not in EXTRA_ACTIONS] == [5]


def test_every_rule_has_a_source_that_breaks_it_and_one_that_keeps_it() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES) == {rule for rule, _, _ in KEPT}
