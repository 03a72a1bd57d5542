"""The receipt says what was measured, with its uncertainty, and what was not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from dynamix.jobs.evidence_data import Arm, Evidence, fits, parse_evidence
from dynamix.jobs.receipt import (
    days_needed,
    design_effects,
    look_first,
    ne_change,
    one_mask,
    one_mask_would_do,
    receipt,
    token_shares,
    undecided,
)
from dynamix.jobs.report_data import Cell, Channel, ReportData, SegmentInfo
from dynamix.jobs.savings import savings, side_by_side


def cell(
    segment: int, stream: str, verdict: str, tokens: float = 1.0, positives: int = 100, tier: str = "*"
) -> Cell:
    return Cell(
        segment_id=segment, segment_name=f"name {segment}", tier=tier, stream=stream, keep=verdict != "drop",
        verdict=verdict, reason=f"reason of {stream}.", positives=positives, tokens=tokens,
    )  # fmt: skip


def world(*cells: Cell, users: Mapping[int, int] | None = None) -> ReportData:
    counted = users or {1: 300, 2: 100}
    segments = tuple(SegmentInfo(i, f"name {i}", {"active": n}) for i, n in counted.items())
    return ReportData(cells=cells, segments=segments, label_meaning="paid click-out", statistics_days=20.0)


ARMS = (
    Arm(
        "keep-all", ne=0.90, ne_low=0.88, ne_high=0.92, tokens=60.0, train_rows_s=1000.0, infer_rows_s=4000.0
    ),
    Arm("masked", ne=0.90, ne_low=0.88, ne_high=0.92, tokens=45.0, train_rows_s=1250.0, infer_rows_s=5000.0),
    Arm("one-mask", ne=0.905, ne_low=0.885, ne_high=0.925, tokens=45.0),
)
MEASURED = Evidence(ARMS, 0.03, (-0.05, 0.11), 0.12, "published", "under the gate", rows=5000, positives=250)


def test_token_shares_weigh_segments_by_users_and_count_only_drops() -> None:
    data = world(
        cell(1, "a", "drop", 1.0),
        cell(1, "b", "keep", 3.0),
        cell(2, "a", "keep", 2.0),
        cell(2, "b", "undecided", 2.0),
    )
    # segment 1: 300 of 400 users, 1 of 4 tokens goes; segment 2 keeps all its 4 tokens
    assert token_shares(data) == pytest.approx((0.75 * 1 / 4, 1 / 4, 0.75))


def test_tiers_of_a_segment_share_its_weight_by_their_users() -> None:
    data = world(cell(1, "a", "drop", 2.0, tier="active"), cell(1, "a", "keep", 2.0, tier="passive"))
    data = replace(data, segments=(SegmentInfo(1, "one", {"active": 30, "passive": 10}),))
    assert token_shares(data) == pytest.approx((0.75, 1.0, 0.75))


def test_impressions_outrank_users_as_weights() -> None:
    data = world(cell(1, "a", "drop"), cell(2, "a", "keep"))
    rows = tuple(Channel(i, "*", "a", "conversion", "dwell", impressions=n) for i, n in ((1, 10), (2, 90)))
    found = token_shares(replace(data, channels=rows))
    assert found is not None and found[0] == pytest.approx(0.1)


def test_the_meaning_of_the_label_stands_in_the_receipt() -> None:
    assert "paid click-out" in receipt(world(cell(1, "a", "keep")))[0]
    assert "paid click-out" in receipt(ReportData(label_meaning="paid click-out"))[0]


def test_nothing_dropped_is_said_and_saves_nothing() -> None:
    text = "\n".join(receipt(world(cell(1, "a", "keep"), cell(2, "a", "undecided"))))
    assert "Nothing can go yet" in text and "Saved: nothing" in text


def test_without_evidence_no_ne_and_no_saving_is_claimed() -> None:
    text = "\n".join(
        receipt(world(cell(1, "a", "drop"), cell(1, "b", "keep"), cell(2, "a", "keep"), cell(2, "b", "keep")))
    )
    assert "Expected NE change: not measured" in text and "Saved: not measured" in text
    assert "One mask for everybody: not measured" in text


def test_ne_change_carries_interval_rows_and_what_they_resolve() -> None:
    line = receipt(replace(world(cell(1, "a", "drop"), cell(2, "a", "keep")), evidence=MEASURED))[2]
    for part in (
        "+0.030 %",
        "-0.050 to +0.110 %",
        "includes zero",
        "0.120 %",
        "5,000",
        "250 positives",
        "published",
    ):
        assert part in line


def test_savings_in_tokens_seconds_and_money() -> None:
    e = replace(MEASURED, train_rows=3_600_000, epochs=2)
    data = replace(
        world(cell(1, "a", "drop")), evidence=e, per_training_hour=10.0, per_billion_inferences=50.0
    )
    first, money = savings(data)
    assert "25 % of the tokens" in first and "+25.0 % rows/s" in first
    # 7.2 M rows: 7200 s at 1000 rows/s, 5760 s at 1250: 1440 s = 0.4 h = 4 EUR; inference 1 - 4/5 of 50 EUR
    assert "+1440.0 s" in first and "+4.0000 EUR" in money and "+10.00 EUR" in money


def test_missing_prices_are_named_not_invented() -> None:
    data = replace(world(cell(1, "a", "drop")), evidence=MEASURED)
    assert "no prices given" in savings(data)[1] and "an hour" not in savings(data)[1]
    timed = replace(data, evidence=replace(MEASURED, train_rows=3_600_000, epochs=2))
    # 7.2 M rows take 2 h at 1000 rows/s and 1.6 h at 1250
    assert "At 1 EUR an hour, to scale from and no price, +0.4000 EUR per training" in savings(timed)[1]


def test_what_is_saved_stands_side_by_side() -> None:
    e = replace(MEASURED, train_rows=3_600_000, epochs=2)
    data = replace(world(cell(1, "a", "drop")), evidence=e)
    assert [(s.full, s.masked, s.saved) for s in side_by_side(data)] == [
        ("60.0", "45.0", "25 %"), ("1,000.0", "800.0", "20 %"), ("250.0", "200.0", "20 %"), ("2.0000", "1.6000", "20 %"),
    ]  # fmt: skip
    assert "no price given" in side_by_side(data)[3].what
    priced = side_by_side(replace(data, per_training_hour=10.0, per_billion_inferences=50.0))
    assert [(s.full, s.masked) for s in priced[3:]] == [("20.0000", "16.0000"), ("50.00", "40.00")]
    bare = replace(e, arms=(replace(ARMS[0], train_rows_s=None), ARMS[1]))
    assert side_by_side(replace(data, evidence=bare))[1].saved == "not measured"
    assert side_by_side(world(cell(1, "a", "drop"))) == []


def test_days_needed_follows_the_support_formula() -> None:
    data = replace(world(cell(1, "a", "undecided", positives=100)), delta=0.2, support=3.0)
    rows = (Channel(1, "*", "a", "conversion", "dwell", information=10.0, score_var=20.0),)
    data = replace(data, channels=rows)
    assert design_effects(data) == {(1, "a"): 2.0}
    # (3 / .2)^2 * 2 = 450 positives; 100 in 20 days -> 90 days
    assert days_needed(data, data.cells[0], effects=design_effects(data)) == pytest.approx(90.0)
    assert "after 90 days" in undecided(data)


def test_a_cell_without_positives_gets_no_number_of_days() -> None:
    assert "no number of days can be named" in undecided(world(cell(1, "a", "undecided", positives=0)))


def test_one_mask_that_does_as_well_is_said_plainly() -> None:
    data = replace(world(cell(1, "a", "drop"), cell(2, "a", "keep")), evidence=MEASURED)
    assert "One mask for everybody does as well" in one_mask(data)
    better = replace(data, evidence=replace(MEASURED, worth_pct=-0.5, worth_ci=(-0.7, -0.3)))
    assert "Masks per segment are better" in one_mask(better)
    assert one_mask_would_do(data) and not one_mask_would_do(better)
    assert not one_mask_would_do(replace(data, evidence=None)) and not one_mask_would_do(ReportData())


def test_one_segment_and_equal_masks_need_no_second_mask() -> None:
    assert "only one segment" in one_mask(world(cell(0, "a", "keep"), cell(1, "a", "drop")))
    assert "exactly as well" in one_mask(world(cell(1, "a", "drop"), cell(2, "a", "drop")))


def test_look_first_takes_a_wrong_drop_then_the_heaviest_undecided_cell() -> None:
    data = world(cell(1, "a", "undecided", 1.0), cell(1, "b", "undecided", 9.0), cell(2, "a", "drop"))
    assert "“b”" in look_first(data) and "reason of b." in look_first(data)
    assert "planted effect is strong" in look_first(replace(data, truth={(2, "a"): "strong"}))
    assert "“b”" in look_first(replace(data, truth={(2, "a"): "null"}))


def test_evidence_with_missing_keys_is_read_as_not_measured() -> None:
    e = parse_evidence(
        {
            "arms": [{"arm": "masked", "ne": None, "per_segment": {"1": {"ne": 0.9}, "2": 0.8}}],
            "ci": [None, 1],
        }
    )
    assert e.ci is None and e.delta_ne_pct is None and e.masked is not None and e.masked.ne is None
    assert e.masked.per_segment == {"1": 0.9, "2": 0.8}
    assert (
        parse_evidence({}).arms == ()
        and parse_evidence({"arms": {"keep-all": {"ne": 1}}}).keep_all is not None
    )


def test_figures_of_a_nested_gate_are_found() -> None:
    delta = {
        "delta_ne_pct": 0.1,
        "low": -0.1,
        "high": 0.3,
        "resolvable_pct": 0.2,
        "rows": 10,
        "positives": 2.0,
    }
    e = parse_evidence({"mask_gate": {"status": "published", "reason": "fine", "delta": delta}, "ci": None})
    assert (e.delta_ne_pct, e.ci, e.resolvable_pct, e.rows, e.decision) == (
        0.1,
        (-0.1, 0.3),
        0.2,
        10,
        "published",
    )


def test_evidence_of_another_mask_is_said_before_its_figures() -> None:
    data = replace(world(cell(1, "a", "drop")), evidence=MEASURED, notice="of another mask")
    lines = receipt(data)
    assert lines.index("of another mask") < lines.index(ne_change(data))


def test_evidence_of_another_mask_does_not_fit() -> None:
    e = Evidence((Arm("masked", mask_version="m1"),))
    assert fits(e, "m1") and not fits(e, "m2") and fits(Evidence(), "m2")


def test_cut_histories_are_counted_beside_whole_cells() -> None:
    plain = world(cell(1, "a", "drop"), cell(1, "b", "keep"), cell(2, "a", "keep"), cell(2, "b", "keep"))
    cut = tuple(replace(c, quota=3, whole=50) if c.keep else c for c in plain.cells)
    assert ", and of 3 more the older events" in receipt(replace(plain, cells=cut))[1]
    assert "older events" not in receipt(plain)[1]
    only = replace(plain, cells=cut[1:])
    assert "0 of 3 cells" in receipt(only)[1] and "Saved: nothing" not in "\n".join(receipt(only))
