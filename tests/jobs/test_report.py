"""The page is self-contained, complete, escaped and legible; the terminal map fits its width."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_pages import EVIL, sample

from dynamix.jobs import heatmap, page_figures
from dynamix.jobs.evidence_data import newest_evidence
from dynamix.jobs.files import write_whole
from dynamix.jobs.forget import cut_stories
from dynamix.jobs.heatmap_chart import picture
from dynamix.jobs.page_figures import furthest
from dynamix.jobs.report import render
from dynamix.jobs.report_data import (
    AtBudget,
    Cell,
    Channel,
    ReportData,
    cells_from_rows,
)
from dynamix.jobs.report_load import match_truth
from dynamix.segmentation.masks import COLD


class Page(HTMLParser):
    """Collects tags, attributes and the rows of the table of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "wbr", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"


def test_the_page_asks_for_nothing_outside_and_runs_no_script() -> None:
    text = render(sample())
    page = Page(text)
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "embed"}
    for _, attributes in page.tags:
        for key in ("src", "href", "srcset", "action"):
            assert (attributes.get(key) or "data:,").startswith("data:")
        assert not any(key.startswith("on") for key in attributes)
    assert not re.search(r"url\(|@import|https?:", text)
    assert "default-src 'none'" in text


def test_data_is_escaped_everywhere() -> None:
    text = render(sample())
    assert EVIL not in text and "<script" not in text and "<img" not in text
    assert "&lt;script&gt;" in text and "{{ 7 * 7 }}" in text and "&amp;amp;&amp;" in text
    assert not [key for _, attributes in Page(text).tags for key in attributes if key.startswith("on")]


def test_the_table_holds_exactly_the_rows_of_the_mask() -> None:
    text = render(sample())
    table = text[text.index('<table id="cells">') :]
    body = table[table.index("<tbody>") : table.index("</tbody>")]
    found = re.findall(r"why (\d) (\d)", body)
    assert sorted(found) == sorted((str(i), str(k)) for i in (0, 3) for k in range(4))


def test_the_page_says_plainly_where_one_mask_would_do() -> None:
    data = sample()
    assert "One mask for everybody would do" in render(data)  # one warm segment
    two = tuple(replace(c, segment_id=4, keep=not c.keep) for c in data.cells if c.segment_id == 3)
    assert "One mask for everybody would do" not in render(replace(data, cells=(*data.cells, *two)))


def test_every_number_of_the_label_says_what_it_means() -> None:
    assert render(sample()).count("paid click-out") >= 5


def test_what_was_not_measured_is_named() -> None:
    bare = replace(sample(), evidence=None, curves=(), channels=(), segments=(), steps=())
    text = render(replace(bare, story=None, drift=None, watch=None, budgets=()))
    assert text.count("Not measured:") == 9


def test_an_empty_warehouse_gives_a_page_that_says_so() -> None:
    text = render(ReportData(absent=("masks", "segments")))
    Page(text)
    assert "Nothing to show yet" in text and "absent: masks, segments" in text and 'class="heat"' not in text


def test_balance_versions_and_config_are_shown() -> None:
    text = render(sample())
    for part in ("<td>100</td><td>90</td><td>7</td><td>3</td>", "version 4", "c0ffee", "m20240212-00000000"):
        assert part in text


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_is_at_least_four_and_a_half_and_verdicts_differ_in_greyscale(theme: int) -> None:
    """The bar is WCAG 2.1 AA for text; the formula is that standard's relative luminance."""
    block = re.findall(r":root \{(.*?)\}", render(sample()), re.S)[theme]
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    pairs = [("text", "page"), ("text", "card"), ("soft", "page"), ("soft", "card"), ("accent", "page")]
    pairs += [
        ("on-keep", "keep"),
        ("on-rule", "rule"),
        ("on-drop", "drop"),
        ("on-drop", "hatch"),
        ("on-boost", "boost"),
        ("on-open", "open"),
    ]
    pairs += [("text", "band"), ("soft", "band")]
    assert {
        p: round(_contrast(colour[p[0]], colour[p[1]]), 1)
        for p in pairs
        if _contrast(colour[p[0]], colour[p[1]]) < 4.5
    } == {}
    shades = sorted(_luminance(colour[v]) for v in ("keep", "rule", "drop", "boost", "open"))
    assert min(b / max(a, 1e-3) for a, b in pairwise(shades)) > 1.2


