"""The next batch made ready by a thread while the device works on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def ahead(keys: Iterable[K], make: Callable[[K], V]) -> Iterator[tuple[K, V]]:
    """`(key, make(key))` in order; while one is in use the next is being made. An error of `make` comes at its key."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        waiting: tuple[K, Future[V]] | None = None
        for key in keys:
            following = key, thread.submit(make, key)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()
