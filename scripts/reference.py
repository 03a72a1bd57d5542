"""docs/reference.md from the code: verbs and options, config keys, tables: `python scripts/reference.py`.

`--check` writes nothing and ends with 1 where the page is not what the code says.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dynamix.config import Config
from dynamix.contracts import OPT_OUT, RAW_COLUMNS, REQUIRED_RAW, TABLES, Column, Table
from dynamix.declarations import StreamOptions
from dynamix.jobs.options import build_parser

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference.md"
HEAD = """# Reference

Written by `scripts/reference.py` from the parser, the config and the table contracts; do not edit it by hand. What the
words mean stands in the [glossary](glossary.md), how it hangs together in the [architecture](architecture.md).
"""
_LIMITS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def text() -> str:
    """The whole page."""
    tables = (line for table in (*TABLES.values(), OPT_OUT) for line in _table(table))
    parts = {"Verbs": _verbs(), "Config": _config(), "Raw events": _raw(), "Tables": tables}
    return "\n".join([HEAD, *(line for head, lines in parts.items() for line in (f"## {head}\n", *lines))])


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _rows(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(_cell(value) for value in row) + " |"
    yield ""


def _verbs() -> Iterator[str]:
    parser = build_parser()
    verbs = next(action for action in parser._actions if action.dest == "verb").choices or {}
    every: dict[str, argparse.ArgumentParser] = dict(verbs)
    common = next(
        group for group in next(iter(every.values()))._action_groups if group.title == "common options"
    )
    shared = {action.dest for action in common._group_actions}
    yield "All verbs take these:\n"
    yield from _rows(("option", "does"), [_option(action) for action in common._group_actions])
    for name, verb in every.items():
        own = [a for a in verb._actions if a.dest not in shared and a.dest != "help"]
        yield f"### `dynamix {name}`\n"
        yield f"{verb.description}.\n".replace("%%", "%")
        yield from _rows(("option", "does"), [_option(action) for action in own]) if own else ()


def _option(action: argparse.Action) -> tuple[str, str]:
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    takes = action.metavar if action.option_strings and action.nargs != 0 else None
    if action.choices and action.option_strings:
        takes = "{" + ",".join(map(str, action.choices)) + "}"
    elif action.option_strings and action.nargs != 0 and takes is None:
        takes = action.dest.upper()
    facts = [(action.help or "").replace("%%", "%")]
    facts += ["required"] if action.required and action.option_strings else []
    if isinstance(action.default, str | int | Path) and not isinstance(action.default, bool):
        facts.append(f"default {action.default}")
    if not action.option_strings and action.choices:
        facts.append(" or ".join(map(str, action.choices)))
    return f"`{name}{f' {takes}' if takes else ''}`", "; ".join(fact for fact in facts if fact)


def _config() -> Iterator[str]:
    yield "Keys of `dynamix.yaml`, of `--config FILE` and, with dots, of `--set KEY=VALUE`; unknown ones are refused."
    yield "Lengths of time take `30m`, `24h`, `7d`, `60s`, `500ms` or a number of seconds.\n"
    plain = {k: i for k, i in Config.model_fields.items() if not _is_section(i.annotation)}
    yield from _rows(("key", "type", "default", "meaning"), [_field(k, i, "") for k, i in plain.items()])
    for key, info in Config.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and _is_section(section):
            yield f"### `{key}`\n"
            rows = [_field(k, i, f"{key}.") for k, i in section.model_fields.items()]
            yield from _rows(("key", "type", "default", "meaning"), rows)
    yield "### An entry of `streams`\n"
    rows = [_field(k, i, "") for k, i in StreamOptions.model_fields.items()]
    yield from _rows(("key", "type", "default", "meaning"), rows)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _field(name: str, info: FieldInfo, prefix: str) -> tuple[object, ...]:
    default = info.get_default(call_default_factory=True)
    limits = [
        f"{sign} {getattr(one, attribute):g}"
        for one in info.metadata
        for attribute, sign in _LIMITS.items()
        if getattr(one, attribute, None) is not None
    ]
    kind = ", ".join([_kind(info.annotation), *limits])
    shown = json.dumps(default, ensure_ascii=False, default=str) if default is not None else "none"
    return f"`{prefix}{info.alias or name}`", kind, f"`{shown}`", info.description or ""


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("none" if one is type(None) else _kind(one) for one in arguments)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"{_kind(arguments[0])} -> {_kind(arguments[1])}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, "a mapping" if _is_section(annotation) else str(annotation))


def _raw() -> Iterator[str]:
    yield (
        "What `--events` reads; `columns:` maps names of your own. Required: "
        + ", ".join(f"`{name}`" for name in REQUIRED_RAW)
        + ".\n"
    )
    yield from _columns(RAW_COLUMNS)


def _table(table: Table) -> Iterator[str]:
    yield f"### `{table.name}`\n"
    facts = [table.comment] if table.comment else []
    facts.append(f"One row a {', '.join(f'`{name}`' for name in table.key)}.")
    if table.partition_by:
        facts.append(f"Partitions: {', '.join(f'`{name}`' for name in table.partition_by)}.")
    yield " ".join(facts) + "\n"
    yield from _columns(table.columns)


def _columns(columns: tuple[Column, ...]) -> Iterator[str]:
    rows: list[tuple[object, ...]] = []
    for column in columns:
        facts = [column.comment, ", ".join(column.allowed), f"`{column.check}`" if column.check else ""]
        null = "" if column.nullable else "not null"
        rows.append((f"`{column.name}`", f"`{column.sql_type}`", null, "; ".join(f for f in facts if f)))
    yield from _rows(("column", "type", "", "meaning"), rows)


def main(argv: list[str]) -> int:
    """Write the page, or with --check compare it."""
    if "--check" in argv:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text()
        print(
            "docs/reference.md is what the code says"
            if same
            else "docs/reference.md is old: run scripts/reference.py"
        )
        return 0 if same else 1
    PAGE.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
