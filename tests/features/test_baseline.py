"""Stream moments and shrunken habits against NumPy; habits come from the earlier window alone."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest
from event_frames import event_frame
from pyspark.sql import SparkSession

from dynamix.config import Config
from dynamix.features.baseline import fit_streams, user_stats
from dynamix.features.calendar import build_calendar

pytestmark = pytest.mark.spark
DAY = 86400
RUN = date(2024, 2, 12)  # 42 days after the start of the frames


def planted(users: int = 30) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [{"t": 0, "user_id": "silent", "event_type": "impression"}]
    for user in range(users):
        habit = rng.normal(0, 0.8)
        for _ in range(int(rng.integers(1, 9))):
            surface = rng.choice(["shop", "feed"])
            mean = {"shop": 8.0, "feed": 6.0}[surface]
            dwell = int(np.exp(mean + habit + rng.normal(0, 0.5)))
            rows.append(
                {
                    "t": int(rng.integers(7 * DAY)),
                    "user_id": f"u{user}",
                    "surface": surface,
                    "dwell_ms": dwell,
                }
            )
    return [{**row, "surface": str(row.get("surface", "shop"))} for row in rows]


def oracle(rows: list[dict[str, Any]]) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[int, float]]]:
    """(mu, sigma) per surface and (n, habit) per user by the one-way ANOVA formulas."""
    known = [r for r in rows if r.get("dwell_ms") is not None]
    x = {s: np.log1p([r["dwell_ms"] for r in known if r["surface"] == s]) for s in ("shop", "feed")}
    scale = {s: (float(v.mean()), float(v.std(ddof=1))) for s, v in x.items()}
    groups: dict[str, list[float]] = {}
    for r in known:
        groups.setdefault(r["user_id"], []).append(float(np.log1p(r["dwell_ms"])) - scale[r["surface"]][0])
    n = np.array([len(v) for v in groups.values()])
    means = np.array([np.mean(v) for v in groups.values()])
    grand = (n * means).sum() / n.sum()
    within = sum(((np.array(v) - np.mean(v)) ** 2).sum() for v in groups.values()) / (n.sum() - len(n))
    size = (n.sum() - (n**2).sum() / n.sum()) / (len(n) - 1)
    between = max(0.0, ((n * (means - grand) ** 2).sum() / (len(n) - 1) - within) / size)
    kappa = within / between
    return scale, {u: (len(v), len(v) / (len(v) + kappa) * float(np.mean(v))) for u, v in groups.items()}


def run(spark: SparkSession, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    events = event_frame(spark, rows)
    calendar = build_calendar(RUN, first_event=event_start())
    streams = fit_streams(events, config=Config(), calendar=calendar).cache()
    users = user_stats(events, streams, config=Config(), calendar=calendar)
    return {r.stream: r for r in streams.collect()}, {r.user_id: r for r in users.collect()}


def event_start() -> Any:
    from event_frames import START

    return START


def test_moments_and_habits_equal_the_textbook_formulas(spark: SparkSession) -> None:
    rows = planted()
    scale, habits = oracle(rows)
    # whatever happens from day 8 on moves nothing (docs/method.md E2)
    later = [{"t": 7 * DAY + i, "user_id": "u0", "dwell_ms": 10**7} for i in range(50)]
    streams, users = run(spark, rows + later)
    for surface, (mu, sigma) in scale.items():
        assert streams[f"{surface}/view"].mu == pytest.approx(mu, abs=1e-5)
        assert streams[f"{surface}/view"].sigma == pytest.approx(sigma, abs=1e-4)
    for user, (n, habit) in habits.items():
        assert users[user].n == n
        assert users[user].habit == pytest.approx(habit, abs=1e-4)
    assert (users["silent"].n, users["silent"].habit) == (0, 0.0)
    assert users["u0"].last_ts > users["u0"].first_ts
    assert {u.baseline_version for u in users.values()} == {"b2024010100-2024010800"}


def test_one_user_or_identical_users_give_no_habit_and_no_nan(spark: SparkSession) -> None:
    alone = [{"t": i, "user_id": "only", "dwell_ms": 100 * i} for i in range(5)]
    _, users = run(spark, alone)
    assert users["only"].n == 5 and users["only"].habit == 0.0
    equal = [{"t": i, "user_id": f"u{i % 2}", "dwell_ms": 500} for i in range(6)]
    streams, users = run(spark, equal)
    assert streams["shop/view"].sigma == 0.0
    assert {u.habit for u in users.values()} == {0.0}


def test_short_spans_have_no_habits_and_fit_on_the_statistics_period(spark: SparkSession) -> None:
    rows = [{"t": h * 3600, "user_id": "u", "dwell_ms": 1000 if h < 24 else 10**6} for h in range(48)]
    events = event_frame(spark, rows)
    calendar = build_calendar(date(2024, 1, 3), first_event=event_start())
    streams = fit_streams(events, config=Config(), calendar=calendar)
    assert streams.first()["mu"] == pytest.approx(np.log1p(1000), abs=1e-5)
    row = user_stats(events, streams, config=Config(), calendar=calendar).first()
    assert (row["n"], row["habit"]) == (0, 0.0)
