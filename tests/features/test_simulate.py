"""Simulated worlds against brute force and against their own planted truth."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score

from dynamix.config import load_config
from dynamix.contracts import RAW_COLUMNS
from dynamix.errors import ConfigError
from dynamix.features import sim_labels, sim_tables
from dynamix.features import sim_world as W
from dynamix.features.simulate import Simulation, bayes_segments, draw, simulate

DAY_US = 86_400_000_000
GAP_US = 30 * 60 * 1_000_000


def _events(drawn: Simulation, seed: int = 0) -> pa.Table:
    return sim_tables.event_table(
        drawn.world,
        drawn.content,
        drawn.impressions,
        drawn.conversions,
        start=date(2026, 1, 5),
        rng=np.random.default_rng(seed),
    )


@pytest.fixture(scope="module")
def small() -> Simulation:
    return draw(preset="S0", users=400, seed=3)


@pytest.fixture(scope="module")
def small_rows(small: Simulation) -> list[dict[str, object]]:
    columns = ["user_id", "event_ts", "event_seq", "event_id", "event_type", "item_id", "surface"]
    table = _events(small).select(columns)
    return table.set_column(1, "event_ts", table["event_ts"].cast(pa.int64())).to_pylist()


@pytest.fixture(scope="module")
def large() -> Simulation:
    return draw(preset="S0", users=6000, seed=1)


def test_equal_seeds_give_equal_rows_and_other_seeds_do_not() -> None:
    first, again, other = (_events(draw(users=60, days=10, seed=seed)) for seed in (5, 5, 6))
    assert first.equals(again)
    assert not first.equals(other)


def test_events_have_the_canonical_columns_and_unique_ids(small: Simulation) -> None:
    table = _events(small)
    assert table.column_names == [column.name for column in RAW_COLUMNS]
    assert len(set(table["event_id"].to_pylist())) == table.num_rows
    assert table["dwell_ms"].null_count == table.num_rows  # the pipeline derives it
    shown = table.filter(pc.equal(table["event_type"], "impression"))
    for name in ("item_id", "request_id", "position", "ad_id", "advertiser_id", "campaign_id"):
        assert shown[name].null_count == 0
    order = list(
        zip(table["user_id"].to_pylist(), table["event_ts"].cast(pa.int64()).to_pylist(), strict=True)
    )
    assert order == sorted(order)


def test_rates_are_those_of_the_constants(large: Simulation) -> None:
    users = len(large.users.segment)
    expected = W.EVENTS_MEDIAN * math.exp(W.EVENTS_LOG_SD**2 / 2)  # mean of the log-normal: 103
    assert len(large.content.user) / users == pytest.approx(expected, rel=0.05)
    assert len(large.impressions.user) / users == pytest.approx(20, rel=0.03)
    assert large.truth.p.mean() == pytest.approx(W.BASE_RATE, abs=1e-6)
    se = math.sqrt(0.05 * 0.95 / len(large.truth.label))
    assert large.truth.label.mean() == pytest.approx(W.BASE_RATE, abs=4 * se)
    shares = np.bincount(large.users.segment, minlength=6) / users
    assert shares == pytest.approx(W.SEGMENT_SHARES, abs=0.03)


@pytest.mark.parametrize(("preset", "null", "match"), [("S0", 12, 0), ("S1", 12, 0), ("S8", 10, 2)])
def test_every_segment_has_the_planted_kinds(preset: str, null: int, match: int) -> None:
    for seed in range(20):
        world = W.draw_world(W.preset_named(preset), np.random.default_rng(seed))
        assert len(set(world.streams)) == 24
        assert world.mix.sum(axis=1) == pytest.approx(np.ones(6))
        for g in range(6):
            counts = Counter(world.kind[g].tolist())
            wanted = {"strong": 3, "weak": 6, "trace": 2, "u": 1, "null": null, "match": match}
            assert counts == {kind: n for kind, n in wanted.items() if n}
            assert world.mix[g, world.kind[g] == "null"].sum() <= 0.6
        assert set(np.unique(world.beta[world.kind == "match"])) <= {0.0}
        assert (world.match != 0).sum() == 6 * match


def test_truth_tables_describe_every_cell_user_and_impression(small: Simulation) -> None:
    cells = sim_tables.truth_cells(small.world, small.truth).to_pylist()
    assert len({(row["segment"], row["stream"]) for row in cells}) == len(cells) == 6 * 24
    betas = {"strong": 0.5, "weak": 0.2, "trace": 0.05, "null": 0.0, "u": 0.0}
    for row in cells:
        assert row["beta"] == betas[row["kind"]]
        assert (row["horizon"] is None) == (row["kind"] == "null")
        assert row["horizon"] in (None, 3, 10, 30, 100)
        assert (row["u"] != 0) == (row["kind"] == "u")
        assert -0.1 <= row["beta_full"] <= row["beta"] + 1e-9
    users = sim_tables.truth_users(small.users).to_pylist()
    assert len({row["user_id"] for row in users}) == 400
    assert {row["segment"] for row in users} <= set(range(1, 7))
    assert Counter(row["tier"] for row in users) == {"active": 200, "passive": 200}
    segments = sim_tables.truth_segments(small.world).to_pylist()
    assert sum(row["mix"] for row in segments if row["segment"] == 2) == pytest.approx(1.0)


def test_the_gap_rule_finds_the_planted_sessions_and_dwells(
    small: Simulation, small_rows: list[dict[str, object]]
) -> None:
    """Oracle: sessions and gaps computed from the written rows alone, conversions included."""
    by_user: dict[object, list[dict[str, object]]] = defaultdict(list)
    for row in small_rows:
        if row["event_type"] != "impression":
            by_user[row["user_id"]].append(row)
    session_of, dwell_of = {}, {}
    number = 0
    for rows in by_user.values():
        rows.sort(key=lambda row: (row["event_ts"], row["event_seq"]))
        for here, after in zip(rows, [*rows[1:], None], strict=True):
            session_of[here["event_id"]] = number
            gap = None if after is None else after["event_ts"] - here["event_ts"]
            if gap is None or gap > GAP_US:
                number += 1
                gap = None
            dwell_of[here["event_id"]] = gap
    content = small.content
    ids = [f"e{row:09d}" for row in range(len(content.user))]
    derived = [dwell_of[key] for key in ids]
    assert [gap is None for gap in derived] == content.censored.tolist()
    planted = [
        None if c else d * 1000 for c, d in zip(content.censored, content.dwell_ms.tolist(), strict=True)
    ]
    assert derived == planted
    pairs = set(zip((session_of[key] for key in ids), content.session.tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_last_touch_on_the_item_within_a_day_gives_the_planted_labels_back(
    small: Simulation, small_rows: list[dict[str, object]]
) -> None:
    shown: dict[tuple[object, object], list[tuple[int, str]]] = defaultdict(list)
    for row in small_rows:
        if row["event_type"] == "impression":
            shown[row["user_id"], row["item_id"]].append((row["event_ts"], row["event_id"]))
    labelled = set()
    for row in small_rows:
        if row["event_type"] == "conversion":
            times = [
                (t, i) for t, i in shown[row["user_id"], row["item_id"]] if 0 <= row["event_ts"] - t <= DAY_US
            ]
            assert len(times) == 1  # unambiguous: the conversion fits exactly one impression
            labelled.add(max(times)[1])
    end = 42 * DAY_US
    for row in np.flatnonzero(small.truth.label):
        if small.impressions.ts_us[row] + DAY_US <= end:  # mature
            assert f"m{row:09d}" in labelled
    assert all(small.truth.label[int(key[1:])] for key in labelled)


@pytest.mark.parametrize("preset", ["S0", "S1"])
def test_exposure_equals_the_sum_over_the_newest_events_before_the_embargo(preset: str) -> None:
    drawn = draw(preset=preset, users=40, days=20, seed=2)
    content, imps = drawn.content, drawn.impressions
    acting = sim_labels.acting_events(drawn.world, content)
    assert acting.all() == (preset == "S1")
    index = sim_labels.StreamIndex(content, acting)
    for stream in (0, 5, 17):
        got, whole = sim_labels.stream_exposure(drawn.world, drawn.users, imps, index, stream)
        for row in range(0, len(imps.user), 7):
            user = imps.user[row]
            z = [
                content.z[e]
                for e in range(content.first[user], content.first[user + 1])
                if acting[e]
                and content.stream[e] == stream
                and content.ts_ms[e] * 1000 < imps.ts_us[row] - 60_000_000
            ]
            newest = z[-int(drawn.world.horizon[drawn.users.segment[user], stream]) :]
            assert got[row] == pytest.approx(sum(newest) / (len(newest) + 1), abs=1e-9)
            assert whole[row] == pytest.approx(sum(z) / (len(z) + 1), abs=1e-9)


def _design(drawn: Simulation, rows: np.ndarray, segment: int) -> tuple[np.ndarray, list[int]]:
    """Standardised true exposures of the segment's cells that carry an effect (squares for kind u)."""
    index = sim_labels.StreamIndex(drawn.content, sim_labels.acting_events(drawn.world, drawn.content))
    streams = [f for f in range(24) if drawn.world.beta[segment, f]]
    columns = []
    for stream in streams:
        x = sim_labels.stream_exposure(drawn.world, drawn.users, drawn.impressions, index, stream)[0][rows]
        x = (x - x.mean()) / x.std()
        if drawn.world.kind[segment, stream] == "u":
            x = np.minimum(x**2, W.U_CAP)
            x = (x - x.mean()) / x.std()
        columns.append(x)
    return np.stack(columns, axis=1), streams


