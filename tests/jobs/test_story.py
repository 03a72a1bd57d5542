"""One user's story as values, text and drawings."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from report_pages import EVIL, sample, told

from dynamix.features.quotas import CUT, KEPT, OUTSIDE, REMOVED
from dynamix.jobs import figures, story_charts
from dynamix.jobs.artefacts import figure_files
from dynamix.jobs.report_data import ReportData
from dynamix.jobs.sensitive import hidden_story
from dynamix.jobs.story_data import (
    IMPRESSION,
    Bar,
    Past,
    Score,
    Story,
    by_stream,
    lines,
    shortened,
    summary,
)

PAST = (
    Past("feed/view", 90_000.0, OUTSIDE), Past("feed/view", 7200.0, CUT), Past("shop/buy", 3700.0, REMOVED),
    Past("feed/view", 400.0, KEPT, boosted=True), Past("feed/like", 300.0, KEPT, usable=False, censored=True),
    Past("feed/like", 200.0, KEPT, usable=False),
)  # fmt: skip
STORY = Story("as asked", "m1", "proposed", 2, "shoppers", "active", False, "test", "conversion", False, PAST)
SCORE = Score(
    "conversion", 0.05, 0.09, (Bar(IMPRESSION, 0.05, 0.08), Bar("feed/view", 0.08, 0.09)), "models:/r/1", "m1"
)


def test_events_are_counted_by_stream_and_fate() -> None:
    assert [(c.stream, c.kept, c.cut, c.removed, c.outside, c.boosted, c.censored) for c in by_stream(STORY)] == [
        ("feed/like", 2, 0, 0, 0, 0, 1), ("feed/view", 1, 1, 0, 1, 1, 0), ("shop/buy", 0, 0, 1, 0, 0, 0),
    ]  # fmt: skip
    assert "5 of 6 earlier events" in summary(STORY)
    assert "keeps 3, removes 1 of dropped streams and cuts 1 older ones. 1 of the kept" in summary(STORY)
    assert "hold-out" in summary(replace(STORY, holdout=True)) and "hold-out" not in summary(STORY)
    assert "sees the impression alone" in summary(replace(STORY, events=()))


def test_the_text_tells_fates_and_the_way_to_the_score() -> None:
    text = " ".join("\n".join(lines(replace(STORY, score=replace(SCORE, masked=0.07)))).split())
    for part in (
        "2 h before feed/view cut", "kept, boosted", "kept, censored", "kept, no dwell known", "base rate 5.00 %",
        "impression alone +3.00 pp", "feed/view +1.00 pp", "score 9.00 %", "same model says 7.00 %",
    ):  # fmt: skip
        assert part in text, part
    assert "not measured, no model" in "\n".join(lines(replace(STORY, untold="no model")))


@pytest.mark.parametrize("most", [3, 5, 40])
def test_small_bars_are_summed_up_and_nothing_is_lost(most: int) -> None:
    ends = [0.05, 0.08, 0.07, 0.0701, 0.02, 0.0203, 0.06]
    names = (IMPRESSION, "a", "b", "c", "d", "e")
    bars = tuple(Bar(n, a, b) for n, a, b in zip(names, ends[:-1], ends[1:], strict=True))
    found = shortened(replace(SCORE, bars=bars, score=0.06), most=most)
    assert len(found) <= most and found[0].before == 0.05 and found[-1].after == 0.06
    assert [b.after for b in found[:-1]] == pytest.approx([b.before for b in found[1:]])
    assert sum(b.adds for b in found) == pytest.approx(0.01)
    if most == 3:
        assert [b.name for b in found] == [IMPRESSION, "c", "4 other streams"]


def test_sensitive_streams_go_under_their_numbers_everywhere() -> None:
    story = replace(STORY, score=SCORE, segment_name="feed/view 3.0x")
    hidden = hidden_story(story, {"feed/view": "sensitive stream 1"})
    assert "feed/view" not in repr(hidden) and repr(hidden).count("sensitive stream 1") == 5
    lane = {e.lane for e in hidden.events}
    assert lane == {"sensitive stream 1", "feed", "shop"}


def test_the_timeline_puts_what_stays_above_the_line_and_what_goes_below() -> None:
    root = ElementTree.fromstring(story_charts.timeline(STORY, title="t"))
    marks = {g.findtext("title") or "": g for g in root.iter("g")}
    assert len(marks) == len(PAST)
    line = {t.text: float(t.get("y", "")) - 4 for t in root.iter("text") if t.text in ("feed", "shop")}
    kept = next(g for title, g in marks.items() if "kept, no dwell" in title).find("circle")
    assert kept is not None and float(kept.get("cy", "")) < line["feed"] and kept.get("class") == "ring"
    removed = next(g for title, g in marks.items() if "removed" in title)
    crosses = removed.findall("line")
    assert len(crosses) == 2 and all(float(c.get("y1", "")) > line["shop"] for c in crosses)
    newer = next(g for title, g in marks.items() if "boosted" in title).find("polygon")
    older = next(g for title, g in marks.items() if ": cut" in title).find("line")
    assert newer is not None and older is not None
    assert float(newer.get("points", "").split(",")[0]) > float(older.get("x2", ""))


def test_the_waterfall_has_no_gap_and_tells_down_from_up_by_shape() -> None:
    score = replace(SCORE, bars=(*SCORE.bars, Bar("b", 0.09, 0.06)), score=0.06)
    root = ElementTree.fromstring(story_charts.waterfall(score, title="t"))
    bars = list(root.iter("rect"))
    assert [r.get("class") for r in bars] == ["c0", "c0", "hollow"]
    ends = [(float(r.get("x", "")), float(r.get("x", "")) + float(r.get("width", ""))) for r in bars]
    assert ends[0][1] == pytest.approx(ends[1][0], abs=0.2) and ends[1][1] == pytest.approx(
        ends[2][1], abs=0.2
    )


def test_many_surfaces_share_the_last_lane_and_names_are_escaped() -> None:
    many = tuple(Past(f"s{i}/view", 60.0 * i, KEPT) for i in range(20))
    root = ElementTree.fromstring(story_charts.timeline(replace(STORY, events=many), title='"<x>'))
    assert len(list(root.iter("g"))) == 20
    assert "elsewhere" in {t.text for t in root.iter("text")}
    assert EVIL not in story_charts.timeline(told(), title="t")
    assert "no earlier event" in story_charts.timeline(replace(STORY, events=()), title="t")


def test_figures_are_files_that_stand_alone_and_hold_no_story() -> None:
    found = figure_files(sample())
    assert {
        "receipt.txt",
        "verdicts.html",
        "arms.svg",
        "ne-over-tokens.svg",
        "drift.svg",
        "watch.svg",
    } <= set(found)
    assert {"equivalence-0.svg", "equivalence-1.svg", "dwell-0.svg"} <= set(found)
    for name, text in found.items():
        assert "Before the impression" not in text and "<script" not in text
        if name.endswith(".svg"):
            root = ElementTree.fromstring(text)
            assert root.tag == "{http://www.w3.org/2000/svg}svg" and "--page" in (root[0].text or "")


def test_a_notebook_shows_the_story_and_the_drift_with_their_text() -> None:
    shown = figures.story(sample())
    assert "From base rate to score" in shown.body and "impression alone" in shown.text
    assert "not measured" in figures.story(ReportData()).text == figures.drift(ReportData()).text
    assert "dwell of" in figures.drift(sample()).text and "<svg" in figures.drift(sample()).body
