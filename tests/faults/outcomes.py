"""Outcomes of a pytest run, from its JUnit file: the table of the 44 faults and the crash matrix as text."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from faults.register import FAULTS, Fault

PASS, FAIL, SKIPPED, NOT_RUN = "pass", "fail", "skipped", "not run"
_WORST = (FAIL, NOT_RUN, SKIPPED, PASS)
MOMENTS = ("before", "during", "after")


@dataclass(frozen=True)
class Case:
    """One test of a run; `reason` of a skip; `crash` is the case of the crash matrix it stands for."""

    outcome: str
    reason: str = ""
    crash: str = ""


def read_cases(junit: Path) -> dict[str, list[Case]]:
    """Test id without parameters -> its cases."""
    found: dict[str, list[Case]] = {}
    for case in ET.parse(junit).iter("testcase"):
        name = case.get("name", "").partition("[")[0]
        place = case.get("classname", "").replace(".", "/") + ".py"
        skipped = case.find("skipped")
        failed = case.find("failure") is not None or case.find("error") is not None
        outcome = FAIL if failed else SKIPPED if skipped is not None else PASS
        if skipped is not None and skipped.get("type") == "pytest.xfail":
            outcome = FAIL  # an expected failure proves nothing
        reason = skipped.get("message", "") if skipped is not None else ""
        crash = [p.get("value", "") for p in case.iter("property") if p.get("name") == "crash"]
        found.setdefault(f"{place}::{name}", []).append(Case(outcome, reason, "".join(crash)))
    return found


def outcome_of(tests: Iterable[str], cases: Mapping[str, list[Case]]) -> str:
    """The worst outcome of the tests; one of which no case ran counts as not run."""
    outcomes = {case.outcome for test in tests for case in cases.get(test, [Case(NOT_RUN)])}
    return next(one for one in _WORST if one in outcomes)


def fault_table(cases: Mapping[str, list[Case]]) -> str:
    """A line a row with its outcome and tests, the sums, and each skip with its reason."""
    lines, sums, skips = [], dict.fromkeys(_WORST, 0), []
    for number, fault in FAULTS.items():
        outcome = outcome_of(fault.all, cases)
        sums[outcome] += 1
        lines.append(f"{number:2d}  {outcome:8s}  {fault.title}")
        lines += [f"      {outcome_of([t], cases):8s}  {_name(fault, t)}" for t in fault.all]
        skips += [
            f"{number:2d}  {test.partition('::')[2]}: {case.reason}"
            for test in fault.all
            for case in cases.get(test, [])
            if case.outcome == SKIPPED
        ]
    told = ", ".join(f"{n} {outcome}" for outcome, n in sums.items() if n)
    lines += ["", f"{len(FAULTS)} faults: {told}"]
    return "\n".join([*lines, *(["", "skipped, not proven:", *skips] if skips else [])])


def _name(fault: Fault, test: str) -> str:
    return test + (" (protection taken away)" if test in fault.unprotected else "")


def crash_table(cases: Mapping[str, list[Case]]) -> str:
    """A line a point of each day in the order of the cases, a column a moment; empty where no case ran."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for case in (case for found in cases.values() for case in found if case.crash):
        day, point, moment = case.crash.split("|")
        cells.setdefault((day, point), {})[moment] = case.outcome
    if not cells:
        return ""
    width = max(len(point) for _, point in cells)
    lines = [f"day  {'point':{width}s}  " + "  ".join(f"{m:7s}" for m in MOMENTS)]
    for (day, point), found in sorted(
        cells.items(), key=lambda item: (-int(item[0][0]), list(cells).index(item[0]))
    ):
        lines.append(
            f"{day:3s}  {point:{width}s}  " + "  ".join(f"{found.get(m, '-'):7s}" for m in MOMENTS).rstrip()
        )
    ran = [outcome for found in cells.values() for outcome in found.values()]
    return "\n".join([*lines, "", f"{len(ran)} kills: {ran.count(PASS)} pass, {ran.count(FAIL)} fail"])
