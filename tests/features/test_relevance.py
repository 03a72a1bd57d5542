"""Additive sums of relevance against loops over impressions and users, and predictions without history."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from dynamix.contracts import CHANNELS
from dynamix.features.calendar import build_calendar
from dynamix.features.gram import GramSums
from dynamix.features.history import EventBlock, ImpressionBlock, kept_history
from dynamix.features.quotas import BaseQuota
from dynamix.features.recency import WIDTH, BeyondSums, RecencySums
from dynamix.features.relevance import (
    ALL_STREAMS,
    BETWEEN,
    BEYOND,
    BY_RECENCY,
    FINE_BINS,
    SIZE,
    TOGETHER,
    WHOLE,
    WITHIN,
    C,
    CellSums,
    D,
    Prediction,
    bin_centres,
    block_sums,
    fine_bin,
    history_values,
    logit,
    position_code,
    relevance_kernel,
    thirds,
    user_sums,
)

Floats = npt.NDArray[np.float64]


def impressions(rows: int = 40, streams: int = 2, seed: int = 0) -> dict[str, Any]:
    """Exposure, nuisance, labels, predictions and sorted users of a small set of impressions."""
    rng = np.random.default_rng(seed)
    n = rng.integers(0, 4, (rows, streams))
    x = np.zeros((rows, streams, C))
    x[:, :, CHANNELS.index("dwell")] = rng.normal(0, 1.5, (rows, streams)) * (n > 0)
    x[:, :, CHANNELS.index("count")] = np.log1p(n)
    x[:, :, CHANNELS.index("recency")] = -rng.random((rows, streams)) * (n > 0)
    x[:, :, CHANNELS.index("censored")] = np.where(n > 0, rng.integers(0, 2, (rows, streams)), 0)
    x[:, :, CHANNELS.index("presence")] = n > 0
    x[:, :, CHANNELS.index("match")] = np.log1p(rng.integers(0, 2, (rows, streams)))
    return {
        "x": x,
        "shared": rng.normal(size=(rows, 4)),
        "y": (rng.random(rows) < 0.3).astype(float),
        "p": rng.uniform(0.1, 0.6, rows),
        "user": np.sort(rng.integers(0, 9, rows)),
        "has_dwell": (n > 0) & (rng.random((rows, streams)) < 0.7),
    }


def loop(data: dict[str, Any], f: int, *, histogram: bool = True) -> CellSums:
    """CellSums of stream f by plain loops."""
    w_sum, wx, wxx = 0.0, [0.0] * D, [[0.0] * D for _ in range(D)]
    by_user: dict[int, list[float]] = {}
    hist = np.zeros((4, FINE_BINS + 1))
    with_stream = present = tokens = censored = 0.0
    for i in range(len(data["y"])):
        z = [*map(float, data["x"][i, f]), *map(float, data["shared"][i])]
        y, p = float(data["y"][i]), float(data["p"][i])
        r, w = y - p, p * (1 - p)
        w_sum += w
        for a in range(D):
            wx[a] += w * z[a]
            for b in range(D):
                wxx[a][b] += w * z[a] * z[b]
        own = by_user.setdefault(int(data["user"][i]), [0.0] * (D + 1))
        for a in range(D):
            own[a] += z[a] * r
        own[D] += r
        events = round(math.exp(z[CHANNELS.index("count")]) - 1)
        with_stream += y * (events > 0)
        present += events > 0
        tokens += events
        censored += events * z[CHANNELS.index("censored")]
        place = FINE_BINS
        if data["has_dwell"][i, f]:
            place = min(max(math.floor((z[0] + 3) * FINE_BINS / 6), 0), FINE_BINS - 1)
        hist[:, place] += (1, y, r, w) if histogram else 0
    users = np.array(list(by_user.values()))
    aa = sum(np.outer(u, u) for u in users)
    return CellSums(
        n=len(data["y"]), positives=sum(data["y"]), with_stream=with_stream, present=present, tokens=tokens,
        censored=censored, w=w_sum, wx=np.array(wx), wxx=np.array(wxx), a=users.sum(axis=0), aa=np.asarray(aa),
        hist=hist,
    )  # fmt: skip


def sums_of(data: dict[str, Any], take: Any = slice(None), *, histogram: bool = True) -> Floats:
    part = {name: values[take] for name, values in data.items()}
    has_dwell = part.pop("has_dwell")
    return block_sums(**part, has_dwell=has_dwell if histogram else None)


@pytest.mark.parametrize("seed", range(3))
def test_every_part_of_the_sums_equals_a_loop_over_impressions(seed: int) -> None:
    data = impressions(seed=seed)
    found = sums_of(data)
    for f in range(2):
        assert found[f] == pytest.approx(loop(data, f).pack(), abs=1e-9)


def test_without_a_dwell_mask_the_histogram_is_empty_and_the_rest_the_same() -> None:
    data = impressions()
    found = CellSums.unpack(sums_of(data, histogram=False)[1])
    assert found.pack() == pytest.approx(loop(data, 1, histogram=False).pack(), abs=1e-9)
    assert not found.hist.any()


def test_groups_of_whole_users_add_up() -> None:
    data = impressions()
    half = data["user"] % 2 == 0
    parts = [CellSums.unpack(sums_of(data, take)[0]) for take in (half, ~half)]
    assert (parts[0] + parts[1]).pack() == pytest.approx(sums_of(data)[0], abs=1e-9)


def test_windows_add_up_except_for_the_spread_between_users() -> None:
    data = impressions()
    third = np.arange(40) % 3
    parts = [CellSums.unpack(sums_of(data, third == t)[0]) for t in range(3)]
    total, whole = parts[0] + parts[1] + parts[2], CellSums.unpack(sums_of(data)[0])
    for name in (
        "n",
        "positives",
        "with_stream",
        "present",
        "tokens",
        "censored",
        "w",
        "wx",
        "wxx",
        "a",
        "hist",
    ):
        assert getattr(total, name) == pytest.approx(getattr(whole, name), abs=1e-9)
    assert np.abs(total.aa - whole.aa).max() > 0.01  # a user is in several windows


def test_slopes_within_and_between_users_are_those_of_deviations_and_means() -> None:
    data = impressions()
    x, shared, y, p, user = (data[name] for name in ("x", "shared", "y", "p", "user"))
    w = p * (1 - p)
    values = np.concatenate([x[:, 1], shared], axis=1)
    mean = np.array([np.average(values[user == u], axis=0, weights=w[user == u]) for u in user])
    within, between = (CellSums.unpack(sums[1]) for sums in user_sums(x, shared, y, p, user))
    for found, own in ((within, values - mean), (between, mean)):
        by_user = np.array([
            np.append(own[user == u].T @ (y - p)[user == u], (y - p)[user == u].sum()) for u in np.unique(user)
        ])  # fmt: skip
        assert found.wx == pytest.approx(own.T @ w, abs=1e-9)
        assert found.wxx == pytest.approx(own.T @ (w[:, None] * own), abs=1e-9)
        assert found.a == pytest.approx(by_user.sum(axis=0), abs=1e-9)
        assert found.aa == pytest.approx(by_user.T @ by_user, abs=1e-9)
        assert not found.hist.any()
    whole = loop(data, 1)
    assert within.wxx + between.wxx == pytest.approx(whole.wxx, abs=1e-9)
    assert (within + between).a[:D] == pytest.approx(whole.a[:D], abs=1e-9)
    assert (within.n, within.tokens, between.with_stream) == (
        whole.n,
        pytest.approx(whole.tokens),
        whole.with_stream,
    )


def test_further_labels_have_the_sums_of_all_days_only() -> None:
    events, asked = blocks()
    frame = asked.frame.append_column("label_click__short", asked.frame.column("label_click"))
    asked = ImpressionBlock(asked.user, asked.ts_us, asked.request, asked.item, asked.category, frame)
    offsets, index = kept_history(
        events, asked, per_stream=50, total=200, embargo_us=MINUTE, run_date_us=None
    )
    given = Prediction(
        ("feed",),
        dict.fromkeys(("click", "click__short"), np.full((2, 52), -1.0)),
        dict.fromkeys(("click", "click__short"), np.zeros(3)),
    )
    kernel = relevance_kernel(
        given, ("click",), 2, (25 * MINUTE, 50 * MINUTE), others=("click__short",), together=False
    )
    rows = kernel(events, asked, offsets, index).to_pylist()
    own = {
        (r["segment_id"], r["stream_id"], r["half"]): CellSums.unpack(r["sums"])
        for r in rows if r["label"] == "click" and r["window"] == WHOLE
    }  # fmt: skip
    more = {
        (r["segment_id"], r["stream_id"], r["half"]): CellSums.unpack(r["sums"])
        for r in rows if r["label"] == "click__short"
    }  # fmt: skip
    assert {r["window"] for r in rows if r["label"] == "click__short"} == {WHOLE}
    assert not [r for r in rows if r["window"] == TOGETHER]
    assert set(own) == set(more)
    assert all(np.array_equal(own[key].aa, more[key].aa) and not more[key].hist.any() for key in own)


def test_a_logged_prediction_serves_every_setting_of_its_head() -> None:
    frame = pa.table({"given_click": [0.1, 0.7]})
    assert Prediction(column="given").of(frame, "click__any_touch").tolist() == [0.1, 0.7]


def test_packing_is_a_round_trip() -> None:
    vector = np.random.default_rng(0).normal(size=SIZE)
    assert np.array_equal(CellSums.unpack(vector).pack(), vector)
    assert np.array_equal(CellSums.unpack(vector.tolist()).pack(), vector)


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
def test_a_state_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"allowed: {SIZE}"):
        CellSums.unpack(np.zeros(size))


def test_fine_bins_cover_three_standard_deviations_and_clip_beyond() -> None:
    assert fine_bin(np.array([-9.0, -3.0, 2.999, 3.0, 9.0])).tolist() == [0, 0, 63, 63, 63]
    assert fine_bin(bin_centres()).tolist() == list(range(FINE_BINS))


MINUTE = 60_000_000


def blocks() -> tuple[EventBlock, ImpressionBlock]:
    """Three users: 0 with events of two streams, 1 with one later event, 2 with none; two segments and both halves."""
    rows = [(0, 0, 0, 1.0), (0, 10, 1, math.nan), (0, 20, 0, -0.5), (0, 50, 1, 2.0), (1, 30, 1, 0.25)]
    events = EventBlock(
        user=np.array([r[0] for r in rows]), ts_us=np.array([r[1] * MINUTE for r in rows]),
        ingest_us=np.array([r[1] * MINUTE for r in rows]), request=np.full(5, -1),
        stream=np.array([r[2] for r in rows], np.int16), item=np.full(5, -1), category=np.full(5, -1),
        z=np.array([r[3] for r in rows]), dwell_bin=np.zeros(5, np.int8), censored=np.array([0, 1, 0, 0, 1], bool),
        item_name=pa.nulls(5, pa.string()), category_name=pa.nulls(5, pa.string()),
    )  # fmt: skip
    user, minute = np.array([0, 0, 0, 1, 1, 2]), np.array([5, 30, 60, 20, 60, 40])
    frame = pa.table({
        "user_id": ["a", "a", "a", "b", "b", "c"], "segment_id": [1, 1, 2, 1, 1, 1], "half": [0, 0, 0, 1, 1, 1],
        "surface": ["feed", "feed", "new", "feed", "feed", "feed"], "position": pa.array([1, 2, None, 1, 99, 0]),
        "label_click": [1.0, 0.0, 1.0, 0.0, 1.0, 0.0],
    })  # fmt: skip
    minus = np.full(6, -1)
    return events, ImpressionBlock(user, minute * MINUTE, minus, minus, minus, frame)


def test_the_kernel_gives_the_sums_of_every_segment_half_and_window() -> None:
    events, asked = blocks()
    offsets, index = kept_history(
        events, asked, per_stream=50, total=200, embargo_us=MINUTE, run_date_us=None
    )
    given = Prediction(("feed",), {"click": np.full((2, 52), -1.0)}, {"click": np.array([0.0, 0.5, -0.5])})
    table = relevance_kernel(given, ("click",), 2, (25 * MINUTE, 50 * MINUTE))(events, asked, offsets, index)
    found = {(r["segment_id"], r["stream_id"], r["half"], r["window"]): r["sums"] for r in table.to_pylist()}
    rows = {key: CellSums.unpack(sums) for key, sums in found.items() if key[3] >= WHOLE}
    by_recency = {key[:3]: RecencySums.unpack(sums) for key, sums in found.items() if key[3] == BY_RECENCY}
    assert {r["block"] for r in table.to_pylist()} == {"a"}
    assert set(rows) == {
        (g, f, h, w)
        for g, h, windows in ((1, 0, (0, 1)), (2, 0, (2,)), (1, 1, (0, 1, 2)))
        for w in (WHOLE, *windows)
        for f in (0, 1)
    }
    cell = rows[1, 0, 0, WHOLE]  # segment 1, stream 0, user a at minutes 5 and 30: one and two events before
    assert (cell.n, cell.positives, cell.present, cell.tokens, cell.with_stream) == (
        2,
        1,
        2,
        pytest.approx(3),
        1,
    )
    assert set(by_recency) == {key[:3] for key in rows}
    apart = {w: {key[:3] for key in found if key[3] == w} for w in (WITHIN, BETWEEN)}
    assert apart[WITHIN] == apart[BETWEEN] == set(by_recency)
    together = {key[:3]: GramSums.unpack(sums) for key, sums in found.items() if key[3] == TOGETHER}
    assert set(together) == {(g, ALL_STREAMS, h) for g, _, h in by_recency}
    assert together[1, ALL_STREAMS, 1].n == 3
    recent = by_recency[1, 0, 0]
    assert (recent.n, recent.positives, recent.w) == (2, 1, cell.w)
    assert (recent.tokens.tolist(), recent.with_bucket.tolist()) == ([3, 0, 0, 0], [1, 0, 0, 0])
    p = 1 / (1 + math.exp(0.5))
    assert cell.w == pytest.approx(2 * p * (1 - p))
    assert cell.wx[D - 1] == pytest.approx(cell.w * -0.5)  # the logit of the prediction is known anyway
    assert cell.a[CHANNELS.index("dwell")] == pytest.approx(0.5 * (1 - p) + 0.5 / 3 * (0 - p))
    assert cell.hist[0, fine_bin(np.array([0.5]))[0]] == 1
    quiet = rows[1, 0, 1, WHOLE]  # users b and c have no event of stream 0 and count all the same
    assert (quiet.n, quiet.present, quiet.hist[0, FINE_BINS]) == (3, 0, 3)
    windows = [rows[1, 1, 1, w] for w in (0, 1, 2)]
    assert sum(w.n for w in windows) == 3 and all(not w.hist.any() for w in windows)


def test_collecting_beyond_the_base_changes_no_other_sums() -> None:
    events, asked = blocks()
    given = Prediction(("feed",), {"click": np.full((2, 52), -1.0)}, {"click": np.array([0.0, 0.5, -0.5])})
    rule: dict[str, Any] = {"per_stream": 1, "total": 2, "embargo_us": MINUTE, "run_date_us": None}
    short, long = (kept_history(events, asked, **rule, boost_to=n) for n in (0, 3))
    assert len(long[1]) > len(short[1])
    windows = (25 * MINUTE, 50 * MINUTE)
    plain = relevance_kernel(given, ("click",), 2, windows)(events, asked, *short).to_pylist()
    found = relevance_kernel(given, ("click",), 2, windows, base=BaseQuota(1))(events, asked, *long)
    rows = found.to_pylist()
    assert [r for r in rows if r["window"] != BEYOND] == plain
    beyond = {(r["segment_id"], r["stream_id"], r["half"]): r["sums"] for r in rows if r["window"] == BEYOND}
    by_recency = {
        (r["segment_id"], r["stream_id"], r["half"]): r["sums"] for r in plain if r["window"] == BY_RECENCY
    }
    assert set(beyond) == set(by_recency)
    sums, short_sums = BeyondSums.unpack(beyond[1, 0, 0]), RecencySums.unpack(by_recency[1, 0, 0])
    assert (sums.tokens.tolist(), short_sums.tokens.tolist()) == ([2, 0, 0, 0, 1], [2, 0, 0, 0])
    own = WIDTH + np.arange(3)
    assert np.array_equal(np.delete(sums.wx, own), short_sums.wx)
    assert sums.wx[own[1]] == pytest.approx(sums.w / 2 * math.log(2))  # one event of one of two impressions


def test_the_history_values_are_length_age_and_presence_of_the_whole_history() -> None:
    events, asked = blocks()
    offsets, index = kept_history(
        events, asked, per_stream=50, total=200, embargo_us=MINUTE, run_date_us=None
    )
    found = history_values(events, asked, offsets, index)
    kept = [(1, 300), (3, 600), (4, 600), (0, 0), (1, 1800), (0, 0)]
    expected = [[math.log(1 + n), -math.log(1 + s), 1.0] if n else [0.0, 0.0, 0.0] for n, s in kept]
    assert found == pytest.approx(np.array(expected))


def test_logit_inverts_the_logistic_function_and_stays_finite() -> None:
    assert logit(np.array([0.5, 1 / (1 + math.exp(2.0))])) == pytest.approx([0.0, -2.0])
    assert np.isfinite(logit(np.array([0.0, 1.0]))).all()


def test_positions_are_clipped_and_unknown_ones_are_zero() -> None:
    frame = pa.table({"position": pa.array([None, 0, 1, 50, 51, 900, -3])})
    assert position_code(frame).tolist() == [0, 0, 1, 50, 51, 51, 0]


def test_a_logged_prediction_is_taken_as_it_is() -> None:
    frame = pa.table({"given_click": [0.1, 0.7]})
    assert Prediction(column="given").of(frame, "click").tolist() == [0.1, 0.7]


def test_thirds_split_the_statistics_period_evenly() -> None:
    from datetime import date, datetime

    calendar = build_calendar(date(2024, 2, 12), first_event=datetime(2024, 1, 1))
    first, second = thirds(calendar)
    zero = datetime(1970, 1, 1)
    start, end = (
        (t - zero).total_seconds() * 1e6 for t in (calendar.statistics.start, calendar.statistics.end)
    )
    assert first - start == pytest.approx(second - first) == pytest.approx(end - second)
