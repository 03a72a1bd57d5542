"""Further weeks of a world: the same users, nothing written before changes, and a mask leaves out events, not lives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dynamix.errors import ConfigError
from dynamix.features import sim_world as W
from dynamix.features.sim_continue import WEEK, continue_world
from dynamix.features.simulate import WORLD_FILE, read_world, simulate
from dynamix.jobs.cli import main

USERS, DAYS = 120, 21
DAY = pd.Timedelta(days=1)


@pytest.fixture(scope="module", params=["S0", "S10"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "w"
    simulate(out, preset=request.param, users=USERS, days=DAYS, seed=4)
    return out


def copied(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "w"))


def table(out: Path, name: str, part: str = "*") -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted((out / name).glob(f"{part}.parquet"))])


def test_two_weeks_are_appended_and_what_was_there_stays(world: Path, tmp_path: Path) -> None:
    out = copied(world, tmp_path)
    before = {path: path.read_bytes() for path in sorted(out.rglob("*.parquet"))}
    told = [continue_world(out) for _ in range(2)]
    assert [t.first_day for t in told] == [DAYS, DAYS + WEEK]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert read_world(out).weeks == ("", "")
    start = pd.Timestamp(read_world(out).first, tz="UTC")
    for number, one in enumerate(told):
        week = table(out, "events", f"week-{number + 1:03d}")
        assert len(week) == one.events
        assert week["event_ts"].min() >= start + one.first_day * DAY
        assert week["event_ts"].max() < start + (one.first_day + WEEK) * DAY
    events = table(out, "events")
    assert events["event_id"].is_unique and events["user_id"].nunique() <= USERS
    share = told[0].content_events / (
        events["event_type"].isin(W.TYPES).sum() - sum(t.content_events for t in told)
    )
    assert share == pytest.approx(WEEK / DAYS, rel=0.2)
    assert abs(told[0].mean_p - W.BASE_RATE) < 0.02


def test_every_label_that_is_mature_has_its_conversion_and_no_other(world: Path, tmp_path: Path) -> None:
    out = copied(world, tmp_path)
    for _ in range(2):
        continue_world(out)
    events, truth = table(out, "events"), table(out, "truth_impressions")
    shown = events[events["event_type"] == "impression"].merge(
        truth, left_on="event_id", right_on="impression_id"
    )
    assert len(shown) == len(truth) == (events["event_type"] == "impression").sum()
    converted = events[events["event_type"] == "conversion"]
    assert (
        converted["event_ts"].max() - pd.Timestamp(read_world(out).first, tz="UTC")
    ) / DAY > DAYS + 2 * WEEK - 1.5
    pairs = converted.merge(shown, on=["user_id", "item_id"], suffixes=("", "_shown"))
    wait = pairs["event_ts"] - pairs["event_ts_shown"]
    own = pairs[(wait > pd.Timedelta(0)) & (wait <= DAY + pd.Timedelta(hours=3)) & (pairs["label"] == 1)]
    assert own["event_id"].nunique() == len(converted)  # each conversion belongs to a positive impression
    mature = shown[(shown["label"] == 1) & (shown["event_ts"] < events["event_ts"].max() - 2 * DAY)]
    assert set(mature["impression_id"]) <= set(own["impression_id"])


def test_equal_calls_append_equal_rows_and_a_killed_one_is_made_good(world: Path, tmp_path: Path) -> None:
    one, other = copied(world, tmp_path / "one"), copied(world, tmp_path / "other")
    (other / "events" / "week-001.parquet").write_bytes(b"torn")  # of a call that died before its note
    continue_world(one)
    continue_world(other)
    for name in ("events", "truth_impressions"):
        pd.testing.assert_frame_equal(table(one, name), table(other, name))
    assert json.loads((one / WORLD_FILE).read_text()) == json.loads((other / WORLD_FILE).read_text())


def test_a_mask_leaves_events_out_of_the_log_and_changes_no_label(world: Path, tmp_path: Path) -> None:
    plain, masked = copied(world, tmp_path / "plain"), copied(world, tmp_path / "masked")
    continue_world(plain)

    def policy(users: list[str], streams: tuple[str, ...]) -> np.ndarray:
        gone = np.zeros((len(users), len(streams)), bool)
        gone[: USERS // 2, [streams.index("feed/view"), streams.index("shop/click")]] = True
        return gone

    told = continue_world(masked, policy=policy, masks="m1")
    assert read_world(masked).weeks == ("m1",) and told.left_out > 0
    every, left = (table(out, "events", "week-001") for out in (plain, masked))
    lost = every[~every["event_id"].isin(left["event_id"]) & every["event_type"].isin(W.TYPES)]
    content = left[left["event_type"].isin(W.TYPES)]
    assert told.left_out + len(content) == every["event_type"].isin(W.TYPES).sum()
    under = content[content["user_id"] < f"u{USERS // 2:07d}"]
    named = under["surface"] + "/" + under["event_type"]
    assert len(under) and not named.isin(["feed/view", "shop/click"]).any() and len(lost)
    assert content["dwell_ms"].notna().mean() > 0.5  # else the gap would be read as the dwell of what is left
    pd.testing.assert_frame_equal(*(table(out, "truth_impressions") for out in (plain, masked)))


def test_what_cannot_go_on_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"holds no world\.json"):
        continue_world(tmp_path)
    simulate(tmp_path / "w", users=3, days=359, seed=0)
    with pytest.raises(ConfigError, match="allowed are 365 in all"):
        continue_world(tmp_path / "w")
    assert main(["simulate", "--out", str(tmp_path / "w"), "--continue", "--seed", "1"]) == 2
    assert main(["simulate", "--out", str(tmp_path / "w"), "--masks", "W"]) == 2
    said = capsys.readouterr().err
    assert "--seed is for a new one" in said and "--masks goes with --continue" in said
