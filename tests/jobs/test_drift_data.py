"""What ingest and monitor left in the runs' folders, as the report shows it."""

from __future__ import annotations

import json
from pathlib import Path

from dynamix.jobs.drift_data import as_watch, newest_drift

FINDING = {"measure": "share_of events", "name": "a/x", "baseline": 1, "now": 2, "value": 0.2, "limit": 0.1,
           "drifted": True, "sentence": "more a/x"}  # fmt: skip


def leave(private: Path, run: str, text: str) -> None:
    (private / "runs" / run).mkdir(parents=True)
    (private / "runs" / run / "drift.json").write_text(text, encoding="utf-8")


def test_the_newest_readable_comparison_counts_the_worst_first(tmp_path: Path) -> None:
    calm = FINDING | {"name": "b/y", "value": 0.01, "drifted": False}
    leave(tmp_path, "20240101T000000Z-aa", json.dumps({"findings": [calm, FINDING]}))
    leave(tmp_path, "20240102T000000Z-bb", "{half")
    found = newest_drift(tmp_path)
    assert found is not None and (found.run_id, found.beyond) == ("20240101T000000Z-aa", 1)
    assert [(c.what, c.name, round(c.of_limit, 9)) for c in found.found] == [
        ("share of events", "a/x", 2.0), ("share of events", "b/y", 0.1)
    ]  # fmt: skip
    assert newest_drift(tmp_path / "nowhere") is None


def test_an_answer_of_monitor_is_read_and_an_old_one_without_keys_too() -> None:
    check = {"kind": "mask_age", "name": "m1", "value": 3, "limit": 14, "due": False, "sentence": "3 days"}
    told = as_watch({"run_date": "2024-02-12", "mask_version": None, "answer": "No.", "checks": [check]})
    assert (told.mask_version, told.checks[0].what, told.checks[0].beyond) == ("", "mask age", False)
    assert as_watch({}).checks == ()
