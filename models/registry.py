"""The model registry, and the only importer of MLflow: runs, versions, and aliases that move under a lock.

MLflow is imported inside functions, since importing it takes seconds. A server that fails is an
EnvironmentTrouble (exit 5); what was trained stays in its folder (docs/faults.md 36).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamix.errors import ConfigError, EnvironmentTrouble, GuardError
from dynamix.models.model_names import full_name, own_name, parse_address, registry_uri
from dynamix.models.requirements import model_code, requirements
from dynamix.models.stated_store import as_stated
from dynamix.redaction import harmless, without_secrets

RANKER, SEGMENTER = "dynamix-ranker", "dynamix-segmenter"
CHALLENGER, CHAMPION = "challenger", "champion"
ALIASES = (CHALLENGER, CHAMPION)
EXPERIMENT = "dynamix"
_NOISY = ("alembic", "mlflow", "sqlalchemy", "alembic.runtime.migration", "mlflow.store.db.utils")


@dataclass(frozen=True)
class Registry:
    """A tracking store: SQLite and artefacts under `private`, or the server at `uri`."""

    private: Path
    uri: str = ""
    schema: str = ""
    """`catalog.schema` of the models where the registry wants names of three parts."""

    @property
    def tracking_uri(self) -> str:
        return self.uri or f"sqlite:///{self.private / 'mlflow.db'}"

    def named(self, name: str) -> str:
        """A model's name as the registry has it."""
        return full_name(self.schema, name)


@dataclass(frozen=True)
class ChildRun:
    """One arm and seed: what is logged under the parent run of a training."""

    name: str
    params: Mapping[str, object] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """A registered version; `source` is the folder of its artefacts as far as it is local."""

    name: str
    version: str
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"models:/{self.name}/{self.version}"


def log_training(
    registry: Registry,
    *,
    parent: str,
    children: list[ChildRun],
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    evidence: Path | None = None,
) -> str:
    """Id of a parent run with one child run per arm and seed."""
    with connected(registry) as mlflow:
        experiment = _experiment(mlflow, registry)
        with mlflow.start_run(experiment_id=experiment, run_name=parent, tags=dict(tags)) as run:
            _log(mlflow, params, metrics)
            if evidence is not None:
                mlflow.log_artifact(str(evidence))
            for child in children:
                with mlflow.start_run(
                    experiment_id=experiment, run_name=child.name, nested=True, tags=dict(child.tags)
                ):
                    _log(mlflow, child.params, child.metrics)
            return str(run.info.run_id)


def register_ranker(
    registry: Registry,
    *,
    folder: Path,
    run_id: str,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    example: Any,
    evidence: Path | None = None,
) -> Version:
    """New version of `dynamix-ranker` from an artefact folder (models/service.py); no alias moves.

    `example` is a DataFrame of one raw request. Tags carry pins: mask_version, segment_version, table
    versions, config hash.
    """
    artefacts = {"model": str(folder)} | ({"evidence": str(evidence)} if evidence else {})
    with connected(registry) as mlflow:
        with mlflow.start_run(run_id=run_id), model_code("pyfunc_model.py") as code:
            info = mlflow.pyfunc.log_model(
                name="ranker",
                python_model=code,
                artifacts=artefacts,
                signature=ranker_signature(_heads(folder)),
                input_example=example,
                registered_model_name=registry.named(RANKER),
                pip_requirements=requirements(),
                metadata=dict(tags),
            )
        return _tagged(
            mlflow, registry, RANKER, str(info.registered_model_version), {**tags, **_text(metrics)}
        )


def register_segmenter(
    registry: Registry,
    *,
    artefact: Path,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    run_name: str,
    reads_events: bool = False,
) -> Version:
    """New version of `dynamix-segmenter` with this JSON, the challenger; `reads_events`: users come with events."""
    with connected(registry) as mlflow:
        experiment = _experiment(mlflow, registry)
        with (
            mlflow.start_run(experiment_id=experiment, run_name=run_name, tags=dict(tags)),
            model_code("pyfunc_segmenter.py") as code,
        ):
            _log(mlflow, {}, metrics)
            info = mlflow.pyfunc.log_model(
                name="segmenter",
                python_model=code,
                artifacts={"segmenter": str(artefact)},
                signature=segmenter_signature(reads_events=reads_events),
                registered_model_name=registry.named(SEGMENTER),
                pip_requirements=requirements(),
            )
        number = str(info.registered_model_version)
        version = _tagged(mlflow, registry, SEGMENTER, number, {**tags, **_text(metrics)})
    move_alias(registry, SEGMENTER, CHALLENGER, version.version, expected=None, check=False)
    return version


