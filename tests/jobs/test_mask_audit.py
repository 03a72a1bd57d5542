"""The back-off in a warehouse: after a refused gate the next `mask` proposes another mask, and says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from made_sums import PLENTY, statistics
from pyspark.sql import DataFrame, SparkSession

from dynamix.config import load_config
from dynamix.contracts import MASK_AUDIT, MASKS, Table
from dynamix.features.tables import Warehouse
from dynamix.jobs.arm_rows import set_status
from dynamix.jobs.cell_stats import Measured
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.frames import table_frame
from dynamix.jobs.mask import mask
from dynamix.jobs.mask_audit import ATTRIBUTES, OLDER_TOKENS, backed_off, write_gate
from dynamix.models.evidence import Check, Delta, Verdict

pytestmark = pytest.mark.spark
DAY = date(2026, 3, 2)
DELTA = Delta(0.5, 0.4, 0.6, 0.58, 0.05, None, 0.1, 1000, 900, 200.0)
NE = Check("ne", 0.58, "<= 0.1000 %", False, 0.1)
HELD = Check("calibration", 1.0, "1 in [0.900, 1.100]", True)


def gate(*checks: Check, status: str = "retired") -> Mapping[str, Verdict]:
    return {"conversion": Verdict(False, status, "", DELTA, checks)}


def floor(segment: int | None, tier: str, *, passed: bool) -> Check:
    return Check("floor", 0.9, "<= 0.3000 %", passed, 0.3, segment, tier)


def grid(run: Run, version: str) -> dict[tuple[int, str], tuple[bool, str]]:
    rows = run.warehouse.read(run.spark, MASKS.name).where(f"mask_version = '{version}'").collect()
    return {(int(r["segment_id"]), str(r["stream"])): (bool(r["keep"]), str(r["reason"])) for r in rows}


def test_the_mask_after_a_refused_gate_keeps_the_dearer_half_and_says_so(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statistics say the same every day: of two segments, two streams each may go."""
    plan: dict[tuple[int, str], dict[str, Any]] = {
        (g, "a/strong"): {"n": PLENTY, "effects": {"dwell": 0.6}, "tokens": 1.0} for g in (1, 2)
    }
    for g, f, tokens in ((1, "a/x", 90.0), (1, "a/y", 1.0), (2, "a/x", 80.0), (2, "a/y", 2.0)):
        plan[g, f] = {"n": PLENTY, "tokens": tokens}
    names = {1: "one", 2: "two"}
    measured = Measured(statistics(plan), "s1", names, ("a/strong", "a/x", "a/y"), DAY)
    monkeypatch.setattr("dynamix.jobs.mask.measure", lambda *_, **__: (measured, StepResult()))
    monkeypatch.setattr("dynamix.jobs.mask.newest_segments", lambda _: (None, "s1", names))
    monkeypatch.setattr("dynamix.jobs.mask._fates", lambda _: {})
    monkeypatch.setattr("dynamix.jobs.mask._write_stats", lambda *_: 0)

    def day(n: int) -> Run:
        config = load_config(settings=["mask.length=full"])
        at = DAY + timedelta(days=n)
        return Run(spark, Warehouse(tmp_path / "w"), config, at, f"{at:%Y%m%d}T000000Z-abcdef", quiet=True)

    first = str(mask(day(0)).facts["mask_version"])
    whole = {(g, f) for g in (1, 2) for f in ("a/x", "a/y")}
    assert {cell for cell, (keep, _) in grid(day(0), first).items() if not keep} == whole
    write_gate(day(0), first, gate(NE, floor(2, "*", passed=True), HELD), head="conversion")
    set_status(day(0), first, "retired", by_gate=True)

    second = str(mask(day(1)).facts["mask_version"])
    cells = grid(day(1), second)
    assert {cell for cell, (keep, _) in cells.items() if not keep} == {(1, "a/x"), (2, "a/x")}
    told = cells[1, "a/y"][1]
    assert told.startswith(
        f"backed off: gate of {first} refused, ne +0.5800, allowed 0.1000; kept until 2026-04-13"
    )
    assert "by the statistics: negligible" in told
    noted = (
        day(1)
        .warehouse.read(spark, MASK_AUDIT.name)
        .where(f"mask_version = '{first}' AND rule LIKE 'gate: %'")
    )
    assert {(r["rule"], r["segment_id"], r["value"], r["limit"], r["passed"]) for r in noted.collect()} == {
        ("gate: ne", 0, 0.58, 0.1, False), ("gate: floor", 2, 0.9, 0.3, True), ("gate: calibration", 0, 1.0, None, True),
    }  # fmt: skip


