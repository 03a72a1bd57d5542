from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from dynamix.models.metrics import NeState, auc, cross_entropy, entropy, evaluate, gauc, oracle_gap_closure


def sample(n: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    p = np.round(rng.random(n), 2)  # rounding makes ties
    return (rng.random(n) < p).astype(float), p, rng.integers(0, 60, n)


def test_ne_is_log_loss_over_the_entropy_of_the_mean_label() -> None:
    y, p, _ = sample()
    inside = np.clip(p, 1e-12, 1 - 1e-12)
    rate = y.mean()
    h = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert NeState.of(y, p).ne == pytest.approx(log_loss(y, inside) / h, rel=1e-9)


def test_predicting_the_mean_has_ne_one() -> None:
    y, _, _ = sample()
    assert NeState.of(y, np.full(len(y), y.mean())).ne == pytest.approx(1.0)


def test_states_of_parts_add_up_to_the_state_of_the_whole() -> None:
    y, p, _ = sample()
    whole, parts = NeState.of(y, p), NeState.of(y[:123], p[:123]) + NeState.of(y[123:], p[123:])
    assert (parts.ne, parts.calibration) == pytest.approx((whole.ne, whole.calibration))


def test_a_row_of_weight_two_counts_as_two_rows() -> None:
    y, p, _ = sample(50)
    doubled = NeState.of(y, p, np.full(50, 2.0))
    assert doubled.ne == pytest.approx(NeState.of(np.tile(y, 2), np.tile(p, 2)).ne)


def test_auc_with_ties_equals_sklearn() -> None:
    y, p, _ = sample()
    assert auc(y, p) == pytest.approx(roc_auc_score(y, p), abs=1e-12)


def test_gauc_is_the_row_weighted_mean_of_the_groups_with_both_classes() -> None:
    y, p, group = sample()
    areas, weights = [], []
    for g in range(1, 60):  # group 0 means no request
        at = group == g
        if 0 < y[at].sum() < at.sum():
            areas.append(roc_auc_score(y[at], p[at]))
            weights.append(at.sum())
    found, groups = gauc(y, p, group)
    assert (found, groups) == (pytest.approx(np.average(areas, weights=weights), abs=1e-12), len(areas))


@pytest.mark.parametrize("y", [np.zeros(4), np.ones(4), np.zeros(0)])
def test_one_class_or_no_rows_is_not_measurable_and_no_error(y: np.ndarray) -> None:
    p = np.full(len(y), 0.3)
    assert np.isnan(NeState.of(y, p).ne)
    assert np.isnan(auc(y, p))
    assert np.isnan(evaluate(y, p, request=np.ones(len(y), np.int64)).gauc)


def test_unknown_labels_are_left_out() -> None:
    y, p, _ = sample(20)
    with_unknown = evaluate(np.append(y, np.nan), np.append(p, 0.9))
    assert (with_unknown.rows, with_unknown.ne) == (20, pytest.approx(evaluate(y, p).ne))


def test_expected_loss_under_the_truth_is_the_mean_over_drawn_labels() -> None:
    truth, p = np.array([0.2, 0.7]), np.array([0.3, 0.6])
    by_hand = truth * cross_entropy(np.ones(2), p) + (1 - truth) * cross_entropy(np.zeros(2), p)
    assert cross_entropy(truth, p) == pytest.approx(by_hand)


def test_gap_closure_is_one_for_the_truth_and_zero_for_the_base_rate() -> None:
    truth = np.random.default_rng(0).random(200)
    assert oracle_gap_closure(truth, truth) == pytest.approx(1.0)
    assert oracle_gap_closure(truth, np.full(200, truth.mean())) == pytest.approx(0.0, abs=1e-12)


def test_entropy_of_certain_events_is_zero() -> None:
    assert (entropy(0.0), entropy(1.0), entropy(0.5)) == (0.0, 0.0, pytest.approx(np.log(2)))


def test_torchrec_agrees_where_it_loads() -> None:
    """torchrec's metrics are a second oracle; the product never imports them."""
    pytest.importorskip("fbgemm_gpu", reason="fbgemm-gpu-cpu is not installed, which torchrec needs")
    ne = pytest.importorskip("torchrec.metrics.ne", reason="torchrec is not installed: an optional oracle")
    calibration = pytest.importorskip("torchrec.metrics.calibration")
    y, p, _ = sample(2000)
    p = np.clip(p, 1e-6, 1 - 1e-6)
    weight = np.random.default_rng(1).uniform(0.1, 3.0, len(y))
    labels, predictions, weights = (torch.from_numpy(x) for x in (y, p, weight))
    states = ne.get_ne_states(labels, predictions, weights, 1e-12)
    names = ("cross_entropy_sum", "weighted_num_samples", "pos_labels", "neg_labels")
    found = float(ne.compute_ne(*(states[name] for name in names), 1e-12))
    sums = calibration.get_calibration_states(labels, predictions, weights)
    ratio = float(calibration.compute_calibration(sums["calibration_num"], sums["calibration_denom"]))
    own = NeState.of(y, p, weight)
    assert own.ne == pytest.approx(found, rel=1e-12) and own.calibration == pytest.approx(ratio, rel=1e-12)
