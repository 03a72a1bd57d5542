"""What a notebook needs around it, on Databricks, in Jupyter and as a plain script: widgets, session, display.

A page begins with `dbutils, spark, show = surroundings(globals())`: what the platform gives is taken, the rest is
played here. As a script, widgets keep their defaults unless the environment has DYNAMIX_<NAME>.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from pyspark.sql import DataFrame, SparkSession

from dynamix.errors import ConfigError, GuardError
from dynamix.features.sql_text import is_schema_name
from dynamix.features.tables import Warehouse
from dynamix.jobs.artefacts import style_sheet
from dynamix.jobs.context import Run
from dynamix.jobs.places import place_of
from dynamix.jobs.session import get_spark
from dynamix.jobs.settings import resolve_config
from dynamix.jobs.verbs import open_run

DEMO = "demo/full/warehouse"
SHOWN_ROWS = 200


@dataclass(frozen=True)
class Shown:
    """A figure or text of a page: `body` is HTML without outside references, `text` the same in plain words."""

    title: str
    body: str
    text: str = ""

    @property
    def html(self) -> str:
        """The figure with its style sheet, which holds inside its own element only."""
        return f'<div class="dynamix"><style>{_style()}</style><h3>{escape(self.title)}</h3>{self.body}</div>'

    def _repr_html_(self) -> str:
        return self.html

    def __str__(self) -> str:
        return f"{self.title}\n{self.text}".rstrip()


class Surroundings(NamedTuple):
    """`show` takes a Spark frame, a `Shown` or anything that can be printed."""

    dbutils: Any
    spark: SparkSession
    show: Callable[[object], None]


class Widgets:
    """Stand-in for `dbutils.widgets`."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def text(self, name: str, default: str, label: str = "") -> None:
        """Declare a parameter; DYNAMIX_<NAME> in the environment goes before the default."""
        self._values[name] = os.environ.get(f"DYNAMIX_{name.upper()}", default)

    def get(self, name: str) -> str:
        """The parameter's value. ConfigError for one that was not declared."""
        if name not in self._values:
            raise ConfigError.unknown_name("widget", name, sorted(self._values))
        return self._values[name]


class Utilities:
    """Stand-in for `dbutils`, as far as the pages use it."""

    def __init__(self) -> None:
        self.widgets = Widgets()


def surroundings(names: Mapping[str, Any]) -> Surroundings:
    """`dbutils`, `spark` and `show` for a page whose `globals()` are given."""

    def given(name: str) -> Any:
        return names.get(name, getattr(builtins, name, None))  # Jupyter puts `display` among the built-ins

    display, display_html = given("display"), given("displayHTML")

    def show(thing: object) -> None:
        if display is None or isinstance(thing, str):
            _print(thing)
        elif isinstance(thing, Shown) and display_html is not None:
            display_html(thing.html)
        elif isinstance(thing, DataFrame) and display_html is None:
            display(thing.limit(SHOWN_ROWS).toPandas())  # Jupyter shows a Spark frame as its schema
        else:
            display(thing)

    return Surroundings(
        given("dbutils") or Utilities(), given("spark") or get_spark("dynamix-notebook"), show
    )


def _print(thing: object) -> None:
    if isinstance(thing, DataFrame):
        thing.show(SHOWN_ROWS, truncate=80)
    else:
        print(thing, flush=True)


def open_page(warehouse: str, run_date: str = "") -> Run:
    """The warehouse of a page as of a run date (empty: the day after its newest event became known).

    A relative path counts from the current folder or the one above, so a page opened in `notebooks/` finds the
    demo. GuardError where no warehouse is there, ConfigError for what is no date.
    """
    place = _found(warehouse)
    if place is None:
        raise GuardError(
            f"no warehouse at {warehouse!r} (it would hold a table `events`); set the widget `warehouse`, or "
            f"DYNAMIX_WAREHOUSE for a script, to one that `dynamix run` wrote, or run `make demo` for {DEMO}"
        )
    try:
        day = date.fromisoformat(run_date) if run_date else None
    except ValueError:
        raise ConfigError(
            f"widget `run_date` has value {run_date!r}; allowed: YYYY-MM-DD or nothing"
        ) from None
    config = resolve_config(warehouse=place.root, events=None, files=[], settings=[])
    return open_run(place, config, None, run_date=day, quiet=True)


def _found(warehouse: str) -> Warehouse | None:
    if is_schema_name(warehouse):
        return place_of(warehouse)
    folders = (Path(warehouse), Path("..") / warehouse)
    return next((Warehouse(p) for p in folders if (p / "events").is_dir()), None)


@cache
def _style() -> str:
    """The report's style sheet, nested so that it touches nothing of the page around the figure."""
    sheet = style_sheet()
    return ".dynamix {" + sheet.replace(":root {", "& {").replace("body {", "& {") + "}"
