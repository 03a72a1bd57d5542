"""What the command prints and logs: without credentials, and without signs that steer a terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from dynamix.redaction import without_secrets

_NAMES = re.compile(
    r"TOKEN(?!S|IZ)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|USER_KEY", re.IGNORECASE
)
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control signs but tab and line end, and those that turn the direction of writing."""
_LEAST = 6
"""Characters of a value at least: a shorter one may be any word of a sentence."""


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """Values of the environment whose variables are named as secrets are; a number of tokens is none."""
    return [value for name, value in environment.items() if _NAMES.search(name) and len(value) >= _LEAST]


def hide(text: str, *, environment: Mapping[str, str] | None = None) -> str:
    """The text with `[hidden]` in place of credentials in addresses and of secrets of the environment."""
    return without_secrets(text, secret_values(os.environ if environment is None else environment))


def shown(text: str) -> str:
    r"""As `hide`, for a terminal or a log: names from raw data cannot steer it, their control signs are spelt out.

    >>> print(shown("stream \x1b[2Jfeed"))
    stream \x1b[2Jfeed
    """
    return _STEERING.sub(lambda sign: ascii(sign[0])[1:-1], hide(text))


def hide_all(tree: Any) -> Any:
    """JSON values with every text in them hidden as by `hide`; keys stay."""
    if isinstance(tree, str):
        return hide(tree)
    if isinstance(tree, dict):
        return {key: hide_all(value) for key, value in tree.items()}
    return [hide_all(value) for value in tree] if isinstance(tree, list) else tree
