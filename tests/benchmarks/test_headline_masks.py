"""Orders in which the headline benchmark's masks cut cells, on made-up sums and on planted truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from headline_rows import HEAD, rows_of, sums_of

from benchmarks.headline_arms import Cut, limits_for
from benchmarks.headline_masks import (
    Decided,
    Priced,
    as_decided,
    by_relevance,
    convex_steps,
    match_rates,
    non_monotone,
    oracle,
    removal,
    removal_and_quota,
    tails,
    whole_cells,
    with_boosts,
)
from dynamix.config import MaskConfig
from dynamix.segmentation.boost import Boost, Candidate
from dynamix.segmentation.bounds import Quadratic
from dynamix.segmentation.cells import Cell
from dynamix.segmentation.quota import Tail

CONFIG = MaskConfig(delta=0.10, ne_budget=0.005)
IDS = {"strong": 0, "weak": 1, "null": 2, "bent": 3, "rich": 4}
CELLS: dict[Cell, Mapping[str, float]] = {
    (1, "strong"): {"dwell": 0.5},
    (1, "weak"): {"dwell": 0.2},
    (1, "rich"): {"dwell": 0.2, "tokens": 30.0},
    (1, "bent"): {"bend": 0.3},
    (1, "null"): {},
}


def decided(
    cells: Mapping[Cell, Mapping[str, float]] = CELLS, *, tails: Mapping[Cell, Sequence[float]] | None = None,
    protected: Sequence[str] = (), config: MaskConfig = CONFIG,
) -> Decided:  # fmt: skip
    return Decided.of(sums_of(cells, tails=tails), config, protected, base=50)


def named(cuts: Sequence[Cut]) -> list[tuple[int, str, int]]:
    names = {i: name for name, i in IDS.items()}
    return [(c.segment, names[c.stream], c.events) for c in cuts]


def test_with_boosts_every_cell_keeps_its_base_but_boosted_and_dropped_ones() -> None:
    found = decided(config=CONFIG.model_copy(update={"length": "full"}))
    assert found.boosts == {} and found.dropped == {(1, "null")}
    nothing = Tail(1.0, 1.0, Quadratic(), 1.0, 1.0, kept=4)
    boost = Boost(Candidate((1, "weak"), HEAD, nothing, 1.0), 9, 1.0, 0.9, (), "")
    rows = rows_of([[0] * 12 + [1] * 12 + [2] * 12, [1] * 12], segment=[1, 0])
    base = dict.fromkeys(IDS, 5) | {"strong": 7}
    cuts = with_boosts(replace(found, boosts={(1, "weak"): boost}), IDS, base=base, segments=2)
    limits = limits_for(rows, rows.segment, cuts, None).tolist()
    assert limits == [[7, 5, 5], [7, 12, 0]]  # twelve events were collected


def test_removal_takes_certified_drops_first_then_what_costs_least_a_token() -> None:
    found = decided()
    assert found.dropped == {(1, "null")}
    assert named(removal(found, IDS)) == [(1, "null", 0), (1, "rich", 0), (1, "weak", 0), (1, "bent", 0)]


def test_the_most_relevant_and_protected_streams_stay() -> None:
    found = decided(protected=["null"])
    assert found.staying == {(1, "strong"), (1, "null")}
    assert {name for _, name, _ in named(removal(found, IDS))} == {"rich", "weak", "bent"}
    whole = [name for _, name, events in named(removal_and_quota(found, IDS)) if events == 0]
    assert "strong" not in whole and "null" not in whole


def test_a_cell_whose_squared_dwell_matters_comes_last() -> None:
    found = decided()
    assert non_monotone(found.statistics) == {(1, "bent")}
    assert named(removal(found, IDS))[-1] == (1, "bent", 0)
    assert named(removal_and_quota(found, IDS))[-1] == (1, "bent", 0)
    assert [c for c in named(removal_and_quota(found, IDS)) if c[1] == "bent"] == [(1, "bent", 0)]


def test_older_events_go_before_the_newer_ones_that_act() -> None:
    acting = {(1, "strong"): (0.5, 0.0, 0.0, 0.0), (1, "weak"): (0.0, 0.0, 0.0, 0.2)}
    order = named(removal_and_quota(decided(tails=acting), IDS))
    first = {name: [events for _, own, events in order if own == name] for name in ("strong", "weak")}
    assert first["strong"][0] == 3  # only its newest three act
    assert first["weak"] == [0]  # its oldest act: a tail costs what the whole costs
    assert first["strong"][-1] != 0


def test_the_products_own_mask_is_its_drops_and_quotas() -> None:
    found = decided(tails={(1, "strong"): (0.5, 0.0, 0.0, 0.0)})
    cut = [(q.segment_id, q.stream, q.events) for q in found.quotas]
    assert (1, "strong", 3) in cut
    assert named(as_decided(found, IDS)) == [(1, "null", 0), *cut]
    whole = decided(config=MaskConfig(delta=0.10, ne_budget=0.005, length="full"))
    assert named(as_decided(whole, IDS)) == [(1, "null", 0)]


def test_relevance_alone_looks_at_no_tokens() -> None:
    order = [name for _, name, _ in named(by_relevance(decided(), IDS))]
    assert order[-2:] == ["rich", "weak"]  # equal effects, ties by name
    assert set(order[:2]) == {"null", "bent"}


def test_expected_losses_are_the_effects_squared_and_tokens_are_those_of_the_sums() -> None:
    statistics = sums_of(CELLS)
    by_cell = {p.cell: p for p in whole_cells(statistics)}
    weight = statistics.of((1, "strong"), "conversion")
    assert weight is not None
    assert by_cell[1, "strong"].loss == pytest.approx(
        0.25 * weight.w, rel=0.3
    )  # the prior's sizes are 20 % apart
    assert by_cell[1, "null"].loss < 0.01 * by_cell[1, "weak"].loss
    assert by_cell[1, "rich"].tokens == pytest.approx(10 * by_cell[1, "weak"].tokens)
    cut = {(p.cell, p.events): p.tokens for p in tails(statistics)}
    assert cut[(1, "weak"), 3] == pytest.approx(0.75 * by_cell[1, "weak"].tokens)
    assert cut[(1, "weak"), 30] == pytest.approx(0.25 * by_cell[1, "weak"].tokens)


def test_only_cuts_on_the_convex_hull_are_steps_and_they_rise() -> None:
    cell = (1, "f")
    options = [
        Priced(cell, 30, 1.0, 10.0),
        Priced(cell, 10, 9.0, 20.0),
        Priced(cell, 3, 7.0, 30.0),
        Priced(cell, 0, 47.0, 50.0),
    ]
    assert [(price, p.events) for price, p in convex_steps(options)] == [(0.1, 30), (0.3, 3), (2.0, 0)]


def test_the_oracle_drops_what_lies_under_delta_and_goes_on_by_true_loss_a_token() -> None:
    rows = rows_of([[0, 1, 2, 3, 3, 3, 3], [1, 2, 2, 0, 3]], segment=[1, 1], on_item=[1])
    cells = pd.DataFrame(
        {
            "segment": 1, "stream": ["a", "b", "c", "d", "none"], "beta": [0.5, 0.0, 0.05, 0.5, 0.0],
            "u": [0.0, 0.0, 0.0, 0.0, 0.3], "match": [0.0, 1.2, 0.0, 0.0, 0.0],
        }
    )  # fmt: skip
    cuts, small = oracle(cells, rows, rows.segment, {"a": 0, "b": 1, "c": 2, "d": 3}, delta=0.1)
    assert cuts == [Cut(1, 2), Cut(1, 3), Cut(1, 0), Cut(1, 1)]
    assert small == 1  # c alone; b acts by its match


def test_match_rates_count_rows_and_not_events() -> None:
    rows = rows_of([[0, 0, 1], [1, 0], [0]], segment=[0, 0, 1], on_item=[0, 1, 4])
    assert match_rates(rows, rows.segment).tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert np.array_equal(match_rates(rows, np.zeros(3, np.int64)), [[2 / 3, 0.0]])
