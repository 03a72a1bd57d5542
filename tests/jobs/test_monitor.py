"""`monitor`: each limit on its own, what chance explains, and the reading of the tables."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from event_frames import event_frame
from pyspark.sql import SparkSession

from dynamix.config import Config, load_config
from dynamix.config_parts import MonitorConfig
from dynamix.contracts import EVENTS, MASKS, SCORES, SEGMENTS, Table
from dynamix.features.drift import Finding
from dynamix.features.tables import Warehouse
from dynamix.jobs import cli, verbs
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.frames import table_frame
from dynamix.jobs.monitor import mask_in_use, monitor, moves, past_answers, segment_sums, trained_ne
from dynamix.jobs.monitor_rules import MaskInUse, Moved, Observed, Scored, judge, log_calibration, log_ne
from dynamix.models.metrics import NeState, evaluate

PROJECT = Path(__file__).resolve().parents[2]
TODAY = date(2024, 2, 20)
CONFIG = MonitorConfig()


def scored(
    rows: int = 20_000, rate: float = 0.1, off: float = 1.0, trained_ne: float | None = None
) -> Scored:
    """Rows of their own users whose p is right but for a factor `off`; p itself varies by a factor of two."""
    draw = np.random.default_rng(0)
    p = rate * draw.uniform(2 / 3, 4 / 3, rows)
    y = (draw.uniform(size=rows) < p).astype(float)
    return of_rows(y, np.minimum(p * off, 0.99), np.arange(rows), trained_ne)


def of_rows(y: Any, p: Any, user: Any, trained_ne: float | None = None) -> Scored:
    state = NeState.of(y, p)
    loss = -(y * np.log(p) + (1 - y) * np.log1p(-p))
    sums = np.stack([np.bincount(user, weights=part) for part in (loss, np.ones(len(y)), y, p)], axis=1)
    return Scored("conversion", 1, state, sums.T @ sums, trained_ne)


def finding(measure: str, value: float, limit: float) -> Finding:
    return Finding(measure, "stream feed/view", 1.0, 2.0, value, limit, value > limit, "")


CALM = Observed(
    TODAY,
    MaskInUse("m20240201-00000000", "published", TODAY - timedelta(days=19)),
    drift=(finding("psi of dwell", 0.1, 0.2), finding("share of events", 0.1, 0.7)),
    scored=(scored(trained_ne=0.99),),
    moved=(Moved(1, 400, 40), Moved(2, 300, 0)),
)


def due(observed: Observed, config: MonitorConfig = CONFIG) -> set[str]:
    return {check.kind for check in judge(observed, config).due}


def test_nothing_is_due_where_every_check_is_inside_its_limit() -> None:
    decision = judge(CALM, CONFIG)
    assert decision.due == () and decision.look == ()
    assert [check.kind for check in decision.checks] == [
        "mask_age", "psi", "calibration", "ne", "churn", "churn"
    ]  # fmt: skip
    assert decision.answer() == "No refit is due: 6 checks, none beyond its limit."


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        (replace(CALM, run_date=TODAY + timedelta(days=3)), "mask_age"),  # 22 days
        (replace(CALM, drift=(finding("psi of dwell", 0.21, 0.2),)), "psi"),
        (replace(CALM, scored=(scored(off=1.3),)), "calibration"),
        (replace(CALM, scored=(scored(off=0.75),)), "calibration"),
        (replace(CALM, scored=(scored(trained_ne=0.9),)), "ne"),
        (replace(CALM, moved=(Moved(1, 400, 140),)), "churn"),
    ],
)
def test_one_crossed_limit_makes_a_refit_due(changed: Observed, kind: str) -> None:
    assert due(changed) == {kind}
    decision = judge(changed, CONFIG)
    assert decision.answer().startswith(f"A refit is due: 1 of {len(decision.checks)} checks")
    assert kind.replace("_", " ") in decision.answer()
    assert sum(line.startswith("DUE ") for line in decision.lines()) == 1


@pytest.mark.parametrize(
    ("changed", "looser"),
    [
        (replace(CALM, run_date=TODAY + timedelta(days=3)), MonitorConfig(mask_age_days=22)),
        (replace(CALM, scored=(scored(off=1.3),)), MonitorConfig(calibration=1.4)),
        (replace(CALM, scored=(scored(trained_ne=0.9),)), MonitorConfig(ne_rise=0.2)),
        (replace(CALM, moved=(Moved(1, 400, 140),)), MonitorConfig(churn=0.4)),
        (replace(CALM, scored=(scored(off=1.3),)), MonitorConfig(min_positives=20_000)),
    ],
)
def test_the_limits_are_those_of_the_config(changed: Observed, looser: MonitorConfig) -> None:
    assert due(changed, CONFIG) and not due(changed, looser)


def test_the_limit_itself_is_not_beyond_it() -> None:
    assert due(replace(CALM, run_date=TODAY + timedelta(days=2))) == set()  # 21 days


@pytest.mark.parametrize(("times", "kinds"), [(1, set()), (50, {"calibration", "churn"})])
def test_what_chance_explains_is_not_due(times: int, kinds: set[str]) -> None:
    """13 % predicted and 10 % seen, 40 % of the users moved: of 400 rows and 10 users chance, of 50 times as many not."""
    y = np.tile(np.arange(400) % 10 == 0, times).astype(float)
    one = of_rows(y, np.full(len(y), 0.13), np.arange(len(y)))
    assert due(replace(CALM, scored=(one,), moved=(Moved(1, 10 * times, 4 * times),))) == kinds


def test_without_an_ne_at_training_the_base_rate_is_the_reference() -> None:
    assert due(replace(CALM, scored=(scored(),))) == set()
    worse = scored(off=3.0)
    assert worse.state.ne > 1.1
    sentences = [check.sentence for check in judge(replace(CALM, scored=(worse,)), CONFIG).due]
    assert any("against 1, that of the base rate" in sentence for sentence in sentences)


def test_too_few_positives_are_named_and_not_judged() -> None:
    decision = judge(replace(CALM, scored=(scored(rows=100, off=9.0),)), CONFIG)
    assert {check.kind for check in decision.checks} == {"mask_age", "psi", "churn"}
    assert any("conversion in segment 1: not judged" in note for note in decision.notes)


def test_without_a_mask_and_scores_only_notes_remain() -> None:
    decision = judge(Observed(TODAY, notes=("calibration and NE: no table scores yet",)), CONFIG)
    assert decision.checks == () and decision.due == ()
    assert "calibration and NE: no table scores yet" in "\n".join(decision.lines())


def test_shares_and_missing_values_ask_for_a_look_and_not_for_a_refit() -> None:
    changed = replace(CALM, drift=(finding("null_rate", 0.5, 0.05), finding("share of events", 0.9, 0.7)))
    decision = judge(changed, CONFIG)
    assert decision.due == ()
    assert len(decision.look) == 2 and "LOOK null_rate of" in "\n".join(decision.lines())


def test_the_worst_of_a_kind_stands_first() -> None:
    decision = judge(replace(CALM, moved=(Moved(1, 900, 10), Moved(2, 900, 500))), CONFIG)
    assert [c.name for c in decision.checks if c.kind == "churn"] == ["segment 2", "segment 1"]


@pytest.mark.parametrize("ratio", [log_calibration, log_ne])
def test_standard_errors_are_those_of_users_drawn_again(
    ratio: Callable[[Scored], tuple[float, float]],
) -> None:
    """Oracle: 2,000 bootstrap samples of whole users; its own error is about 1.6 %, 8 % are five of them."""
    draw = np.random.default_rng(1)
    users, per_user = 400, 6
    user = np.repeat(np.arange(users), per_user)
    taste = draw.normal(0, 0.8, users)[user]
    p = 1 / (1 + np.exp(1.5 - taste))
    y = (draw.uniform(size=len(user)) < p).astype(float)
    predicted = 1 / (1 + np.exp(1.4 - 0.5 * taste))
    one = of_rows(y, predicted, user)
    value, error = ratio(one)
    found = evaluate(y, predicted)
    assert value == pytest.approx(np.log(found.calibration if ratio is log_calibration else found.ne))
    loss = -(y * np.log(predicted) + (1 - y) * np.log1p(-predicted))
    sums = np.stack([np.bincount(user, weights=w) for w in (loss, np.ones(len(y)), y, predicted)], axis=1)
    drawn = draw.multinomial(users, np.full(users, 1 / users), size=2_000) @ sums
    rate = drawn[:, 2] / drawn[:, 1]
    entropy = -rate * np.log(rate) - (1 - rate) * np.log1p(-rate)
    other = (
        np.log(drawn[:, 3] / drawn[:, 2])
        if ratio is log_calibration
        else np.log(drawn[:, 0] / drawn[:, 1] / entropy)
    )
    assert error == pytest.approx(other.std(), rel=0.08)


def test_the_page_shows_every_setting_with_its_default() -> None:
    page = (PROJECT / "docs" / "monitor.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `monitor\.(\w+)` \| ([\d.]+) \|", page, flags=re.M))
    fields = MonitorConfig.model_fields
    assert {name: float(value) for name, value in shown.items()} == {
        name: float(field.default) for name, field in fields.items()
    }


# --- the command ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asks", "code"), [(True, 4), (False, 0)])
def test_the_command_ends_with_four_exactly_when_a_refit_is_due(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], asks: bool, code: int
) -> None:
    def run_verb(arguments: Namespace, config: Config) -> tuple[StepResult, Any]:
        facts = {"refit_due": asks, "answer": "A refit is due: 1 of 1 checks (psi).", "text": "DUE  psi"}
        return StepResult(facts=facts), Namespace(run_id="r", run_date=TODAY)

    monkeypatch.setattr(verbs, "run_verb", run_verb)
    assert cli.main(["monitor", "--warehouse", str(tmp_path), "--json"]) == code
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert (told["exit_code"], told["facts"]["refit_due"]) == (code, asks)
    assert ("A refit is due: 1 of 1 checks (psi)." in said.err) is asks


# --- the tables -------------------------------------------------------------------------------------


SETTINGS = ("drift.min_rows=100", "attribution.click_window=24h", "attribution.view_window=24h")


def mask_row(version: str, status: str, day: date, seq: int) -> dict[str, Any]:
    return {
        "mask_version": version, "seq": seq, "segment_version": "s20240210-00000000", "segment_id": 1,
        "segment_name": "one", "tier": "*", "stream": "feed/view", "keep": True, "quota": 50, "boost": 0.0,
        "positives": 1, "tokens": 1.0, "verdict": "keep", "reason": "as the test says", "status": status,
        "run_date": day, "run_id": "r",
    }  # fmt: skip


def impression(number: int, day: int, *, converts: bool, hour: int = 0) -> list[dict[str, Any]]:
    """An impression on day `day` after 1 January 2024, and its conversion half an hour later where it has one."""
    shared = {"user_id": f"u{number % 7}", "surface": "feed", "item_id": f"it{number}"}
    t = 86_400 * day + 3_600 * hour
    found = [{**shared, "event_id": f"i{number}", "event_type": "impression", "t": t}]
    return (
        found + [{**shared, "event_id": f"c{number}", "event_type": "conversion", "t": t + 1_800}] * converts
    )


def score_row(number: int, version: str, score: float) -> dict[str, Any]:
    return {
        "impression_id": f"i{number}", "label": "conversion", "model_version": version, "user_id": f"u{number % 7}",
        "score": score, "mask_version": "keep-all", "segment_id": 1 + number % 2, "tier": "active",
        "scored_at": datetime(2024, 2, 20, int(version)),
    }  # fmt: skip


def segment_row(user: str, segment: int, first: date, last: date | None, version: str) -> dict[str, Any]:
    def at(day: date | None) -> datetime | None:
        return None if day is None else datetime(day.year, day.month, day.day)

    return {
        "user_id": user, "segment_version": version, "valid_from": at(first), "segment_id": segment,
        "segment_name": "x", "tier": "active", "posterior": {1: 1.0}, "n_events": 20, "valid_to": at(last),
    }  # fmt: skip


def days(first: int, number: int, dwell_ms: int) -> list[dict[str, Any]]:
    """100 events a day from 1 January 2024 + `first` on, of twenty users, on one stream."""
    return [
        {
            "event_id": f"{day}-{i}",
            "user_id": f"u{i % 20}",
            "t": day * 86_400 + 600 * i,
            "dwell_ms": dwell_ms + 90 * (i % 13),
            "surface": "feed",
        }
        for day in range(first, first + number)
        for i in range(100)
    ]


@pytest.fixture(scope="module")
def run(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Events of 50 days (slower in the last ten), two published masks, scores of two models, segments with moves."""
    warehouse = Warehouse(tmp_path_factory.mktemp("monitor") / "W")

    def put(table: Table, rows: list[dict[str, Any]]) -> None:
        warehouse.replace(spark, table, table_frame(spark, table, rows))

    yesterday, before = 49, 48
    shown = [
        *impression(0, before, converts=True), *impression(1, before, converts=False),
        *[row for n in range(2, 80) for row in impression(n, yesterday, converts=n % 3 == 0)],
        *impression(80, yesterday, converts=True, hour=1),  # its day has not passed by the run date
    ]  # fmt: skip
    content = days(0, 40, 5_000) + days(40, 10, 60_000)
    warehouse.replace(spark, EVENTS, event_frame(spark, [*content, *shown]))
    put(MASKS, [
        mask_row("m20240101-00000000", "retired", date(2024, 1, 1), 1),
        mask_row("m20240210-00000000", "published", date(2024, 2, 10), 2),
        mask_row("m20240219-00000000", "proposed", date(2024, 2, 19), 3),
        mask_row("m20240225-00000000", "published", date(2024, 2, 25), 4),  # after the run date
    ])  # fmt: skip
    put(SCORES, [score_row(n, v, p) for n in range(82) for v, p in (("1", 0.5), ("2", 0.01 + n / 200))])
    new, old = "s20240219-00000000", "s20240101-00000000"
    moved = date(2024, 2, 16)
    put(SEGMENTS, [
        segment_row("a", 1, date(2024, 1, 10), None, new),
        segment_row("b", 1, date(2024, 1, 10), moved, new), segment_row("b", 2, moved, None, new),
        segment_row("c", 2, date(2024, 1, 10), None, new),
        segment_row("d", 0, date(2024, 1, 10), moved, new), segment_row("d", 2, moved, None, new),  # was cold
        segment_row("e", 2, moved, None, new),  # was not there
        segment_row("a", 2, date(2023, 12, 1), None, old),  # another version
    ])  # fmt: skip
    config = load_config(settings=SETTINGS)
    return Run(spark, warehouse, config, TODAY, "20240220T000000Z-000001", quiet=True)


