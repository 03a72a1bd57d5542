"""Credentials in addresses and in the environment reach no message, log, table, registry or page."""

from __future__ import annotations

import json
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from stand_ins import failing_store, out_of_order

from dynamix.errors import DynamixError, EnvironmentTrouble, InputError
from dynamix.features.tables import Warehouse
from dynamix.jobs.cli import main
from dynamix.jobs.hidden import hide, hide_all, secret_values, shown
from dynamix.models.registry import ChildRun, Registry, log_training
from dynamix.redaction import harmless, without_secrets

WORD = "t0psecret/word"
ENVIRONMENT = {
    "DYNAMIX_USER_KEY": "k3y-of-the-users-16-bytes", "MLFLOW_TRACKING_PASSWORD": "pa55w0rd-of-the-store",
    "MLFLOW_TRACKING_USERNAME": "ann", "DATABRICKS_TOKEN": "dapi0123456789", "AWS_SECRET_ACCESS_KEY": "aws/s3cr3t+key",
}  # fmt: skip
SECRETS = (WORD, *(value for name, value in ENVIRONMENT.items() if name != "MLFLOW_TRACKING_USERNAME"))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"store http://ann:{WORD}@host:5000/api down", "store http://[hidden]@host:5000/api down"),
        (f"s3a://AKIA:{WORD}@bucket/events", "s3a://[hidden]@bucket/events"),
        ("https://t0ken@host/x", "https://[hidden]@host/x"),
        ("postgresql+psycopg://u:p@db/x and mysql://v:q@db", "postgresql+psycopg://[hidden]@db/x and mysql://[hidden]@db"),
        ("jdbc:sqlserver://h;user=a;password=b c", "jdbc:sqlserver://h;user=a;password=[hidden] c"),
        ("https://h/x?sv=1&sig=a%2Fb&se=2", "https://h/x?sv=1&sig=[hidden]&se=2"),
        ("https://h/x?access_token=abc", "https://h/x?access_token=[hidden]"),
        ("{'Authorization': 'Basic QWxhZGRpbg=='}", "{'Authorization': 'Basic [hidden]'}"),
        ("sent Bearer eyJhbGciOi.x-y_z", "sent Bearer [hidden]"),
        # what is none
        ("http://host:5000/runs@2", "http://host:5000/runs@2"),
        ("abfss://logs@account.dfs.core.windows.net/x", "abfss://logs@account.dfs.core.windows.net/x"),
        ("models:/ranker@champion at 12:00, mail ann@host", "models:/ranker@champion at 12:00, mail ann@host"),
        ("the bearer of it; sqlite:///W/_dynamix/mlflow.db", "the bearer of it; sqlite:///W/_dynamix/mlflow.db"),
    ],
)  # fmt: skip
def test_credentials_go_and_the_rest_stays(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


def test_values_of_variables_that_are_named_as_secrets_go(environment: None) -> None:
    assert set(secret_values(ENVIRONMENT)) == set(SECRETS) - {WORD}
    assert hide(f"ann sent {' and '.join(SECRETS[1:])}") == "ann sent " + " and ".join(["[hidden]"] * 4)
    assert hide("short", environment={"MY_TOKEN": "sho"}) == "short"  # it may be any part of a word
    assert hide("100000 rows", environment={"MAX_TOKENS": "100000"}) == "100000 rows"


def test_every_text_of_an_outcome_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret with quotes would be another text once it is JSON."""
    monkeypatch.setenv("STORE_PASSWORD", 'pa"ss\\word')
    tree = {"message": 'by pa"ss\\word', "facts": {"tried": ['pa"ss\\word', 3, None]}}
    assert hide_all(tree) == {"message": "by [hidden]", "facts": {"tried": ["[hidden]", 3, None]}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a\tb\nc é 🗝", "a\tb\nc é 🗝"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("over\rwritten\x08\x00\x9b31m", r"over\rwritten\x08\x00\x9b31m"),
        ("feed\u202eweiv", r"feed\u202eweiv"),
    ],
)
def test_signs_that_steer_a_terminal_are_spelt_out(text: str, told: str) -> None:
    assert shown(text) == told


def test_a_name_from_outside_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["features", "--warehouse", str(tmp_path), "--set", "\x1b[2Jkey=1"]) == 2
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and r"\x1b[2Jkey" in said.err


def test_no_error_of_ours_carries_credentials(environment: None) -> None:
    for kind in (DynamixError, InputError, EnvironmentTrouble):
        again = pickle.loads(pickle.dumps(kind(f"http://u:{WORD}@h failed")))
        assert (again.message, str(again)) == ("http://[hidden]@h failed",) * 2


def test_an_error_whose_cause_holds_credentials_hides_it() -> None:
    plain, cause = ValueError("x"), OSError(f"http://u:{WORD}@h")
    assert harmless(plain) is plain
    assert harmless(cause) is None
    plain.__cause__ = cause
    assert harmless(plain) is None


@pytest.fixture
def failing_server() -> Iterator[int]:
    """A tracking server out of order, which says its own address back as many do."""
    with failing_store(out_of_order(f"http://u:{WORD}@db is down")) as port:
        yield port


@pytest.mark.parametrize("what", ["down", "500"])
def test_a_store_that_fails_is_named_without_the_credentials_of_its_address(
    tmp_path: Path, failing_server: int, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Also in the trace that a notebook prints, which shows the errors behind an error."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://ann:pa55w0rd@127.0.0.1:{failing_server if what == '500' else 9}"
    with pytest.raises(EnvironmentTrouble, match=r"tracking store http://\[hidden\]@127\.0\.0\.1") as said:
        log_training(Registry(tmp_path, uri), parent="p", children=[], params={}, metrics={}, tags={})
    trace = "".join(traceback.format_exception(said.value))
    assert "pa55w0rd" not in trace and WORD not in trace


def test_the_store_holds_nothing_of_the_environment(tmp_path: Path, environment: None) -> None:
    """SQLite keeps text as it is, so its bytes tell."""
    child = ChildRun("keep-all seed 0", {"arm": "keep-all"}, {"ne": 0.9}, {"arm": "keep-all"})
    log_training(
        Registry(tmp_path),
        parent="train r1",
        children=[child],
        params={"epochs": 1},
        metrics={},
        tags={"run_id": "r1"},
    )
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"keep-all seed 0" in content
    assert [secret for secret in SECRETS if secret.encode() in content] == []


def _everything(root: Path) -> str:
    """All files as text, rows of Parquet files written out."""
    parts = []
    for path in sorted(root.rglob("*")):
        if path.suffix == ".parquet":
            parts.append(str(pq.read_table(path, partitioning=None).to_pylist()))
        if path.is_file():
            parts.append(path.read_bytes().decode("latin-1"))
    return "\n".join(parts)


@pytest.mark.spark
def test_a_run_that_fails_says_nothing_secret_in_any_place(
    spark: SparkSession, tmp_path: Path, environment: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --debug and --json: standard output, standard error, the run's log and the row of the failed step."""
    source = f"s3a://AKIA:{WORD}@bucket/{ENVIRONMENT['DATABRICKS_TOKEN']}/events"
    arguments = [
        "ingest",
        "--events",
        source,
        "--warehouse",
        str(tmp_path),
        "--run-date",
        "2026-02-01",
        "--json",
        "--debug",
    ]
    assert main(arguments) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["message"].startswith("s3a://[hidden]@bucket/[hidden]/events: cannot be read")
    assert "Traceback" in err
    rows = Warehouse(tmp_path).read(spark, "run_log").collect()
    assert [row["status"] for row in rows] == ["failed"] and "s3a://[hidden]@bucket/[hidden]/" in rows[0][
        "message"
    ]
    found = out + err + _everything(tmp_path)
    assert [secret for secret in SECRETS if secret in found] == []


@pytest.mark.spark
def test_a_run_that_hashes_ids_keeps_its_key_out_of_tables_logs_and_output(
    spark: SparkSession, tmp_path: Path, environment: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {
        "user_id": ["ann", "bob"],
        "event_ts": [1_767_225_600, 1_767_225_660],
        "event_type": ["view"] * 2,
        "surface": ["feed"] * 2,
    }
    pq.write_table(pa.table(rows), tmp_path / "events.parquet")
    place = tmp_path / "W"
    arguments = [
        "ingest",
        "--events",
        str(tmp_path / "events.parquet"),
        "--warehouse",
        str(place),
        "--json",
        "--debug",
    ]
    assert main([*arguments, "--set", "privacy.user_ids=hmac", "--set", "time_unit=s"]) == 0
    found = "".join(capsys.readouterr()) + _everything(place)
    assert "user_id" in found
    assert [
        secret for secret in (*SECRETS, ENVIRONMENT["DYNAMIX_USER_KEY"].encode().hex()) if secret in found
    ] == []
