"""All segmenters behind one interface: planted kinds, invariances, collapse, stored and read back."""

from __future__ import annotations

import json
import pickle
from functools import cache

import numpy as np
import pytest
from jagged_worlds import N_STREAMS, flat_world, ids, labelled, planted
from sklearn.metrics import adjusted_rand_score

from dynamix.config import SegmentationConfig
from dynamix.errors import ConfigError, GuardError
from dynamix.segmentation.blocks import OTHER
from dynamix.segmentation.fitted import FittedSegmenter, load
from dynamix.segmentation.jagged import FlatEvents, Floats, Jagged, jagged
from dynamix.segmentation.methods import segmenter
from dynamix.segmentation.mix import fit_mixture
from dynamix.segmentation.neural import Neural, collapse, guard_numbers
from dynamix.segmentation.segmenters import MixMerge, Paper2
from dynamix.segmentation.slopes import Evidence
from dynamix.segmentation.train import TrainConfig, train

CONFIG = SegmentationConfig(k_max=4, restarts=2)
TWO_AT_MOST = SegmentationConfig(k_max=2)
SHORT = TrainConfig(steps=40, batch=100, restarts=1)
SLOPES = np.array([[0.8, 0.0, 0.0, 0.0], [-0.8, 0.0, 0.0, 0.0], [-0.8, 0.0, 0.0, 0.0]])
USERS = 300
NAMES = ("mix", "mix-merge", "neural", "paper2")


def evidence_for(kind: np.ndarray, slopes: Floats = SLOPES) -> Evidence:
    return labelled(kind, slopes)


@cache
def world() -> tuple[Jagged, np.ndarray]:
    return planted(USERS, events=40)


@cache
def fitted(name: str) -> FittedSegmenter:
    inputs, kind = world()
    if name == "neural":
        return Neural(CONFIG, training=SHORT, search=SHORT).fit(inputs, evidence_for(kind))
    if name == "mix-merge":
        return MixMerge(CONFIG, start=6).fit(inputs, evidence_for(kind))
    return segmenter(name, CONFIG).fit(inputs, evidence_for(kind))


@pytest.mark.parametrize("name", ["mix", "neural"])
def test_planted_kinds_are_found_with_their_number(name: str) -> None:
    inputs, kind = world()
    found = fitted(name)
    assert found.k == 3
    assert "K=3 of K=1..4 by held-out likelihood" in found.reason
    # the Bayes-optimal agreement of this world is above .99; .95 leaves room for the fit
    assert adjusted_rand_score(kind, found.posterior(inputs).argmax(axis=1)) > 0.95


def test_kinds_with_the_same_slopes_are_merged() -> None:
    inputs, kind = world()
    found = fitted("mix-merge")
    assert found.k == 2
    assert adjusted_rand_score(kind > 0, found.posterior(inputs).argmax(axis=1)) > 0.95


def test_active_users_are_those_whose_dwell_implies_conversion() -> None:
    kind = world()[1]
    inputs = jagged(flat_world(kind, events=40, lean=1.5), users=ids(USERS), n_streams=N_STREAMS)
    slopes = np.full((3, N_STREAMS), 0.3)
    slopes[0] = 0.8
    found = Paper2().fit(inputs, evidence_for(kind, slopes))
    active = found.posterior(inputs).argmax(axis=1) == 0
    assert np.array_equal(active, inputs.exposure() @ found.beta >= found.border)
    assert adjusted_rand_score(kind == 0, active) > 0.9
    assert found.posterior(inputs)[active].max() > 0.9  # halves of the sessions agree


