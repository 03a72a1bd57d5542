"""Which config a verb runs under: `--set`, then `--config`, then the one beside the events or in the warehouse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from dynamix.config import Config, load_config
from dynamix.errors import ConfigError, InputError
from dynamix.features.tables import Warehouse
from dynamix.jobs.files import write_whole

STORED = "config.yaml"


def resolve_config(
    *, warehouse: Path | None, events: str | None, files: Sequence[Path], settings: Sequence[str]
) -> Config:
    """The typed config of this call. A later verb starts from what `ingest` or `run` stored."""
    layers: list[Path] = []
    beside = _beside(events)
    if beside is not None:
        layers.append(beside)
    elif warehouse is not None and (warehouse / "_dynamix" / STORED).is_file():
        layers.append(warehouse / "_dynamix" / STORED)
    return load_config(files=[*layers, *files], settings=settings)


def refuse_missing_source(events: str | None) -> None:
    """InputError before a session is started when `events` looks like a path and is not there."""
    if events is None or Path(events).exists() or ("://" in events) or ("/" not in events and "." in events):
        return
    raise InputError(f"--events {events}: no such file or folder; check the path")


def refuse_no_table(place: Warehouse) -> None:
    """ConfigError (exit 2) for a place without any Delta table: a mistyped path is not made a warehouse."""
    if not place.has_tables():
        raise ConfigError(f"--warehouse {place} holds no table; check the path")


def store_config(warehouse: Path, config: Config) -> None:
    """Keep the resolved config with the warehouse, for verbs that are called without --events."""
    write_whole(warehouse / "_dynamix" / STORED, dump(config))


def dump(config: Config) -> str:
    """The resolved config as YAML, complete with its defaults."""
    text: str = yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=True)
    return text


def _beside(events: str | None) -> Path | None:
    if events is None:
        return None
    source = Path(events)
    for folder in (source, source.parent):
        if (folder / "dynamix.yaml").is_file():
            return folder / "dynamix.yaml"
    return None
