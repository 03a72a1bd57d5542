"""Charts are well-formed, escape their data and put each number where it belongs."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from scipy.stats import binomtest

from dynamix.jobs import charts
from dynamix.jobs import svg as primitives


@pytest.mark.parametrize(("k", "n"), [(0, 10), (5, 100), (37, 40), (3160, 63210)])
def test_wilson_equals_the_interval_of_scipy(k: int, n: int) -> None:
    other = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert charts.wilson(k, n) == pytest.approx((other.low, other.high), abs=1e-6)


def test_wilson_of_no_rows_is_the_whole_range() -> None:
    assert charts.wilson(0, 0) == (0.0, 1.0)


def test_ticks_are_round_and_inside() -> None:
    assert primitives.ticks(-0.53, 0.53) == [-0.5, 0.0, 0.5]
    assert primitives.ticks(-0.41, 0.41) == [-0.4, -0.2, 0.0, 0.2, 0.4]
    assert primitives.ticks(0.8801, 0.9026) == [0.885, 0.89, 0.895, 0.9]
    assert primitives.ticks(3, 3) == [3]


def test_forest_bars_end_where_the_intervals_end() -> None:
    svg = charts.forest([charts.ForestRow("a", 0.1, 0.05, "keep")], delta=0.1, title="t")
    root = ElementTree.fromstring(svg)
    thin = next(line for line in root.iter("line") if line.get("class") == "thin")
    band = next(root.iter("rect"))
    scale = float(band.get("width", "")) / 0.2  # units per log-odds, from the ±0.1 band
    zero = float(band.get("x", "")) + 0.1 * scale
    ends = [(float(thin.get(key, "")) - zero) / scale for key in ("x1", "x2")]
    assert ends == pytest.approx([0.1 - 1.96 * 0.05, 0.1 + 1.96 * 0.05], abs=2e-3)


def test_an_interval_beyond_the_drawing_ends_in_an_arrow_and_stays_inside() -> None:
    svg = charts.forest([charts.ForestRow("a", 0.0, 9.0, "undecided")], delta=0.1, title="t")
    assert "‹" in svg and "›" in svg
    xs = [float(v) for v in re.findall(r'x[12]="([-0-9.]+)"', svg)]
    assert min(xs) >= 0 and max(xs) <= primitives.WIDTH


def test_dots_differ_in_shape_so_that_colour_is_not_needed() -> None:
    svg = charts.dots([charts.Dot(str(i), 0.9 + i / 100, mark=i) for i in range(3)], title="t", unit="NE")
    assert "<circle" in svg and "<rect" in svg and "<polygon" in svg


def test_curve_keeps_the_order_of_bins_and_higher_rates_stand_higher() -> None:
    rates = [charts.Rate("low", 0.01, 0.005, 0.02, 100), charts.Rate("high", 0.05, 0.04, 0.06, 100)]
    root = ElementTree.fromstring(charts.curve(rates, title="t", unit="u", base_rate=0.03))
    centres = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter("circle")]
    assert centres[0][0] < centres[1][0] and centres[0][1] > centres[1][1]


@pytest.mark.parametrize(
    "svg",
    [
        charts.forest([charts.ForestRow('<b>&"', 0.1, 0.1, "keep", "<i>")], delta=0.1, title='"<x>'),
        charts.dots([charts.Dot('<b>&"', 1.0, 0.9, 1.1)], title='"<x>', unit="<u>"),
        charts.curve([charts.Rate('<b>&"', 0.1, 0.0, 0.2, 3)], title='"<x>', unit="<u>"),
        charts.forest([], delta=0.1, title='"<x>'),
        charts.bars([charts.Bar('<b>&"', 1.0)], title='"<x>', unit="<u>"),
        charts.series({'<b>&"': [1.0]}, ["<i>"], title='"<x>', unit="<u>"),
        charts.plane([charts.Point('<b>&"', 1.0, 2.0)], title='"<x>', across="<u>", up="<i>"),
    ],
)
def test_names_are_escaped_and_the_drawing_is_well_formed(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    assert {e.tag for e in root.iter()}.isdisjoint({"b", "i", "x", "u"})
    assert root.get("aria-label") == '"<x>'


def test_a_single_value_without_interval_can_be_drawn() -> None:
    assert "0.9000" in charts.dots([charts.Dot("only", 0.9)], title="t", unit="NE")


def test_bars_are_as_long_as_their_values() -> None:
    svg = charts.bars(
        [charts.Bar("a", 10.0), charts.Bar("b", 5.0), charts.Bar("c", 0.0)], title="t", unit="u"
    )
    widths = [float(r.get("width", "")) for r in ElementTree.fromstring(svg).iter("rect")]
    assert widths[1] == pytest.approx(widths[0] / 2) and widths[2] == 0 < widths[0]


def test_a_series_has_one_mark_a_known_value_in_its_order() -> None:
    lines = {"a": [1.0, None, 3.0], "b": [2.0, 2.0, 2.0]}
    root = ElementTree.fromstring(charts.series(lines, ["x", "y", "z"], title="t", unit="u"))
    assert [g.findtext("title") for g in root.iter("g")] == [
        "a, x: 1", "a, z: 3", "b, x: 2", "b, y: 2", "b, z: 2"
    ]  # fmt: skip
    heights = [float(c.get("cy", "")) for g in root.iter("g") for c in g.iter("circle")]
    assert heights[0] > heights[1]  # larger values stand higher
    marks = {next(iter(g.iter(shape)), None) is not None for g in root.iter("g") for shape in ("rect",)}
    assert marks == {True, False}  # shape tells the lines apart


def test_a_plane_puts_points_and_their_intervals_where_they_belong() -> None:
    points = [charts.Point("left", 10.0, 0.9, 0.88, 0.92), charts.Point("right", 30.0, 0.8)]
    root = ElementTree.fromstring(charts.plane(points, title="t", across="tokens", up="NE"))
    left, right = list(root.iter("g"))
    circle = next(left.iter("circle"))
    square = next(right.iter("rect"))
    assert float(circle.get("cx", "")) < float(square.get("x", ""))
    assert float(circle.get("cy", "")) < float(square.get("y", ""))
    bar = next(left.iter("line"))
    ends = [float(bar.get(key, "")) for key in ("y1", "y2")]
    assert sum(ends) / 2 == pytest.approx(float(circle.get("cy", "")), abs=0.1)
    assert list(right.iter("line")) == []


@pytest.mark.parametrize(
    "svg",
    [
        charts.bars([], title="t", unit="u"),
        charts.series({"a": [None]}, ["x"], title="t", unit="u"),
        charts.plane([], title="t", across="x", up="y"),
    ],
)
def test_a_drawing_of_nothing_says_so(svg: str) -> None:
    assert list(ElementTree.fromstring(svg).iter("title")) == []
    assert "nothing was counted" in svg or "not measured" in svg
