"""The command line without Spark: exit codes, one-line errors, one JSON object."""

from __future__ import annotations

import json
import shlex
import subprocess
from argparse import Namespace
from datetime import date
from pathlib import Path
from typing import cast

import pytest

from dynamix.errors import ConfigError
from dynamix.features.tables import Warehouse
from dynamix.jobs.cli import HANDLERS, Outcome, main
from dynamix.jobs.context import Run
from dynamix.jobs.features import features
from dynamix.jobs.init import propose_columns
from dynamix.jobs.options import build_parser
from dynamix.jobs.troubles import known_trouble


def verbs() -> list[str]:
    parser = build_parser()
    actions = [action for action in parser._actions if action.dest == "verb"]
    return list(actions[0].choices or [])


def test_every_verb_has_a_handler_and_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(verbs()) == set(HANDLERS)
    for verb in verbs():
        with pytest.raises(SystemExit) as stopped:
            main([verb, "--help"])
        assert stopped.value.code == 0
    assert "common options" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["fly"], ["run"], ["run", "--events", "e"], ["score", "--warehouse"]])
def test_wrong_usage_ends_with_two(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2


def test_a_run_date_that_is_no_date_ends_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["features", "--warehouse", "w", "--run-date", "yesterday"])
    assert stopped.value.code == 2
    assert "YYYY-MM-DD" in capsys.readouterr().err


def test_a_range_of_days_is_half_open_and_holds_a_day() -> None:
    given = ["features", "--warehouse", "w", "--from", "2026-01-05", "--to", "2026-01-07"]
    arguments = build_parser().parse_args(given)
    assert (arguments.since, arguments.until) == (date(2026, 1, 5), date(2026, 1, 7))
    with pytest.raises(ConfigError, match="--from 2026-01-05 --to 2026-01-05 holds no day"):
        features(cast(Run, None), since=date(2026, 1, 5), until=date(2026, 1, 5))


def test_an_unknown_config_key_ends_with_two_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["features", "--warehouse", str(tmp_path), "--set", "mask.ne_bugdet=1"])
    said = capsys.readouterr().err
    assert code == 2
    assert "mask.ne_bugdet" in said
    assert "Traceback" not in said


def test_a_source_that_is_not_there_ends_with_three_before_spark_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["run", "--events", str(tmp_path / "none"), "--warehouse", str(tmp_path / "w")])
    assert code == 3
    assert "no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["maintain"],
        ["diff", "m1", "m2"],
        ["features"],
        ["score"],
        ["monitor"],
        ["explain", "a/b"],
    ],
)
def test_a_mistyped_warehouse_ends_with_two_and_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main([*words, "--warehouse", str(tmp_path / "none")]) == 2
    assert "holds no table" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_an_unknown_preset_ends_with_two_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--out", str(tmp_path / "x"), "--preset", "S99"]) == 2
    assert "S99" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_json_is_one_object_with_the_promised_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["simulate", "--out", str(tmp_path / "w"), "--users", "50", "--days", "14", "--json"])
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert code == found["exit_code"] == 0
    promised = {"verb", "run_id", "run_date", "status", "exit_code", "tables", "metrics", "verdicts"}
    assert promised | {"skipped", "warnings"} <= set(found)


def test_json_tells_of_an_error_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["init", "--events", str(tmp_path / "none.csv"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (code, found["exit_code"], found["status"]) == (3, 3, "failed")
    assert "no such file" in found["message"]


def test_init_proposes_columns_roles_and_the_time_unit(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text(
        "user,timestamp,action,page,item\na,1700000000,ad_view,home,1\na,1700000100,purchase,shop,1\n"
    )
    assert main(["init", "--events", str(tmp_path)]) == 0
    text = (tmp_path / "dynamix.yaml").read_text()
    for line in (
        "user_id: user",
        "event_ts: timestamp",
        "time_unit: s ",
        "impression_types: [ad_view]",
        "conversion_types: [purchase]",
    ):
        assert line in text
    assert main(["init", "--events", str(tmp_path)]) == 2  # never overwrites


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    line = " ".join(map(shlex.quote, words))
    asked = (
        f"source {shlex.quote(str(script))}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_dynamix; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", asked], capture_output=True, text=True, check=True, cwd=script.parent
    )
    return {found.strip() for found in done.stdout.split()}


def test_bash_completes_verbs_options_choices_and_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "dynamix.bash"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    (tmp_path / "warehouse").mkdir()
    assert completed(script, "dynamix", "sc") == {"score"}
    assert completed(script, "dynamix", "") >= set(HANDLERS)
    assert completed(script, "dynamix", "score", "--imp") == {"--impressions"}
    assert completed(script, "dynamix", "mask", "--given", "") == {"baseline", "champion", "none"}
    assert completed(script, "dynamix", "report", "--warehouse", "ware") == {"warehouse"}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_a_script_with_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell, "--json"]) == 0
    script = json.loads(capsys.readouterr().out)["facts"]["script"]
    assert all(verb in script for verb in HANDLERS)


def test_a_missing_permission_is_exit_5_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for a user who is not the owner; the tests may run as root, whom no folder refuses."""

    def refused(arguments: Namespace, outcome: Outcome) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "W"))

    monkeypatch.setitem(HANDLERS, "report", refused)
    assert main(["report", "--warehouse", str(tmp_path / "W"), "--json"]) == 5
    said = capsys.readouterr()
    assert f"no permission for {tmp_path / 'W'} (Permission denied); give this user the right" in said.err
    assert json.loads(said.out)["exit_code"] == 5


@pytest.mark.parametrize(
    "said",
    [
        "java.io.FileNotFoundException: /data/W/events/part-0.parquet (Permission denied)",
        'AccessControlException: Permission denied: user=x, access=WRITE, inode="/data/W/events/part-0.parquet":root',
        "java.nio.file.AccessDeniedException: /data/W/events/part-0.parquet",
    ],
)
def test_what_spark_says_of_a_missing_permission_is_said_plainly(said: str, tmp_path: Path) -> None:
    found = known_trouble(f"Job aborted.\n{said}\n\tat org.apache", Warehouse(tmp_path))
    assert found is not None and found.exit_code == 5
    assert "no permission for /data/W/events/part-0.parquet; give" in found.message


def test_a_strangers_columns_are_found_by_name_and_the_time_by_its_type() -> None:
    names = ["customer", "noted", "action", "page", "product", "rank"]
    found = propose_columns(names, times=["noted"])
    assert found == {
        "user_id": "customer", "event_ts": "noted", "event_type": "action", "surface": "page", "item_id": "product",
        "position": "rank",
    }  # fmt: skip
    assert "event_ts" not in propose_columns(
        ["a", "b"], times=["a", "b"]
    )  # which of the two is a person's to say
    assert propose_columns(["ts", "noted"], times=["noted"])["event_ts"] == "ts"