def test_logistic_regression_on_the_true_exposures_recovers_the_strong_cells(large: Simulation) -> None:
    """Bar: 4 SE (1/sqrt(n p (1-p)) = .021) plus the attenuation by a user effect of sd .6 (at most .03)."""
    rows = np.flatnonzero(large.users.segment[large.impressions.user] == 0)
    x, streams = _design(large, rows, 0)
    fit = LogisticRegression(C=1e6, max_iter=500).fit(x, large.truth.label[rows])
    for stream, slope in zip(streams, fit.coef_[0], strict=True):
        assert slope == pytest.approx(large.world.beta[0, stream], abs=0.115)


def test_s8_plants_a_same_item_effect_in_two_streams_without_a_dwell_effect() -> None:
    drawn = draw(preset="S8", users=4000, seed=4)
    streams = drawn.world.match_streams
    hits = [sim_labels.matches(drawn.content, drawn.impressions, int(f)) for f in streams]
    assert len(hits) == 2
    assert all(0.10 <= hit.mean() <= 0.20 for hit in hits)
    segment = drawn.users.segment[drawn.impressions.user]
    slopes = []
    for g in (0, 1):
        rows = np.flatnonzero(segment == g)
        x = np.column_stack([_design(drawn, rows, g)[0], *(hit[rows] for hit in hits)])
        slopes.append(LogisticRegression(C=1e6, max_iter=500).fit(x, drawn.truth.label[rows]).coef_[0, -2:])
    assert np.mean(slopes) == pytest.approx(W.MATCH_LOG_ODDS, abs=0.2)  # SE of the mean of four: about .05


