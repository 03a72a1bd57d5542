"""What a file says of users, and the same file without them: Parquet, JSON, text, raw bytes (docs/privacy.md).

Plain Python and pyarrow on one file at a time: no table format is known here.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

USER, RAW, ROW_HASH, SEGMENTS_OF = "user_id", "raw", "row_hash", "segment_version"
EVENT_IDS = ("event_id", "impression_id")
FREE_LENGTH = 6
"""Characters from which on an id is looked for anywhere in a text. A shorter one, which may be any number, counts
where it is quoted or follows `user_id`."""
FORGOTTEN = "[forgotten]"
_WORDS_AT_ONCE = 500
_QUOTED = r"(?P<before>[\"']|&#3[49];|user_id\W{1,5})"


@dataclass(frozen=True)
class Held:
    """What Parquet files hold of the users: rows, who, their events' ids, raw rows by hash, segment versions."""

    rows: int = 0
    users: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()
    segment_versions: frozenset[str] = frozenset()

    def __add__(self, other: Held) -> Held:
        return Held(
            self.rows + other.rows,
            self.users | other.users,
            self.events | other.events,
            self.hashes | other.hashes,
            self.segment_versions | other.segment_versions,
        )

    def __bool__(self) -> bool:
        return self.rows > 0


@dataclass(frozen=True)
class Users:
    """Ids that are looked for; equal to `user_id` as the tables store it."""

    names: frozenset[str]
    events: frozenset[str] = field(default=frozenset())
    """Ids of their events and impressions: files that name no user hold rows of theirs by them."""

    @cached_property
    def long(self) -> tuple[str, ...]:
        return tuple(sorted(name for name in self.names if len(name) >= FREE_LENGTH))

    @cached_property
    def _anywhere(self) -> list[re.Pattern[str]]:
        return [re.compile(rf"(?<![A-Za-z0-9_])(?:{part})(?![A-Za-z0-9_])") for part in _parts(self.long)]

    @cached_property
    def _quoted(self) -> list[re.Pattern[str]]:
        short = sorted(self.names - set(self.long))
        return [re.compile(rf"{_QUOTED}(?:{part})(?![A-Za-z0-9_])") for part in _parts(short)]

    def without(self, text: str, *, short: bool = False) -> str:
        """The text with every mention replaced by FORGOTTEN; short ids only where asked for."""
        for pattern in self._anywhere:
            text = pattern.sub(FORGOTTEN, text)
        for pattern in self._quoted if short else ():
            text = pattern.sub(rf"\g<before>{FORGOTTEN}", text)
        return text

    def named_in(self, content: bytes) -> bool:
        """True where bytes hold a long id: as it is, as JSON or HTML escapes it."""
        return any(form in content for form in self._forms)

    @cached_property
    def _forms(self) -> tuple[bytes, ...]:
        spelled = ((name, json.dumps(name)[1:-1], html.escape(name)) for name in self.long)
        return tuple(sorted({form.encode() for forms in spelled for form in forms}))

    def of_raw(self, raw: str) -> str | None:
        """The user whose raw row this JSON text is: by its `user_id`, or where that is unreadable by a mention.

        A row without a readable user may be of anybody it mentions, so it counts as theirs.
        """
        try:
            tree = json.loads(raw)
        except ValueError:
            tree = None
        named = tree.get(USER) if isinstance(tree, dict) else None
        if named is not None and str(named).strip():
            return str(named) if str(named) in self.names else None
        text = raw if tree is None else " ".join(_strings(tree))
        for name in self.names:
            if name in text and Users(frozenset({name})).without(text, short=True) != text:
                return name
        return None


def _parts(names: Iterable[str]) -> list[str]:
    """Alternatives of a regular expression, the longest first, some hundred at once."""
    listed = [re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name))]
    return ["|".join(listed[at : at + _WORDS_AT_ONCE]) for at in range(0, len(listed), _WORDS_AT_ONCE)]


def _strings(tree: Any) -> list[str]:
    if isinstance(tree, dict):
        return [text for key, value in tree.items() for text in (str(key), *_strings(value))]
    if isinstance(tree, list):
        return [text for value in tree for text in _strings(value)]
    return [] if tree is None else [str(tree)]


