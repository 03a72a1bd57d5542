"""The neural segmenter's network: jagged sessions -> evidence for K prototypes (docs/method.md A.4.2).

    event j          token D_j = stream + stream × dwell bin, in R^d
    session s        bag b_s = Σ D_j, statistics m_s (length, dwell, silence before, dwell evidence), gate g_s(m_s)
    user             z = Σ_s g_s b_s + C · GRU([b_s/√(1+n_s), m_s])
    prototype k      emits cell j with P_kj = base_j · exp(Ω_k·D_j) / Z_k
    score            log π_k + z·Ω_k − (Σ_s g_s n_s) · ln Z_k

The same Ω and D read the past and emit the future. Gates start at 1 and C at 0, so the untrained network is exactly the
posterior of the multinomial mixture with emissions P; training may depart from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from dynamix.contracts import N_DWELL_BINS
from dynamix.segmentation.blocks import INPUT
from dynamix.segmentation.jagged import Floats, Jagged

NEWEST_SESSIONS = 32
"""Sessions that the GRU reads; the bags of all sessions count in z."""
N_STATISTICS = 5
"""ln(1 + events), mean z, share of events with a usable dwell, silence before, evidence."""


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread inside: the tensors are small, sums keep their order, and an executor's task has one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes: K prototypes, F streams, token width d, GRU width."""

    k: int
    n_streams: int
    dim: int = 32
    hidden: int = 32


@dataclass(frozen=True)
class JaggedBatch:
    """B users as tensors: symbol (N,) = stream × 13 + bin, stream (N,), session (N,), z (N,) 0 if unknown, known (N,);
    first (S,) event of the session, user (S,) sorted, gap (S,), is_input (S,) bool.
    """

    n_users: int
    symbol: Tensor
    stream: Tensor
    session: Tensor
    z: Tensor
    known: Tensor
    first: Tensor
    user: Tensor
    gap: Tensor
    is_input: Tensor

    @property
    def owner(self) -> Tensor:
        """User of each event (N,)."""
        return self.user[self.session]


