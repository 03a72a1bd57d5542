"""Registered versions as a list, as MLflow serves them, and tags that are put on them later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynamix.models.registry import Registry, Version, connected, resolve


def versions(registry: Registry, name: str) -> list[Version]:
    """Every version of a registered model with its tags, oldest first; empty where the model is not registered."""
    with connected(registry) as mlflow:
        found = mlflow.MlflowClient().search_model_versions(f"name='{registry.named(name)}'")
        listed = [Version(name, str(v.version), tuple(v.aliases or ()), dict(v.tags)) for v in found]
    return sorted(listed, key=lambda version: int(version.version))


def tag(registry: Registry, version: Version, key: str, value: str) -> None:
    """Set one tag of a registered version."""
    with connected(registry) as mlflow:
        mlflow.MlflowClient().set_model_version_tag(registry.named(version.name), version.version, key, value)


def load_pyfunc(registry: Registry, address: str) -> Any:
    """The model as MLflow serves it; its `predict` takes a DataFrame of raw requests."""
    with connected(registry) as mlflow:
        found = resolve(registry, mlflow, address)
        return mlflow.pyfunc.load_model(f"models:/{found.name}/{found.version}")


def log_figures(registry: Registry, address: str, folder: Path) -> str:
    """Log the folder's files as artefacts `figures/…` of the training run behind `models:/name/version`; the run's id.

    Files of the same name are replaced. ConfigError for an address that does not exist.
    """
    with connected(registry) as mlflow:
        client = mlflow.MlflowClient()
        run_id = str(resolve(registry, mlflow, address).run_id)
        client.log_artifacts(run_id, str(folder), artifact_path="figures")
    return run_id
