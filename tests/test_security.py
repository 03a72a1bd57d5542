"""What must not stand in the sources: loaders that run foreign code, shells, evaluated text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
ROOTS = ("src", "features", "segmentation", "models", "jobs", "scripts", "notebooks")
OWN_STATE = {
    "segmentation/em.py": "the sums of its own workers, written a few lines before in the same query"
}
"""Files that unpickle, with what they unpickle."""


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
    assert {path: what for path, what in found.items() if what} == {path: ["pickle"] for path in OWN_STATE}


@pytest.mark.parametrize(
    ("source", "danger"),
    [
        ("import pickle\npickle.load(f)", ["pickle"]),
        ("torch.load(p)", ["torch.load without weights_only"]),
        ("torch.load(p, weights_only=False)", ["torch.load without weights_only"]),
        ("yaml.load(text)", ["yaml.load"]),
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
