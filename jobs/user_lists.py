"""Lists of users that people hand in, and their ids as the tables store them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from dynamix.config import Config
from dynamix.errors import EnvironmentTrouble, InputError
from dynamix.features.pseudonyms import pseudonym

KEY_VARIABLE = "DYNAMIX_USER_KEY"
"""Environment variable with the key of `privacy.user_ids: hmac`; it is read here and written nowhere."""
LEAST_KEY = 16
"""Bytes of a key at least: shorter ones can be tried out."""


def read_users(path: Path, *, key: str = "--users", empty: bool = False) -> frozenset[str]:
    """Ids of a text file, one a line, blank lines left out. InputError where there is none, unless `empty`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as trouble:
        kind = type(trouble).__name__
        raise InputError(f"{key} {path}: cannot be read ({kind}); give a text file, one id a line") from None
    names = frozenset(line for line in text.split("\n") if line.strip())  # an id may hold other line ends
    if not names and not empty:
        raise InputError(f"{key} {path}: no user in it; write one id a line, as in events.user_id")
    return names


def user_key(config: Config, environment: Mapping[str, str] | None = None) -> bytes | None:
    """Key of the hashed user ids, None where ids stay as they are. EnvironmentTrouble (exit 5) without a sound key."""
    if config.privacy.user_ids == "clear":
        return None
    value = (os.environ if environment is None else environment).get(KEY_VARIABLE, "")
    if len(value.encode()) < LEAST_KEY:
        raise EnvironmentTrouble(
            f"`privacy.user_ids: hmac` needs a key of at least {LEAST_KEY} bytes in the environment variable "
            f"{KEY_VARIABLE}, found {'none' if not value else 'a shorter one'}; set it from your secret store"
        )
    return value.encode()


def stored_names(config: Config, names: Iterable[str]) -> frozenset[str]:
    """Ids as tables store them: unchanged, or their hashes under the warehouse's key."""
    key = user_key(config)
    return frozenset(names) if key is None else frozenset(pseudonym(name, key=key) for name in names)
