"""User ids as keyed hashes: the standard's function, NULLs and blanks untouched, the key in no plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from dynamix.config import load_config
from dynamix.errors import EnvironmentTrouble, InputError
from dynamix.features.pseudonyms import HIDDEN, pseudonym, with_pseudonyms
from dynamix.jobs.user_lists import KEY_VARIABLE, read_users, stored_names, user_key

KEY = b"sixteen bytes or more"
HASHED = load_config(settings=["privacy.user_ids=hmac"])


def test_a_pseudonym_is_hmac_sha256() -> None:
    """Test case 2 of RFC 4231."""
    known = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert pseudonym("what do ya want for nothing?", key=b"Jefe") == known


@pytest.mark.spark
def test_every_id_but_missing_ones_is_hashed_and_the_key_is_in_no_plan(spark: SparkSession) -> None:
    rows = [
        ("ann", None, 1),
        ("ann", None, 2),
        ("josé", None, 3),
        (None, None, 4),
        (" ", None, 5),
        (None, "{ann", 6),
    ]
    raw = spark.createDataFrame(rows, "user_id string, _corrupt_record string, position int")
    hashed = with_pseudonyms(raw, key=KEY)
    found = {row["position"]: (row["user_id"], row["_corrupt_record"]) for row in hashed.collect()}
    ann, jose = pseudonym("ann", key=KEY), pseudonym("josé", key=KEY)
    assert found == {
        1: (ann, None),
        2: (ann, None),
        3: (jose, None),
        4: (None, None),
        5: (" ", None),
        6: (None, HIDDEN),
    }
    plan = hashed._jdf.queryExecution().toString()
    assert KEY.decode() not in plan and KEY.hex() not in plan.lower()


@pytest.mark.spark
def test_whole_numbers_are_hashed_as_their_digits(spark: SparkSession) -> None:
    raw = spark.createDataFrame([(12,)], "user_id bigint")
    assert with_pseudonyms(raw, key=KEY).collect()[0]["user_id"] == pseudonym("12", key=KEY)


@pytest.mark.parametrize("value", [None, "", "too short"])
def test_without_a_sound_key_nothing_is_read(value: str | None) -> None:
    environment = {} if value is None else {KEY_VARIABLE: value}
    with pytest.raises(EnvironmentTrouble, match=KEY_VARIABLE) as refused:
        user_key(HASHED, environment)
    assert refused.value.exit_code == 5
    assert not value or value not in refused.value.message


def test_a_list_of_users_is_hashed_as_the_tables_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY.decode())
    assert stored_names(HASHED, {"ann"}) == {pseudonym("ann", key=KEY)}
    assert stored_names(load_config(), {"ann"}) == {"ann"}


def test_hashed_ids_are_another_definition_and_opting_out_is_not() -> None:
    clear, sections = load_config(), ("columns", "session")
    assert HASHED.digest(*sections) != clear.digest(*sections)
    assert load_config(settings=["privacy.opt_out=x.txt"]).digest() == clear.digest()


def test_ids_are_lines_and_blank_lines_are_none(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    path.write_bytes(b"ann\r\n\n  \nb c\nann\n")
    assert read_users(path) == {"ann", "b c"}
    path.write_text("\n")
    assert read_users(path, empty=True) == frozenset()
    with pytest.raises(InputError, match="no user in it"):
        read_users(path)
