"""The README's commands exist and parse, its tables name every verb and exit code, its file tree is the tree.

What the commands do is run in tests/e2e/test_cycle.py, which reads them from the same page.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from dynamix import errors
from dynamix.jobs.options import build_parser

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")


def code_lines() -> list[str]:
    """Lines of the page's code blocks, comments off."""
    blocks = re.findall(r"^```\n(.*?)^```", README, flags=re.M | re.S)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]


def commands(program: str) -> list[str]:
    return [line for line in code_lines() if line.startswith(f"{program} ")]


def verbs_of_the_parser() -> set[str]:
    action = next(a for a in build_parser()._actions if a.dest == "verb")
    return set(action.choices or ())


def test_every_make_command_is_a_documented_target() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, flags=re.M))
    named = {line.split()[1] for line in commands("make")} | set(re.findall(r"`make ([a-z-]+)`", README))
    assert {"demo", "test", "help", "setup"} <= named
    assert named <= targets


def test_make_help_lists_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  make ([a-z-]+) +\S", shown, flags=re.M))
    phony = set(re.findall(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.M)[0].split())
    assert listed == phony


@pytest.mark.parametrize("line", commands("dynamix"))
def test_every_dynamix_command_parses(line: str) -> None:
    arguments = build_parser().parse_args(shlex.split(line)[1:])
    assert arguments.verb == line.split()[1]


@pytest.mark.parametrize("page", sorted((PROJECT / "docs").rglob("*.md")), ids=lambda page: page.stem)
def test_every_dynamix_command_of_a_page_parses(page: Path) -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"#|;|&&|\|\|?|>", line)]
    found = [shlex.split(part) for part in parts if part.startswith("dynamix ") and "…" not in part]
    for words in found:
        assert build_parser().parse_args(words[1:]).verb == words[1], words
    assert found or page.stem != "howto"


def test_the_verb_table_names_every_verb_once() -> None:
    table = README.split("| verb | does |")[1].split("\n\n")[0]
    first = [row.split("|")[1] for row in table.splitlines()[2:]]
    named = [verb for cell in first for verb in re.findall(r"`([a-z]+)`", cell)]
    assert sorted(named) == sorted(verbs_of_the_parser() - {"demo"})


def test_the_exit_codes_are_those_of_the_error_classes() -> None:
    said = {int(code) for code in re.findall(r"(\d) \w", README.split("Exit codes:")[1].split("\n")[0])}
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.DynamixError)]
    raised = {c.exit_code for c in classes if c is not errors.DynamixError}
    assert said == raised | {0}


def test_the_file_tree_is_the_tree() -> None:
    block = README.split("## Files")[1].split("```")[1]
    named = {line.split()[0].rstrip("/") for line in block.splitlines() if line.strip()}
    assert sorted(n for n in named if not (PROJECT / n).exists()) == []
    listed = subprocess.run(
        ["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    folders = {path.split("/")[0] for path in listed if "/" in path} or {n.split("/")[0] for n in named}
    shown = {n.split("/")[0] for n in named}
    assert sorted(folders - shown - {".ci"}) == []
