"""Drift: the index against its formula, planted shifts found, chance not mistaken for one, one pass over the events."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from event_frames import event_frame
from pyspark.sql import SparkSession

from dynamix.config_parts import DriftConfig
from dynamix.features.drift import Group, Profile, compare, profile, profile_rows, psi, psi_noise

DAY = 86_400
SEEDS = 200


def test_psi_is_the_sum_of_the_formula() -> None:
    before, now = {3: 40, 5: 60}, {3: 10, 5: 80, 7: 10}
    wanted, total = 0.0, [100 + 1.5, 100 + 1.5]
    for b in (3, 5, 7):
        p, q = (before.get(b, 0) + 0.5) / total[0], (now.get(b, 0) + 0.5) / total[1]
        wanted += (q - p) * math.log(q / p)
    assert psi(before, now) == pytest.approx(wanted, rel=1e-12)
    assert psi(before, before) == 0.0
    assert psi(before, now) == pytest.approx(psi(now, before), rel=1e-12)


def test_chance_stays_below_the_noise_limit_as_often_as_said() -> None:
    """PSI / (1/n + 1/m) of equal distributions is chi-squared with bins - 1 degrees of freedom."""
    draw, weights = np.random.default_rng(0), np.arange(1, 13) / 78
    scaled = []
    for _ in range(2_000):
        a, b = draw.multinomial(4_000, weights), draw.multinomial(9_000, weights)
        scaled.append(psi(dict(enumerate(a.tolist())), dict(enumerate(b.tolist()))) / (1 / 4_000 + 1 / 9_000))
    # mean 11 and variance 22 within five standard errors of 2,000 draws
    assert np.mean(scaled) == pytest.approx(11, abs=5 * math.sqrt(22 / 2_000))
    assert np.var(scaled) == pytest.approx(22, rel=0.2)
    beyond = np.mean(np.array(scaled) > psi_noise(12, 4_000, 9_000) / (1 / 4_000 + 1 / 9_000))
    assert beyond < 0.01


def _world(seed: int, *, events: int, **shift: Any) -> Profile:
    """A profile of drawn events: four streams, log-normal dwells, two columns with NULLs, users on seven days."""
    draw = np.random.default_rng(seed)
    shares = shift.get("shares", (0.5, 0.3, 0.15, 0.05))
    names = np.array(["feed/view", "feed/click", "shop/view", "shop/conversion"])
    counts = draw.multinomial(events, shares)
    streams, segments, pairs = {}, {}, []
    for number, (name, n) in enumerate(zip(names.tolist(), counts.tolist(), strict=True)):
        dwell = np.floor(draw.normal(8.0 + 0.5 * number + shift.get("slower", 0.0), 1.2, n)).astype(int)
        user_day = draw.integers(0, events // 3, n)
        pairs.append(user_day)
        streams[name] = Group(n, len(np.unique(user_day)), dict(Counter(dwell.tolist())))
    whole = np.concatenate(pairs)
    for segment in (0, 1):
        own = whole[whole % 2 == segment]
        segments[str(segment)] = Group(len(own), len(np.unique(own)), {})
    nulls = {
        "item_id": int(draw.binomial(events, shift.get("nulls", 0.1))),
        "value": int(draw.binomial(events, 0.9)),
    }
    return Profile(events, len(np.unique(whole)), nulls, streams, segments)


def test_equal_worlds_are_not_flagged_over_200_seeds() -> None:
    baseline = {seed: _world(10_000 + seed, events=6_000) for seed in range(SEEDS)}
    flagged = [
        (seed, one.sentence)
        for seed in range(SEEDS)
        for one in compare(baseline[seed], _world(seed, events=2_000), DriftConfig())
        if one.drifted
    ]
    assert flagged == []
    assert len(compare(baseline[0], _world(0, events=2_000), DriftConfig())) >= 2 + 2 * 6 + 2


@pytest.mark.parametrize(
    ("shift", "found"),
    [
        ({"slower": 1.0}, {("psi of dwell", "stream feed/view"), ("psi of dwell", "stream feed/click")}),
        ({"nulls": 0.2}, {("null_rate", "item_id")}),
        (
            {"shares": (0.5, 0.3, 0.2, 0.0)},
            {
                ("share of events", "stream shop/conversion"),
                ("share of user_days", "stream shop/conversion"),
            },
        ),
    ],
)
def test_a_planted_shift_is_found_for_every_seed(shift: dict[str, Any], found: set[tuple[str, str]]) -> None:
    for seed in range(20):
        findings = compare(
            _world(seed, events=6_000), _world(99 + seed, events=3_000, **shift), DriftConfig()
        )
        assert {(one.measure, one.name) for one in findings if one.drifted} == found


def test_few_rows_are_not_judged() -> None:
    few = _world(1, events=400, slower=3.0)
    assert compare(_world(0, events=6_000), few, DriftConfig()) == []


def _rows(seed: int, n: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    return [
        {
            "t": int(draw.integers(0, 3 * DAY)),
            "user_id": f"u{draw.integers(0, 9)}",
            "surface": str(draw.choice(["shop", "feed"])),
            "event_type": str(draw.choice(["view", "impression"])),
            "dwell_ms": int(draw.integers(0, 90_000)) if draw.random() < 0.6 else None,
            "item_id": "i" if draw.random() < 0.7 else None,
        }
        for _ in range(n)
    ]


@pytest.mark.spark
def test_a_profile_counts_what_plain_python_counts_and_survives_a_file(spark: SparkSession) -> None:
    rows = _rows(3, 300)
    segments = spark.createDataFrame(
        [("u1", 2), ("u2", 2), ("u3", 5), ("nobody", 1)], "user_id string, segment_id int"
    )
    told = profile_rows(event_frame(spark, rows).repartition(3), segments, columns=["item_id", "value"])
    found = profile(row.asDict() for row in told.collect())
    own = {"u1": "2", "u2": "2", "u3": "5"}
    wanted: dict[str, dict[str, dict[str, Any]]] = {
        kind: defaultdict(lambda: {"n": 0, "days": set(), "bins": Counter()})
        for kind in ("stream", "segment")
    }
    for row in rows:
        keys = ("stream", f"{row['surface']}/{row['event_type']}"), ("segment", own.get(row["user_id"], "0"))
        for kind, name in keys:
            cell = wanted[kind][name]
            cell["n"] += 1
            cell["days"].add((row["user_id"], row["t"] // DAY))
            if row["dwell_ms"] is not None:
                cell["bins"][math.floor(math.log1p(row["dwell_ms"]))] += 1
    for kind, groups in (("stream", found.streams), ("segment", found.segments)):
        assert groups == {
            name: Group(cell["n"], len(cell["days"]), dict(cell["bins"]))
            for name, cell in wanted[kind].items()
        }
    assert (found.events, found.user_days) == (300, len({(r["user_id"], r["t"] // DAY) for r in rows}))
    assert found.nulls == {"item_id": sum(r["item_id"] is None for r in rows), "value": 300}
    assert Profile.from_json(json.loads(json.dumps(found.to_json()))) == found
    empty = profile(
        r.asDict() for r in profile_rows(event_frame(spark, rows).limit(0), None, columns=["value"]).collect()
    )
    assert empty == Profile(0, 0, {}, {}, {}) or (empty.events, empty.streams) == (0, {})
