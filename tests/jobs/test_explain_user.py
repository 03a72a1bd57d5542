"""Which options of `explain` go together; the story itself is told in test_story.py and on a cycle in tests/e2e."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamix.jobs.cli import main


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "needs STREAM or --user"),
        (["shop/view", "--user", "u1"], "needs STREAM or --user"),
        (["--user", "u1", "--segment", "1"], "--segment goes with STREAM"),
        (["shop/view", "--impression", "i1"], "--impression with --user"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_a_session(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *options, "--warehouse", str(tmp_path / "W")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "W").exists()