def held_in(path: Path, users: Users) -> Held:
    """What a Parquet file holds of the users by its columns user_id, raw, or the ids of their events.

    ValueError where the file cannot be read.
    """
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        wanted = [name for name in (USER, RAW, ROW_HASH, SEGMENTS_OF, *EVENT_IDS) if name in names]
        if not wanted:
            return Held()
        table = file.read(columns=wanted)
    except (pa.ArrowException, OSError) as trouble:
        raise ValueError(f"{path.name} is no readable Parquet file") from trouble
    owner = _owners(table, users)
    mine = owner.filter(pc.is_valid(owner)) if len(owner) else owner
    rows = table.filter(pc.is_valid(owner)) if len(owner) else table.slice(0, 0)
    named = {name: _texts(rows, name) for name in wanted}
    events = frozenset().union(*(named.get(name, frozenset()) for name in EVENT_IDS))
    return Held(
        len(rows),
        frozenset(mine.unique().to_pylist()),
        events,
        named.get(ROW_HASH, frozenset()),
        named.get(SEGMENTS_OF, frozenset()),
    )


def _owners(table: pa.Table, users: Users) -> pa.Array:
    """The user of every row, NULL where it is none of them; rows known by an event alone are of `FORGOTTEN`."""
    if USER in table.column_names:
        column = table[USER].cast(pa.string()).combine_chunks()
        return pc.if_else(_among(column, users.names), column, pa.scalar(None, pa.string()))
    if RAW in table.column_names:
        return pa.array([users.of_raw(raw) if raw else None for raw in table[RAW].to_pylist()], pa.string())
    for name in EVENT_IDS:
        if name in table.column_names:
            column = table[name].cast(pa.string()).combine_chunks()
            theirs = _among(column, users.events)
            return pc.if_else(theirs, pa.scalar(FORGOTTEN), pa.scalar(None, pa.string()))
    return pa.nulls(len(table), pa.string())


def _among(column: pa.Array, values: Iterable[str]) -> pa.Array:
    return pc.is_in(column, value_set=pa.array(sorted(values), pa.string()))


def _texts(table: pa.Table, name: str) -> frozenset[str]:
    return frozenset(str(value) for value in table[name].unique().to_pylist() if value is not None)


def without_users(path: Path, users: Users, *, write: bool = True) -> bool:
    """Take the users out of a file that belongs to no table; True where it held any. Nothing changes without `write`.

    Parquet loses their rows, JSON their keys, table rows and mentions, any other text gets FORGOTTEN in place of a
    mention. What is no text is left alone: see `Users.named_in`. The file is replaced as a whole.
    """
    if path.suffix == ".parquet":
        return _rewrite_parquet(path, users, write=write)
    content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return False
    if path.suffix == ".json":
        fresh = _json_without(text, users, own_keys=path.name == "habits.json")
    else:
        fresh = users.without(text, short=path.suffix in (".log", ".txt"))
    if fresh == text:
        return False
    if write:
        draft = path.with_name(path.name + ".new")
        draft.write_bytes(fresh.encode())
        draft.replace(path)
    return True


def _rewrite_parquet(path: Path, users: Users, *, write: bool) -> bool:
    file = pq.ParquetFile(path)
    table = file.read()
    owner = _owners(table, users)
    kept = table.filter(pc.is_null(owner)) if len(owner) else table
    if len(kept) == len(table):
        return False
    if write:
        draft = path.with_name(path.name + ".new")
        pq.write_table(kept, draft)
        draft.replace(path)
    return True


def _json_without(text: str, users: Users, *, own_keys: bool) -> str:
    """JSON text without the users; the text itself where it names none, or where it is no JSON a plain text."""
    try:
        tree = json.loads(text)
    except ValueError:
        return users.without(text)
    fresh = _tree_without(tree, users, own_keys=own_keys)
    return text if fresh == tree else json.dumps(fresh, sort_keys=own_keys)


def _tree_without(tree: Any, users: Users, *, own_keys: bool) -> Any:
    if isinstance(tree, dict):
        if isinstance(tree.get("columns"), list) and USER in tree["columns"] and "data" in tree:
            place = tree["columns"].index(USER)  # a frame, as MLflow writes input examples
            tree = tree | {"data": [row for row in tree["data"] if str(row[place]) not in users.names]}
        gone = users.names if own_keys else frozenset(users.long)
        return {
            users.without(key): _tree_without(value, users, own_keys=own_keys)
            for key, value in tree.items()
            if key not in gone
        }
    if isinstance(tree, list):
        return [_tree_without(value, users, own_keys=own_keys) for value in tree]
    if isinstance(tree, str):
        return users.without(tree)
    if isinstance(tree, int) and not isinstance(tree, bool) and str(tree) in users.long:
        return None
    return tree