def find(registry: Registry, name: str, alias: str) -> Version | None:
    """The version that carries the alias, None where there is none."""
    with connected(registry) as mlflow:
        try:
            found = mlflow.MlflowClient().get_model_version_by_alias(registry.named(name), alias)
        except mlflow.exceptions.MlflowException as trouble:
            if _absent(trouble):
                return None
            raise
        return Version(name, str(found.version), (alias,), dict(found.tags))


def move_alias(
    registry: Registry, name: str, alias: str, version: str, *, expected: str | None, check: bool = True
) -> None:
    """Point the alias at the version, under a file lock, after reading it again (docs/faults.md 37).

    With `check`, GuardError if the alias no longer points at `expected` (None: at nothing): another
    training moved it, so the comparison that led here is stale.
    """
    if alias not in ALIASES:
        raise ConfigError.bad_value("alias", alias, ", ".join(ALIASES))
    with _lock(registry):
        now = find(registry, name, alias)
        if check and (now.version if now else None) != expected:
            raise GuardError(
                f"alias {alias!r} of {name} points at version {now.version if now else 'none'}, the comparison was made "
                f"against {expected or 'none'}; another training moved it: run `dynamix train` again"
            )
        with connected(registry) as mlflow:
            mlflow.MlflowClient().set_registered_model_alias(registry.named(name), alias, version)


def artefact_folder(registry: Registry, address: str) -> tuple[Path, Version]:
    """Local folder with the artefacts of `models:/<name>/<version>` or `models:/<name>@<alias>`, and the version.

    ConfigError for an address that does not exist.
    """
    with connected(registry) as mlflow:
        found = resolve(registry, mlflow, address)
        local = mlflow.artifacts.download_artifacts(f"models:/{found.name}/{found.version}")
        name = own_name(registry.schema, str(found.name))
    aliases = (address.rpartition("@")[2],) if "@" in address else ()
    return Path(local) / "artifacts" / "model", Version(name, str(found.version), aliases, dict(found.tags))


def resolve(registry: Registry, mlflow: Any, address: str) -> Any:
    """MLflow's own record of the version at an address. ConfigError where there is none."""
    name, version, alias = parse_address(address)
    client, name = mlflow.MlflowClient(), registry.named(name)
    try:
        if alias:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, version)
    except mlflow.exceptions.MlflowException as trouble:
        if _absent(trouble):
            raise ConfigError.unknown_version("model", address, _listed(client, name)) from None
        raise


def ranker_signature(heads: tuple[str, ...]) -> Any:
    """Raw request -> a probability per head and the segment_id."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array, Object, Property

    event = Object(
        [
            Property("stream", DataType.string),
            Property("item_id", DataType.string, required=False),
            Property("ts", DataType.string),  # ISO 8601, UTC: MLflow cannot check instants inside a list
            Property("dwell_ms", DataType.double, required=False),
            Property("category", DataType.string, required=False),
            Property("session_id", DataType.string, required=False),
        ]
    )
    request: list[ColSpec | TensorSpec] = [
        ColSpec("string", "user_id"),
        ColSpec("datetime", "request_ts"),
        ColSpec("string", "item_id", required=False),
        ColSpec("string", "surface"),
        ColSpec("double", "position", required=False),
        ColSpec(Array(event), "events"),
        ColSpec("double", "segment_id", required=False),  # double, since a missing whole number is NaN
        ColSpec("string", "tier", required=False),
        ColSpec("string", "category", required=False),
        ColSpec("double", "value", required=False),
    ]
    answer: list[ColSpec | TensorSpec] = [
        *(ColSpec("double", head) for head in heads),
        ColSpec("long", "segment_id"),
    ]
    return ModelSignature(inputs=Schema(request), outputs=Schema(answer))


def segmenter_signature(*, reads_events: bool = False) -> Any:
    """A user's event counts by `stream id × 13 + dwell bin`, or the events themselves -> segment_id."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, DataType, Object, Property

    kinds = {"stream_id": DataType.long, "dwell_bin": DataType.long, "ts_s": DataType.double}
    needed = [Property(name, kind) for name, kind in kinds.items()]
    event = Object([*needed, Property("z", DataType.double, required=False)])
    seen = ColSpec(Array(event), "events") if reads_events else ColSpec(Array(DataType.double), "counts")
    return ModelSignature(
        inputs=Schema([ColSpec("string", "user_id"), seen]),
        outputs=Schema([ColSpec("string", "user_id"), ColSpec("long", "segment_id")]),
    )


