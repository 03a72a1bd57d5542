"""`python -m tests.faults`: run the tests of the faults and print the table of the 44 rows and the crash matrix.

With `--junit FILE` (repeatable) the outcomes are those of finished runs, as `pytest --junitxml` leaves them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as `pythonpath` of the tests

from faults.outcomes import FAIL, Case, crash_table, fault_table, outcome_of, read_cases
from faults.register import FAULTS


def _run(junit: Path) -> None:
    tests = sorted({test for fault in FAULTS.values() for test in fault.all})
    options = ["-n", "2", "--dist", "loadfile", "--no-header", "-q", f"--junitxml={junit}"]
    subprocess.run([sys.executable, "-m", "pytest", *options, *tests], stdout=sys.stderr, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--junit", type=Path, action="append", default=[], help="outcomes of a finished run")
    files: list[Path] = parser.parse_args().junit
    cases: dict[str, list[Case]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if not files:
            files = [Path(folder) / "junit.xml"]
            _run(files[0])
        for file in files:
            cases |= read_cases(file)
    print(fault_table(cases))
    print("\n" + (crash_table(cases) or "no case of the crash matrix was run"))
    return int(any(outcome_of(fault.all, cases) == FAIL for fault in FAULTS.values()))


if __name__ == "__main__":
    raise SystemExit(main())
