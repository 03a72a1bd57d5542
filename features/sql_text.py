"""Values and names from outside as SQL text: the one place that quotes them.

Spark takes conditions as text where a table is written (`replaceWhere`) and where its files are listed. Whatever stands
there between quotes or backticks comes through here, so that it is a value or a name and nothing else
(tests/test_security.py looks for SQL that is put together otherwise).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dynamix.contracts import Table
from dynamix.errors import ConfigError

_SUBSTITUTED = "${"
"""Spark puts variables in place of `${...}` before it reads the text, even between quotes."""
_SCHEMA = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


def quoted(text: str) -> str:
    r"""The text as a SQL string literal.

    >>> print(quoted("it's"))
    'it\'s'
    """
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace(_SUBSTITUTED, "\\u0024{")
    return f"'{escaped}'"


def named(identifier: str) -> str:
    """One name in backticks, for SQL text and for `F.col`.

    >>> named("a`b")
    '`a``b`'
    """
    return "`" + identifier.replace("`", "``") + "`"


def dotted(*parts: str) -> str:
    """Several names in backticks with dots between them.

    >>> dotted("main", "ads")
    '`main`.`ads`'
    """
    return ".".join(map(named, parts))


def delta_at(path: str) -> str:
    """A Delta folder as a table in SQL text."""
    return f"delta.{named(path)}"


def create_table(place: str, table: Table, *, properties: Mapping[str, str]) -> str:
    """Statement that makes an empty Delta table of this contract where there is none; `place` is SQL text already.

    SQL and not Delta's builder, which reaches a Connect server only where that has another plugin. Checks come as
    properties: ALTER TABLE would be a commit and a scan for each.
    """
    checks = {f"delta.constraints.{c.name}_check": c.check for c in table.columns if c.check}
    listed = ", ".join(f"{quoted(key)} = {quoted(value)}" for key, value in {**properties, **checks}.items())
    parts = f"PARTITIONED BY ({', '.join(map(named, table.partition_by))})" if table.partition_by else ""
    return (
        f"CREATE TABLE IF NOT EXISTS {place} ({table.ddl()}) USING delta {parts} "
        f"COMMENT {quoted(table.comment)} TBLPROPERTIES ({listed})"
    )


def is_schema_name(text: str) -> bool:
    """Whether a `--warehouse` is `catalog.schema`: two names and a dot, and no folder that is already there.

    >>> is_schema_name("main.ads"), is_schema_name("./main.ads"), is_schema_name("warehouse")
    (True, False, False)
    """
    return bool(_SCHEMA.fullmatch(text)) and not Path(text).is_dir()


def sound_root(root: Path) -> Path:
    """The folder itself. ConfigError for one that Delta cannot name in its own SQL."""
    wrong = [sign for sign in ("`", _SUBSTITUTED) if sign in str(root)]
    if wrong:  # Delta's builder puts the path between backticks as it is; for `${` there is no escape
        raise ConfigError(
            f"warehouse {str(root)!r} holds {' and '.join(wrong)}, which Delta cannot have in a path; allowed: any other "
            "character; use another --warehouse"
        )
    return root


def equals(**values: str) -> str:
    """Condition `column = 'value' AND ...`.

    >>> equals(part="test", mask_version="keep-all")
    "`part` = 'test' AND `mask_version` = 'keep-all'"
    """
    return " AND ".join(f"{named(column)} = {quoted(value)}" for column, value in values.items())


def one_of(column: str, values: Iterable[str]) -> str:
    """Condition `column IN ('value', ...)`; `false` for no value."""
    listed = ", ".join(quoted(value) for value in values)
    return f"{named(column)} IN ({listed})" if listed else "false"


def begins_with(column: str, text: str) -> str:
    """Condition that the column begins with this text.

    >>> begins_with("rule", "gate: ")
    "startswith(`rule`, 'gate: ')"
    """
    return f"startswith({named(column)}, {quoted(text)})"
