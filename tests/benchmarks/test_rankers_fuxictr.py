"""Rows handed to a process of another environment, and what comes back of it; a stand-in takes FuxiCTR's place."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from headline_rows import HEAD, acting_rows

from benchmarks import rankers, rankers_fuxictr
from dynamix.errors import EnvironmentTrouble

STAND_IN = """#!{python}
import sys
import numpy as np

given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
with np.load(given["--rows"]) as rows:
    length = np.diff(rows["offsets"])
    assert np.isfinite(rows["label"]).all() and int(rows["items"]) == 99
np.savez(given["--out"], p=length / 1000 + int(given["--seed"]))
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that answers with the length of each history."""
    script = tmp_path / "python"
    script.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv(rankers_fuxictr.PYTHON, str(script))
    monkeypatch.setenv(rankers_fuxictr.DIN, str(tmp_path / "DIN.py"))
    return script


def test_predictions_come_back_to_their_rows(elsewhere: Path) -> None:
    rows = acting_rows(60, effect=1.0)
    rows.labels[HEAD][:5] = np.nan
    model = rankers_fuxictr.fit(rows, HEAD, items=99, seed=1)
    wanted = 1 + np.diff(rows.offsets) / 1000
    assert np.allclose(model.predict(rows.take(np.arange(59, 4, -1))), wanted[59:4:-1])
    with pytest.raises(KeyError, match="not handed"):
        model.predict(rows.take(np.arange(5)))


def test_what_cannot_be_run_is_said(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere.write_text("#!/bin/sh\necho no such module >&2\nexit 3\n", encoding="utf-8")
    with pytest.raises(EnvironmentTrouble, match=r"ended with 3: no such module"):
        rankers_fuxictr.fit(acting_rows(10, effect=1.0), HEAD, items=99, seed=0)
    assert "fuxictr" in rankers.chosen(None)
    monkeypatch.delenv(rankers_fuxictr.DIN)
    assert "fuxictr" not in rankers.chosen("all") and rankers.chosen("fuxictr") == ["fuxictr"]
    with pytest.raises(EnvironmentTrouble, match="are not both set"):
        rankers_fuxictr.fit(acting_rows(10, effect=1.0), HEAD, items=99, seed=0)