def test_match_asks_for_an_earlier_event_of_the_stream_on_the_item() -> None:
    drawn = draw(preset="S8", users=60, days=20, seed=8)
    content, imps = drawn.content, drawn.impressions
    stream = int(drawn.world.match_streams[0])
    got = sim_labels.matches(content, imps, stream)
    for row in range(len(imps.user)):
        mine = range(content.first[imps.user[row]], content.first[imps.user[row] + 1])
        wanted = any(
            content.stream[e] == stream
            and content.item[e] == imps.item[row]
            and content.ts_ms[e] * 1000 < imps.ts_us[row] - 60_000_000
            for e in mine
        )
        assert got[row] == wanted
    assert got.any()


def test_match_streams_get_another_name_each_seed() -> None:
    names = set()
    for seed in range(5):
        world = W.draw_world(W.preset_named("S8"), np.random.default_rng(seed))
        names |= {world.streams[f] for f in world.match_streams}
    assert len(names) == 10


def test_s0_has_matches_that_mean_nothing(large: Simulation) -> None:
    hits = np.zeros(len(large.impressions.user), dtype=bool)
    for stream in range(24):
        hits |= sim_labels.matches(large.content, large.impressions, stream)
    assert 0.2 <= hits.mean() <= 0.5
    se = math.sqrt(0.05 * 0.95 * (1 / hits.sum() + 1 / (~hits).sum()))
    assert large.truth.p[hits].mean() == pytest.approx(large.truth.p[~hits].mean(), abs=5 * se)


