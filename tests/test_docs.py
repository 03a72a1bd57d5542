"""The docs hold what the code cites, and cite only what is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
CODE = ("src", "features", "segmentation", "models", "jobs", "tests", "scripts", "notebooks", "benchmarks")
PAGES = sorted(
    path
    for path in chain(PROJECT.glob("*.md"), (PROJECT / "docs").rglob("*.md"))
    if path.name in {"README.md", "CHANGELOG.md", "CONTRIBUTING.md"} or "docs" in path.parts
)
_SPREAD = r"(?:\s*(?:,|and|to|[-–])\s*)"
_METHOD_LABEL = r"[A-E]\.?\d+(?:\.\d+)*"
_FAULT_LABEL = r"(?:D\d|\d{1,2}(?!\d))"
_PATH = re.compile(
    r"\b(?:src/dynamix|features|segmentation|models|jobs|tests|scripts|notebooks|benchmarks|docs)"
    r"/[\w./-]*\w\.(?:py|md|toml|ya?ml|j2)\b"
)
_REGISTRY_HOST = r"https?://[^\s)\"'>]*(?:pypi|pythonhosted|maven|conda|npm|crates|/simple\b)"
_ABSOLUTE = r"(?<![\w./:~*}])/(?:home|work|tmp|root|usr|opt|var|etc|mnt|Users|private)\b|\b[A-Z]:\\"


def page_id(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def read(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


def modules() -> Iterator[tuple[str, str]]:
    """(path, source on one line) of every Python file but this one."""
    found = chain(PROJECT.glob("*.py"), *((PROJECT / folder).rglob("*.py") for folder in CODE))
    for path in sorted(set(found) - {Path(__file__).resolve()}):
        if "__pycache__" not in path.parts:
            yield page_id(path), " ".join(path.read_text(encoding="utf-8").split())


def cited(source: str, page: str, label: str) -> set[str]:
    """Labels that follow `docs/<page>` in a text, lists and ranges of numbers written out."""
    labels: set[str] = set()
    for match in re.finditer(rf"docs/{re.escape(page)}\s({label}(?:{_SPREAD}{label})*)", source):
        parts = re.split(r"\s*(?:,|and)\s*", match[1])
        for part in parts:
            ends = re.split(r"\s*(?:[-–]|to)\s*", part)
            if len(ends) == 2 and all(end.isdigit() for end in ends):
                labels |= {str(n) for n in range(int(ends[0]), int(ends[1]) + 1)}
            else:
                labels |= set(ends)
    return labels


def headings(text: str) -> list[str]:
    """Headings of a page outside code blocks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.findall(r"^#+ +(.+?) *$", prose, flags=re.M)


