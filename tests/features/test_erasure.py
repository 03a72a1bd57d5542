"""What a file says of users, and the same file without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynamix.contracts import EVENTS_QUARANTINE, TABLES
from dynamix.features.erasure import FORGOTTEN, Held, Users, held_in, without_users

USERS = Users(frozenset({"ann-0001", "7", "josé_42"}), frozenset({"e1", "e2"}))


@pytest.mark.parametrize(
    ("text", "fresh"),
    [
        ("hot user 'ann-0001' has 12 %", f"hot user '{FORGOTTEN}' has 12 %"),
        ("ann-00011 and xann-0001 are others", "ann-00011 and xann-0001 are others"),
        ("of ann-0001, josé_42.", f"of {FORGOTTEN}, {FORGOTTEN}."),
        ("7 rows, user '7', 77 and '77'", f"7 rows, user '{FORGOTTEN}', 77 and '77'"),
        ("user_id=7, position=7", f"user_id={FORGOTTEN}, position=7"),
    ],
)
def test_a_mention_is_a_whole_id_and_a_short_one_is_quoted(text: str, fresh: str) -> None:
    assert USERS.without(text, short=True) == fresh


def test_a_short_id_is_left_in_texts_where_it_may_be_a_number() -> None:
    assert USERS.without("width='7'") == "width='7'"


@pytest.mark.parametrize("content", ["x ann-0001", json.dumps("josé_42"), "josé_42"])
def test_raw_bytes_name_a_user_as_written_and_as_escaped(content: str) -> None:
    assert USERS.named_in(content.encode())


def test_a_short_id_is_never_looked_for_in_raw_bytes() -> None:
    assert not USERS.named_in(b"7777 7")


@pytest.mark.parametrize(
    ("raw", "user"),
    [
        ('{"user_id": "ann-0001", "position": 3}', "ann-0001"),
        ('{"user_id": 7}', "7"),  # a source with whole numbers as ids
        ('{"user_id": "bob-0002", "item_id": "ann-0001"}', None),  # the row is of bob
        ('{"user_id": null, "position": 7}', None),
        ('{"user_id": null, "note": "of ann-0001"}', "ann-0001"),  # nobody's own, so of whom it mentions
        (json.dumps({"_corrupt_record": '{"user_id": "7", "surf'}), "7"),
        ('{"user_id": "ann-0001"', "ann-0001"),
        ('{"user_id": " "}', None),
    ],
)
def test_a_quarantined_row_is_of_the_user_it_names_else_of_whom_it_mentions(
    raw: str, user: str | None
) -> None:
    assert USERS.of_raw(raw) == user


def parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_a_file_holds_users_by_their_column_their_raw_rows_or_their_events(tmp_path: Path) -> None:
    rows = parquet(
        tmp_path / "rows.parquet",
        {"user_id": ["7", "bob", None, "7"], "impression_id": ["i1", "i2", "i3", "i4"], "segment_version": ["s"] * 4},
    )  # fmt: skip
    raw = parquet(
        tmp_path / "raw.parquet",
        {"raw": ['{"user_id": "7"}', '{"user_id": "b"}', None], "row_hash": ["h1", "h2", "h3"]},
    )
    scored = parquet(tmp_path / "p.parquet", {"impression_id": ["e1", "e9"], "p": [0.1, 0.2]})
    other = parquet(tmp_path / "o.parquet", {"stream": ["7"]})
    assert held_in(rows, USERS) == Held(
        2, frozenset({"7"}), frozenset({"i1", "i4"}), frozenset(), frozenset({"s"})
    )
    assert held_in(raw, USERS) == Held(1, frozenset({"7"}), hashes=frozenset({"h1"}))
    assert held_in(scored, USERS).rows == 1
    assert not held_in(other, USERS)


def test_an_unreadable_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match=r"x\.parquet is no readable Parquet"):
        held_in(tmp_path / "x.parquet", USERS)


def test_files_lose_the_users_and_keep_the_rest(tmp_path: Path) -> None:
    parquet(tmp_path / "predictions.parquet", {"impression_id": ["e1", "e9"], "p": [0.1, 0.2]})
    files = {
        "habits.json": {"ann-0001": 0.5, "7": 0.1, "bob": 0.2},
        "evidence.json": {"segments": {"7": 0.1}, "hot": ["ann-0001"], "rows": 7},
        "input_example.json": {"columns": ["user_id", "position"], "data": [["7", 1.0], ["bob", 7.0]]},
    }
    for name, tree in files.items():
        (tmp_path / name).write_text(json.dumps(tree))
    (tmp_path / "run.log").write_text("12:00:00 hot user '7' and ann-0001\n")
    held = [path for path in sorted(tmp_path.iterdir()) if without_users(path, USERS, write=False)]
    assert [path.name for path in held] == sorted(path.name for path in tmp_path.iterdir())
    assert all(without_users(path, USERS) for path in held)
    assert pq.read_table(tmp_path / "predictions.parquet")["impression_id"].to_pylist() == ["e9"]
    fresh = {name: json.loads((tmp_path / name).read_text()) for name in files}
    assert fresh == {
        "habits.json": {"bob": 0.2},
        "evidence.json": {"segments": {"7": 0.1}, "hot": [FORGOTTEN], "rows": 7},
        "input_example.json": {"columns": ["user_id", "position"], "data": [["bob", 7.0]]},
    }
    assert (tmp_path / "run.log").read_text() == f"12:00:00 hot user '{FORGOTTEN}' and {FORGOTTEN}\n"
    assert not any(without_users(path, USERS) for path in tmp_path.iterdir())


def test_what_is_no_text_is_left_as_it_is(tmp_path: Path) -> None:
    content = b"\xff\xfe ann-0001"
    (tmp_path / "state.pt").write_bytes(content)
    assert not without_users(tmp_path / "state.pt", USERS)
    assert (tmp_path / "state.pt").read_bytes() == content


def test_every_table_with_rows_of_users_says_so_in_a_column_that_is_looked_at() -> None:
    """A table that kept users under another name would be passed over."""
    of_users = {name for name, table in TABLES.items() if "user_id" in table.names} | {EVENTS_QUARANTINE.name}
    by_event = {name for name, table in TABLES.items() if {"event_id", "impression_id"} & set(table.names)}
    assert by_event <= of_users
    rest = {column for name in set(TABLES) - of_users for column in TABLES[name].names}
    assert not {column for column in rest if "user" in column or "session_id" in column}
