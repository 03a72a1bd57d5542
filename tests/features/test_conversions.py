"""Attribution against a plain-Python reading of the rule, and the fate of odd conversions."""

from __future__ import annotations

import random
from typing import Any

import pytest
from event_frames import event_frame
from pyspark.sql import SparkSession

from dynamix.config import AttributionConfig, Config
from dynamix.errors import ConfigError
from dynamix.features.conversions import (
    SETTINGS,
    attribution_counts,
    label_impressions,
    longest_window_s,
    served_head,
    setting_label,
    with_settings,
)

pytestmark = pytest.mark.spark
Row = dict[str, Any]

KEYS = (("request_id", "item_id"), ("ad_id",), ("item_id",))
CONFIG = Config(attribution=AttributionConfig(click_window=50, view_window=20))


def shown(t: float, **more: Any) -> Row:
    return {"t": t, "event_type": "impression", **more}


def linked(a: Row, b: Row) -> bool:
    if a.get("user_id", "u") != b.get("user_id", "u"):
        return False
    for key in KEYS:
        left, right = [a.get(k) for k in key], [b.get(k) for k in key]
        if None not in left and None not in right:
            return left == right
    return False


def oracle(rows: list[Row], *, share: float = 1.0, touch: str = "last") -> dict[str, tuple[float, float]]:
    """Labels by the rule, with windows of `share` of their length; touch: last, first or any."""
    named = [{**row, "id": f"e{i}"} for i, row in enumerate(rows)]
    views = sorted(
        (r for r in named if r.get("event_type") == "impression"),
        key=lambda r: (r["t"], r.get("event_seq", -1), r.get("ingest", r["t"]), r["id"]),
    )
    chosen = {"last": slice(-1, None), "first": slice(0, 1), "any": slice(None)}[touch]
    clicked: dict[str, float] = {}
    for click in (r for r in named if r.get("event_type") == "click"):
        fitting = [v for v in views if linked(v, click) and 0 <= click["t"] - v["t"] <= 50 * share]
        for best in (v["id"] for v in fitting[chosen]):
            clicked[best] = min(clicked.get(best, click["t"]), click["t"])
    converted = set()
    for sale in (r for r in named if r.get("event_type") == "conversion"):
        fitting = [
            v
            for v in views
            if linked(v, sale)
            and 0 <= sale["t"] - v["t"] <= share * (50 if clicked.get(v["id"], 1e9) <= sale["t"] else 20)
        ]
        converted.update(v["id"] for v in fitting[chosen])
    return {v["id"]: (float(v["id"] in clicked), float(v["id"] in converted)) for v in views}


def labels(spark: SparkSession, rows: list[Row], config: Config = CONFIG) -> dict[str, tuple[Any, Any]]:
    found = label_impressions(event_frame(spark, rows), config=config).collect()
    assert len(found) == len({r.event_id for r in found})
    return {r.event_id: (r.label_click, r.label_conversion) for r in found}


def random_rows() -> list[Row]:
    rng = random.Random(3)
    rows: list[Row] = []
    for user in range(40):
        for _ in range(rng.randrange(14)):
            rows.append(
                {
                    "user_id": f"u{user}",
                    "t": rng.randrange(120),
                    "event_type": rng.choice(["impression", "impression", "click", "conversion", "view"]),
                    "request_id": rng.choice([None, "r1", "r2"]),
                    "item_id": rng.choice([None, "x", "y"]),
                    "ad_id": rng.choice([None, None, "a"]),
                    "event_seq": rng.choice([0, 1]),
                }
            )
    return rows


def test_random_rows_equal_the_oracle(spark: SparkSession) -> None:
    rows = random_rows()
    expected = oracle(rows)
    assert labels(spark, rows) == expected
    assert 0 < sum(c for _, c in expected.values()) < len(expected)


