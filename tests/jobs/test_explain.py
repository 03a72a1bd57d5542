"""`features` fills session kinds and freezes them; `explain` says what a stream is and why a segment keeps it."""

from __future__ import annotations

import json
from collections import Counter
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from dynamix.config import load_config
from dynamix.contracts import CELL_STATS, EBF_SESSION, MASKS
from dynamix.errors import ConfigError
from dynamix.features.calendar import Period
from dynamix.features.tables import Warehouse
from dynamix.jobs.cli import main
from dynamix.jobs.context import Run
from dynamix.jobs.explain import explain
from dynamix.jobs.features import features
from dynamix.jobs.frames import table_frame
from dynamix.jobs.ingest import ingest
from dynamix.jobs.kinds import sample_sessions
from dynamix.jobs.settings import store_config

pytestmark = pytest.mark.spark
USERS, DAYS = 60, 9
SETTINGS = (
    "time_unit=s",
    "streams={shop/view: {length: 7, attributes: [item, dwell], windows: [1, 14], protected: true}}",
)


def raw_rows() -> list[tuple[str, int, str, str]]:
    """A session per user and day: three views of the shop, or six events around a search; one in ten converts."""
    draw = np.random.default_rng(8)
    zero = 19_723 * 86_400  # 2024-01-01
    rows = []
    for day in range(DAYS):
        for user in range(USERS):
            at = zero + 86_400 * day + 60 * user
            searches = (user + day) % 3 == 0
            names = (
                [("search", "query")] * 4 + [("search", "click")] * 2 if searches else [("shop", "view")] * 3
            )
            if user % 10 == 0:
                names.append(("shop", "conversion"))
            for surface, event_type in names:
                rows.append((f"u{user}", at, surface, event_type))
                at += int(draw.integers(5, 200))
    return rows


def open_at(spark: SparkSession, folder: Path, *settings: str) -> Run:
    config = load_config(settings=[*SETTINGS, *settings])
    return Run(spark, Warehouse(folder / "W"), config, date(2024, 1, 10), "r1", quiet=True)


