"""The files in a Delta folder, and which of them its log names; nothing is read but names and JSON lines."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlparse

LOG = "_delta_log"


def delta_folders(root: Path) -> list[Path]:
    """Folders right below `root` that are Delta tables, clones and tables of other hands included, by name."""
    return sorted(log.parent for log in root.glob(f"*/{LOG}"))


def data_files(folder: Path) -> set[Path]:
    """Parquet files of a table's folder as they lie, change data included, the log's checkpoints not."""
    return {path for path in folder.rglob("*.parquet") if LOG not in path.relative_to(folder).parts}


def logged_files(folder: Path) -> set[Path]:
    """Files that the kept commits of the table name: added, removed, or written as change data."""
    named: set[Path] = set()
    for commit in (folder / LOG).glob("[0-9]" * 20 + ".json"):
        with commit.open(encoding="utf-8") as lines:
            for line in lines:
                action = json.loads(line)
                file = action.get("add") or action.get("remove") or action.get("cdc")
                if file is not None:
                    named.add(folder / unquote(urlparse(file["path"]).path))  # absolute in a clone: stays so
    return named


def operation(commit: Path) -> str | None:
    """Operation of a commit file, None where it does not say it."""
    return cast("str | None", (commit_info(commit) or {}).get("operation"))


def commit_info(commit: Path) -> dict[str, Any] | None:
    """What a commit file says of itself, None where it says nothing."""
    with commit.open(encoding="utf-8") as lines:
        for line in lines:
            info = json.loads(line).get("commitInfo")
            if info is not None:
                return cast("dict[str, Any]", info)
    return None


def is_local(location: str) -> bool:
    """Whether a table's or a schema's location is a folder of this machine."""
    return location.startswith(("file:", "/"))


def local_path(url: str) -> str:
    """Path of a file as Spark lists it: Delta's tables as they lie with `file:` in front, others as an escaped URL."""
    plain = re.sub(r"^file:(//(?=/))?", "", url)
    return plain if Path(plain).exists() else unquote(plain)
