"""The page in a real browser, on a phone and on a desk, light and dark. Screenshots stay in a folder that is printed."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

import pytest
from browser import Page, browser, find_chromium, mean_grey
from report_pages import sample

from dynamix.jobs.report import render

SIZES = ((390, 844), (1440, 900))
FACES = ("keep", "rule", "drop", "undecided", "boost")
NEEDED = 4.5
"""WCAG 2.1 AA for text."""
GREY_APART = 12.0
"""Of 255, between the mean greys of two boxes of the key: about the smallest step of ten equal ones that print tells."""

CONTRAST = """
(() => {
  const parse = (text) => [...text.matchAll(/rgba?\\(([^)]*)\\)/g)].map((m) => m[1].split(/[ ,/]+/).map(Number));
  const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (c) => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const style = getComputedStyle(e), image = parse(style.backgroundImage);
      if (image.length) return image;
      const colour = parse(style.backgroundColor)[0];
      if (colour && (colour.length < 4 || colour[3] === 1)) return [colour];
    }
    return [[255, 255, 255]];
  };
  const found = { checked: 0, low: [] };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const element = node.parentElement, text = node.data.trim();
    if (!text || element.closest('title, style') || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const front = parse(element.closest('svg') ? style.fill : style.color)[0];
    const backs = behind(element);
    if (element.closest('svg') && element.closest('svg').querySelector('.band'))
      backs.push(parse(getComputedStyle(element.closest('svg').querySelector('.band')).fill)[0]);
    found.checked += 1;
    const least = Math.min(...backs.map((back) => ratio(front, back)));
    if (least < NEEDED) found.low.push([text.slice(0, 40), least]);
  }
  return found;
})()
""".replace("NEEDED", str(NEEDED))
ROWS = """[...document.querySelectorAll('#cells tbody tr')].map((row) => [row.cells[0].textContent.split(' ')[0],
  row.cells[1].textContent, row.cells[2].textContent, row.cells[3].textContent.split(' ')[1]].join('|'))"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BOXES = """Object.fromEntries(FACES.map((v) => {
  const r = document.querySelector('.key .v-' + v).getBoundingClientRect();
  return [v, {x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height}]; }))""".replace(
    "FACES", str(list(FACES))
)
SHOWN_MAPS = "[...document.querySelectorAll('.at')].map((e) => e.checkVisibility())"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, Path]]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no chromium here: the page was not looked at in a browser (apt-get install chromium)")
    folder = tmp_path_factory.mktemp("report-in-browser")
    path = folder / "report.html"
    path.write_text(render(sample()), encoding="utf-8")
    with browser(chromium, folder / "profile") as tab:
        yield tab, path
    print(f"screenshots: {folder}")


@pytest.mark.parametrize(("size", "dark"), list(product(SIZES, (False, True))))
def test_the_page_is_legible_and_quiet(page: tuple[Page, Path], size: tuple[int, int], dark: bool) -> None:
    tab, path = page
    seen = len(tab.events)
    tab.show(path, width=size[0], height=size[1], dark=dark)
    tab.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    name = f"report-{size[0]}x{size[1]}-{'dark' if dark else 'light'}.png"
    (path.parent / name).write_bytes(tab.screenshot(whole=True))
    assert tab.evaluate(OVERFLOW) <= 0
    found = tab.evaluate(CONTRAST)
    assert found["checked"] > 200 and found["low"] == []
    wanted = [f"{c.segment_id}|{c.tier}|{c.stream}|{c.verdict}" for c in sample().cells]
    assert sorted(tab.evaluate(ROWS)) == sorted(wanted)
    told = tab.events[seen:]
    asked = [t["params"]["request"]["url"] for t in told if t.get("method") == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}
    for method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
        assert [t for t in told if t.get("method") == method] == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_verdicts_differ_without_colour(page: tuple[Page, Path], dark: bool) -> None:
    tab, path = page
    tab.show(path, width=1440, height=900, dark=dark)
    tab.call("Emulation.setEmulatedVisionDeficiency", type="achromatopsia")
    try:
        boxes = tab.evaluate(BOXES)
        grey = {v: mean_grey(tab.screenshot(clip=boxes[v])) for v in FACES}
    finally:
        tab.call("Emulation.setEmulatedVisionDeficiency", type="none")
    assert {
        pair for pair in combinations(FACES, 2) if abs(grey[pair[0]] - grey[pair[1]]) < GREY_APART
    } == set()
    letters = re.findall(r'class="box v-\w+">(.) (.)</span>', html.unescape(path.read_text(encoding="utf-8")))
    assert len({letter for letter, _ in letters}) == len({symbol for _, symbol in letters}) == len(FACES)


def test_one_budget_is_shown_at_a_time_and_the_arrow_keys_change_it(page: tuple[Page, Path]) -> None:
    tab, path = page
    tab.show(path, width=390, height=844, dark=False)
    assert tab.evaluate(SHOWN_MAPS) == [False, True, False]
    tab.evaluate("document.querySelector('#budget-1').focus()")
    key = {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39}
    tab.call("Input.dispatchKeyEvent", type="rawKeyDown", **key)
    tab.call("Input.dispatchKeyEvent", type="keyUp", **key)
    assert tab.evaluate(SHOWN_MAPS) == [False, False, True]
