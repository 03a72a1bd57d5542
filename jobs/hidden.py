"""What the command prints and logs, without credentials: those in addresses, and those in the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from dynamix.redaction import without_secrets

_NAMES = re.compile(
    r"TOKEN(?!S|IZ)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|USER_KEY", re.IGNORECASE
)
_LEAST = 6
"""Characters of a value at least: a shorter one may be any word of a sentence."""


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """Values of the environment whose variables are named as secrets are; a number of tokens is none."""
    return [value for name, value in environment.items() if _NAMES.search(name) and len(value) >= _LEAST]


def hide(text: str, *, environment: Mapping[str, str] | None = None) -> str:
    """The text with `[hidden]` in place of credentials in addresses and of secrets of the environment."""
    return without_secrets(text, secret_values(os.environ if environment is None else environment))


def hide_all(tree: Any) -> Any:
    """JSON values with every text in them hidden as by `hide`; keys stay."""
    if isinstance(tree, str):
        return hide(tree)
    if isinstance(tree, dict):
        return {key: hide_all(value) for key, value in tree.items()}
    return [hide_all(value) for value in tree] if isinstance(tree, list) else tree