def declare_ranker() -> None:
    """Tell MLflow which object serves; called by models/pyfunc_model.py when MLflow runs it."""
    import mlflow

    class RankerModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
        def load_context(self, context: Any) -> None:
            from dynamix.models.service import RankerService

            self.service = RankerService.load(Path(context.artifacts["model"]))

        # without type hints: MLflow would take them for a schema and warn
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            return self.service.predict(model_input)

    mlflow.models.set_model(RankerModel())


def declare_segmenter() -> None:
    """As declare_ranker, for models/pyfunc_segmenter.py."""
    import mlflow

    class SegmenterModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
        def load_context(self, context: Any) -> None:
            self.tree = json.loads(Path(context.artifacts["segmenter"]).read_text(encoding="utf-8"))

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            from dynamix.models.segmenter import segment_users

            return segment_users(self.tree, model_input)

    mlflow.models.set_model(SegmenterModel())


@contextlib.contextmanager
def connected(registry: Registry) -> Iterator[Any]:
    """MLflow set to the registry's store, quiet; any failure of the store is an EnvironmentTrouble."""
    registry.private.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    with as_stated(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.showwarning = _silent  # MLflow puts its own filter over ours
        import mlflow
        import mlflow.pyfunc
        from mlflow.utils import logging_utils

        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)
        before = mlflow.get_tracking_uri()
        logging_utils.disable_logging()  # type: ignore[no-untyped-call]  # its own lines on standard error
        try:
            mlflow.set_tracking_uri(registry.tracking_uri)
            mlflow.set_registry_uri(registry_uri(registry.tracking_uri, registry.schema))
            yield mlflow
        except (mlflow.exceptions.MlflowException, OSError) as trouble:
            said = without_secrets(" ".join(str(trouble).split()))[:300]
            raise EnvironmentTrouble(
                f"tracking store {registry.tracking_uri} failed ({said}); what was trained is kept in the run's "
                "folder: bring the store back and run `dynamix train` again"
            ) from harmless(trouble)
        finally:
            logging_utils.enable_logging()  # type: ignore[no-untyped-call]
            mlflow.set_tracking_uri(before)
            mlflow.set_registry_uri(before)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _silent(*_: object, **__: object) -> None:
    """Takes the place of `warnings.showwarning`."""


def _experiment(mlflow: Any, registry: Registry) -> str:
    found = mlflow.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    place = None if registry.uri else (registry.private / "mlruns").absolute().as_uri()
    return str(mlflow.create_experiment(EXPERIMENT, artifact_location=place))


def _log(mlflow: Any, params: Mapping[str, object], metrics: Mapping[str, float]) -> None:
    if params:
        mlflow.log_params({k: str(v)[:500] for k, v in params.items()})
    if metrics:
        mlflow.log_metrics({_metric_name(k): float(v) for k, v in metrics.items()})


def _metric_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _tagged(mlflow: Any, registry: Registry, name: str, version: str, tags: Mapping[str, str]) -> Version:
    client = mlflow.MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(registry.named(name), version, key, value)
    return Version(name, version, (), dict(tags))


def _text(metrics: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{value:.6g}" for name, value in metrics.items()}


def _heads(folder: Path) -> tuple[str, ...]:
    return tuple(json.loads((folder / "ranker.json").read_text(encoding="utf-8"))["heads"])


def _absent(trouble: Exception) -> bool:
    code = str(getattr(trouble, "error_code", ""))
    return code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}


def _listed(client: Any, name: str) -> list[str]:
    return sorted(f"models:/{name}/{v.version}" for v in client.search_model_versions(f"name='{name}'"))


@contextlib.contextmanager
def _lock(registry: Registry) -> Iterator[None]:
    registry.private.mkdir(parents=True, exist_ok=True)
    with (registry.private / "aliases.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
