"""The tracking store that fails and the aliases that two trainings want (docs/faults.md 36, 37), on SQLite and HTTP."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from stand_ins import failing_store, out_of_order

from dynamix.errors import EnvironmentTrouble, GuardError
from dynamix.models import registry as module
from dynamix.models.registry import (
    CHALLENGER,
    RANKER,
    SEGMENTER,
    Registry,
    find,
    log_training,
    move_alias,
    register_segmenter,
)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A store with three versions of the ranker and no alias."""
    found = Registry(tmp_path / "_dynamix")
    with module.connected(found) as store:
        client = store.MlflowClient()
        client.create_registered_model(RANKER)
        for number in range(3):
            client.create_model_version(RANKER, source=f"file:///nowhere/{number}")
    return found


def _carried(registry: Registry) -> str | None:
    found = find(registry, RANKER, CHALLENGER)
    return None if found is None else found.version


@pytest.fixture
def failing_server() -> Iterator[str]:
    with failing_store(out_of_order()) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("what", ["down", "500"])
def test_fault_36_a_tracking_server_that_is_down_or_fails_is_exit_5(
    tmp_path: Path, failing_server: str, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # it would ask for minutes
    uri = failing_server if what == "500" else "http://127.0.0.1:9"
    with pytest.raises(
        EnvironmentTrouble, match=f"tracking store {uri} failed .*bring the store back"
    ) as said:
        log_training(Registry(tmp_path, uri), parent="p", children=[], params={}, metrics={}, tags={})
    assert said.value.exit_code == 5


def test_fault_36_a_version_that_was_not_finished_carries_no_alias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store fails between the registration and its tags; the next one gets the alias."""
    artefact = tmp_path / "segmenter.json"
    artefact.write_text("{}", encoding="utf-8")
    place = Registry(tmp_path / "_dynamix")
    real = mlflow.MlflowClient.set_model_version_tag

    def fail(*_: object) -> None:
        raise mlflow.exceptions.MlflowException("out of order")

    monkeypatch.setattr(mlflow.MlflowClient, "set_model_version_tag", fail)
    with pytest.raises(EnvironmentTrouble, match="out of order"):
        register_segmenter(place, artefact=artefact, metrics={}, tags={"run_id": "1"}, run_name="first")
    assert find(place, SEGMENTER, CHALLENGER) is None
    monkeypatch.setattr(mlflow.MlflowClient, "set_model_version_tag", real)
    register_segmenter(place, artefact=artefact, metrics={}, tags={"run_id": "2"}, run_name="second")
    found = find(place, SEGMENTER, CHALLENGER)
    assert found is not None and (found.version, found.tags["run_id"]) == ("2", "2")


def test_fault_37_an_alias_that_moved_since_the_comparison_stays_where_it_is(registry: Registry) -> None:
    """The protection taken away, no look at where it points, a stale comparison moves it."""
    move_alias(registry, RANKER, CHALLENGER, "2", expected=None)
    with pytest.raises(
        GuardError, match=r"points at version 2, the comparison was made against none"
    ) as refused:
        move_alias(registry, RANKER, CHALLENGER, "1", expected=None)
    assert (refused.value.exit_code, _carried(registry)) == (4, "2")
    move_alias(registry, RANKER, CHALLENGER, "1", expected=None, check=False)
    assert _carried(registry) != "2"


def _race(registry: Registry, monkeypatch: pytest.MonkeyPatch, *, patience_s: float) -> list[str]:
    """Versions whose training moved the alias, of two that compared with the same base at the same time.

    Both wait for each other after they have read the alias; under the lock only one can read, and waits in vain.
    """
    meeting, moved, real = threading.Barrier(2), [], find

    def read(*given: object) -> object:
        found = real(*given)  # type: ignore[arg-type]
        with contextlib.suppress(threading.BrokenBarrierError):
            meeting.wait(patience_s)
        return found

    def train(version: str) -> None:
        with contextlib.suppress(GuardError):
            move_alias(registry, RANKER, CHALLENGER, version, expected=None)
            moved.append(version)

    monkeypatch.setattr(module, "find", read)
    racing = [threading.Thread(target=train, args=(version,)) for version in ("1", "2")]
    for one in racing:
        one.start()
    for one in racing:
        one.join()
    monkeypatch.setattr(module, "find", real)
    return moved


def test_fault_37_of_two_trainings_that_race_for_the_alias_one_wins(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protection taken away, the lock, both believe that they have won."""
    moved = _race(registry, monkeypatch, patience_s=1)
    assert moved == [_carried(registry)]
    with module.connected(registry) as store:
        store.MlflowClient().delete_registered_model_alias(RANKER, CHALLENGER)
    monkeypatch.setattr(module, "_lock", lambda registry: contextlib.nullcontext())
    assert len(_race(registry, monkeypatch, patience_s=60)) == 2
