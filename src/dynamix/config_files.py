"""What config files and `--set` say, as plain trees, before any of it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from dynamix.errors import ConfigError


def merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` in place of its own, sections key by key."""
    found = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(found.get(key), dict):
            found[key] = merged(cast(dict[str, Any], found[key]), value)
        else:
            found[key] = value
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """The tree of a config file, empty where it says nothing; ConfigError where it is missing, torn or no mapping."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist; check --config") from None
    except OSError as trouble:
        raise ConfigError(f"config file {path} cannot be read ({trouble.strerror}); check --config") from None
    except (yaml.YAMLError, ValueError) as trouble:  # ValueError: no UTF-8, a date or number that is none
        raise ConfigError(f"config file {path} is not YAML: {' '.join(str(trouble).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"config file {path} holds a {type(loaded).__name__}; allowed: a mapping of sections"
        )
    return cast(dict[str, Any], loaded)


def assignment(text: str) -> dict[str, Any]:
    """The tree of one `--set key=value`, whose value is YAML where it can be read as such; ConfigError without a key."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--set {text!r}; allowed: key=value, e.g. --set mask.ne_budget=0.005")
    try:
        parsed: Any = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):  # text after all, also a date or number that is none
        parsed = value
    for name in reversed(key.strip().split(".")):
        parsed = {name: parsed}
    return cast(dict[str, Any], parsed)
