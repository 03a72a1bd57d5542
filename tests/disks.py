"""A small file system of its own, for what is said when a disk is full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path, *, megabytes: int) -> Iterator[Path]:
    """The folder with a file system of this size in it; the test skips where none can be mounted."""
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no small disk can be mounted here ({made.stderr.strip()}): nothing is proven")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, *, leave: int) -> Path:
    """A file that takes all of the disk but so many bytes."""
    found = os.statvfs(place)
    filler = place / "filler"
    filler.write_bytes(bytes(found.f_bavail * found.f_frsize - leave))
    return filler