def test_terminal_map_fits_and_counts_every_verdict() -> None:
    text = heatmap.terminal(sample().cells, width=60)
    assert max(len(line) for line in text.splitlines()) <= 60
    rows = {
        line.split()[0]: line.split()[1:]
        for line in text.splitlines()
        if line.startswith(("feed", "shop", "mail"))
    }
    assert rows == {"feed/view": ["K", "K"], "shop/buy": ["D", "D"], "mail/open": ["·", "·"]}
    assert "8 cells: 2 keep, 2 drop, 2 boost, 2 undecided" in text


@pytest.mark.parametrize("segments", [1, 9, 25])
@pytest.mark.parametrize("planted", [False, True])
def test_terminal_map_stays_within_a_hundred_columns(segments: int, planted: bool) -> None:
    cells = [Cell(i, f"a rather long segment name {i}", "*", "s" * 60, True, "keep") for i in range(segments)]
    text = heatmap.terminal(cells, truth={(1, "s" * 60): "strong"} if planted else None)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert text.count(" K") >= segments


def test_terminal_map_marks_a_drop_of_something_that_matters() -> None:
    cells = [Cell(1, "one", "*", s, False, "drop") for s in ("a", "b")]
    text = heatmap.terminal(cells, truth={(1, "a"): "strong", (1, "b"): "null"})
    assert "D!strong" in text and "D null" in text


def test_what_a_rule_keeps_does_not_look_like_what_matters() -> None:
    """In the terminal, the page, its picture, and under another budget."""
    reasons = {"a": "dwell: 900 positives", "b": f"{COLD}negligible here, but segment 2 keeps the stream"}
    rows = [
        {"segment_id": 0, "stream": s, "keep": True, "verdict": "keep", "reason": r}
        for s, r in reasons.items()
    ]
    cells = cells_from_rows(rows)
    assert [c.face for c in cells] == ["keep", "rule"] and heatmap.counts(cells)["keep"] == 2
    text = heatmap.terminal(cells)
    assert [line.split() for line in text.splitlines()[1:3]] == [
        ["a", "K"],
        ["b", "k"],
    ] and "k keep by rule" in text
    for page, of in ((heatmap.html(cells), "v"), (picture(cells, title="t"), "b")):
        assert page.count(f'"{of}-keep"') == page.count(f'"{of}-rule"') == 1
    other = AtBudget(0.01, False, {(0, "a"): "rule", (0, "b"): "drop"}, 0.5)
    page = str(page_figures.heat_at(replace(sample(), cells=cells, truth=None), other))
    assert 'class="v-rule"' in page and 'class="v-drop"' in page and 'class="v-keep"' not in page


def test_both_tiers_stand_in_one_place() -> None:
    cells = [Cell(1, "one", t, "a", v == "keep", v) for t, v in (("passive", "keep"), ("active", "drop"))]
    assert "D|K" in heatmap.terminal(cells) and "v-mixed" in heatmap.html(cells)


def test_the_picture_has_a_place_a_cell_with_its_letter_and_escapes_names() -> None:
    data = sample()
    drawn = picture(data.cells, truth=data.truth, title=f'"{EVIL}"')
    tree = ElementTree.fromstring(drawn)
    boxes = Counter(node.get("class") for node in tree if node.tag == "rect")
    verdicts = {f"b-{v}": n for v, n in heatmap.faces(data.cells).items()}
    assert {css: boxes[css] for css in verdicts} == verdicts
    said = [node.text for node in tree if (node.get("class") or "").startswith("small on-")]
    table = heatmap.grid(data.cells)
    assert said == [
        heatmap.letters(found) + "!" * heatmap.is_wrong(found, (data.truth or {}).get((segment, stream)))
        for stream in table.streams
        for segment, _ in table.segments
        if (found := table.cells[segment, stream])
    ]
    assert tree.get("aria-label") == f'"{EVIL}"'
    wrong = picture([Cell(1, "one", "*", "a", False, "drop")], truth={(1, "a"): "strong"}, title="t")
    assert ">D!<" in wrong and ">D<" in picture([Cell(1, "one", "*", "a", False, "drop")], title="t")


