"""MLFLOW_TRACKING_URI as somebody stated it: MLflow writes every store that it is set to into that variable.

Left there, it would pass for a wish of the user, and the next warehouse would log into the store of the one before.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

STATED = "MLFLOW_TRACKING_URI"


class _Variable:
    """The variable as it was before the first of the blocks that are open, in whatever thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open = 0
        self.before: str | None = None


_VARIABLE = _Variable()


@contextlib.contextmanager
def as_stated() -> Iterator[None]:
    """Whatever MLflow does to the variable meanwhile, it is as before once the last open block has ended."""
    with _VARIABLE.lock:
        if not _VARIABLE.open:
            _VARIABLE.before = os.environ.get(STATED)
        _VARIABLE.open += 1
    try:
        yield
    finally:
        with _VARIABLE.lock:
            _VARIABLE.open -= 1
            if not _VARIABLE.open:
                os.environ.pop(STATED, None)
                os.environ |= {} if _VARIABLE.before is None else {STATED: _VARIABLE.before}
