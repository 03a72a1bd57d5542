"""A bar of Spark's tasks on the terminal, while somebody looks: on standard error, one line that is drawn over itself.

Nothing is drawn into a file or a pipe, with --quiet or --json, nor where Spark's tasks cannot be asked for (Connect).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from pyspark.sql import SparkSession

CLEAR = "\r\x1b[K"
"""Back to the beginning of the line and everything on it gone."""
_EVERY_S = 0.3
_WIDTH = 24


def bar(done: int, total: int, *, seconds: float, stages: int) -> str:
    """One line: share of the tasks, their numbers, and for how long.

    >>> bar(3, 12, seconds=7.4, stages=1)
    '  [######..................] 3 of 12 tasks, 7 s'
    """
    full = _WIDTH * done // max(total, 1)
    more = f" of {stages} stages" if stages > 1 else ""
    return f"  [{'#' * full}{'.' * (_WIDTH - full)}] {done} of {total} tasks{more}, {seconds:.0f} s"


@contextmanager
def shown_progress(spark: SparkSession, *, quiet: bool, stream: TextIO | None = None) -> Iterator[None]:
    """Draw the bar of whatever runs inside the block."""
    out = sys.stderr if stream is None else stream
    tracker = None if quiet or not out.isatty() else _tracker(spark)
    if tracker is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_draw, args=(tracker, out, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _tracker(spark: SparkSession) -> Any:
    """Spark's own view of its stages; None on a Connect server, which has another one."""
    context = getattr(spark, "_sc", None)
    return None if context is None else context.statusTracker()


def _draw(tracker: Any, out: TextIO, over: threading.Event) -> None:
    since, shown = 0.0, False
    while not over.wait(_EVERY_S):
        infos = [
            info for stage in tracker.getActiveStageIds() if (info := tracker.getStageInfo(stage)) is not None
        ]
        if infos:
            since = since or time.monotonic()
            done, total = (sum(getattr(i, name) for i in infos) for name in ("numCompletedTasks", "numTasks"))
            text = bar(done, total, seconds=time.monotonic() - since, stages=len(infos))
            _write(out, CLEAR + text)
            shown = True
        elif shown:
            _write(out, CLEAR)
            since, shown = 0.0, False
    if shown:
        _write(out, CLEAR)


def _write(out: TextIO, text: str) -> None:
    out.write(text)
    out.flush()