def batch_of(inputs: Jagged, device: torch.device) -> JaggedBatch:
    """Tensors of all users of `inputs`; floats are float32."""
    known = ~np.isnan(inputs.z)

    def whole(values: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    return JaggedBatch(
        n_users=inputs.n_users,
        symbol=whole(inputs.stream * N_DWELL_BINS + inputs.dwell_bin),
        stream=whole(inputs.stream),
        session=whole(inputs.session_of_event),
        z=whole(np.where(known, inputs.z, 0.0).astype(np.float32)),
        known=whole(known.astype(np.float32)),
        first=whole(inputs.first_event[:-1]),
        user=whole(inputs.user_of_session),
        gap=whole(inputs.gap.astype(np.float32)),
        is_input=whole(inputs.part == INPUT),
    )


@dataclass(frozen=True)
class Encoded:
    """z (B, d), evidence (B, K) = score without the log prior, and the events seen (B,)."""

    z: Tensor
    evidence: Tensor
    n: Tensor


class SessionEncoder(nn.Module):
    """JaggedBatch, seen (N,) float 0/1 -> Encoded. Events that are not seen leave no trace, nor do their sessions."""

    base: Tensor
    slopes: Tensor

    def __init__(self, config: EncoderConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        k, f, d, h = config.k, config.n_streams, config.dim, config.hidden
        self.register_buffer(
            "base", torch.full((f * N_DWELL_BINS,), -float(np.log(f * N_DWELL_BINS)))
        )  # (J,)
        self.register_buffer("slopes", torch.zeros(f))  # (F,) population slopes
        self.prior = nn.Parameter(torch.zeros(k))
        self.prototype = nn.Parameter(torch.zeros(k, d))
        self.stream = nn.Parameter(torch.zeros(f, d))
        self.cell = nn.Parameter(torch.zeros(f * N_DWELL_BINS, d))
        self.expected = nn.Parameter(torch.zeros(k, f))  # next window's dwell evidence per prototype
        self.mix = nn.Linear(d + N_STATISTICS, h)
        self.inward, self.recurrent = nn.Linear(h, 3 * h), nn.Linear(h, 3 * h)
        self.gate = nn.Linear(N_STATISTICS, 1)
        self.correction = nn.Linear(h, d, bias=False)
        self._start(generator)

    @torch.no_grad()
    def _start(self, generator: torch.Generator) -> None:
        for layer in (self.mix, self.inward, self.recurrent):
            for name, weight in layer.named_parameters():
                scale = 0.0 if "bias" in name else weight.shape[-1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
        for layer in (self.gate, self.correction):
            for weight in layer.parameters():
                weight.zero_()

    @torch.no_grad()
    def start_from(self, log_base: Floats, log_ratio: Floats, log_prior: Floats) -> None:
        """Set base (J,), prior (K,) and Ω_k·D_j to the best rank-d fit of log_ratio (K, F) = ln of stream lifts."""
        u, s, vt = np.linalg.svd(log_ratio, full_matrices=False)
        rank = min(len(s), self.config.dim)
        root = np.sqrt(s[:rank])
        self.base.copy_(torch.from_numpy(log_base))
        self.prior.copy_(torch.from_numpy(log_prior))
        self.prototype[:, :rank] = torch.from_numpy(u[:, :rank] * root).to(self.prototype)
        self.stream[:, :rank] = torch.from_numpy(vt[:rank].T * root).to(self.stream)

    @property
    def tokens(self) -> Tensor:
        """D (J, d)."""
        return self.stream.repeat_interleave(N_DWELL_BINS, dim=0) + self.cell

    @property
    def log_prior(self) -> Tensor:
        """log π (K,)."""
        return torch.log_softmax(self.prior, dim=0)

    def log_emission(self) -> Tensor:
        """log P (K, J), rows normalised."""
        return torch.log_softmax(self.base + self.prototype @ self.tokens.T, dim=1)

    def forward(self, batch: JaggedBatch, seen: Tensor) -> Encoded:
        tokens = self.tokens
        bags = functional.embedding_bag(
            batch.symbol, tokens, batch.first, mode="sum", per_sample_weights=seen
        )  # (S, d)
        n, statistics = self._statistics(batch, seen)
        alive = torch.nonzero(n > 0).squeeze(1)
        bags, n, statistics, user = bags[alive], n[alive], statistics[alive], batch.user[alive]
        gate = 2.0 * torch.sigmoid(self.gate(statistics).squeeze(1))  # (S',)
        z = tokens.new_zeros(batch.n_users, tokens.shape[1]).index_add(0, user, bags * gate.unsqueeze(1))
        weight = tokens.new_zeros(batch.n_users).index_add(0, user, gate * n)
        vectors = torch.tanh(
            self.mix(torch.cat([bags / torch.sqrt(1.0 + n).unsqueeze(1), statistics], dim=1))
        )
        z = z + self.correction(self._states(vectors, user, batch.n_users))
        log_sum = torch.logsumexp(self.base + self.prototype @ tokens.T, dim=1)  # (K,)
        evidence = z @ self.prototype.T - weight.unsqueeze(1) * log_sum
        events = tokens.new_zeros(batch.n_users).index_add(0, user, n)
        return Encoded(z, evidence, events)

    def _statistics(self, batch: JaggedBatch, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Events seen (S,) and the statistics of each session (S, 5)."""
        size = len(batch.user)

        def total(values: Tensor) -> Tensor:
            return values.new_zeros(size).index_add(0, batch.session, values * seen)

        n = total(torch.ones_like(seen))
        known = total(batch.known)
        parts = [
            torch.log1p(n),
            total(batch.z) / (known + 1.0),
            known / n.clamp(min=1.0),
            batch.gap,
            total(batch.z * self.slopes[batch.stream]) / (known + 1.0),
        ]
        return n, torch.stack(parts, dim=1)

    def _states(self, vectors: Tensor, user: Tensor, n_users: int) -> Tensor:
        """GRU state after each user's newest sessions (B, h), 0 without one; no step for those who have ended."""
        states = vectors.new_zeros(n_users, self.config.hidden)
        if not len(user):
            return states
        counts = torch.bincount(user, minlength=n_users)
        end = torch.cumsum(counts, 0)[user]
        newest = end - torch.arange(len(user), device=user.device) <= NEWEST_SESSIONS
        vectors, user, counts = vectors[newest], user[newest], counts.clamp(max=NEWEST_SESSIONS)
        first = torch.cumsum(counts, 0) - counts
        step = torch.arange(len(user), device=user.device) - first[user]  # from 0 within the user
        longest = torch.argsort(counts, descending=True, stable=True)
        longest = longest[: int((counts > 0).sum())]
        place = torch.empty_like(counts)
        place[longest] = torch.arange(len(longest), device=user.device)
        order = torch.argsort(step * n_users + place[user])
        gates = self.inward(vectors[order])  # (S', 3h), all steps at once
        state, ended = vectors.new_zeros(len(longest), self.config.hidden), []
        for inward in torch.split(gates, torch.bincount(step).tolist()):
            ended.append(state[len(inward) :])
            state = _gru_step(inward, self.recurrent(state[: len(inward)]), state[: len(inward)])
        last = torch.cat([state, *reversed(ended)])  # (B', h), in the order of `longest`
        return states.index_copy(0, longest, last)


def _gru_step(inward: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
    """One step of a gated recurrent unit (Cho et al. 2014, as in torch.nn.GRU): gates (B, 3h) -> state (B, h)."""
    (reset, keep, new), (old_reset, old_keep, old) = inward.chunk(3, dim=1), recurrent.chunk(3, dim=1)
    keep = torch.sigmoid(keep + old_keep)
    fresh = torch.tanh(new + torch.sigmoid(reset + old_reset) * old)
    return fresh + keep * (state - fresh)