def slug(heading: str) -> str:
    """The anchor of a heading as renderers of Markdown build it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def fault_rows() -> list[tuple[str, str]]:
    """(number, rest of the row) of every fault in the tables."""
    return re.findall(r"^\| (\d+) \| (.+) \|$", read("docs/faults.md"), flags=re.M)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("see (docs/method.md A.4.3, E step)", {"A.4.3"}),
        ("(docs/method.md A.2.3, E2)", {"A.2.3", "E2"}),
        ("docs/method.md A.7 with its amendments", {"A.7"}),
        ("docs/method.md A.4.3, A.4.4.", {"A.4.3", "A.4.4"}),
        ("docs/method.md A.7, table", {"A.7"}),
        ("nothing", set()),
    ],
)
def test_labels_are_read_off_a_sentence(text: str, labels: set[str]) -> None:
    assert cited(text, "method.md", _METHOD_LABEL) == labels


def test_lists_and_ranges_of_faults_are_written_out() -> None:
    text = "(docs/faults.md 9, 10, 14-17, 22) and docs/faults.md D2, docs/faults.md 1-3"
    wanted = {"9", "10", "14", "15", "16", "17", "22", "D2", "1", "2", "3"}
    assert cited(text, "faults.md", _FAULT_LABEL) == wanted


def test_every_method_label_of_the_code_is_a_heading() -> None:
    known = {heading.split()[0] for heading in headings(read("docs/method.md"))}
    found = {
        (label, path) for path, source in modules() for label in cited(source, "method.md", _METHOD_LABEL)
    }
    assert len(found) > 20  # else the pattern has gone blind
    assert sorted((label, path) for label, path in found if label not in known) == []


def test_every_fault_of_the_code_is_a_row_or_a_heading() -> None:
    known = {number for number, _ in fault_rows()} | {h.split()[0] for h in headings(read("docs/faults.md"))}
    found = {
        (label, path) for path, source in modules() for label in cited(source, "faults.md", _FAULT_LABEL)
    }
    assert len(found) > 20
    assert sorted((label, path) for label, path in found if label not in known) == []


def test_faults_are_numbered_from_1_to_44_once_each() -> None:
    assert sorted(int(number) for number, _ in fault_rows()) == list(range(1, 45))


def test_every_fault_names_its_test_or_says_that_there_is_none() -> None:
    bare = [n for n, row in fault_rows() if "::test_" not in row and "not yet tested" not in row]
    assert bare == []


def test_quoted_headings_of_the_code_are_there() -> None:
    pattern = r"docs/([\w/-]+\.md)[ ,]*\(?\"([^\"]+)\""
    found = [
        (page, quoted, path) for path, source in modules() for page, quoted in re.findall(pattern, source)
    ]
    assert ("architecture.md", "Skipping", "jobs/run_log.py") in found
    assert [f for f in found if f[1] not in headings(read(f"docs/{f[0]}"))] == []


def test_every_page_that_the_code_names_is_there() -> None:
    named = {(page, path) for path, source in modules() for page in re.findall(r"docs/[\w/-]+\.md", source)}
    numbers = {(n, path) for path, source in modules() for n in re.findall(r"docs/decisions/(\d{4})", source)}
    decisions = {path.name[:4] for path in (PROJECT / "docs/decisions").glob("*.md")}
    assert [n for n in sorted(named) if not (PROJECT / n[0]).is_file()] == []
    assert [n for n in sorted(numbers) if n[0] not in decisions] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_in_a_page_exist(page: Path) -> None:
    paths = set(_PATH.findall(page.read_text(encoding="utf-8")))
    assert sorted(path for path in paths if not (PROJECT / path).is_file()) == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_tests_named_in_a_page_exist(page: Path) -> None:
    named = re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", page.read_text(encoding="utf-8"))
    gone = [f"{path}::{name}" for path, name in named if f"def {name}(" not in read(path)]
    assert gone == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{page_id(page)}: {target}"
        if anchor:
            assert anchor in {slug(h) for h in headings(aim.read_text(encoding="utf-8"))}, target


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_machine_path_and_no_registry_address(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(_ABSOLUTE, text) == []
    assert re.findall(_REGISTRY_HOST, text) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("in /home/somebody/x", True),
        ("C:\\data", True),
        ("`W/_dynamix/runs/`", False),
        ("and/or docs/tmp", False),
    ],
)
def test_an_absolute_path_would_be_noticed(text: str, found: bool) -> None:
    assert bool(re.search(_ABSOLUTE, text)) is found


def test_the_glossary_is_in_order_and_says_each_word_once() -> None:
    words = re.findall(r"^- \*\*(?:δ \()?([^*)]+)\)?\*\*:", read("docs/glossary.md"), flags=re.M)
    keys = [re.sub(r"[^a-z0-9]", "", word.split(" / ")[0].lower()) for word in words]
    assert len(keys) >= 50
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


def test_decisions_are_numbered_without_gaps_and_have_four_parts() -> None:
    pages = sorted((PROJECT / "docs/decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        first, *rest = headings(page.read_text(encoding="utf-8"))
        assert first.startswith(f"{int(page.name[:4])}. "), page.name
        assert rest == ["Context", "Decision", "Consequences", "Alternatives considered"], page.name
