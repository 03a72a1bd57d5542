"""The network: the mixture it starts as, jagged against one by one, a plain loop as oracle, its losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jagged_worlds import N_STREAMS, planted

from dynamix.segmentation.blocks import INPUT, NEXT
from dynamix.segmentation.encoder import NEWEST_SESSIONS, EncoderConfig, SessionEncoder, batch_of
from dynamix.segmentation.jagged import Jagged
from dynamix.segmentation.mixture import Mixture
from dynamix.segmentation.mixture import predictive as mixture_predictive
from dynamix.segmentation.neural_fitted import encode
from dynamix.segmentation.objective import (
    evidence_loss,
    floored,
    length_share,
    predictive,
    sinkhorn,
    swap_loss,
)
from dynamix.segmentation.train import EVERYTHING, NEXT_WINDOW, TrainConfig, hide

CPU = torch.device("cpu")


def encoder(seed: int = 0, *, trained: bool = True, k: int = 3) -> SessionEncoder:
    """An encoder with random prototypes and tokens; `trained` makes gate and correction random as well."""
    generator = torch.Generator().manual_seed(seed)
    found = SessionEncoder(EncoderConfig(k, N_STREAMS, dim=6, hidden=5), generator)
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if trained or name in ("prior", "prototype", "stream", "cell"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    found.slopes.copy_(torch.tensor([0.3, -0.2, 0.0, 0.1]))
    return found.eval()


def mixture_of(model: SessionEncoder) -> Mixture:
    with torch.no_grad():
        return Mixture(*(x.numpy().astype(np.float64) for x in (model.log_emission(), model.log_prior)))


def counts(inputs: Jagged, *parts: int) -> object:
    return inputs.counts().matrix(N_STREAMS * 13, *parts)


def test_the_untrained_network_is_the_posterior_of_the_mixture_it_emits() -> None:
    inputs, _ = planted(60, events=15)
    model = encoder(trained=False)
    found = encode(model, inputs)
    scores = found.evidence + mixture_of(model).log_pi
    expected = mixture_of(model).scores(counts(inputs, INPUT, NEXT))
    base = np.asarray(counts(inputs, INPUT, NEXT) @ torch.log_softmax(model.base, 0).numpy())  # type: ignore[operator]
    assert scores == pytest.approx(expected - base[:, None], abs=1e-3)


def test_a_start_from_a_mixture_emits_it() -> None:
    rng = np.random.default_rng(0)
    base = rng.dirichlet(np.ones(N_STREAMS * 13))
    streams = base.reshape(N_STREAMS, 13).sum(axis=1)
    planted_p = rng.dirichlet(np.ones(N_STREAMS), size=3)
    model = encoder(trained=False)
    with torch.no_grad():
        for weight in (model.prototype, model.stream, model.cell):
            weight.zero_()
    model.start_from(np.log(base), np.log(planted_p / streams), np.log([0.5, 0.3, 0.2]))
    emitted = np.exp(mixture_of(model).log_p)
    assert emitted.reshape(3, N_STREAMS, 13).sum(axis=2) == pytest.approx(planted_p, abs=1e-5)
    assert np.exp(mixture_of(model).log_pi) == pytest.approx([0.5, 0.3, 0.2], abs=1e-6)


def test_a_batch_equals_its_users_one_by_one_in_any_order() -> None:
    inputs, _ = planted(25, events=12)
    inputs = inputs.take(np.array([*range(25), 3, 3]))
    model = encoder()
    whole = encode(model, inputs)
    alone = [encode(model, inputs.take(np.array([u]))) for u in range(27)]
    assert whole.evidence == pytest.approx(np.concatenate([a.evidence for a in alone]), abs=1e-4)
    order = np.random.default_rng(0).permutation(27)
    assert encode(model, inputs.take(order)).z == pytest.approx(whole.z[order], abs=1e-4)


def test_z_equals_a_plain_loop_over_sessions() -> None:
    inputs, _ = planted(6, events=150, bursts=50)  # some users have more sessions than the GRU reads
    model = encoder()
    w = {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}
    tokens = np.repeat(w["stream"], 13, axis=0) + w["cell"]
    assert np.diff(inputs.first_session).max() > NEWEST_SESSIONS

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    for u, z in enumerate(encode(model, inputs).z):
        total, vectors = np.zeros(6), []
        for s in range(inputs.first_session[u], inputs.first_session[u + 1]):
            own = slice(inputs.first_event[s], inputs.first_event[s + 1])
            bag = tokens[inputs.stream[own] * 13 + inputs.dwell_bin[own]].sum(axis=0)
            dwell, n = inputs.z[own], inputs.stream[own].size
            known = ~np.isnan(dwell)
            m = known.sum()
            evidence = (w["slopes"][inputs.stream[own]] * np.nan_to_num(dwell)).sum() / (m + 1)
            mean = np.nan_to_num(dwell).sum() / (m + 1)
            stats = np.array([np.log1p(n), mean, m / n, inputs.gap[s], evidence])
            total += 2 * sigmoid(w["gate.weight"] @ stats + w["gate.bias"]) * bag
            x = np.concatenate([bag / np.sqrt(1 + n), stats])
            vectors.append(np.tanh(w["mix.weight"] @ x + w["mix.bias"]))
        h = np.zeros(5)
        for x in vectors[-NEWEST_SESSIONS:]:
            a = w["inward.weight"] @ x + w["inward.bias"]
            b = w["recurrent.weight"] @ h + w["recurrent.bias"]
            r, keep = sigmoid(a[:5] + b[:5]), sigmoid(a[5:10] + b[5:10])
            h = (1 - keep) * np.tanh(a[10:] + r * b[10:]) + keep * h
        assert z == pytest.approx(total + w["correction.weight"] @ h, abs=2e-3)


def test_hidden_events_leave_no_trace() -> None:
    inputs, _ = planted(20, events=12)
    model, batch = encoder(), batch_of(inputs, CPU)
    first = batch.is_input[batch.session].float()
    with torch.no_grad():
        seen = model(batch, first)
    alone = encode(model, inputs.window(INPUT))
    assert seen.evidence.numpy() == pytest.approx(alone.evidence, abs=1e-4)
    assert seen.n.numpy().tolist() == inputs.window(INPUT).events.tolist()


def test_prediction_of_the_next_window_is_that_of_the_mixture_it_starts_as() -> None:
    inputs, _ = planted(30, events=12)
    model, batch = encoder(trained=False), batch_of(inputs, CPU)
    seen = batch.is_input[batch.session].float()
    with torch.no_grad():
        found = predictive(model, batch, model(batch, seen), 1 - seen).numpy()
    ahead = counts(inputs, NEXT)
    base = np.asarray(ahead @ torch.log_softmax(model.base, 0).numpy())  # type: ignore[operator]
    assert found == pytest.approx(
        mixture_predictive(mixture_of(model), counts(inputs, INPUT), ahead) - base, abs=1e-3
    )


def test_each_pretext_hides_what_it_says() -> None:
    inputs, _ = planted(40, events=12)
    batch, generator = batch_of(inputs, CPU), torch.Generator().manual_seed(0)
    hidden, kind = hide(batch, TrainConfig(), generator)
    own, later = kind[batch.owner], ~batch.is_input[batch.session]
    assert torch.equal(hidden[own == NEXT_WINDOW].bool(), later[own == NEXT_WINDOW])
    assert hidden[own == EVERYTHING].min() == 1
    by_session = [set(hidden[(own == 1) & (batch.session == s)].tolist()) for s in range(inputs.n_sessions)]
    assert all(len(values) <= 1 for values in by_session)
    assert {0.0} in by_session and {1.0} in by_session
    assert 0.05 < float(hidden[own == 2].mean()) < 0.3


def test_codes_follow_an_unequal_marginal_and_rows_sum_to_one() -> None:
    scores = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    marginal = torch.tensor([0.6, 0.3, 0.1])
    codes = sinkhorn(scores, marginal, iterations=50)
    assert codes.sum(dim=1).numpy() == pytest.approx(1.0, abs=1e-5)
    assert codes.mean(dim=0).numpy() == pytest.approx(marginal.numpy(), abs=1e-3)
    raised = floored(torch.tensor([0.9, 0.1, 0.0]))
    assert 0.03 < float(raised.min()) < 0.04 and float(raised.sum()) == pytest.approx(1.0)


def test_views_that_say_nothing_lose_the_entropy_and_agreeing_ones_nothing() -> None:
    marginal = torch.full((4,), 0.25)
    assert float(swap_loss(torch.zeros(8, 4), torch.zeros(8, 4), marginal)) == pytest.approx(np.log(4))
    sure = 50.0 * torch.eye(4).repeat(2, 1)
    assert float(swap_loss(sure, sure, marginal)) == pytest.approx(0.0, abs=1e-4)


def test_length_share_is_one_for_length_segments_and_zero_for_random_ones() -> None:
    n = torch.tensor([2.0, 2.0, 50.0, 50.0])
    by_length, across = torch.eye(2)[torch.tensor([0, 0, 1, 1])], torch.eye(2)[torch.tensor([0, 1, 0, 1])]
    assert float(length_share(by_length, n)) == pytest.approx(1.0)
    assert float(length_share(across, n)) == pytest.approx(0.0, abs=1e-6)


def test_evidence_is_no_target_where_all_slopes_are_zero() -> None:
    inputs, _ = planted(20, events=12)
    model, batch = encoder(), batch_of(inputs, CPU)
    q, later = torch.full((20, 3), 1 / 3), (~batch.is_input[batch.session]).float()
    with torch.no_grad():
        assert float(evidence_loss(model, batch, q, later)) > 0
        model.slopes.zero_()
        assert float(evidence_loss(model, batch, q, later)) == 0
