"""docs/reference.md is what the code says, and says all of it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from dynamix.config import Config
from dynamix.contracts import TABLES
from dynamix.jobs.cli import HANDLERS

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(PROJECT / "scripts" / "reference.py"))


def test_the_page_is_what_the_code_says(script: dict[str, Any]) -> None:
    stored = (PROJECT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert stored == script["text"](), "docs/reference.md is old; run `.venv/bin/python scripts/reference.py`"


def test_verbs_keys_and_tables_are_all_there(script: dict[str, Any]) -> None:
    page = script["text"]()
    assert [verb for verb in HANDLERS if f"### `dynamix {verb}`" not in page] == []
    assert [name for name in TABLES if f"### `{name}`" not in page] == []
    sections = [key for key, info in Config.model_fields.items() if f"`{key}`" not in page and info]
    assert sections == []
    for line in (
        "| `mask.delta` | number, > 0 | `0.1` | log-odds per SD that a drop must exclude |",
        "| `--keep-hours KEEP_HOURS` | of removed files, at least; default 168 |",
        "| `session.gap_s` | number, > 0 | `1800.0` | s; a new session iff the silence is strictly longer |",
        "| `dwell_status` | `string` | not null | observed, derived, censored, capped, imputed, missing |",
    ):
        assert line in page


def test_every_config_key_says_what_it_is() -> None:
    sections = {
        k: i.annotation for k, i in Config.model_fields.items() if hasattr(i.annotation, "model_fields")
    }
    fields = {k: i for k, i in Config.model_fields.items() if k not in sections}
    fields |= {f"{s}.{k}": i for s, part in sections.items() for k, i in part.model_fields.items()}  # type: ignore[union-attr]
    assert len(fields) > 60
    assert [key for key, info in fields.items() if not info.description] == []


def test_an_old_page_is_noticed(
    script: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = script["main"]
    main.__globals__["PAGE"] = tmp_path / "reference.md"
    assert main(["--check"]) == 1
    assert main([]) == main(["--check"]) == 0
    (tmp_path / "reference.md").write_text("# Reference\n", encoding="utf-8")
    assert main(["--check"]) == 1 and "is old" in capsys.readouterr().out
