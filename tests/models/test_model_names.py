"""Models under names of three parts: the registry has `catalog.schema.name`, everything here says the name alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamix.errors import ConfigError
from dynamix.jobs.context import registry_of
from dynamix.jobs.rollback import rollback
from dynamix.models.model_names import STATED_SCHEMA, registry_uri, stated_schema
from dynamix.models.registered import tag, versions
from dynamix.models.registry import (
    CHALLENGER,
    CHAMPION,
    RANKER,
    SEGMENTER,
    Registry,
    artefact_folder,
    connected,
    find,
    move_alias,
    register_segmenter,
)

SCHEMA = "main.ads"


def test_a_model_is_registered_found_and_rolled_back_under_three_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STATED_SCHEMA, SCHEMA)
    registry = registry_of(tmp_path / "_dynamix")
    artefact = tmp_path / "model" / "segmenter.json"
    artefact.parent.mkdir()
    artefact.write_text(json.dumps({"k": 1}), encoding="utf-8")
    made = register_segmenter(registry, artefact=artefact, metrics={"k": 1.0}, tags={"a": "b"}, run_name="r")
    assert made.address == f"models:/{SEGMENTER}/1"
    found = find(registry, SEGMENTER, CHALLENGER)
    assert found is not None and (found.name, found.version, found.tags["a"]) == (SEGMENTER, "1", "b")
    tag(registry, found, "seen", "yes")
    assert [v.tags["seen"] for v in versions(registry, SEGMENTER)] == ["yes"]
    for address in (f"models:/{SEGMENTER}@{CHALLENGER}", f"models:/{SCHEMA}.{SEGMENTER}/1"):
        assert artefact_folder(registry, address)[1].name == SEGMENTER
    with connected(registry) as mlflow:
        assert [m.name for m in mlflow.MlflowClient().search_registered_models()] == [f"{SCHEMA}.{SEGMENTER}"]
    with pytest.raises(
        ConfigError, match=r"models:/dynamix-segmenter/7.*models:/main\.ads\.dynamix-segmenter/1"
    ):
        artefact_folder(registry, f"models:/{SEGMENTER}/7")
    plain = Registry(tmp_path / "_dynamix")
    assert find(plain, SEGMENTER, CHALLENGER) is None  # another registry's model as far as it is concerned

    with connected(registry) as mlflow:
        mlflow.MlflowClient().create_registered_model(registry.named(RANKER))
        for _ in range(2):
            mlflow.MlflowClient().create_model_version(registry.named(RANKER), source="file:///nowhere")
    move_alias(registry, RANKER, CHAMPION, "2", expected=None)
    assert rollback(registry, to="1").facts["to"] == "1"
    champion = find(registry, RANKER, CHAMPION)
    assert champion is not None and champion.version == "1"


@pytest.mark.parametrize("text", ["ads", "a.b.c", "a.b'", ".b", "a. b"])
def test_a_schema_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"{STATED_SCHEMA}.*catalog\.schema") as refused:
        stated_schema({STATED_SCHEMA: text})
    assert refused.value.exit_code == 2


def test_a_workspace_with_three_part_names_keeps_its_models_in_unity_catalog() -> None:
    assert stated_schema({}) == "" and stated_schema({STATED_SCHEMA: SCHEMA}) == SCHEMA
    told = [
        registry_uri(uri, SCHEMA)
        for uri in ("databricks", "databricks://team", "https://store", "sqlite:///x")
    ]
    assert told == ["databricks-uc", "databricks-uc://team", "https://store", "sqlite:///x"]
    assert registry_uri("databricks://team", "") == "databricks://team"
