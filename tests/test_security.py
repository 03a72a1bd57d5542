"""What must not stand in the sources: loaders that run foreign code, shells, evaluated text, SQL pasted together."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
ROOTS = ("src", "features", "segmentation", "models", "jobs", "scripts", "notebooks")
KNOWN = {
    "segmentation/em.py": [
        "pickle"
    ],  # the sums of its own workers, written a few lines before in the same query
    "models/export.py": ["an exported program"],  # `from_bytes`, which nothing of the product calls (below)
    "models/registered.py": ["a model of MLflow"],  # `load_pyfunc`, as above
}
"""Files with a danger, and why it is none."""


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """(name as written, call) of every call."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def given(call: ast.Call, name: str) -> str:
    """Source of a keyword's value, empty where it is not given."""
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), "")


def dangers(source: str) -> list[str]:
    """Calls that run what they are given, or load objects of any class."""
    found = []
    for name, call in calls(source):
        last = name.rpartition(".")[2]
        if name in ("eval", "exec", "os.system", "os.popen", "marshal.loads", "shelve.open", "joblib.load"):
            found.append(name)
        elif name.startswith("pickle.") and last in ("load", "loads", "Unpickler"):
            found.append("pickle")
        elif name == "torch.load" and given(call, "weights_only") != "True":
            found.append("torch.load without weights_only")
        elif name == "torch.export.load":
            found.append("an exported program")
        elif name.startswith("mlflow.") and last == "load_model":
            found.append("a model of MLflow")
        elif name in ("np.load", "numpy.load") and given(call, "allow_pickle") not in ("", "False"):
            found.append("np.load with pickles")
        elif name.startswith("yaml.") and last in ("load", "load_all", "unsafe_load", "full_load"):
            found.append(name)
        elif name.startswith("subprocess.") and given(call, "shell") not in ("", "False"):
            found.append("a shell")
    return found


def sources() -> list[Path]:
    return [
        path
        for root in ROOTS
        for path in sorted((PROJECT / root).rglob("*.py"))
        if "__pycache__" not in path.parts
    ]


def test_no_source_loads_foreign_objects_or_runs_text() -> None:
    found = {
        path.relative_to(PROJECT).as_posix(): dangers(path.read_text(encoding="utf-8")) for path in sources()
    }
    assert len(found) > 100
    assert {path: what for path, what in found.items() if what} == KNOWN


@pytest.mark.parametrize(
    ("module", "loader"), [("models.export", "from_bytes"), ("models.registered", "load_pyfunc")]
)
def test_nothing_of_the_product_imports_a_loader_that_runs_code(module: str, loader: str) -> None:
    taken = re.compile(rf"{re.escape(module)} import (?:\([^)]*|[^\n(]*)\b{loader}\b")
    assert taken.search(f"from dynamix.{module} import (\n    a,\n    {loader},\n)")
    assert [path.name for path in sources() if taken.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("source", "danger"),
    [
        ("import pickle\npickle.load(f)", ["pickle"]),
        ("torch.load(p)", ["torch.load without weights_only"]),
        ("torch.load(p, weights_only=False)", ["torch.load without weights_only"]),
        ("yaml.load(text)", ["yaml.load"]),
        ("torch.export.load(f)", ["an exported program"]),
        ("mlflow.sklearn.load_model(uri)", ["a model of MLflow"]),
        ("subprocess.run(line, shell=True)", ["a shell"]),
        ("eval(text)", ["eval"]),
        ("np.load(p, allow_pickle=True)", ["np.load with pickles"]),
        (
            "torch.load(p, weights_only=True); yaml.safe_load(t); np.load(p); model.eval(); pickle.dumps(x)",
            [],
        ),
    ],
)
def test_a_danger_would_be_noticed(source: str, danger: list[str]) -> None:
    assert dangers(source) == danger


_VALUE = re.compile(r"(?:=|<|>|\bLIKE|\bIN \(|, |\()\s*'$", re.IGNORECASE)
"""What stands before a value that was put between quotes by hand."""
QUOTED_BY_HAND = {
    "features/events.py": "canonical columns of raw rows",
    "features/instants.py": "the two canonical time columns",
    "features/tables.py": "a property's own name and the number of a version; columns of a contract",
    "features/timeline.py": "columns of `events` and of labelled impressions",
    "models/registered.py": "the two names of our models, in a filter of MLflow",
    "models/registry.py": "names that `_parse` lets through, without a quote, in a filter of MLflow",
    "notebooks/databricks/feature_lookup.py": "a date",
    "scripts/bundle_wheel.py": "a sentence for people",
    "scripts/reference.py": "Markdown, which no engine reads",
    "src/dynamix/contracts.py": "columns of a contract",
}
"""Files that put values or names into SQL text by hand, with what those are."""


def pasted(source: str) -> list[str]:
    """f-strings that put a value between quotes after a comparison, or a name between backticks."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        for before, value in zip(node.values, node.values[1:], strict=False):
            text = before.value if isinstance(before, ast.Constant) else ""
            pasted_in = isinstance(value, ast.FormattedValue) and value.conversion == -1
            if pasted_in and (str(text).endswith("`") or _VALUE.search(str(text))):
                found.append(ast.unparse(node))
    return found


def test_values_and_names_come_into_sql_through_one_module() -> None:
    found = {
        path.relative_to(PROJECT).as_posix(): pasted(path.read_text(encoding="utf-8")) for path in sources()
    }
    assert {path for path, what in found.items() if what} == QUOTED_BY_HAND.keys(), found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("f\"mask_version = '{version}'\"", 1),
        ("f\"a = 1 AND rule = '{rule}'\"", 1),
        ("f\"run_id IN ('{one}')\"", 1),
        ('f"SELECT `{name}`"', 1),
        ('f"delta.`{path}`"', 1),
        ('f"{equals(mask_version=version)} AND x > {number}"', 0),
        ("f\"file '{path}' is gone\"", 0),
    ],
)
def test_sql_pasted_together_would_be_noticed(source: str, count: int) -> None:
    assert len(pasted(source)) == count