@pytest.mark.spark
def test_the_mask_in_use_is_the_newest_published_one_of_the_run_date(run: Run) -> None:
    assert mask_in_use(run) == MaskInUse("m20240210-00000000", "published", date(2024, 2, 10))
    early = replace(run, run_date=date(2024, 2, 1))
    assert mask_in_use(early) is None  # a retired one is in nobody's use


@pytest.mark.spark
def test_moves_count_users_who_are_warm_at_both_ends(run: Run) -> None:
    found = {(r["before"], r["now"]): r["users"] for r in moves(run).collect()}
    assert found == {(1, 1): 1, (1, 2): 1, (2, 2): 1}


@pytest.mark.spark
def test_sums_by_user_are_those_of_numpy(spark: SparkSession) -> None:
    draw = np.random.default_rng(2)
    y, p, user = draw.integers(0, 2, 60), draw.uniform(0.01, 0.99, 60), draw.integers(0, 9, 60)
    rows = [("conversion", 1, str(u), float(b), float(q)) for b, q, u in zip(y, p, user, strict=True)]
    frame = spark.createDataFrame(
        rows, "label string, segment_id int, user_id string, y double, score double"
    )
    (found,) = segment_sums(frame).collect()
    expected = of_rows(y.astype(float), p, user)
    assert [found[n] for n in ("loss", "n", "positives", "predicted")] == pytest.approx(
        [expected.state.loss, 60, expected.state.positives, expected.state.predicted]
    )
    assert [found[f"{a}{b}"] for a in range(4) for b in range(a, 4)] == pytest.approx(
        [expected.moments[a, b] for a in range(4) for b in range(a, 4)]
    )


