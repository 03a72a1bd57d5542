"""What is wrong with a config, in sentences: one for every violation, each naming its key."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from dynamix.errors import ConfigError


def troubles(model: type[BaseModel], tree: Mapping[str, Any]) -> list[str]:
    """One sentence per violation: what hides behind a bad value is found by leaving that value out."""
    found: list[str] = []
    rest: dict[str, Any] = copy.deepcopy(dict(tree))
    while True:
        try:
            model.model_validate(rest)
        except ValidationError as trouble:
            found += _explain(model, trouble)
            places = [error["loc"] for error in trouble.errors()]
            if not all(_remove(rest, place) for place in places):
                return found
        else:
            return found


def _explain(model: type[BaseModel], trouble: ValidationError) -> list[str]:
    lines = []
    for error in trouble.errors():
        where = ".".join(str(part) for part in error["loc"])
        if not where:  # said of the config as a whole: its sentences name what they are about
            lines.append(error["msg"].removeprefix("Value error, "))
        elif error["type"] == "value_error" and isinstance(error.get("input"), Mapping):
            # said of a section as a whole: it names its keys
            lines.append(error["msg"].removeprefix("Value error, "))
        elif error["type"] == "extra_forbidden":
            lines.append(ConfigError.unknown_key(where, _keys_beside(model, error["loc"])).message)
        else:
            lines.append(f"config key {where!r} has value {error.get('input')!r}: {error['msg']}")
    return lines


def _remove(tree: dict[str, Any], place: tuple[int | str, ...]) -> bool:
    """Drop the value at `place`, or the nearest one around it that has a key of its own; False if there is none."""
    around: list[tuple[dict[Any, Any], int | str]] = []
    node: Any = tree
    for part in place:
        if not isinstance(node, dict) or part not in node:
            break
        around.append((node, part))
        node = node[part]
    if around:
        owner, key = around[-1]
        owner.pop(key)
    return bool(around)


def _keys_beside(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Keys that the section of an unknown key knows."""
    section: Any = model
    for part in place[:-1]:
        field = getattr(section, "model_fields", {}).get(part)
        inner = getattr(field, "annotation", None)
        nested = [inner, *get_args(inner)]  # dict[str, X] and X | None name X in their arguments
        section = next((x for x in nested if hasattr(x, "model_fields")), section)
    return sorted(section.model_fields)
