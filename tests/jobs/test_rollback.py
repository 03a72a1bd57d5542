"""`dynamix rollback`: where the champion's alias goes back to, and where it stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamix.errors import ConfigError, GuardError
from dynamix.jobs import rollback as module
from dynamix.jobs.cli import main
from dynamix.jobs.forget import TRAINED
from dynamix.jobs.registration import PREDECESSOR
from dynamix.jobs.rollback import rollback
from dynamix.models.registered import tag, versions
from dynamix.models.registry import CHALLENGER, CHAMPION, RANKER, Registry, connected, find, move_alias


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Three versions: 1 was the first champion, 2 was refused, 3 took over from 1."""
    found = Registry(tmp_path_factory.mktemp("W") / "_dynamix")
    with connected(found) as mlflow:
        client = mlflow.MlflowClient()
        client.create_registered_model(RANKER)
        for number, before in enumerate(("none", "1", "1")):
            tags = {PREDECESSOR: before, "mask_version": f"m{number + 1}", "run_id": f"run{number + 1}"}
            client.create_model_version(RANKER, source=f"file:///nowhere/{number}", tags=tags)
    return found


@pytest.fixture
def registry(store: Registry) -> Registry:
    """The store with version 3 as champion."""
    move_alias(store, RANKER, CHAMPION, "3", expected=None, check=False)
    return store


def champion(registry: Registry) -> str:
    found = find(registry, RANKER, CHAMPION)
    assert found is not None
    return found.version


def test_it_goes_back_to_the_champion_that_was_replaced_and_says_the_way_forward(registry: Registry) -> None:
    facts = rollback(registry).facts
    assert champion(registry) == "1"
    assert (facts["from"], facts["to"], facts["mask_version"]) == ("3", "1", "m1")
    assert "version 3 -> 1 (mask m1, run run1)" in facts["text"]
    assert facts["text"].endswith(f"dynamix rollback {RANKER} --to 3")
    with pytest.raises(
        GuardError, match="took over from no other champion; name a version with --to, known: 1, 2, 3"
    ):
        rollback(registry)
    assert rollback(registry, to="3").facts["to"] == champion(registry) == "3"


def test_a_stated_version_wins_and_the_present_one_changes_nothing(registry: Registry) -> None:
    assert rollback(registry, to="3").facts["text"].endswith("is champion already; nothing changed")
    rollback(registry, to="2")
    assert champion(registry) == "2"


def test_what_is_not_there_is_said_and_no_alias_moves(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="version '9' does not exist; known: 1, 2, 3"):
        rollback(registry, to="9")
    with pytest.raises(ConfigError, match="model 'ranker' has no version here"):
        rollback(registry, "ranker")
    assert champion(registry) == "3"


def test_without_a_champion_there_is_nothing_to_roll_back(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "_dynamix")
    with connected(registry) as mlflow:
        mlflow.MlflowClient().create_registered_model(RANKER)
        mlflow.MlflowClient().create_model_version(RANKER, source="file:///nowhere")
    move_alias(registry, RANKER, CHALLENGER, "1", expected=None)
    with pytest.raises(GuardError, match="no version of dynamix-ranker is champion"):
        rollback(registry)


def test_a_model_of_forgotten_users_does_not_come_back(registry: Registry) -> None:
    second = versions(registry, RANKER)[1]
    tag(registry, second, TRAINED, "r9")
    with pytest.raises(GuardError, match="models:/dynamix-ranker/2 was trained on users who were forgotten"):
        rollback(registry, to="2")
    assert champion(registry) == "3"


def test_another_process_that_moved_the_alias_meanwhile_wins(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.find

    def late(*asked: str) -> object:
        found = real(*asked)  # type: ignore[arg-type]
        move_alias(registry, RANKER, CHAMPION, "2", expected="3")
        return found

    monkeypatch.setattr(module, "find", late)
    with pytest.raises(GuardError, match="points at version 2, the comparison was made against 3"):
        rollback(registry)
    assert champion(registry) == "2"


def test_on_the_command_line(registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(registry.private.parent)
    assert main(["rollback", RANKER, "--warehouse", place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["to"] == champion(registry) == "1"
    assert main(["rollback", RANKER, "--warehouse", str(tmp_path / "none")]) == 2
    assert "no warehouse of DynamiX" in capsys.readouterr().err and not (tmp_path / "none").exists()