def test_every_attribution_setting_equals_the_oracle_and_none_is_another(spark: SparkSession) -> None:
    rows = random_rows()
    events = event_frame(spark, rows)
    found = with_settings(label_impressions(events, config=CONFIG), events, config=CONFIG).collect()
    ways = {"short": {"share": 0.5}, "first_touch": {"touch": "first"}, "any_touch": {"touch": "any"}}
    assert set(ways) == set(SETTINGS)
    expected = {setting: oracle(rows, **way) for setting, way in ways.items()}  # type: ignore[arg-type]
    for setting in SETTINGS:
        names = [f"label_{setting_label(head, setting)}" for head in ("click", "conversion")]
        assert {r["event_id"]: tuple(r[name] for name in names) for r in found} == expected[setting]
    different = [oracle(rows), *expected.values()]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])
    assert served_head(setting_label("click", "short")) == served_head("click") == "click"


def test_odd_conversions_are_counted_once_each_and_the_latest_impression_wins(spark: SparkSession) -> None:
    rows = [
        shown(100, item_id="x"),
        shown(110, item_id="x"),
        {"t": 115, "event_type": "conversion", "item_id": "x"},  # to e1, the later one
        {"t": 118, "event_type": "conversion", "item_id": "x"},  # again: repeated
        {"t": 90, "event_type": "conversion", "item_id": "x"},  # early
        {"t": 190, "event_type": "conversion", "item_id": "x"},  # late
        {"t": 115, "event_type": "conversion", "item_id": "z"},  # unmatched
        {"t": 115, "event_type": "conversion"},  # nothing to join on: unmatched
    ]
    assert labels(spark, rows) == {"e0": (0.0, 0.0), "e1": (0.0, 1.0)}
    counts = attribution_counts(event_frame(spark, rows), CONFIG).collect()[0].asDict()
    assert counts == {"conversions": 6, "attributed": 1, "repeated": 1, "early": 1, "late": 1, "unmatched": 2}


def test_windows_are_inclusive_and_a_click_widens_them(spark: SparkSession) -> None:
    rows = [
        shown(0, item_id="x"),
        {"t": 20, "event_type": "conversion", "item_id": "x"},
        shown(0, item_id="y"),
        {"t": 20.000001, "event_type": "conversion", "item_id": "y"},
        shown(0, item_id="z"),
        {"t": 5, "event_type": "click", "item_id": "z"},
        {"t": 50, "event_type": "conversion", "item_id": "z"},
    ]
    assert labels(spark, rows) == {"e0": (0.0, 1.0), "e2": (0.0, 0.0), "e4": (1.0, 1.0)}


def test_zero_windows_on_request_and_item_label_the_row_of_the_same_request(spark: SparkSession) -> None:
    rule = AttributionConfig(click_window=0, view_window=0, join_on=(("request_id", "item_id"),))
    config = Config(
        attribution=rule, click_types=(), conversion_types=("click_out",), prediction_rows="position < 3"
    )
    rows = [shown(9, request_id="r", item_id=item, position=p) for p, item in enumerate("xyzw")]
    rows += [{"t": 9, "event_type": "click_out", "request_id": "r", "item_id": "y", "position": 1}]
    assert labels(spark, rows, config) == {"e0": (None, 0.0), "e1": (None, 1.0), "e2": (None, 0.0)}
    ripe = label_impressions(event_frame(spark, rows), config=config).where("label_mature_ts = event_ts")
    assert ripe.count() == 3


def test_a_bad_filter_and_an_unknown_key_are_config_errors(spark: SparkSession) -> None:
    events = event_frame(spark, [shown(1)])
    with pytest.raises(ConfigError, match="prediction_rows"):
        label_impressions(events, config=Config(prediction_rows="nowhere > 1"))
    with pytest.raises(ConfigError, match="no_such_key"):
        label_impressions(events, config=CONFIG, attribution=AttributionConfig(join_on=(("no_such_key",),)))


def test_maturity_waits_for_the_longest_window_that_applies() -> None:
    assert longest_window_s(CONFIG) == 50
    assert longest_window_s(Config(click_types=(), attribution=CONFIG.attribution)) == 20
