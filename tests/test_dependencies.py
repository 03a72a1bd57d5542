"""What is installed is what the locks name, and the locks name one build of everything: a version and its hashes."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-bootstrap.lock")
BESIDE = ("dynamix-ebf", "pip")
"""Installed without a lock: this project itself, and what the interpreter puts into a new environment."""
_ENTRY = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)(?: ; [^\\]+)?((?: --hash=sha256:[0-9a-f]{64})+)")


def locked(text: str) -> tuple[dict[str, set[str]], list[str]]:
    """(versions by name, entries that are not `name==version [; marker]` with hashes) of a lock."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    versions: dict[str, set[str]] = {}
    loose = []
    for line in (line.strip() for line in joined.splitlines()):
        entry = _ENTRY.fullmatch(line)
        if entry:
            versions.setdefault(canonicalize_name(entry[1]), set()).add(entry[2])
        elif line and not line.startswith("#"):
            loose.append(line[:60])
    return versions, loose


def strangers(installed: dict[str, str], known: dict[str, set[str]]) -> list[str]:
    """Installed distributions that no lock names in this version."""
    return sorted(
        f"{name} {version}" for name, version in installed.items() if version not in known.get(name, ())
    )


def all_locked() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in LOCKS:
        for package, versions in locked((PROJECT / name).read_text(encoding="utf-8"))[0].items():
            found.setdefault(package, set()).update(versions)
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_one_version_with_hashes(name: str) -> None:
    versions, loose = locked((PROJECT / name).read_text(encoding="utf-8"))
    assert versions and loose == []


def test_nothing_is_installed_that_no_lock_names() -> None:
    if Path(sys.prefix) != PROJECT / ".venv":
        pytest.skip(
            "this is not the environment of `make setup`: what is installed in it is not ours to judge"
        )
    installed = {canonicalize_name(one.metadata["Name"]): one.version for one in metadata.distributions()}
    assert len(installed) > 50 and BESIDE[0] in installed
    others = {name: version for name, version in installed.items() if name not in BESIDE}
    assert strangers(others, all_locked()) == []


HASH = " --hash=sha256:" + "0" * 64


@pytest.mark.parametrize(
    "line",
    [
        "a==1", "a>=1" + HASH, "a", "a @ file:x" + HASH, "git+ssh:x", "--index-url x", "-e .", "a==1 --hash=md5:0",
        "a==1.*" + HASH,
    ],
)  # fmt: skip
def test_a_requirement_that_is_loose_would_be_noticed(line: str) -> None:
    assert locked(f"b==2 ; python_version < '3.13' \\\n   {HASH.strip()}\n{line}\n") == (
        {"b": {"2"}},
        [line[:60]],
    )


def test_a_stranger_would_be_noticed() -> None:
    known = {"a": {"1", "2"}}
    assert strangers({"a": "2"}, known) == []
    assert strangers({"a": "3", "b": "1"}, known) == ["a 3", "b 1"]
