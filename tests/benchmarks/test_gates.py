"""Every gate passes and fails on made-up figures, and notices its broken variant in a small world."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks import gates, gates_measure
from benchmarks.__main__ import numbers
from benchmarks.gates_attributes import NAMES, Lost, nats
from benchmarks.gates_boost import Lengthened
from benchmarks.gates_broken import BROKEN, SOUND, Variant
from benchmarks.gates_loss import Loss
from benchmarks.gates_measure import LEAST_POSITIVES, Measured, measured, sample
from benchmarks.gates_quota import Horizons
from benchmarks.gates_world import world_config
from dynamix.errors import ConfigError
from dynamix.features import sim_world as W
from dynamix.segmentation.attributes import Without

SMALL = world_config(*gates.SETTINGS).mask
BY_NAME = {variant.name: variant for variant in BROKEN}


def asked(n: int, *, chosen: int, decidable: int = 0) -> Horizons:
    """n cells of which the newest 3 events act, cut to a bucket as far as the total allows, to the first in any case."""
    at = np.ones(n, np.int64)
    return Horizons(at, chosen * at, at, np.arange(n) < decidable)


def made_up(cells: list[tuple[int, int, str, bool]], **figures: Any) -> Measured:
    """Cells (segment, stream, kind, dropped) of 100 tokens, 10,000 positives and an estimate of exactly the truth."""
    n = len(cells)
    segment, stream, kind, dropped = (np.array(column) for column in zip(*cells, strict=True))
    plain: dict[str, Any] = {
        "preset": "S0", "seed": 0, "variant": "as it is", "users": 1, "impressions": 1e6, "all_positives": 1e5,
        "segment": segment, "stream": stream, "kind": kind, "dropped": dropped, "tokens": np.full(n, 100.0),
        "positives": np.full(n, 1e4), "needed": np.full(n, 500.0), "shown": np.zeros(n, bool),
        "matters": np.zeros(n, bool), "horizons": asked(n, chosen=4),
        "beta": np.zeros(n), "se": np.ones(n), "truth": np.zeros(n), "spread": np.ones(n), "deff": np.ones(n),
        "copy_of": np.full(W.N_STREAMS, -1), "loss": Loss(0.0, np.zeros(7)), "told": Loss(0.0, np.zeros(7)),
        "budget": 0.001,
    }  # fmt: skip
    return Measured(**(plain | figures))


def nulls(dropped: int, *, of: int = 10, segment: int = 1) -> list[tuple[int, int, str, bool]]:
    return [(segment, f, "null", f < dropped) for f in range(of)]


def test_null_drops_ask_for_nine_tenths_and_half_of_the_smallest_segment() -> None:
    assert gates.null_drops(made_up(nulls(10))).passed is True
    assert gates.null_drops(made_up(nulls(8))).passed is False
    assert gates.null_drops(made_up(nulls(10) * 9 + nulls(4, segment=6))).passed is False
    assert gates.null_drops(made_up(nulls(10) * 9 + nulls(5, segment=6))).passed is True
    assert gates.null_drops(made_up(nulls(0), all_positives=79_999.0)).passed is None


@pytest.mark.parametrize("kind", ["strong", "match"])
def test_one_dropped_strong_or_match_cell_fails(kind: str) -> None:
    assert gates.strong_drops(made_up([(1, 0, kind, False), (1, 1, "weak", True)])).passed is True
    assert gates.strong_drops(made_up([(1, 0, kind, True)])).passed is False


def test_an_original_may_go_where_its_copy_stays() -> None:
    copy_of = np.full(W.N_STREAMS, -1)
    copy_of[1] = 0
    kept, gone = ([(1, 0, "strong", True), (1, 1, "copy", flag)] for flag in (False, True))
    assert gates.strong_drops(made_up(kept, copy_of=copy_of)).passed is True
    assert gates.strong_drops(made_up(gone, copy_of=copy_of)).passed is False


def test_weak_cells_count_only_with_their_support() -> None:
    cells = [(1, f, "weak", f == 0) for f in range(20)]
    assert gates.weak_drops(made_up(cells)).passed is False  # 5 %
    few = np.where(np.arange(20) == 0, 3_999.0, 1e4)
    assert gates.weak_drops(made_up(cells, positives=few)).passed is True
    assert gates.weak_drops(made_up(cells, positives=np.full(20, 10.0))).passed is None


def test_the_loss_may_be_the_budget_and_no_more() -> None:
    assert gates.total_loss(made_up(nulls(0), loss=Loss(0.001, np.zeros(7)))).passed is True
    assert gates.total_loss(made_up(nulls(0), loss=Loss(0.00101, np.zeros(7)))).passed is False
    assert gates.told_loss(made_up(nulls(0), told=Loss(0.001, np.zeros(7)))).passed is True
    assert gates.told_loss(made_up(nulls(0), told=Loss(0.00101, np.zeros(7)))).passed is False


def test_coverage_fails_on_both_sides() -> None:
    cells = nulls(0, of=2_000)
    for outside, passed in ((0, False), (50, True), (100, True), (150, True), (180, False)):
        beta = np.where(np.arange(2_000) < outside, 2.0, 0.0)
        assert gates.coverage(made_up(cells, beta=beta)).passed is passed
    unknown = made_up(cells, truth=np.full(2_000, np.nan))
    assert gates.coverage(unknown).passed is False and not unknown.judged.any()
    rare = made_up(cells, positives=np.full(2_000, LEAST_POSITIVES - 1.0))
    assert not rare.judged.any()


def test_centre_asks_that_null_estimates_lean_to_no_side() -> None:
    cells = nulls(0, of=900) + [(1, 0, "strong", False)] * 900
    beta = np.concatenate([np.full(900, 0.09), np.full(900, 5.0)])
    assert gates.centred(made_up(cells, beta=beta)).passed is True  # 3 errors of a mean of 900 are .1
    assert gates.centred(made_up(cells, beta=beta * 1.2)).passed is False
    assert gates.centred(made_up(cells, beta=-beta * 1.2)).passed is False


def test_type_one_counts_shown_relevance() -> None:
    cells = nulls(0, of=1_000)
    for shown, passed in ((50, True), (70, True), (72, False)):
        assert gates.type_one(made_up(cells, shown=np.arange(1_000) < shown)).passed is passed


def test_where_nothing_acts_no_cell_with_support_may_exceed_its_budget() -> None:
    shown = np.arange(10) == 3
    assert gates.nothing_matters(made_up(nulls(0))).passed is True
    assert gates.nothing_matters(made_up(nulls(0), matters=shown)).passed is False
    few = np.where(shown, 499.0, 1e4)
    assert gates.nothing_matters(made_up(nulls(0), matters=shown, positives=few)).passed is True


def longer(taken: int, *, right: int, shown: int = 0) -> Lengthened:
    """Ten cells with support, the first `taken` boosted, of which `right` act beyond the base; `shown` more told."""
    at = np.arange(10)
    return Lengthened(at >= 0, at < taken + shown, at < taken, at < right, 0.97)


def test_in_a_null_world_with_boosts_nothing_may_be_boosted_or_shown_to_be_worth_one() -> None:
    for found, passed in (
        (longer(0, right=0), True),
        (longer(1, right=0), False),
        (longer(0, right=0, shown=1), False),
    ):
        assert gates.nothing_matters(made_up(nulls(0), longer=found)).passed is passed
    beside = np.arange(10) == 3  # what the base shows is no boost
    assert gates.nothing_matters(made_up(nulls(0), matters=beside, longer=longer(0, right=0))).passed is True


def test_nine_tenths_of_the_boosted_cells_act_beyond_the_base() -> None:
    cells = [(1, f, "strong", False) for f in range(10)]
    for taken, right, passed in ((10, 9, True), (10, 8, False), (1, 1, True), (1, 0, False), (0, 0, None)):
        assert gates.boosted_horizon(made_up(cells, longer=longer(taken, right=right))).passed is passed
    assert gates.boosted_horizon(made_up(cells)).passed is None


def test_a_quota_may_be_one_bucket_off_the_planted_horizon() -> None:
    cells = [(1, f, "strong", False) for f in range(10)]
    for chosen, passed in ((1, True), (2, True), (3, False)):
        off = asked(10, chosen=chosen, decidable=10)
        assert gates.quota_horizon(made_up(cells, horizons=off)).passed is passed
    mixed = asked(10, chosen=1, decidable=10)
    for wrong, passed in ((2, True), (3, False)):
        chosen_by_cell = np.where(np.arange(10) < wrong, 4, 1)
        some = replace(mixed, chosen=chosen_by_cell)
        assert gates.quota_horizon(made_up(cells, horizons=some)).passed is passed
    assert gates.quota_horizon(made_up(cells)).passed is None


def test_the_attribute_gate_asks_for_the_item_of_match_and_the_dwell_of_strong_and_bent_cells() -> None:
    cells = [(1, 0, "match", False), (1, 1, "strong", False), (1, 2, "u", False), (1, 3, "weak", False)]

    def passed(*gone: tuple[int, str], told: float = 0.0005) -> bool | None:
        chosen = np.zeros((4, 3), bool)
        for cell, name in gone:
            chosen[cell, NAMES.index(name)] = True
        return gates.attributes(made_up(cells, attributes=Lost(chosen, chosen, told))).passed

    assert passed((0, "dwell"), (0, "recency"), (1, "item"), (2, "item"), (3, "dwell")) is True
    assert [passed((0, "item")), passed((1, "dwell")), passed((2, "dwell"))] == [False] * 3
    assert passed(told=0.00101) is False
    assert gates.attributes(made_up(cells)).passed is None


def test_a_small_world_loses_attributes_and_not_those_that_act() -> None:
    """Under a budget that frees it, δ below strong effects; what is lost is told by little, a strong dwell by much."""
    config = SMALL.model_copy(update={"attributes": "bound", "ne_budget": 0.1, "delta": 0.4})
    found = sample("S8", seed=0, users=600, truth=False)
    m = measured(found, SOUND, config)
    assert m.attributes is not None and m.attributes.chosen.sum() > 10
    assert gates.attributes(m).passed is True
    assert measured(found, SOUND, SMALL).attributes is None
    worst = int(np.flatnonzero((m.kind == "strong") & (m.segment == 1))[0])
    one = Without(1, found.world.streams[m.stream[worst]], ("dwell",), 1.0, 0.0, 0.0, "")
    assert nats(found.told, one, int(m.stream[worst])) > 10 * nats(
        found.told, replace(one, attributes=("item",)), int(m.stream[worst])
    )


def test_runs_over_the_budget_are_counted_where_the_loss_has_a_gate() -> None:
    over = made_up(nulls(0), loss=Loss(0.00101, np.zeros(7)))
    runs = {"S0": [over, made_up(nulls(0))], "null": [over]}
    assert gates.over_budget(runs) == "1 of 2 runs; of what the histories tell: 0"


def test_seeds_are_numbers_and_ranges() -> None:
    assert numbers("0,2,5-7") == [0, 2, 5, 6, 7]
    assert numbers("3") == [3]


def test_the_support_floor_concerns_dropped_cells() -> None:
    few = np.where(np.arange(10) < 2, 499.0, 1e4)
    assert gates.support_floor(made_up(nulls(1), positives=few)).passed is False
    kept = made_up([*nulls(10)[2:], (1, 0, "null", False)], positives=np.append(np.full(8, 500.0), 1.0))
    assert gates.support_floor(kept).passed is True
    assert gates.support_floor(made_up(nulls(0))).passed is True


@pytest.mark.parametrize(
    ("original", "copy", "passed"), [(False, True, True), (True, False, True), (True, True, False)]
)
def test_of_a_copy_and_its_original_exactly_one_goes(original: bool, copy: bool, passed: bool) -> None:
    copy_of = np.full(W.N_STREAMS, -1)
    copy_of[1] = 0
    cells = [(1, 0, "strong", original), (1, 1, "copy", copy)]
    assert gates.copies(made_up(cells, copy_of=copy_of)).passed is passed
    assert gates.copies(made_up(cells, copy_of=copy_of, positives=np.full(2, 499.0))).passed is None
    both = [(1, 0, "strong", False), (1, 1, "copy", False)]
    assert gates.copies(made_up(both, copy_of=copy_of)).passed is False


def test_the_cold_gate_reads_segment_0() -> None:
    for lost, passed in ((0.0002, True), (0.0003, False)):
        by_segment = np.append(lost, np.full(6, 0.5))
        assert gates.cold_loss(made_up(nulls(0), loss=Loss(0.1, by_segment))).passed is passed


def test_shares_are_of_tokens() -> None:
    m = made_up([(1, 0, "null", True), (1, 1, "null", False)], tokens=np.array([300.0, 100.0]))
    assert m.share("null") == m.share() == 0.75 and m.share("weak") == 0.0


def test_every_broken_variant_names_a_gate_of_its_world() -> None:
    for variant in BROKEN:
        results = [gate(made_up(nulls(1))) for gate in gates.GATES[variant.world]]
        assert variant.gate in {r.name for r in results}


def test_a_preset_without_gates_is_refused_before_anything_is_drawn() -> None:
    with pytest.raises(ConfigError, match="S4"):
        gates.main(["S4"], seeds=[0], users=10)


def results(variant: Variant, *, users: int, seed: int) -> tuple[gates.Gate, gates.Gate]:
    """The variant's gate in its world: as it is, and broken."""
    found = sample(variant.world, seed=seed, users=users, variants=(SOUND, variant))
    made = []
    for way in (SOUND, variant):
        m = measured(found, way, SMALL)
        made.append(next(r for g in gates.GATES[variant.world] if (r := g(m)).name == variant.gate))
    return made[0], made[1]