@pytest.fixture(scope="module")
def run(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("explain")
    frame = spark.createDataFrame(
        raw_rows(), "user_id string, event_ts bigint, surface string, event_type string"
    )
    frame.coalesce(1).write.parquet(str(folder / "events"))
    run = open_at(spark, folder)
    ingest(run, events=str(folder / "events"))
    features(run)
    store_config(run.warehouse.root, run.config)
    cells = ((0, "cold", "*", True), (1, "buyers", "active", True), (1, "buyers", "passive", False))
    rows = [
        {
            "mask_version": version, "seq": seq, "segment_version": "s1", "segment_id": g, "segment_name": name,
            "tier": tier, "stream": "shop/view", "keep": keep, "quota": 7 if keep else 0, "boost": 0.0,
            "relevance": 0.01 * g, "positives": 12, "tokens": 2.5, "verdict": "keep" if keep else "drop",
            "attributes": ["dwell", "recency"] if tier == "active" else None,
            "reason": f"because of {version} {tier}", "status": status, "run_date": date(2024, 1, 10), "run_id": "r",
        }
        for version, seq, status in (("m1", 1, "published"), ("m2", 2, "proposed"), ("m3", 3, "control"))
        for g, name, tier, keep in cells
    ]  # fmt: skip
    run.warehouse.replace(spark, MASKS, table_frame(spark, MASKS, rows))
    stats = [
        {
            "segment_version": version, "segment_id": 1, "tier": "*", "stream": "shop/view", "label": "conversion",
            "channel": channel, "window_end": date(2024, 1, day), "given": "none", "half": -1, "impressions": 9,
            "positives": 5, "tokens": 2.5, "dof": 1, "sums": [], "beta_within": day / 100, "se_within": 0.01,
            "beta_between": -0.2, "se_between": 0.03,
        }
        for version, day in (("s0", 9), ("s1", 7), ("s1", 8))
        for channel in ("dwell", "presence")
    ]  # fmt: skip
    run.warehouse.replace(spark, CELL_STATS, table_frame(spark, CELL_STATS, stats))
    return run


def kinds_of(run: Run) -> Counter[tuple[bool, str]]:
    table = run.warehouse.read(run.spark, "ebf_session").collect()
    return Counter(("search/query" in r["n_by_stream"], r["session_kind"]) for r in table)


def test_sessions_carry_the_kind_that_was_planted_and_a_rerun_the_same(run: Run) -> None:
    found = kinds_of(run)
    searches = sum((user + day) % 3 == 0 for user in range(USERS) for day in range(DAYS))
    assert found == {(True, "query"): searches, (False, "view"): USERS * DAYS - searches}
    before = run.warehouse.content_hash(run.spark, EBF_SESSION)
    features(run)
    assert run.warehouse.content_hash(run.spark, EBF_SESSION) == before


def test_a_part_of_the_days_takes_the_frozen_kinds(run: Run) -> None:
    (path,) = (run.warehouse.private / "session_kinds").iterdir()
    text = path.read_text(encoding="utf-8")
    tree = json.loads(text)
    assert path.name.startswith(tree["baseline_version"]) and tree["names"] == ["view", "query"]
    path.write_text(text.replace('"query"', '"seek"'), encoding="utf-8")
    features(run, since=date(2024, 1, 9))
    assert set(kinds_of(run)) == {(True, "query"), (True, "seek"), (False, "view")}
    run.warehouse.drop("ebf_session")
    features(
        run
    )  # the build of all days on the baseline's own date fits anew: the same events, the same kinds
    assert path.read_text(encoding="utf-8") == text
    assert set(kinds_of(run)) == {(True, "query"), (False, "view")}


def test_the_sample_is_bounded_whole_and_blind_to_the_order(run: Run) -> None:
    events = run.warehouse.read(run.spark, "events")
    period = Period(datetime(2024, 1, 2), datetime(2024, 1, 4))
    some = sample_sessions(events, period, config=run.config, limit=20)
    again = sample_sessions(events.repartition(5), period, config=run.config, limit=20)
    sizes = {r["session_id"]: r["count"] for r in some.groupBy("session_id").count().collect()}
    assert len(sizes) == 20
    assert sizes == {r["session_id"]: r["count"] for r in again.groupBy("session_id").count().collect()}
    whole = events.where(events.session_id.isin(*sizes)).groupBy("session_id").count().collect()
    assert sizes == {r["session_id"]: r["count"] for r in whole}


def test_explain_prints_declaration_and_contents(run: Run) -> None:
    result = explain(run, "shop/view")
    found: dict[str, Any] = result.facts["explain"]
    views = sum(event_type == "view" for *_, event_type in raw_rows())
    assert (found["rows"], found["length"], found["protected"]) == (views, 7, True)
    assert (found["attributes"], found["windows"]) == (["item", "dwell"], ["1d", "14d"])
    assert found["columns"][0] == "shop_view__n__1d" and len(found["columns"]) == 14
    assert found["has_dwell"] and found["mu"] > 0 and found["sigma"] > 0
    statuses = Counter(
        r["dwell_status"]
        for r in run.warehouse.read(run.spark, "events")
        .where("surface = 'shop' and event_type = 'view'")
        .collect()
    )
    assert found["dwell_statuses"] == {name: n / views for name, n in statuses.items()}
    assert found["caps_ms"]["shop/view"] > 0 and found["imputed_ms"] == {}
    text = result.facts["text"]
    for part in (
        "surface = shop and event_type = view",
        "in the config",
        "shop_view__n__14d",
        "first_seen",
        "censored",
    ):
        assert part in text
    plain = explain(run, "search/query").facts["explain"]
    assert plain["declared"].startswith("by the data") and plain["length"] == 50


def test_explain_gives_the_verdict_of_the_published_mask_per_tier(run: Run) -> None:
    for asked in ("1", "buyers"):
        found = explain(run, "shop/view", segment=asked).facts["explain"]
        assert (found["mask_version"], found["status"], found["segment_name"]) == (
            "m1",
            "published",
            "buyers",
        )
        assert {t: (v["verdict"], v["quota"], v["reason"]) for t, v in found["tiers"].items()} == {
            "active": ("keep", 7, "because of m1 active"),
            "passive": ("drop", 0, "because of m1 passive"),
        }
        assert {t: v.get("attributes") for t, v in found["tiers"].items()} == {
            "active": ["dwell", "recency"], "passive": None,
        }  # fmt: skip
        assert "attributes" not in found["tiers"]["passive"]
        assert found["slopes"] == {
            "conversion dwell": "within users +0.080 (se 0.010), between -0.200 (se 0.030) log-odds per SD"
        }
    assert explain(run, "shop/view", segment="0").facts["explain"]["slopes"] == {}


@pytest.mark.parametrize(
    ("stream", "segment", "said"),
    [
        ("shop/vew", None, "nearest: shop/view"),
        ("shop/view", "buyrs", "nearest: buyers"),
        ("shop/view", "9", "segment '9'"),
    ],
)
def test_an_unknown_name_ends_with_two_and_the_nearest_ones(
    run: Run, stream: str, segment: str | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        explain(run, stream, segment=segment)
    assert refused.value.exit_code == 2


def test_the_verb_works_from_the_command_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--warehouse", str(run.warehouse.root), "--quiet"]
    assert main(["explain", "shop/view", *place, "--segment", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["facts"]["explain"]["tiers"]["*"]["verdict"] == "keep"
    assert main(["explain", *place]) == 2
    assert "explain needs STREAM or --user" in capsys.readouterr().err
    assert main(["explain", "nothing/here", *place]) == 2
    assert "nearest" in capsys.readouterr().err


def test_kinds_in_streams_reach_the_streams_table(spark: SparkSession, run: Run) -> None:
    kinded = Run(
        spark, run.warehouse, load_config(settings=[*SETTINGS, "session.kinds=on"]), run.run_date, "r2", True
    )
    before = {r["stream"]: r["stream_id"] for r in run.warehouse.read(spark, "streams").collect()}
    features(kinded)
    rows = {r["stream"]: r for r in run.warehouse.read(spark, "streams").collect()}
    assert {name: rows[name]["stream_id"] for name in before} == before  # ids are never reused
    assert set(rows) - set(before) == {
        f"{s}#{k}" for s, own in (("shop/view", "view"), ("search/query", "query"), ("search/click", "query"))
        for k in ("open", own)
    }  # fmt: skip
    assert rows["shop/view#view"]["mu"] == rows["shop/view"]["mu"]
    assert explain(kinded, "shop/view#open").facts["explain"]["length"] == 7