@pytest.mark.parametrize("name", NAMES)
def test_posteriors_sum_to_one_and_belong_to_the_user_not_to_the_row(name: str) -> None:
    inputs, _ = world()
    found = fitted(name)
    q = found.posterior(inputs)
    assert q.shape == (USERS, found.k)
    assert q.min() >= 0 and q.sum(axis=1) == pytest.approx(np.ones(USERS))
    order = np.random.default_rng(0).permutation(USERS)
    assert found.posterior(inputs.take(order)) == pytest.approx(q[order], abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_segmenter_gives_the_same_posterior(name: str) -> None:
    inputs, _ = world()
    again = load(fitted(name).to_json())
    assert (again.name, again.k, again.reason) == (name, fitted(name).k, fitted(name).reason)
    assert np.array_equal(again.posterior(inputs), fitted(name).posterior(inputs))
    shipped = pickle.loads(pickle.dumps(fitted(name)))  # as a Spark closure travels
    assert np.array_equal(shipped.posterior(inputs), fitted(name).posterior(inputs))


@pytest.mark.parametrize("name", NAMES)
def test_users_without_events_get_the_prior(name: str) -> None:
    empty = jagged(flat_world(np.zeros(2, np.int64), events=3).take(np.empty(0, np.int64)), users=ids(2),
                   n_streams=N_STREAMS)  # fmt: skip
    q = fitted(name).posterior(empty)
    assert np.array_equal(q[0], q[1]) and q.sum(axis=1) == pytest.approx([1.0, 1.0])


def test_the_order_of_the_users_does_not_change_the_network() -> None:
    inputs, _ = planted(200, events=20)
    order = np.random.default_rng(1).permutation(200)
    recipe = Neural(CONFIG, training=TrainConfig(steps=5, batch=64), k=3)
    one, other = recipe.fit(inputs), recipe.fit(inputs.take(order))
    assert one.to_json() == other.to_json()
    assert (
        recipe.fit(inputs).to_json()
        != Neural(CONFIG, training=TrainConfig(steps=5, seed=1), k=3).fit(inputs).to_json()
    )


def test_labels_of_the_windows_do_not_reach_the_inputs() -> None:
    """Conversions of input and next window turn up as a stream of their own: with and without them is the same fit."""
    kind = planted(150, events=20)[1]
    flat = flat_world(kind, events=20)
    conversions = FlatEvents(
        flat.user, flat.ts_s + 0.5, np.full(len(flat.user), N_STREAMS), flat.dwell_bin, flat.z, flat.part
    )
    both = FlatEvents(
        *(np.concatenate(p) for p in zip(vars(flat).values(), vars(conversions).values(), strict=True))
    )
    fits = []
    for events in (flat, both):
        inputs = jagged(events, users=ids(150), n_streams=N_STREAMS + 1, conversion_streams=[N_STREAMS])
        fits.append(Neural(CONFIG, training=TrainConfig(steps=3), k=2).fit(inputs).to_json())
    assert fits[0] == fits[1]


def test_users_who_are_all_alike_are_one_segment() -> None:
    inputs = jagged(flat_world(np.zeros(300, np.int64), events=12), users=ids(300), n_streams=N_STREAMS)
    found = Neural(TWO_AT_MOST, training=SHORT, search=SHORT).fit(inputs)
    assert found.k == 1
    numbers = guard_numbers(train(inputs, k=3, config=SHORT), inputs)
    assert "collapsed" in collapse(3, numbers)


def test_prototypes_that_lie_on_one_line_are_refused() -> None:
    fine = {"agreement": 0.4, "effective_rank": 3.0}
    assert collapse(5, fine) == ""
    assert "effective rank 2.90 < 3" in collapse(5, fine | {"effective_rank": 2.9})
    assert "0.040 nats < 0.05" in collapse(5, fine | {"agreement": 0.04})
    assert collapse(1, fine | {"agreement": 0.0}) == ""


def test_too_few_long_users_leave_one_segment() -> None:
    inputs, _ = planted(150, events=40)
    found = Neural(TWO_AT_MOST, training=SHORT, search=SHORT).fit(inputs)
    assert found.k == 1 and "not measurable" in found.reason


@pytest.mark.parametrize("recipe", [MixMerge(CONFIG, start=4), Paper2()])
def test_without_evidence_no_slopes_differ(recipe: MixMerge | Paper2) -> None:
    inputs, _ = planted(100, events=10)
    found = recipe.fit(inputs)
    assert found.k == 1 and "no evidence window" in found.reason
    assert found.posterior(inputs) == pytest.approx(np.ones((100, 1)))


@pytest.mark.parametrize("name", ["mix", "mix-merge", "neural"])
def test_no_event_in_the_input_window_is_said(name: str) -> None:
    flat = flat_world(np.zeros(3, np.int64), events=5)
    away = FlatEvents(*(vars(flat) | {"part": np.full(len(flat.user), OTHER)}).values())
    inputs = jagged(away, users=ids(3), n_streams=N_STREAMS)
    with pytest.raises(GuardError, match="no user has a usable event"):
        segmenter(name, CONFIG).fit(inputs)


def test_the_mixture_is_the_one_that_the_job_fits() -> None:
    inputs, _ = world()
    found = fit_mixture(inputs.counts(), n_streams=N_STREAMS, config=CONFIG)
    assert json.loads(fitted("mix").to_json())["log_p"] == found.mixture.log_p.tolist()


def test_unknown_names_are_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="mix-merge"):
        segmenter("mix-merged", CONFIG)
    with pytest.raises(ConfigError, match="segmenter 'kmeans' does not exist"):
        load('{"method": "kmeans"}')
