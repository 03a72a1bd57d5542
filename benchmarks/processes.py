"""What a process and all below it take, from /proc: processor seconds, of those that ended too, and the most memory."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
_EVERY_S = 0.2


class Meter:
    """Looks at a tree of processes five times a second while it is open.

    A process that ends takes its clock along, so the last look at each counts: up to a fifth of a second of every
    process that ended is missing.
    """

    def __init__(self, root: int) -> None:
        self.peak_bytes = 0
        self._root = root
        self._ticks: dict[tuple[int, str], int] = {}
        self._done = threading.Event()
        self._look = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Meter:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    @property
    def cpu_s(self) -> float:
        """User and system seconds of all that ran since the processes began; NaN where there is no /proc."""
        self._sample()
        return sum(self._ticks.values()) / _TICK if self._ticks else math.nan

    def _watch(self) -> None:
        while not self._done.wait(_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        with self._look:
            memory = 0
            for pid in tree(self._root):
                memory += memory_bytes(pid)
                if (clock := _clock(pid)) is not None:
                    began, ticks = clock
                    self._ticks[pid, began] = ticks  # a number may come again for another process
            self.peak_bytes = max(self.peak_bytes, memory)


def tree(root: int) -> Iterator[int]:
    """A process and all below it, from /proc; the root alone where there is no /proc."""
    yield root
    try:
        children = Path(f"/proc/{root}/task/{root}/children").read_text(encoding="ascii").split()
        threads = [p for p in Path(f"/proc/{root}/task").iterdir() if p.name != str(root)]
        for thread in threads:  # the JVM starts Python from any of its threads
            children += (thread / "children").read_text(encoding="ascii").split()
    except OSError:
        return
    for child in children:
        yield from tree(int(child))


def memory_bytes(pid: int) -> int:
    """Resident memory, pages shared by forks counted in each; 0 where it is unknown."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _clock(pid: int) -> tuple[str, int] | None:
    """(when it began, ticks of its own in user and system mode); None for a process that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[19], int(fields[11]) + int(fields[12])
