"""A report's content with a part of everything, and evil names in it; no Spark."""

from __future__ import annotations

from datetime import date

from dynamix.contracts import VERDICTS
from dynamix.features.quotas import CUT, KEPT, OUTSIDE, REMOVED
from dynamix.jobs.drift_data import Compared, Drift, Watch
from dynamix.jobs.evidence_data import Arm, Evidence
from dynamix.jobs.report_data import (
    AtBudget,
    Bin,
    Cell,
    Channel,
    Curve,
    LogStep,
    ReportData,
    SegmentInfo,
)
from dynamix.jobs.story_data import IMPRESSION, Bar, Past, Score, Story

EVIL = """'"><script>alert("x")</script><img src=x onerror=alert(1)>" onmouseover='x' {{ 7 * 7 }} &amp;&"""
"""Breaks out of text, out of either kind of attribute, and out of a template."""


def sample() -> ReportData:
    """Two segments x four streams with every verdict, evil names, and a part of everything."""
    names, streams = {0: "cold", 3: EVIL}, ("feed/view", "shop/buy", EVIL, "mail/open")
    cells = tuple(
        Cell(
            i,
            name,
            "*",
            stream,
            verdict != "drop",
            verdict,
            f"why {i} {k}",
            50,
            0.0,
            0.01,
            0.001,
            0.02,
            120,
            2.5,
        )
        for i, name in names.items()
        for k, (stream, verdict) in enumerate(zip(streams, VERDICTS, strict=True))
    )
    channels = tuple(
        Channel(
            c.segment_id,
            "*",
            c.stream,
            "conversion",
            "dwell",
            900,
            120,
            0.1,
            0.05,
            0.01,
            0.0,
            0.02,
            100.0,
            140.0,
            1,
        )
        for c in cells
    )
    return ReportData(
        run_id="r1", run_date=date(2024, 2, 12), config_hash="c0ffee", mask_version="m20240212-00000000",
        segment_version="s20240212-00000000", mask_status="proposed", cells=cells, channels=channels,
        curves=(Curve(3, "feed/view", "conversion", (Bin("1 s", 100, 4), Bin("2 s", 0, 0), Bin("4 s", 50, 5))),),
        segments=tuple(SegmentInfo(i, n, {"active": 10, "passive": 30}, "mix", "birth") for i, n in names.items()),
        steps=(LogStep("ingest", "done", 1.5, 100, 90, 7, 3, "c0ffee", {"events": "v1"}),),
        versions={"events": 4}, evidence=EVIDENCE, label_meaning="paid click-out", statistics_days=21.0,
        story=told(), budgets=tuple(AtBudget(b, b == 0.01, {(c.segment_id, c.stream): VERDICTS[n % 4] for n, c in
                                    enumerate(cells, start=k)}, 0.1 * k) for k, b in enumerate((0.005, 0.01, 0.02))),
        drift=Drift("r0", (Compared("dwell", EVIL, 3.0, 2.0, True, f"dwell of {EVIL}: 3 now"),)),
        watch=Watch("2024-02-12", "m20240212-00000000", "No refit is due.",
                    (Compared("psi", "feed/view", 0.1, 0.2, False, "psi .1"),), ("churn: none",)),
    )  # fmt: skip


ARMS = (
    Arm("keep-all", ne=0.9, ne_low=0.88, ne_high=0.92, tokens=10.0, train_rows_s=900.0, infer_rows_s=4000.0),
    Arm(
        "masked", ne=0.899, ne_low=0.879, ne_high=0.919, tokens=5.0, train_rows_s=1000.0, infer_rows_s=5000.0
    ),
)
EVIDENCE = Evidence(
    ARMS,
    0.03,
    (-0.05, 0.11),
    0.12,
    "published",
    "under the gate",
    rows=5000,
    positives=250,
    train_rows=20_000,
    epochs=2,
    model="dynamix-ranker version 1",
    test=ARMS,
    winner="masked",
    alias="champion",
    ranker_reason="better than <b>",
)


def told() -> Story:
    """A story with every fate, a boosted and a censored event, and a waterfall up and down."""
    events = [
        Past(
            "feed/view" if n % 3 else EVIL,
            60.0 * 1.9**n,
            (KEPT, CUT, REMOVED, OUTSIDE)[n % 4],
            n == 4,
            n != 8,
            n == 8,
        )
        for n in range(14)
    ]
    bars = (Bar(IMPRESSION, 0.05, 0.06), Bar(EVIL, 0.06, 0.04), Bar("feed/view", 0.04, 0.07))
    score = Score("conversion", 0.05, 0.07, bars, "models:/dynamix-ranker/1", "m20240212-00000000", 0.065)
    return Story("because", "m20240212-00000000", "proposed", 3, EVIL, "active", False, "test", "conversion", True,
                 tuple(reversed(events)), score)  # fmt: skip
