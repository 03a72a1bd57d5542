"""What a fit leaves for ids and names: the same users keep their ids over a refit, whatever the method."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from jagged_worlds import N_STREAMS, flat_world, ids, labelled, planted

from dynamix.config import SegmentationConfig
from dynamix.contracts import N_DWELL_BINS
from dynamix.segmentation.blocks import INPUT, NEXT
from dynamix.segmentation.fitted import FittedSegmenter
from dynamix.segmentation.identity import Previous, first_ids, match_ids, names, overlap_matrix
from dynamix.segmentation.jagged import Ints, Jagged, jagged
from dynamix.segmentation.neural import Neural
from dynamix.segmentation.outcome import Outcome, doubts, outcome_in_memory
from dynamix.segmentation.segmenters import Mix, MixMerge, Paper2, Segmenter
from dynamix.segmentation.train import TrainConfig

USERS = 240
CONFIG = SegmentationConfig(k_max=3, restarts=2)
SLOPES = np.array([[0.8, 0.3, 0.3, 0.3], [-0.8, 0.3, 0.3, 0.3], [-0.8, 0.3, 0.3, 0.3]])
METHODS = ("mix", "mix-merge", "neural", "paper2")


@cache
def world() -> tuple[Jagged, Ints]:
    kind = planted(USERS)[1]
    inputs = jagged(flat_world(kind, events=45, lean=1.5), users=ids(USERS), n_streams=N_STREAMS)
    return inputs, kind


def recipe(name: str, seed: int) -> Segmenter:
    """Another seed starts elsewhere, so that components come in another order."""
    config = SegmentationConfig(**CONFIG.model_dump() | {"seed": seed})
    recipes: dict[str, Segmenter] = {
        "mix": Mix(config, k=3),
        "mix-merge": MixMerge(config, start=6),
        "neural": Neural(config, TrainConfig(steps=20, batch=60, restarts=1, seed=seed), k=3),
        "paper2": Paper2(),
    }
    return recipes[name]


@cache
def fitted(name: str, seed: int) -> FittedSegmenter:
    inputs, kind = world()
    return recipe(name, seed).fit(inputs, labelled(kind, SLOPES))


def outcome(name: str, seed: int = 0) -> Outcome:
    return outcome_in_memory(fitted(name, seed), world()[0], config=CONFIG, evidence="drawn")


@pytest.mark.parametrize("name", METHODS)
def test_a_refit_of_the_same_users_moves_at_most_one_in_a_hundred_to_another_id(name: str) -> None:
    """E11, the bar of docs/method.md A.4.4; the second fit starts elsewhere and finds components in another order."""
    first, second = outcome(name, 0), outcome(name, 5)
    inputs, _ = world()
    before, after = (o.segmenter.posterior(inputs).argmax(axis=1) for o in (first, second))
    old = np.array(first_ids(first.summary).ids)
    previous = Previous(
        tuple(sorted(old.tolist())), np.exp(first.summary.log_p)[np.argsort(old)], int(old.max())
    )
    pairs, n = np.unique(np.stack([after, old[before]]), axis=1, return_counts=True)
    triples = [(int(c), int(s), int(m)) for (c, s), m in zip(pairs.T, n, strict=True)]
    found = match_ids(second.summary, previous, overlap_matrix(triples, second.k, previous.ids))
    assert (np.array(found.ids)[after] != old[before]).mean() <= 0.01
    assert first.k == second.k > 1 and set(found.events) == {"keep"}


@pytest.mark.parametrize("name", METHODS)
def test_the_prototype_is_the_mean_emission_of_the_segments_users(name: str) -> None:
    inputs, _ = world()
    found = outcome(name)
    q = found.segmenter.posterior(inputs)
    counts = inputs.counts().matrix(N_STREAMS * N_DWELL_BINS, INPUT, NEXT).toarray()
    p = np.exp(found.summary.log_p)
    for k in range(found.k):
        own = (q[:, k, None] * counts).sum(axis=0) + CONFIG.emission_prior
        assert p[k] == pytest.approx(own / own.sum())
    assert np.exp(found.summary.log_pi) == pytest.approx((q.sum(axis=0) + 1) / (USERS + found.k))
    called = names(found.summary, dict(enumerate("abcd")), cells_per_stream=N_DWELL_BINS)
    assert len(set(called)) == found.k and found.numbers["fit_users"] == USERS


def test_segments_chosen_by_slopes_alone_are_doubted_where_a_limit_is_overstepped() -> None:
    found = outcome("mix-merge")
    assert doubts(found, CONFIG) == ""
    strict = SegmentationConfig(min_share=0.9)
    assert "smallest share" in doubts(found, strict)
    few = Outcome(found.segmenter, found.summary, {**found.numbers, "measured_users": 3.0})
    assert "not measurable" in doubts(few, CONFIG)
