"""Every fault has a test that exists, and the page names the same ones as the register; the tables print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from faults.outcomes import crash_table, fault_table, outcome_of, read_cases
from faults.register import FAULTS, MUST_BE_UNPROTECTED

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "faults.md").read_text(encoding="utf-8")


def _page_rows() -> dict[int, set[str]]:
    """Number of each fault -> the tests that its row names."""
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, flags=re.M)
    return {int(number): set(re.findall(r"tests/[\w/]+\.py::test_\w+", row)) for number, row in rows}


def test_faults_1_to_44_have_a_test_each() -> None:
    assert list(FAULTS) == list(range(1, 45))
    assert [number for number, fault in FAULTS.items() if not fault.all] == []


@pytest.mark.parametrize("number", FAULTS)
def test_the_tests_of_a_fault_exist(number: int) -> None:
    for test in FAULTS[number].all:
        path, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (PROJECT / path).read_text(encoding="utf-8"), flags=re.M), test


def test_where_it_is_demanded_the_protection_is_taken_away() -> None:
    assert [number for number in MUST_BE_UNPROTECTED if not FAULTS[number].unprotected] == []


def test_the_page_names_the_tests_of_the_register() -> None:
    assert _page_rows() == {number: set(fault.all) for number, fault in FAULTS.items()}


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.faults.test_a" name="test_one[x]"><properties>
<property name="crash" value="2|mask/masks|during"/></properties></testcase>
<testcase classname="tests.faults.test_a" name="test_one[y]"><properties>
<property name="crash" value="2|mask/masks|after"/></properties><failure message="no">no</failure></testcase>
<testcase classname="tests.faults.test_a" name="test_two"><skipped type="pytest.skip" message="no disk"/></testcase>
<testcase classname="tests.faults.test_a" name="test_three"><skipped type="pytest.xfail" message="known"/></testcase>
</testsuite></testsuites>"""


def test_outcomes_are_the_worst_of_a_tests_cases_and_skips_keep_their_reason(tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    file.write_text(JUNIT, encoding="utf-8")
    cases = read_cases(file)
    one, two, three = (f"tests/faults/test_a.py::test_{name}" for name in ("one", "two", "three"))
    assert [outcome_of([t], cases) for t in (one, two, three)] == ["fail", "skipped", "fail"]
    assert outcome_of([two, "tests/faults/test_a.py::test_four"], cases) == "not run"
    assert cases[two][0].reason == "no disk"
    assert [c.outcome for c in cases[one]] == ["pass", "fail"]
    assert crash_table(cases).splitlines()[1].split() == ["2", "mask/masks", "-", "pass", "fail"]
    assert fault_table(cases).splitlines()[-1] == "44 faults: 44 not run"
