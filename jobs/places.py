"""Where a `--warehouse` is: a folder, or `catalog.schema` of the session's metastore."""

from __future__ import annotations

from pathlib import Path

from dynamix.features.named_tables import open_schema
from dynamix.features.sql_text import is_schema_name
from dynamix.features.tables import Warehouse
from dynamix.jobs.session import get_spark


def place_of(warehouse: Path | str) -> Warehouse:
    """The warehouse of this option; a session is started for a name alone."""
    text = str(warehouse)
    return open_schema(get_spark(), text) if is_schema_name(text) else Warehouse(warehouse)