@pytest.mark.spark
def test_the_answer_names_every_check_and_is_kept(run: Run) -> None:
    evidence = {
        "model": {"name": "dynamix-ranker", "version": "2"}, "winner": "masked",
        "arms": [{"arm": "masked", "heads": {"conversion": {"per_segment": {"1": 0.9, "2": None}}}}],
    }  # fmt: skip
    (run.folder / "evidence.json").write_text(json.dumps(evidence), encoding="utf-8")
    assert trained_ne(run.warehouse.private, "2") == {("conversion", 1): 0.9}
    assert trained_ne(run.warehouse.private, "1") == {}
    low = replace(run, config=load_config(settings=[*SETTINGS, "monitor.min_positives=2"]))
    result = monitor(low)
    assert result.facts["refit_due"] is True
    checks = {(c["kind"], c["name"]): c for c in result.facts["checks"]}
    psi = checks["psi", "stream feed/view"]
    assert psi["due"] and psi["value"] > 1  # 5 s before, 60 s after
    assert "in the newest 7 after it" in psi["sentence"]
    assert ("mask_age", "m20240210-00000000") in checks and ("churn", "segment 1") in checks
    assert {name for kind, name in checks if kind == "ne"} == {
        "conversion in segment 1", "conversion in segment 2"
    }  # fmt: skip
    (told,) = past_answers(run.warehouse.private)
    rows = {one["segment_id"]: one for one in told["scored"]}
    numbers = range(2, 80)  # yesterday's mature and known ones alone, by the model that scored last
    assert {s: one["n"] for s, one in rows.items()} == {1: 39, 2: 39}
    for segment, one in rows.items():
        mine = [n for n in numbers if 1 + n % 2 == segment]
        assert one["predicted"] == pytest.approx(sum(0.01 + n / 200 for n in mine))
        assert one["positives"] == sum(n % 3 == 0 for n in mine)
    assert rows[1]["trained_ne"] == 0.9 and rows[2]["trained_ne"] is None
    assert (run.folder / "monitor.txt").read_text().startswith("ok   mask m20240210-00000000")


@pytest.mark.spark
def test_a_warehouse_with_events_alone_is_no_reason_for_a_refit(
    spark: SparkSession, run: Run, tmp_path: Path
) -> None:
    place = Warehouse(tmp_path / "W")
    place.root.mkdir()
    (place.root / "events").symlink_to(run.warehouse.path("events"))
    bare = replace(run, warehouse=place)
    result = monitor(bare)
    assert result.facts["refit_due"] is False and result.facts["checks"] == []
    assert [note.split(":")[0] for note in result.facts["not_judged"]] == [
        "mask age and PSI", "calibration and NE", "churn"
    ]  # fmt: skip


@pytest.mark.spark
def test_scores_without_a_known_label_are_said_and_not_judged(run: Run) -> None:
    """A day earlier no label had matured, and the mask had seen every event."""
    early = replace(run, run_date=date(2024, 2, 10))
    result = monitor(early)
    assert {c["kind"] for c in result.facts["checks"]} <= {"mask_age", "churn"}
    said = "\n".join(result.facts["not_judged"])
    assert "no label of a score is known at 2024-02-10" in said
    assert "the mask of 2024-02-10 has seen all there is" in said
