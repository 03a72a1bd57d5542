"""What comes back after a refused gate, how many refusals it takes at most, and in which words it is said."""

from __future__ import annotations

import math
from datetime import date, timedelta

import numpy as np
from made_sums import cell_sums

from dynamix.segmentation.back_off import Refusal, Removal, back_off, say_whole
from dynamix.segmentation.effects import effect
from dynamix.segmentation.masks import Verdict

DAY = date(2026, 3, 2)
LOSS = ("ne +0.5000, allowed 0.1000",)
REMOVALS = (
    Removal((1, "cheap"), ucb=0.001, tokens=5.0),
    Removal((1, "dear"), ucb=0.001, tokens=0.1),
    Removal((2, "nothing saved"), ucb=0.0001, tokens=0.0),
    Removal((2, "half"), ucb=0.002, tokens=5.0),
    Removal((3, "middle"), ucb=0.001, tokens=4.0),
)


def test_without_a_name_the_half_comes_back_that_costs_most_per_token() -> None:
    found = back_off([Refusal("m1", DAY, REMOVALS, LOSS)], days=42)
    assert set(found) == {(2, "nothing saved"), (1, "dear"), (2, "half")}
    assert found[1, "dear"].sentence() == (
        "backed off: gate of m1 refused, ne +0.5000, allowed 0.1000; kept until 2026-04-13"
    )


def test_what_the_gate_names_comes_back_whole_and_nothing_else() -> None:
    segment = Refusal("m1", DAY, REMOVALS, LOSS, segments={2: "floor"})
    assert set(back_off([segment], days=42)) == {(2, "nothing saved"), (2, "half")}
    cell = Refusal("m1", DAY, REMOVALS, cells={(3, "middle"): "second opinion"})
    assert set(back_off([cell], days=42)) == {(3, "middle")}
    both = Refusal("m1", DAY, REMOVALS, segments={2: "floor"}, cells={(2, "half"): "second opinion"})
    assert {c: b.why for c, b in back_off([both], days=42).items()} == {
        (2, "nothing saved"): "floor", (2, "half"): "second opinion",
    }  # fmt: skip


def test_a_segment_that_lost_nothing_of_its_own_halves_what_the_mask_takes() -> None:
    """Its ranker shares weights with the segments that did."""
    found = back_off([Refusal("m1", DAY, REMOVALS, segments={7: "floor of segment 7"})], days=42)
    assert len(found) == 3 and {b.why for b in found.values()} == {"floor of segment 7"}


def test_refusal_after_refusal_ends_with_nothing_taken_away() -> None:
    for n in (1, 2, 3, 10, 100):
        left = tuple(Removal((1, f"s{i}"), ucb=1.0 + i, tokens=1.0) for i in range(n))
        refusals: list[Refusal] = []
        while left:
            refusals.append(Refusal(f"m{len(refusals)}", DAY + timedelta(days=len(refusals)), left, LOSS))
            stays = back_off(refusals, days=42)
            assert (
                len(stays) + len([r for r in left if r.cell not in stays]) == n
            )  # nothing that came back goes again
            left = tuple(r for r in left if r.cell not in stays)
        assert len(refusals) <= math.log2(n) + 1


def test_a_cell_that_would_be_cut_says_why_it_stays_whole() -> None:
    stays = back_off([Refusal("m1", DAY, REMOVALS[:1], LOSS)], days=42)
    e = effect(cell_sums(np.random.default_rng(0), 1000.0, {}))
    verdicts = [Verdict(1, f, "undecided", "because", "conversion", e, 1.0) for f in ("cheap", "dear")]
    said = say_whole(verdicts, {(1, "cheap"), (1, "dear")}, stays)
    assert said[1] == verdicts[1] and said[0].verdict == "undecided"
    assert said[0].reason.startswith("backed off: gate of m1 refused, ") and said[0].reason.endswith(
        "; because"
    )
    assert say_whole(verdicts, set(), stays) == verdicts
