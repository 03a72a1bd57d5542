"""What Spark says of damaged files, full disks and lost workers, in our words: table, file, and the next step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse

from dynamix.errors import DynamixError, EnvironmentTrouble, InputError
from dynamix.features.tables import DISK_FULL, WRITERS, Warehouse

_UNREADABLE = re.compile(r"FAILED_READ_FILE\.?(\w*)\][^\n]*?(?:\s|:)((?:file:)?/\S+?\.parquet)")
_REFUSED = re.compile(
    r"Access(?:Control|Denied)Exception[^\n]*?(/[^\s\":]+)|(/[^\s:]+) \(Permission denied\)"
)
_BARE = "No module named 'dynamix'"
_LOST = (
    "Python worker exited unexpectedly",
    "OutOfMemoryError",
    "ExecutorLostFailure",
    "Checkpoint block rdd_",
)


@contextmanager
def said_plainly(warehouse: Warehouse) -> Iterator[None]:
    """Errors of Spark that a user can mend come out as a DynamixError; others pass as they are."""
    try:
        yield
    except DynamixError:
        raise
    except Exception as trouble:
        known = known_trouble(str(trouble), warehouse)
        if known is None:
            raise
        raise known from trouble


def known_trouble(text: str, warehouse: Warehouse) -> DynamixError | None:
    """The error that stands for Spark's own, None where it is none of those that are known.

    A Parquet file that is gone or damaged: EnvironmentTrouble with file and table, InputError where the file
    is of the source (docs/faults.md 26). A missing permission, a full disk, a worker that died (docs/faults.md 29) or
    one without this package: EnvironmentTrouble.
    """
    unreadable = _UNREADABLE.search(text)
    if unreadable:
        return _damaged(Path(unquote(urlparse(unreadable[2]).path)), unreadable[1], warehouse)
    if any(said in text for said in DISK_FULL):
        return EnvironmentTrouble(
            "disk full while Spark wrote temporary files; no table was changed by it: free space in the temporary "
            "folder or set TMPDIR and SPARK_LOCAL_DIRS to a larger disk, then run again"
        )
    refused = _REFUSED.search(text)
    if refused:
        return EnvironmentTrouble(
            f"no permission for {refused[1] or refused[2]}; give this user the right (docs/deploy.md, Rights), or name "
            "another folder"
        )
    if _BARE in text:
        return EnvironmentTrouble(
            "Spark's workers do not have this package: hand them the wheel of `make bundle` as a .zip, by "
            "DYNAMIX_PY_FILES or `spark-submit --py-files`, or install it there (docs/howto.md)"
        )
    if any(said in text for said in _LOST):
        stage = re.search(r"in stage (\d+)", text)
        return EnvironmentTrouble(
            f"a worker died{f' in stage {stage[1]}' if stage else ''}, most likely for lack of memory; no table was "
            "changed by it: look for hot users in the warnings of `dynamix ingest`, give more memory "
            "(DYNAMIX_DRIVER_MEMORY), then run again"
        )
    return None


def _damaged(file: Path, kind: str, warehouse: Warehouse) -> DynamixError:
    what = "is gone" if kind == "FILE_NOT_EXIST" else "is damaged"
    if not file.is_relative_to(warehouse.root):
        return InputError(f"{file} {what}; bring it back or take it out of --events, then run again")
    name = file.relative_to(warehouse.root).parts[0]
    return EnvironmentTrouble(
        f"table {name!r}: {file} {what}; bring the file back, or RESTORE the table to a version before it "
        f"(FSCK REPAIR TABLE where your platform has it) and run `dynamix {WRITERS.get(name, 'run')}` again"
    )
