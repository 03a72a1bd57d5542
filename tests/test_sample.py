"""The sample of the documentation: made from a demo, names no place on a machine, and the gallery has every chart."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_pages import sample

from dynamix.jobs import figures
from dynamix.jobs.artefacts import figure_files
from dynamix.jobs.notebook import Shown
from dynamix.jobs.report import render

PROJECT = Path(__file__).resolve().parents[1]
SCRIPT = runpy.run_path(str(PROJECT / "scripts" / "sample.py"))


def finished_demo(place: Path, *, more: str = "") -> Path:
    """A demo's folder with the report and the figures of made-up data."""
    private = place / "full" / "warehouse" / "_dynamix"
    run = private / "runs" / "1" / "figures"
    run.mkdir(parents=True)
    (private / "report.html").write_text(render(sample()) + more, encoding="utf-8")
    for name, text in figure_files(sample()).items():
        (run / name).write_text(text, encoding="utf-8")
    return place


def test_a_sample_is_the_page_its_receipt_and_drawings_that_stand_alone(tmp_path: Path) -> None:
    SCRIPT["main"](finished_demo(tmp_path / "demo"), tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"report.html", "receipt.txt", *SCRIPT["DRAWINGS"].values(), *SCRIPT["STORY"]}
    assert found == {path.name for path in (PROJECT / "docs" / "sample").iterdir()}
    for path in (tmp_path / "out").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and "--page" in (root[0].text or "")


def test_a_page_that_names_a_place_on_this_machine_is_no_sample(tmp_path: Path) -> None:
    demo = finished_demo(tmp_path / "demo", more=f"<p>{Path('/home')}/somebody/W</p>")
    with pytest.raises(SystemExit, match=r"report\.html names /home/somebody/W"):
        SCRIPT["main"](demo, tmp_path / "out")
    with pytest.raises(SystemExit, match="run `make demo` first"):
        SCRIPT["main"](tmp_path, tmp_path / "out")


def test_the_gallery_names_every_chart_and_its_pictures_are_there() -> None:
    page = (PROJECT / "docs" / "gallery.md").read_text(encoding="utf-8")
    charts = {
        name
        for name, function in vars(figures).items()
        if inspect.isfunction(function)
        and function.__module__ == figures.__name__
        and not name.startswith("_")
        and inspect.signature(function).return_annotation in ("Shown", Shown)
    }
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.M)) == charts
    for text, folder in ((page, "docs"), ((PROJECT / "README.md").read_text(encoding="utf-8"), ".")):
        pictures = re.findall(r'<img src="([^"]+)"', text)
        assert pictures and all((PROJECT / folder / picture).is_file() for picture in pictures)
