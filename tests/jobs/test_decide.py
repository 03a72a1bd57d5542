"""What `mask` writes of a boost: verdict, quota and audit rows; which streams it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made_sums import PLENTY, RATE, statistics

from dynamix.config import Config, MaskConfig, load_config
from dynamix.features.recency import BUCKETS, SHARED, WHOLE_STREAM, BeyondSums, columns_of
from dynamix.jobs.arm_rows import ArmRows
from dynamix.jobs.cell_stats import Measured
from dynamix.jobs.decide import decide
from dynamix.jobs.mask import _grid_rows, _version
from dynamix.jobs.mask_audit import audit_rows
from dynamix.models.serving import Cell

HEAD, TELLS, NULL = "conversion", "feed/view", "shop/view"


def beyond(effect: float, *, n: float = PLENTY / 2) -> BeyondSums:
    """Independent values of variance 1 in five buckets of one event an impression; the dwell beyond the base acts."""
    w, width = n * RATE * (1 - RATE), SHARED + len(WHOLE_STREAM) + 3 * (BUCKETS + 1)
    a = np.zeros(width + 1)
    a[columns_of(BUCKETS)[0]] = w * effect
    every = np.full(BUCKETS + 1, n)
    return BeyondSums(
        n=n, positives=n * RATE, w=w, with_bucket=RATE * every, tokens=every, wx=np.zeros(width), wxx=w * np.eye(width),
        a=a, aa=w * np.eye(width + 1),
    )  # fmt: skip


def measured() -> Measured:
    """Two segments in which one stream acts, beyond its base as well; in segment 0 the other stream can go."""
    plan = {
        (g, f): {"n": PLENTY, "effects": {"dwell": 0.5 * (f == TELLS)}} for g in (0, 1) for f in (TELLS, NULL)
    }
    longer = {
        (*cell, HEAD, half): beyond(0.1 if cell == (1, TELLS) else 0.0) for cell in plan for half in (0, 1)
    }
    found = replace(statistics(plan), beyond=longer)
    return Measured(found, "s1", {0: "cold", 1: "one"}, (TELLS, NULL), date(2026, 1, 1))


def config(**mask: Any) -> Config:
    return Config(
        labels=(HEAD,), mask=MaskConfig(**{"boost_to": 100, "ne_budget": 0.005, "length": "full", **mask})
    )


def written(of: Config) -> tuple[dict[tuple[int, str], dict[str, Any]], list[dict[str, Any]], str]:
    run: Any = SimpleNamespace(config=of, run_date=date(2026, 1, 1), run_id="r")
    decision = decide(of, measured(), {})
    version = _version(run, measured(), decision)
    rows = _grid_rows(run, measured(), decision, version)
    return {(r["segment_id"], r["stream"]): r for r in rows}, audit_rows(decision, version), version


def test_a_boosted_cell_has_its_verdict_its_quota_and_its_rules_in_the_audit() -> None:
    grid, audit, version = written(config())
    assert {cell: (r["verdict"], r["quota"]) for cell, r in grid.items()} == {
        (0, TELLS): ("keep", 50), (0, NULL): ("drop", 0), (1, TELLS): ("boost", 100), (1, NULL): ("drop", 0),
    }  # fmt: skip
    assert grid[1, TELLS]["reason"].startswith("boost: its newest 100: events beyond 50 explain at least ")
    assert grid[1, TELLS]["keep"] and grid[1, TELLS]["boost"] == 0.0
    rules = {r["rule"]: r for r in audit if r["segment_id"] == 1 and r["stream"] == TELLS}
    assert rules["beyond"]["value"] > 0 and rules["beyond"]["limit"] == 0
    assert rules["token_budget"]["value"] <= rules["token_budget"]["limit"] == 0.98
    plain = written(config(boost_to=0))
    assert {r["verdict"] for r in plain[0].values()} == {"keep", "drop"}
    assert not {r["rule"] for r in plain[1]} & {"beyond", "beyond_support", "token_budget"}
    assert plain[2] != version


@pytest.mark.parametrize("marked", ["sensitive", "protected"])
def test_a_stream_that_is_marked_is_not_lengthened(marked: str) -> None:
    own = config().model_copy(
        update={"streams": load_config(settings=[f"streams={{{TELLS}: {{{marked}: true}}}}"]).streams}
    )
    assert written(own)[0][1, TELLS]["quota"] == 50


def test_what_a_watch_brought_back_stays_whole_and_is_not_lengthened() -> None:
    back: Any = {(1, TELLS): SimpleNamespace(sentence=lambda: "restored")}
    assert decide(config(), measured(), back).boosts == {}


def test_one_mask_for_all_is_boosted_by_the_same_rule() -> None:
    grid = written(config(rule="global"))[0]
    assert {r["verdict"] for (_, f), r in grid.items() if f == TELLS} == {"boost"}
    assert grid[0, TELLS]["quota"] == grid[1, TELLS]["quota"] == 100


def test_serving_cells_of_a_boosted_grid_say_how_far_histories_go() -> None:
    cells = {"m1": (Cell(1, "*", TELLS, 100),), "m2": (Cell(1, "*", TELLS, 50), Cell(1, "*", NULL, 3))}
    arms = ArmRows(
        rows={}, calendar=None, table_version=0, streams={}, n_segments=2, segment_version="s1", segmenter=None,  # type: ignore[arg-type]
        habits={}, cells=cells,
    )  # fmt: skip
    run: Any = SimpleNamespace(config=config())
    assert [arms.boost_to(run, version) for version in ("m1", "m2", "keep-all")] == [100, 0, 0]
    run.config = config(boost_to=0)
    assert arms.boost_to(run, "m1") == 0
