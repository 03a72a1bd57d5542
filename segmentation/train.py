"""Training of the neural segmenter: one encoder for a given number of prototypes (docs/method.md A.4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from dynamix.contracts import N_DWELL_BINS
from dynamix.segmentation.encoder import (
    Encoded,
    EncoderConfig,
    JaggedBatch,
    SessionEncoder,
    batch_of,
    one_thread,
)
from dynamix.segmentation.jagged import Floats, Ints, Jagged
from dynamix.segmentation.mixture import Mixture, e_step, initial, m_step
from dynamix.segmentation.objective import (
    evidence_loss,
    floored,
    length_share,
    log_prior,
    predictive,
    swap_loss,
)

NEXT_WINDOW, SESSIONS, TOKENS, EVERYTHING = 0, 1, 2, 3
"""What is hidden from a user in a step: W₊, random sessions, random events, all events."""
_START_USERS, _START_STEPS = 4000, 10
_EMISSION_RATE, _RATE = 0.03, 0.005


@dataclass(frozen=True)
class TrainConfig:
    """Steps of `batch` users; weights of the terms; shares of the pretexts; sd of dwell bins within a stream.

    The swap term acts in the first third of the steps, falling to 0: it keeps prototypes alive while they settle; later
    it would make posteriors surer than the likelihood says.
    """

    steps: int = 300
    batch: int = 512
    seed: int = 0
    swap: float = 0.1
    length: float = 1.0
    evidence: float = 0.5
    cell_sd: float = 0.1
    restarts: int = 3
    pretexts: tuple[float, float, float, float] = (0.3, 0.3, 0.15, 0.25)
    device: str = "cpu"


def train(
    inputs: Jagged, *, k: int, slopes: Floats | None = None, config: TrainConfig | None = None
) -> SessionEncoder:
    """The encoder with `k` prototypes fitted to these users; `slopes` (F,) are population numbers, None is 0.

    Equal inputs, in the same order, and seed give equal weights on a CPU, where one thread works; on a GPU they are equal
    up to the order of its sums.
    """
    config = config or TrainConfig()
    generator = torch.Generator().manual_seed(config.seed)
    device = torch.device(config.device)
    encoder = SessionEncoder(EncoderConfig(k, inputs.n_streams), generator)
    if slopes is not None:
        encoder.slopes.copy_(torch.from_numpy(slopes))
    rows = np.flatnonzero(inputs.events > 0)
    start = _start(inputs.take(rows), k, config)
    encoder.start_from(*start)
    encoder.to(device)
    if k > 1:
        with one_thread():
            _run(encoder, inputs, rows, config, generator)
    return encoder.eval()


def _start(inputs: Jagged, k: int, config: TrainConfig) -> tuple[Floats, Floats, Floats]:
    """log base (J,), log stream lifts (K, F), log prior (K,): EM steps over streams from k-means, best of restarts."""
    symbol = inputs.stream * N_DWELL_BINS + inputs.dwell_bin
    cells = np.bincount(symbol, minlength=inputs.n_streams * N_DWELL_BINS) + 0.5
    by_user = sparse.csr_matrix(
        (np.ones(len(symbol)), (inputs.user_of_event, inputs.stream)),
        shape=(inputs.n_users, inputs.n_streams),
    )
    most = np.argsort(-inputs.events, kind="stable")[:_START_USERS]
    seeds, group = by_user[most], np.arange(inputs.n_streams)
    best: tuple[float, Mixture] | None = None
    for restart in range(config.restarts if k > 1 else 1):
        mixture = initial(seeds, k=k, group=group, prior=0.5, seed=config.seed + 1000 * k + restart)
        for _ in range(_START_STEPS):
            sums = e_step(mixture, seeds)
            mixture = m_step(sums, prior=0.5)
        if best is None or sums.loglik > best[0]:
            best = (sums.loglik, mixture)
    assert best is not None  # for the type checker: there is at least one restart
    pooled = cells.reshape(inputs.n_streams, N_DWELL_BINS).sum(axis=1)
    lift = best[1].log_p - np.log(pooled / pooled.sum())
    return np.log(cells / cells.sum()), lift, best[1].log_pi


def _run(
    encoder: SessionEncoder,
    inputs: Jagged,
    rows: Ints,
    config: TrainConfig,
    generator: torch.Generator,
) -> None:
    own = ("prior", "prototype", "stream", "cell", "expected")
    named = dict(encoder.named_parameters())
    groups = [
        {"params": [named[n] for n in own], "lr": _EMISSION_RATE},
        {"params": [p for n, p in named.items() if n not in own], "lr": _RATE},
    ]
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    usage = encoder.log_prior.detach().exp()
    queue = np.empty(0, np.int64)
    device = torch.device(config.device)
    size = min(config.batch, len(rows))
    for step in range(config.steps):
        if len(queue) < size:
            queue = torch.randperm(len(rows), generator=generator).numpy()
        chosen, queue = queue[:size], queue[size:]
        batch = batch_of(inputs.take(rows[chosen]), device)
        swap = config.swap * max(0.0, 1.0 - 3.0 * step / config.steps)
        loss, q = _loss(encoder, batch, usage, config, generator, swap)
        loss = loss - log_prior(encoder, cell_sd=config.cell_sd) / len(rows)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        usage = 0.9 * usage + 0.1 * q.mean(dim=0)


def hide(batch: JaggedBatch, config: TrainConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """hidden (N,) float 0/1 and the pretext of each user (B,), drawn on the CPU."""
    device = batch.symbol.device
    shares = torch.tensor(config.pretexts)
    kind = torch.multinomial(shares, batch.n_users, replacement=True, generator=generator).to(device)
    by_session = torch.rand(len(batch.user), generator=generator).to(device) < 0.5
    by_event = torch.rand(len(batch.symbol), generator=generator).to(device) < 0.15
    later = ~batch.is_input[batch.session]
    own = kind[batch.owner]
    hidden = (
        ((own == NEXT_WINDOW) & later)
        | ((own == SESSIONS) & by_session[batch.session])
        | ((own == TOKENS) & by_event)
        | (own == EVERYTHING)
    )
    return hidden.float(), kind


def _loss(
    encoder: SessionEncoder, batch: JaggedBatch, usage: Tensor, config: TrainConfig, generator: torch.Generator,
    swap: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    hidden, kind = hide(batch, config, generator)
    seen: Encoded = encoder(batch, 1.0 - hidden)
    loss = -predictive(encoder, batch, seen, hidden).mean()
    q = torch.softmax(encoder.log_prior + seen.evidence, dim=1)
    some = seen.n > 0
    if bool(some.any()):
        loss = loss + config.length * length_share(q[some], seen.n[some])
    if bool(encoder.slopes.any()):
        ahead = hidden * (kind[batch.owner] == NEXT_WINDOW)
        loss = loss + config.evidence * evidence_loss(encoder, batch, q, ahead)
    if swap > 0:
        other: Encoded = encoder(batch, hidden)
        both = (seen.n > 0) & (other.n > 0)
        if int(both.sum()) > 1:
            first, second = (encoder.log_prior + view.evidence[both] for view in (seen, other))
            loss = loss + swap * swap_loss(first, second, floored(usage))
    return loss, q.detach()
