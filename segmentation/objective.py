"""Losses of the neural segmenter (docs/method.md A.4.2).

    L = −log Σ_k q_seen(k) Π_hidden P_kj + λ_swap · swapped cross-entropy + λ_len · η² + λ_evid · Huber − log prior

What is hidden decides the pretext: the next window, half of the sessions, single tokens, or everything. The first term is
the likelihood of a mixture whose posterior is computed by the network, hence greatest for the true posterior.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dynamix.segmentation.encoder import Encoded, JaggedBatch, SessionEncoder


def hidden_loglik(encoder: SessionEncoder, batch: JaggedBatch, hidden: Tensor) -> Tensor:
    """Σ over the hidden events of log P_k (B, K), as gain over the pooled emission, in nats."""
    gain = (encoder.log_emission() - torch.log_softmax(encoder.base, dim=0)).T  # (J, K)
    rows = gain[batch.symbol] * hidden.unsqueeze(1)
    return rows.new_zeros(batch.n_users, rows.shape[1]).index_add(0, batch.owner, rows)


def predictive(encoder: SessionEncoder, batch: JaggedBatch, encoded: Encoded, hidden: Tensor) -> Tensor:
    """log Σ_k q(k) Π_hidden P_kj (B,) as gain over the pooled emission; 0 for users without hidden events."""
    log_q = torch.log_softmax(encoder.log_prior + encoded.evidence, dim=1)
    return torch.logsumexp(log_q + hidden_loglik(encoder, batch, hidden), dim=1)


def sinkhorn(scores: Tensor, marginal: Tensor, *, iterations: int = 3, epsilon: float = 1.0) -> Tensor:
    """Codes (B, K), rows sum to 1, column means near `marginal` (K,): scores/ε scaled in turn, in the log domain.

    Source: Cuturi 2013; as codes of prototypes Caron et al. 2020 (SwAV), there with a uniform marginal.
    """
    log_q = scores / epsilon
    target = torch.log(marginal) + torch.log(torch.tensor(float(len(scores))))
    for _ in range(iterations):
        log_q = log_q - torch.logsumexp(log_q, dim=0) + target
        log_q = log_q - torch.logsumexp(log_q, dim=1, keepdim=True)
    return log_q.exp()


def floored(usage: Tensor, *, share: float = 0.1) -> Tensor:
    """Usage (K,) with each entry at least share/K, summing to 1: real segments are unequal, none may starve."""
    raised = usage.clamp(min=share / len(usage))
    return raised / raised.sum()


def swap_loss(scores_a: Tensor, scores_b: Tensor, marginal: Tensor) -> Tensor:
    """Mean cross-entropy of each view's posterior against the other view's Sinkhorn code, in nats.

    scores (B, K) with the log prior, of two disjoint views of the same users. ln K (or the entropy of unequal usage)
    is where it stands when views say nothing.
    """
    with torch.no_grad():
        code_a, code_b = sinkhorn(scores_a, marginal), sinkhorn(scores_b, marginal)
    a, b = torch.log_softmax(scores_a, dim=1), torch.log_softmax(scores_b, dim=1)
    return -0.5 * ((code_b * a).sum(dim=1) + (code_a * b).sum(dim=1)).mean()


def length_share(q: Tensor, n: Tensor) -> Tensor:
    """η²: share of the variance of ln n that lies between segments, users belonging to them by q (B, K)."""
    length = torch.log(n.clamp(min=1.0))
    deviation = length - length.mean()
    weight = q.sum(dim=0)
    between = ((q * deviation.unsqueeze(1)).sum(dim=0) ** 2 / weight.clamp(min=1e-6)).sum()
    return between / (deviation**2).sum().clamp(min=1e-6)


def evidence_loss(encoder: SessionEncoder, batch: JaggedBatch, q: Tensor, hidden: Tensor) -> Tensor:
    """Huber loss of the next window's dwell evidence β_f x̄_f against Σ_k q(k) V_kf, weighted by n/(n + 1).

    One scale for all streams: a scale per stream would cancel β and leave plain dwell. β = 0 everywhere gives 0.
    """
    f = encoder.config.n_streams
    place = batch.owner * f + batch.stream
    size = batch.n_users * f
    usable = hidden * batch.known
    n = usable.new_zeros(size).index_add(0, place, usable).reshape(-1, f)
    total = usable.new_zeros(size).index_add(0, place, usable * batch.z).reshape(-1, f)
    target = encoder.slopes * total / (n + 1.0)
    scale = target.var(dim=0, unbiased=False).mean().sqrt()
    if scale == 0:
        return target.new_zeros(())
    error = functional.huber_loss(q @ encoder.expected / scale, target / scale, reduction="none")
    weight = n / (n + 1.0)
    return (error * weight).sum() / weight.sum().clamp(min=1.0)


def log_prior(encoder: SessionEncoder, *, cell_sd: float) -> Tensor:
    """Gaussian log density of the weights up to a constant: streams sd 1, dwell bins within a stream `cell_sd`,
    gate and correction sd .3: what the data do not ask for stays a plain mixture over streams.
    """
    wide = (encoder.prototype**2).sum() + (encoder.stream**2).sum()
    narrow = (encoder.cell**2).sum() / cell_sd**2
    learnt = (
        (encoder.gate.weight**2).sum() + (encoder.gate.bias**2).sum() + (encoder.correction.weight**2).sum()
    )
    return -0.5 * (wide + narrow + learnt / 0.3**2)
