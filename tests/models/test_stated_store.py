"""The variable that names a tracking store stays what the user made it, whatever MLflow is set to in between."""

from __future__ import annotations

import ast
import os
import threading
from pathlib import Path

import pytest

from dynamix.jobs.context import registry_of
from dynamix.models.registry import Registry, connected
from dynamix.models.stated_store import STATED, as_stated


@pytest.mark.parametrize("stated", [None, "http://store.example:5000"])
def test_a_store_that_was_used_is_not_stated_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str | None
) -> None:
    if stated is not None:
        monkeypatch.setenv(STATED, stated)
    with connected(Registry(tmp_path / "one")):
        assert os.environ[STATED].startswith("sqlite")
        with connected(Registry(tmp_path / "two")):
            pass
    assert os.environ.get(STATED) == stated
    assert registry_of(tmp_path / "three").uri == (stated or "")
    assert registry_of(tmp_path / "three", "http://given").uri == "http://given"


def test_of_blocks_that_overlap_in_threads_the_last_one_puts_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STATED, raising=False)
    first_open, second_open, first_closed = (threading.Event() for _ in range(3))

    def first() -> None:
        with as_stated():
            os.environ[STATED] = "first"
            first_open.set()
            second_open.wait(10)
        first_closed.set()

    thread = threading.Thread(target=first)
    thread.start()
    first_open.wait(10)
    with as_stated():  # sees what the first has written
        second_open.set()
        first_closed.wait(10)
    thread.join()
    assert STATED not in os.environ


def test_every_verb_takes_the_registry_of_its_run() -> None:
    """One that makes its own would pass over the store that the user has stated."""
    jobs = Path(__file__).resolve().parents[2] / "jobs"
    calls = {
        path.name
        for path in jobs.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Registry"
    }
    assert calls == {"context.py"}