SHOWS = {
    "last dwell = 0": 1_500,
    "drop where p > .05": 1_500,
    "naive variance": 1_000,
    "dwell only": 16_000,
    "habit of the same window": 16_000,
    "no second look at a copy": 12_000,
    "each stream alone": 20_000,
    "no floor of positives": 6_000,
    "no floor for cold users": 8_000,
}
"""Users with which a variant shows itself."""


@pytest.mark.parametrize("name", [name for name, users in SHOWS.items() if users <= 1_500])
def test_a_broken_variant_fails_the_gate_that_the_product_passes(name: str) -> None:
    sound, broken = results(BY_NAME[name], users=SHOWS[name], seed=0)
    assert (sound.passed, broken.passed) == (True, False), (sound.said, broken.said)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SHOWS))
def test_a_broken_variant_fails_in_four_of_five_seeds_and_the_product_passes(name: str) -> None:
    pairs = [results(BY_NAME[name], users=SHOWS[name], seed=seed) for seed in range(5)]
    assert sum(sound.passed is True for sound, _ in pairs) >= 4, [s.said for s, _ in pairs]
    assert sum(broken.passed is False for _, broken in pairs) >= 4, [b.said for _, b in pairs]


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="events of the habit window act on the labels: docs/method.md E2")
def test_null_cells_of_a_world_with_habits_are_centred() -> None:
    found = sample("S1", seed=0, users=12_000)
    assert gates.centred(measured(found, SOUND, SMALL)).passed


def test_chunks_are_other_users_of_the_same_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates_measure, "CHUNK_USERS", 60)
    both = sample("S8", seed=1, users=100)
    first = sample("S8", seed=1, users=60)
    assert both.world.streams == first.world.streams
    n = len(first.rows.segment)
    assert np.array_equal(both.rows.fixed[:n], first.rows.fixed)
    assert len(both.rows.segment) > n
    m = measured(both, SOUND, SMALL)
    assert m.impressions == len(both.rows.segment)
    assert (m.kind == "match").sum() == 2 * len(np.unique(both.rows.segment))
