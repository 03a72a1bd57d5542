"""The gates of drift on made-up watches, and one small world that the product passes and a broken variant fails."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import drift
from benchmarks.drift import BROKEN, SOUND, TURN, Replay, drawn_world, replay
from benchmarks.gates import SETTINGS
from benchmarks.gates_world import world_config
from dynamix.errors import ConfigError
from dynamix.features import sim_world as W
from dynamix.features.relevance import CellSums
from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.life import EXPIRED, HARMFUL, HOLD_OUT, IN_FORCE, UNDER_THE_MASK, Shown, Watch

CONFIG = world_config(*SETTINGS).mask
BY_NAME = {variant.name: variant for variant in BROKEN}
A, B, OTHER = (1, "a/x"), (2, "a/x"), (1, "b/y")


def said(state: str = IN_FORCE, *back: Cell) -> Watch:
    shown = Shown("conversion", "hold-out", back, 99.0, 0.01, 0.001, 1e-9, 0.01)
    return Watch(state, state, 0.0, dict.fromkeys(back, shown))


def made_up(*watches: Watch, wanted: tuple[Cell, ...] = (A, B)) -> Replay:
    """Weekly watches from the turn on, over 60 dropped cells."""
    dropped = np.zeros((W.N_SEGMENTS, W.N_STREAMS), bool)
    dropped[:, :10] = True
    days = (TURN + 7 * (week + 1) for week in range(len(watches)))
    return Replay("S5", 0, "as it is", tuple(zip(days, watches, strict=False)), dropped, frozenset(wanted))


def test_a_stream_is_restored_when_every_segment_has_it_back() -> None:
    in_two = made_up(said(IN_FORCE, A), said(IN_FORCE, B))
    assert in_two.restored == 2 and drift.restored(in_two).passed
    late = made_up(said(IN_FORCE, A), said(), said(IN_FORCE, B))
    assert late.restored == 3 and not drift.restored(late).passed
    never = made_up(said(IN_FORCE, A), said())
    assert never.restored is None and not drift.restored(never).passed


def test_a_harmful_mask_has_to_go_within_two_windows() -> None:
    for quiet_weeks, passed in ((0, True), (1, True), (2, False)):
        r = made_up(*[said()] * quiet_weeks, said(HARMFUL))
        assert drift.retired(r).passed is passed
    assert not drift.retired(made_up(said(), said(EXPIRED))).passed


def test_an_undrifted_mask_goes_when_its_time_is_over_and_not_before() -> None:
    young = [said()] * 3
    assert drift.expired(made_up(*young, said(EXPIRED), wanted=())).passed
    assert drift.expired(made_up(*young, said(), said(), said(EXPIRED), wanted=())).passed
    assert not drift.expired(made_up(*young, *[said()] * 3, said(EXPIRED), wanted=())).passed
    assert not drift.expired(made_up(said(), said(EXPIRED), wanted=())).passed
    assert not drift.expired(made_up(*young, wanted=())).passed
    assert not drift.expired(made_up(said(HARMFUL), *young[1:], said(EXPIRED), wanted=())).passed


def test_one_cell_of_a_hundred_may_come_back_for_nothing() -> None:
    assert drift.quiet(made_up(said(IN_FORCE, A, B), said(IN_FORCE, OTHER))).passed  # 1 of 120
    other = (2, "b/y")
    assert not drift.quiet(made_up(said(IN_FORCE, A, B), said(IN_FORCE, OTHER, other))).passed


def test_every_broken_variant_names_a_gate_of_its_world() -> None:
    for variant in BROKEN:
        results = [gate(made_up(said())) for gate in drift.GATES[variant.world]]
        assert variant.gate in {r.name for r in results}


def test_the_variant_without_hold_out_reads_the_other_users_only() -> None:
    sums = CellSums.unpack(np.ones(CellSums.size()))
    both = Statistics({(1, "a/x", "c", half, -1): sums for half in (UNDER_THE_MASK, HOLD_OUT)}, ("c",))
    assert {key[3] for key in drift.no_hold_out(both).sums} == {UNDER_THE_MASK}


def test_a_preset_without_a_gate_of_drift_is_refused_before_anything_is_drawn() -> None:
    with pytest.raises(ConfigError, match="S9"):
        drift.main(["S9"], seeds=[0])


def test_a_small_world_of_feedback_gives_the_stream_back_only_through_its_hold_out() -> None:
    drawn, holdout = drawn_world("S5", seed=0, users=1_200, holdout=1_200)
    found = {
        variant.name: replay(drawn, holdout, seed=0, variant=variant, config=CONFIG)
        for variant in (SOUND, BY_NAME["no hold-out"])
    }
    assert drift.restored(found["as it is"]).passed, found["as it is"].watches
    assert not drift.restored(found["no hold-out"]).passed, found["no hold-out"].watches


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_broken_variant_fails_in_four_of_five_seeds_and_the_product_passes(name: str) -> None:
    variant = BY_NAME[name]
    gate = next(g for g in drift.GATES[variant.world] if g.__name__ == variant.gate)
    passed: dict[str, list[bool]] = {"as it is": [], name: []}
    for seed in range(5):
        drawn, holdout = drawn_world(variant.world, seed=seed)
        for way in (SOUND, variant):
            r = replay(drawn, holdout, seed=seed, variant=way, config=CONFIG)
            passed[way.name].append(gate(r).passed is True)
    assert sum(passed["as it is"]) >= 4 and sum(passed[name]) <= 1, passed