def test_no_mask_is_said_in_the_terminal() -> None:
    assert "run `dynamix mask` first" in heatmap.terminal([])


def test_forest_shows_the_channel_that_reaches_furthest() -> None:
    base = Channel(1, "*", "a", "conversion", "dwell", beta=0.01, se=0.01)
    rows = (
        base,
        replace(base, channel="match", beta=-0.5),
        replace(base, channel="joint", beta=9.0),
        replace(base, se=None),
    )
    found = furthest(ReportData(channels=rows), 1, "*", "a")
    assert found is not None and found.channel == "match"


def test_truth_of_a_fitted_segment_is_that_of_most_of_its_users() -> None:
    pairs = [(1, 5, 90), (1, 2, 10), (2, 3, 7), (2, 4, 7)]
    cells = [(5, "a", "strong"), (2, "a", "null"), (3, "a", "weak"), (4, "a", "trace")]
    assert match_truth(pairs, cells) == {(1, "a"): "strong", (2, "a"): "weak"}


def test_writing_leaves_no_temporary_file_and_replaces_whole(tmp_path: Path) -> None:
    page = tmp_path / "deep" / "report.html"
    write_whole(page, "one")
    write_whole(page, "two")
    assert page.read_text(encoding="utf-8") == "two" and [p.name for p in page.parent.iterdir()] == [
        "report.html"
    ]


def test_newest_evidence_passes_over_damaged_files(tmp_path: Path) -> None:
    for run, text in (
        ("20240101T000000Z-aa", json.dumps({"delta_ne_pct": 1.0})),
        ("20240102T000000Z-bb", "{half"),
    ):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "evidence.json").write_text(text, encoding="utf-8")
    found = newest_evidence(tmp_path)
    assert found is not None and found[0].delta_ne_pct == 1.0 and found[1] == "20240101T000000Z-aa"
    assert newest_evidence(tmp_path / "nowhere") is None


def test_cells_from_rows_take_nulls_as_not_measured() -> None:
    row = {
        "segment_id": 2,
        "segment_name": "x",
        "tier": "*",
        "stream": "a",
        "keep": True,
        "verdict": "keep",
        "relevance": None,
    }
    assert cells_from_rows([row])[0].relevance is None


def test_a_cut_cell_shows_how_many_events_it_keeps() -> None:
    row = {
        "segment_id": 2, "segment_name": "x", "tier": "*", "stream": "a", "keep": True, "verdict": "keep", "quota": 10,
    }  # fmt: skip
    cut, whole = (cells_from_rows([row], whole=lambda _, n=n: n) for n in (50, 10))
    assert (cut[0].cut, whole[0].cut, cells_from_rows([row])[0].cut) == (True, False, False)
    assert "K10" in heatmap.terminal(cut) and "newest 10 events" in heatmap.terminal(cut)
    assert "K10" not in heatmap.terminal(whole)


def test_forget_takes_the_story_out_of_every_page_and_leaves_the_rest(tmp_path: Path) -> None:
    text = render(sample())
    pages = [tmp_path / "report.html", tmp_path / "runs" / "r1" / "report.html"]
    for page in pages:
        write_whole(page, text)
    write_whole(tmp_path / "other.html", "<p>no story</p>")
    assert cut_stories(tmp_path) == pages and cut_stories(tmp_path) == []
    left = pages[1].read_text(encoding="utf-8")
    assert (
        "Before the impression" in text and "Before the impression" not in left and "Taken out when" in left
    )
    assert Page(left).open == []
    before, after = text.split("<!-- story -->")[0], text.split("<!-- end of story -->")[1]
    assert left.startswith(before) and left.endswith(after)
    assert len(list(tmp_path.rglob("*.new"))) == 0
