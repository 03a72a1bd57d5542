"""Where a run commits, and a hook that is called there: the one writer, Delta's own commit, MLflow's alias moves.

Nothing of it is in the product: the writer and the registry client are wrapped from outside, and Delta tells its
phases to an observer that it has for tests.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pyspark.java_gateway import ensure_callback_server_started
from pyspark.sql import SparkSession

from dynamix.contracts import Table
from dynamix.features.tables import Warehouse

BEFORE, DURING, AFTER = "before", "during", "after"
"""Nothing written; data files or SQL rows written and not committed; committed."""
Hook = Callable[[str, str], None]
"""Called with (moment, point)."""


class TransactionObserver:
    """Delta's `TransactionExecutionObserver` in Python: `begin` just before a commit, `done` just after it.

    An exception of `done` reaches the writer as if the answer to its commit had been lost.
    """

    def __init__(self, begin: Callable[[], None], done: Callable[[], None]) -> None:
        self._begin, self._done = begin, done

    def startingTransaction(self, start: Any) -> Any:
        return start.apply()

    def preparingCommit(self, prepare: Any) -> Any:
        return prepare.apply()

    def beginDoCommit(self) -> None:
        self._begin()

    def transactionCommitted(self) -> None:
        self._done()

    def createChild(self) -> TransactionObserver:
        return self

    def beginBackfill(self) -> None: ...

    def beginPostCommit(self) -> None: ...

    def transactionAborted(self) -> None: ...

    class Java:
        implements = ("org.apache.spark.sql.delta.TransactionExecutionObserver",)


@contextlib.contextmanager
def observed(
    spark: SparkSession, begin: Callable[[], None], done: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Delta's transactions of this thread tell `begin` and `done` of their commits."""
    context = spark.sparkContext
    ensure_callback_server_started(context._gateway)
    delta: Any = context._jvm.org.apache.spark.sql.delta  # type: ignore[union-attr]
    holder = delta.TransactionExecutionObserver
    before = holder.getObserver()
    holder.setObserver(TransactionObserver(begin, done))
    try:
        yield
    finally:
        holder.setObserver(before)


@dataclass
class Places:
    """Names the points of a run in their order: `step/table`, `step/create table`, `step/alias model@alias`.

    A name that comes again in the same run of a step gets `#2`.
    """

    hook: Hook
    step: str = "-"
    seen: Counter[str] = field(default_factory=Counter)

    def enter(self, step: str) -> None:
        self.step = step
        self.seen = Counter()

    def name(self, what: str) -> str:
        self.seen[what] += 1
        again = self.seen[what]
        return f"{self.step}/{what}" + (f"#{again}" if again > 1 else "")


@contextlib.contextmanager
def watched(hook: Hook) -> Iterator[None]:
    """Call the hook before, during and after every commit of the runs of this process."""
    with pytest.MonkeyPatch.context() as patch:
        places = Places(hook)
        _watch_steps(patch, places)
        _watch_tables(patch, places)
        _watch_aliases(patch, places)
        yield


def _watch_steps(patch: pytest.MonkeyPatch, places: Places) -> None:
    from dynamix.jobs import run as runs

    real = runs.fingerprint

    def fingerprint(run: Any, step: Any, **more: Any) -> str:
        places.enter(step.verb)
        return real(run, step, **more)

    patch.setattr(runs, "fingerprint", fingerprint)


def _watch_tables(patch: pytest.MonkeyPatch, places: Places) -> None:
    real_create, real_replace = Warehouse.create, Warehouse.replace

    def create(self: Warehouse, spark: SparkSession, table: Table, **more: Any) -> None:
        if self.exists(spark, table.name):
            return real_create(self, spark, table, **more)
        point = places.name(f"create {table.name}")
        with observed(spark, lambda: places.hook(DURING, point)):
            places.hook(BEFORE, point)
            real_create(self, spark, table, **more)
            places.hook(AFTER, point)
        return None

    def replace(self: Warehouse, spark: SparkSession, table: Table, *given: Any, **more: Any) -> int:
        point = places.name(table.name)
        places.hook(BEFORE, point)
        with observed(spark, lambda: places.hook(DURING, point)):
            version = real_replace(self, spark, table, *given, **more)
        places.hook(AFTER, point)
        return version

    patch.setattr(Warehouse, "create", create)
    patch.setattr(Warehouse, "replace", replace)


def _watch_aliases(patch: pytest.MonkeyPatch, places: Places) -> None:
    import mlflow
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    real = mlflow.MlflowClient.set_registered_model_alias

    def move(self: Any, name: str, alias: str, version: str) -> None:
        point = places.name(f"alias {name}@{alias}")

        def written(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
            if "registered_model_aliases" in statement and not statement.lstrip().startswith("SELECT"):
                places.hook(DURING, point)

        places.hook(BEFORE, point)
        event.listen(Engine, "after_cursor_execute", written)
        try:
            real(self, name, alias, version)
        finally:
            event.remove(Engine, "after_cursor_execute", written)
        places.hook(AFTER, point)

    patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", move)