@dataclass
class Stored:
    """A warehouse in memory; what is written to it is added."""

    spark: SparkSession
    private: Path
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"masks": [], "mask_audit": []})

    def exists(self, _: SparkSession, name: str) -> bool:
        return bool(self.rows[name])

    def read(self, _: SparkSession, name: str) -> DataFrame:
        return table_frame(self.spark, {"masks": MASKS, "mask_audit": MASK_AUDIT}[name], self.rows[name])

    def replace(self, _: SparkSession, table: Table, frame: DataFrame, **options: object) -> int:
        self.rows[table.name] += [row.asDict() for row in frame.collect()]
        return 0


def removal(
    version: str, day: int, cell: tuple[int, str], ucb: float, status: str, **more: Any
) -> dict[str, Any]:
    return {
        "mask_version": version, "seq": day, "segment_version": "s1", "segment_id": cell[0], "segment_name": "one",
        "tier": "*", "stream": cell[1], "keep": False, "quota": 0, "boost": 0.0, "positives": 7, "tokens": 1.0,
        "verdict": "drop", "reason": "negligible: because", "status": status, "run_date": DAY + timedelta(days=day),
        "run_id": "r", "relevance_ucb": ucb, **more,
    }  # fmt: skip


def audit(version: str, cell: tuple[int, str], rule: str, value: float) -> dict[str, Any]:
    return {
        "mask_version": version, "segment_id": cell[0], "tier": "*", "stream": cell[1], "rule": rule, "value": value,
        "limit": 0.0, "passed": True,
    }  # fmt: skip


def test_drops_redundant_drops_and_cuts_are_priced_by_what_they_cost_beside_what_stays(
    spark: SparkSession, tmp_path: Path
) -> None:
    """Per token: a/x .001, the copy .0002 (alone .5), the cut .003, a/z .0005. The dearer two stay."""
    cells = {name: (1, name) for name in ("a/x", "a/copy", "a/cut", "a/z")}
    store = Stored(spark, tmp_path)
    store.rows["masks"] = [
        removal("m1", 0, cells["a/x"], 0.001, "retired"),
        removal("m1", 0, cells["a/copy"], 0.5, "retired", reason="redundant: because"),
        removal("m1", 0, cells["a/cut"], 0.2, "retired", keep=True, quota=3, verdict="undecided"),
        removal("m1", 0, cells["a/z"], 0.0005, "retired"),
        removal("m1", 0, (1, "a/kept"), 0.9, "retired", keep=True),
    ]
    store.rows["mask_audit"] = [audit("m1", c, "beside", 0.0002) for c in cells.values()]
    store.rows["mask_audit"] += [audit("m1", (1, "a/kept"), "block", 0.0002)]
    store.rows["mask_audit"] += [audit("m1", cells["a/cut"], "older", 0.0015)]
    store.rows["mask_audit"] += [audit("m1", cells["a/cut"], OLDER_TOKENS, 0.5)]
    run = Run(spark, store, load_config(), DAY, "r", quiet=True)  # type: ignore[arg-type]
    write_gate(run, "m1", gate(NE), head="conversion")
    assert set(backed_off(run)) == {cells["a/cut"], cells["a/x"]}


