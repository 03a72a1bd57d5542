"""Segment ids over refits: permuted components keep them, new ones get fresh ones, ended ones stay ended."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from dynamix.segmentation.identity import (
    Identity,
    Previous,
    first_ids,
    id_map,
    match_ids,
    names,
    overlap_matrix,
)
from dynamix.segmentation.mixture import Mixture

P = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.2, 0.6]])
SHARE = np.array([0.2, 0.5, 0.3])
USERS = np.diag([200.0, 500.0, 300.0])


def fitted(order: tuple[int, ...] = (0, 1, 2)) -> Mixture:
    return Mixture(np.log(P[list(order)]), np.log(SHARE[list(order)]))


def test_first_ids_follow_the_size() -> None:
    assert first_ids(fitted()).ids == (3, 1, 2)
    assert first_ids(fitted()).events == ("birth",) * 3


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_permuted_components_get_the_same_ids(order: tuple[int, ...]) -> None:
    previous = Previous((4, 7, 9), P, 9)
    noise = np.array([[5.0, 20, 10], [10, 5, 30], [20, 10, 5]])
    found = match_ids(fitted(order), previous, (USERS + noise)[list(order)])
    assert found.ids == tuple((4, 7, 9)[k] for k in order)
    assert found.events == ("keep",) * 3 and found.dead == ()


def test_a_new_component_gets_a_fresh_id_and_an_ended_one_is_named() -> None:
    overlap = np.array([[190.0, 5, 5], [5, 480.0, 15], [0, 0, 0]])  # the third holds users who were cold
    found = match_ids(fitted(), Previous((1, 2, 3), P, 8), overlap)
    assert found == Identity((1, 2, 9), ("keep", "keep", "birth"), (3,))


def test_ids_of_ended_segments_are_never_given_again() -> None:
    first = match_ids(fitted(), Previous((1, 2, 3), P, 3), np.diag([200.0, 500.0, 0.0]))
    assert first.ids == (1, 2, 4) and first.dead == (3,)
    later = match_ids(fitted(), Previous((1, 2), P[:2], 4), np.diag([200.0, 500.0, 0.0])[:, :2])
    assert later.ids == (1, 2, 5)  # neither 3 nor 4, which is not live any more


def test_a_small_overlap_is_a_birth() -> None:
    previous = Previous((1,), P[:1], 1)
    assert match_ids(Mixture(np.log(P[:1]), np.zeros(1)), previous, np.array([[0.0]])).ids == (2,)
    two = Mixture(np.log(P[:2]), np.log([0.5, 0.5]))
    kept = match_ids(two, previous, np.array([[1.0], [99.0]]))
    assert kept.ids == (2, 1)


def test_equal_overlaps_are_settled_by_the_nearer_emission() -> None:
    mixture = Mixture(np.log(P[[1, 0]]), np.log([0.5, 0.5]))
    found = match_ids(mixture, Previous((1, 2), P[:2], 2), np.full((2, 2), 50.0))
    assert found.ids == (2, 1)


def test_emissions_over_a_stream_that_is_new_can_be_compared() -> None:
    found = match_ids(fitted(), Previous((1, 2, 3), P[:, :3] / P[:, :3].sum(axis=1, keepdims=True), 3), USERS)
    assert found.ids == (1, 2, 3)


def test_fewer_components_than_before_end_the_rest() -> None:
    mixture = Mixture(np.log(P[:1]), np.zeros(1))
    found = match_ids(mixture, Previous((1, 2, 3), P, 3), np.array([[200.0, 500.0, 300.0]]))
    assert found.ids == (2,) and found.dead == (1, 3)


def test_overlap_counts_users_of_live_segments_only() -> None:
    pairs = [(0, 7, 10), (1, 7, 5), (-1, 7, 99), (0, 0, 50), (1, 9, 3)]
    assert overlap_matrix(pairs, 2, (7, 9)).tolist() == [[10, 0], [5, 3]]


def test_names_are_the_two_streams_of_greatest_lift_above_a_small_share() -> None:
    streams = {0: "news/view", 1: "shop/view"}
    p = np.array([[0.60, 0.20, 0.19, 0.01], [0.10, 0.10, 0.80, 0.00001]])
    mixture = Mixture(np.log(p), np.log([0.5, 0.5]))
    found = names(mixture, streams, cells_per_stream=2)
    # stream shares .8 and .2 against .1999 and .8; overall .5 and .5
    assert found == ("news/view 1.6x, shop/view 0.4x", "shop/view 1.6x, news/view 0.4x")
    assert names(mixture, {}, cells_per_stream=1)[0].startswith("stream 0 1.7x")
    assert "stream 3" not in names(mixture, {}, cells_per_stream=1)[0]  # 1 % of the events, although 2x


def test_one_component_is_everyone_and_cold_is_zero() -> None:
    assert names(Mixture(np.zeros((1, 2)), np.zeros(1)), {}, cells_per_stream=1) == ("everyone",)
    assert id_map(Identity((5, 2), ("keep", "keep"), ())) == {-1: 0, 0: 5, 1: 2}