def test_habits_are_in_the_dwell_of_s1_and_not_of_s0() -> None:
    assert not draw(preset="S0", users=50, days=5).users.habit.any()
    drawn = draw(preset="S1", users=2000, seed=1)
    content = drawn.content
    log = np.log1p(content.dwell_ms)
    log -= drawn.world.dwell_mean[content.stream]
    n = np.diff(content.first)
    mean = np.bincount(content.user, log, minlength=2000) / np.maximum(n, 1)
    assert np.corrcoef(mean[n > 30], drawn.users.habit[n > 30])[0, 1] > 0.8
    z = np.bincount(content.user, content.z, minlength=2000) / np.maximum(n, 1)
    assert (
        abs(np.corrcoef(z[n > 30], drawn.users.habit[n > 30])[0, 1]) < 0.1
    )  # the planted z is free of habits


def test_bayes_segments_is_the_posterior_by_hand() -> None:
    mix = np.array([[0.8, 0.2], [0.5, 0.5]])
    share = np.array([0.25, 0.75])
    segment, posterior = bayes_segments(mix, share, np.array([[0, 0], [3, 1], [0, 4]]))
    a, b = 0.25 * 0.8**3 * 0.2, 0.75 * 0.5**4
    assert posterior[0] == pytest.approx(share)
    assert posterior[1] == pytest.approx([a / (a + b), b / (a + b)])
    assert segment.tolist() == [2, 2, 2]
    assert bayes_segments(mix, share, np.array([[8, 0]]))[0].tolist() == [1]


def test_bayes_segments_find_most_of_the_planted_segments(large: Simulation) -> None:
    counts = np.zeros((6000, 24), dtype=np.int64)
    np.add.at(counts, (large.content.user, large.content.stream), 1)
    guess, _ = bayes_segments(large.world.mix, np.asarray(W.SEGMENT_SHARES), counts)
    assert adjusted_rand_score(large.users.segment + 1, guess) > 0.9


def test_simulate_writes_readable_tables_and_a_valid_config(tmp_path: Path) -> None:
    out = tmp_path / "world"
    summary = simulate(out, preset="S8", users=80, days=14, seed=2)
    assert sorted(child.name for child in tmp_path.iterdir()) == ["world"]
    names = {
        "events",
        "truth_users",
        "truth_cells",
        "truth_segments",
        "truth_impressions",
        "dynamix.yaml",
        "world.json",
    }
    assert {child.name for child in out.iterdir()} == names
    events = pq.read_table(out / "events")
    assert events.num_rows == summary.events
    assert events.schema.field("event_ts").type == pa.timestamp("us", tz="UTC")
    assert events.num_rows == summary.content_events + summary.impressions + summary.conversions
    truth = pq.read_table(out / "truth_impressions")
    shown = events.filter(pc.equal(events["event_type"], "impression"))
    assert sorted(truth["impression_id"].to_pylist()) == sorted(shown["event_id"].to_pylist())
    times = events["event_ts"].to_pylist()
    assert min(times).date() >= date(2026, 1, 5)
    assert max(times).date() <= date(2026, 1, 18)
    config = load_config(files=[out / "dynamix.yaml"])
    assert config.heads() == ("conversion",)
    assert config.attribution.join_on == (("item_id",),)
    assert config.attribution.view_window_s == 86_400


def test_a_world_written_before_is_replaced_but_foreign_files_are_not(tmp_path: Path) -> None:
    out = tmp_path / "world"
    simulate(out, users=20, days=3)
    assert simulate(out, users=30, days=3).users == 30
    assert pq.read_table(out / "truth_users").num_rows == 30
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        simulate(out, users=20, days=3)
    assert (out / "thesis.txt").read_text() == "mine"


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(sim_tables, "truth_cells", fail)
    with pytest.raises(OSError, match="disk full"):
        simulate(tmp_path / "world", users=20, days=3)
    assert list(tmp_path.iterdir()) == []


def test_bad_options_name_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="S0, S1, S1-late, S10, S2, S3, S3-exact, S4, S5, S6, S7, S8, S9, null"
    ):
        simulate(tmp_path / "a", preset="S99")
    with pytest.raises(ConfigError, match="1 to 365"):
        simulate(tmp_path / "a", days=0)
    with pytest.raises(ConfigError, match="1 or more"):
        simulate(tmp_path / "a", users=0)


def test_one_user_on_one_day_is_a_world(tmp_path: Path) -> None:
    assert simulate(tmp_path / "tiny", users=1, days=1).events >= 1