def test_attributes_that_go_come_back_before_drops_and_a_cut_with_them_counts_once(
    spark: SparkSession, tmp_path: Path
) -> None:
    """Alone they save no token, so nothing costs more for what it saves; a named segment brings them back as well."""
    cells = {name: (1, name) for name in ("a/less", "a/x", "a/both", "a/y")}
    less = {"keep": True, "verdict": "keep", "attributes": ["item"]}
    store = Stored(spark, tmp_path)
    store.rows["masks"] = [
        removal("m1", 0, cells["a/less"], 0.2, "retired", **less),
        removal("m1", 0, cells["a/x"], 0.001, "retired"),
        removal("m1", 0, cells["a/both"], 0.2, "retired", quota=3, **less),
        removal("m1", 0, cells["a/y"], 0.002, "retired"),
    ]
    notes = [
        audit("m1", cells["a/less"], ATTRIBUTES, 1e-6), audit("m1", cells["a/both"], ATTRIBUTES, 0.002),
        audit("m1", cells["a/both"], "older", 0.0015), audit("m1", cells["a/both"], OLDER_TOKENS, 1.0),
        audit("m1", cells["a/x"], "block", 0.001), audit("m1", cells["a/y"], "block", 0.002),
    ]  # fmt: skip
    store.rows["mask_audit"] = list(notes)
    run = Run(spark, store, load_config(), DAY, "r", quiet=True)  # type: ignore[arg-type]
    write_gate(run, "m1", gate(NE), head="conversion")
    assert set(backed_off(run)) == {cells["a/less"], cells["a/both"]}
    store.rows["mask_audit"] = list(notes)
    write_gate(run, "m1", gate(floor(1, "*", passed=False)), head="conversion")
    assert set(backed_off(run)) == set(cells.values())


def test_named_segments_and_cells_come_back_and_every_refusal_counts_for_a_cycle(
    spark: SparkSession, tmp_path: Path
) -> None:
    store = Stored(spark, tmp_path)

    def on(day: int) -> Run:
        at = DAY + timedelta(days=day)
        return Run(spark, store, load_config(), at, "r", quiet=True)  # type: ignore[arg-type]

    versions = {
        "segment": ("retired", gate(floor(2, "*", passed=False), floor(None, "active", passed=True))),
        "cell": ("retired", gate(Check("second opinion", 0.4, "<= 0.1 %", False, 0.1, 1, "*", "a/x"))),
        "tier": ("retired", gate(floor(None, "active", passed=False))),
        "click": ("retired", {"click": gate(floor(0, "*", passed=False))["conversion"]}),
        "unclear": ("proposed", gate(NE, status="proposed")),
        "watched": ("retired", gate(HELD, status="published")),
        "random": ("retired", gate(NE)),
    }
    for day, (version, (status, verdicts)) in enumerate(versions.items()):
        why = "rule random: drawn" if version == "random" else "negligible: because"
        taken = [(0, f"{version}/y")] if version == "click" else [(1, "a/x"), (2, f"{version}/y")]
        for cell in taken:
            store.rows["masks"].append(removal(version, day, cell, 0.1, status, reason=why))
            store.rows["mask_audit"].append(audit(version, cell, "block", 0.1))
        write_gate(on(day), version, verdicts, head="conversion")
    assert set(backed_off(on(0))) == {(2, "segment/y")}
    found = {cell: (one.version, one.why) for cell, one in backed_off(on(6)).items()}
    assert found == {
        (2, "segment/y"): ("segment", "floor of segment 2 +0.9000, allowed 0.3000"),
        (1, "a/x"): ("tier", "floor of active users +0.9000, allowed 0.3000"),  # halved; before that named
        (0, "click/y"): ("click", "floor for click of segment 0 +0.9000, allowed 0.3000"),
    }
    assert backed_off(on(1))[1, "a/x"].why == "second opinion of segment 1 × a/x +0.4000, allowed 0.1000"
    assert set(backed_off(on(42))) == set(found) - {(2, "segment/y")}
    assert backed_off(on(45)) == {} == backed_off(on(-1))
