"""Train one arm: a ranker on the training rows of one mask version, stopped early on validation rows only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dynamix.config import TrainConfig
from dynamix.errors import ConfigError, EnvironmentTrouble, GuardError
from dynamix.models.ahead import ahead
from dynamix.models.batch import RankBatch
from dynamix.models.checkpoint import Checkpoint, Standing, training_key
from dynamix.models.dataset import JaggedRows
from dynamix.models.memory import RowsAtOnce, pieces
from dynamix.models.metrics import NeState
from dynamix.models.plugins import TrainerPlugin, Training
from dynamix.models.ranker import Ranker, RankerConfig
from dynamix.models.ranks import ALONE, Ranks
from dynamix.models.trunks.base import TrunkConfig
from dynamix.models.warm import WarmStart

SHARED_SD = 0.3
SEGMENT_SD = 0.1
"""Prior standard deviations (log-odds per SD of a summary) of the shared and the per-segment weights."""
NETWORK_RATE = 0.5
"""Step size of the networks over that of the summary weights: they overfit first."""
_SCALE_ROWS = 8192

LOSS, PRIOR = "train_loss", "prior"
"""Names under which the loss of the labels and the prior's energy are logged; plugins' terms are `plugin/term`."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ArmSpec:
    """One arm of a comparison: a mask version's rows and a seed."""

    arm: str  # keep-all | masked | global
    mask_version: str
    seed: int


@dataclass
class TrainedArm:
    """The best state by validation loss, with what happened on the way; the model is on the CPU."""

    spec: ArmSpec
    model: Ranker
    base_rates: Mapping[str, float]
    device: str
    rows_at_once: int
    """Rows of a batch that went through the model together: all of them, where memory sufficed."""
    epochs: list[dict[str, float]] = field(default_factory=list)
    """Means of each pass by name: train_loss, validate_loss, prior, and the plugins' terms."""
    plugins: tuple[str, ...] = ()


def pick_device(wanted: str) -> torch.device:
    """`auto` takes CUDA where there is one. EnvironmentTrouble (exit 5) if `cuda` is asked for and absent."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise EnvironmentTrouble(
            "train.device=cuda, but torch sees no CUDA device; use train.device=auto or cpu, or a machine with a GPU"
        )
    use_cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def base_rates(rows: JaggedRows) -> dict[str, float]:
    """Weighted share of positives of each head over rows with a known label; 0.5 positives are added if none."""
    rates = {}
    for head, y in rows.labels.items():
        known = np.isfinite(y)
        w = rows.weight[known].astype(float)
        total = float(w.sum())
        rates[head] = (float(w @ y[known]) or 0.5) / max(total, 1.0)
    return rates


def ranker_config(rows: JaggedRows, *, n_streams: int, n_segments: int, config: TrainConfig) -> RankerConfig:
    """Sizes from the data and the config; `n_segments` counts segment 0."""
    trunk = TrunkConfig(
        n_streams=n_streams,
        n_segments=n_segments,
        n_surfaces=len(rows.surfaces) + 1,
        item_buckets=config.item_buckets,
        width=config.embedding_dim,
        hidden=tuple(config.hidden),
        kind=config.trunk,
        layers=config.layers,
        attention_heads=config.attention_heads,
    )
    return RankerConfig(trunk=trunk, heads=tuple(rows.labels), surfaces=rows.surfaces)


def batch_loss(
    logits: Tensor, batch: RankBatch, heads: tuple[str, ...], *, known_weight: Tensor | None = None
) -> Tensor:
    """Mean over heads of the weighted mean BCE over rows with a known label; 0 where none is known.

    `known_weight` (H,), the weight of rows with a known label, is that of `batch` by default. With the whole batch's for
    each of its pieces, their losses add up to the loss of the whole.
    """
    assert batch.weight is not None  # training rows always carry one; for the type checker
    losses = []
    for column, head in enumerate(heads):
        y = batch.labels[head]
        known = torch.isfinite(y)
        weight = batch.weight * known
        each = F.binary_cross_entropy_with_logits(
            logits[:, column], torch.where(known, y, torch.zeros_like(y)), reduction="none"
        )
        whole = weight.sum() if known_weight is None else known_weight[column]
        losses.append((each * weight).sum() / whole.clamp_min(1e-6))
    return torch.stack(losses).mean()


def train_arm(
    spec: ArmSpec,
    rows: JaggedRows,
    *,
    model_config: RankerConfig,
    config: TrainConfig,
    progress: Progress = lambda text: None,
    plugins: Sequence[TrainerPlugin] = (),
    start: WarmStart | None = None,
    ranks: Ranks = ALONE,
    checkpoints: Path | None = None,
) -> TrainedArm:
    """Train on `rows.select("train")`, keep the pass with the least validation loss.

    All passes are made, so that every arm sees the same steps and the same falling rate: arms that stopped at
    different passes differed by more than their masks did (docs/experiments.md).
    Deterministic given seed, thread count and device: one torch.Generator draws weights and order. A loss
    that is not finite stops with GuardError before it touches a later state (docs/faults.md 39). A batch that
    does not fit into the device's memory goes through in pieces, to the same sums (docs/faults.md 38). With `start`
    every seed begins from those weights, and where no pass lowers the validation loss they stay. `plugins` are of
    this training alone; without any the weights are, bit for bit, those of a loop that knows none.
    With several `ranks` every process calls this with the same arguments and does its share of each batch: steps,
    validation losses and the choice of the pass are the same in all (models/launch.py).
    A folder of `checkpoints` holds where the training stands: one that was killed goes on after its last pass there, to
    the same bits, and one that had ended is not made again. With plugins nothing is kept: they have states of their own.
    """
    torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    train, validate = rows.select("train").cap_users(config.max_rows), rows.select("validate", holdout=False)
    if len(train) == 0:
        raise GuardError(
            f"arm {spec.arm!r}: no mature training rows; ingest more days or lower the label window"
        )
    if len(train) < ranks.size:
        raise ConfigError(
            f"train.processes={ranks.size}, but arm {spec.arm!r} has {len(train)} training rows; lower it"
        )
    rates = base_rates(train)
    model = Ranker(model_config, seed=spec.seed)
    generator = torch.Generator().manual_seed(spec.seed)
    model.start(rates, train.batch(torch.randperm(len(train), generator=generator)[:_SCALE_ROWS].numpy()))
    if start is not None:
        start.begin(model)
    training = Training(model, plugins).to(device)
    ranks.begin(training)
    memory = RowsAtOnce(config.batch_size, say=lambda text: progress(f"{spec.arm} seed {spec.seed}: {text}"))
    steps = math.ceil(len(train) / config.batch_size)
    passes = max(config.epochs, math.ceil(config.min_steps / steps))
    optimizer, schedule = _optimizer(training, config, steps=passes * steps)
    at = Standing(training, optimizer, schedule, generator, memory)
    kept_at, found = None, None
    if checkpoints is not None and not plugins:
        key = training_key(spec, rows, model_config, config, None if start is None else start.model)
        kept_at = Checkpoint(checkpoints / f"{key}.pt", config.checkpoint_s, say=memory.say)
        found = _agreed(kept_at.load(), ranks)
    if found is None:
        at.better(_validation_loss(model, validate, config.batch_size, memory, ranks))
    else:
        at.take_up(found)
        if ranks.first:
            memory.say(f"goes on after pass {len(at.epochs)} of {passes}, from a checkpoint")
    amp = config.amp == "on" or (config.amp == "auto" and device.type == "cuda")
    for epoch in range(len(at.epochs), passes):
        terms = _epoch(
            training,
            train,
            optimizer,
            schedule,
            config.batch_size,
            generator,
            memory,
            epoch * steps,
            ranks,
            amp,
        )
        held_out = _validation_loss(model, validate, config.batch_size, memory, ranks)
        at.epochs.append({**terms, "validate_loss": held_out})
        loss = terms[LOSS]
        if ranks.first:
            progress(
                f"{spec.arm} seed {spec.seed} epoch {epoch + 1} of {passes}: train {loss:.5f}, "
                f"validate {held_out:.5f}"
            )
        if held_out <= at.best_loss:
            at.better(held_out)
        if kept_at is not None and ranks.first and kept_at.is_due(ended=epoch + 1 == passes):
            kept_at.store(at.content())
    training.cpu().load_state_dict(at.best)
    for plugin in plugins:
        plugin.on_day_end(model, newest_day(train))
    kept, names = training.export().eval(), tuple(p.name for p in plugins)
    at_once = int(ranks.least(torch.tensor(min(memory.rows, config.batch_size))))
    return TrainedArm(spec, kept, rates, str(device), at_once, at.epochs, names)


def newest_day(rows: JaggedRows) -> date:
    """Day (UTC) of the newest of these rows."""
    return datetime.fromtimestamp(int(rows.event_us.max()) / 1e6, UTC).date()


def predict(
    model: Ranker, rows: JaggedRows, *, batch_size: int, memory: RowsAtOnce | None = None
) -> dict[str, NDArray[np.float64]]:
    """Probabilities (R,) of every head in the order of the rows; fewer rows at once where memory is short."""
    return _predict(model, rows, batch_size, memory or RowsAtOnce(batch_size), ALONE)


def _predict(
    model: Ranker, rows: JaggedRows, size: int, memory: RowsAtOnce, ranks: Ranks
) -> dict[str, NDArray[np.float64]]:
    """As `predict`, each batch in one of the processes; all of them get every bit that one alone would get."""
    model.eval()
    stacked = np.zeros((len(rows), len(model.config.heads)))
    for place, at in enumerate(rows.places(size)):
        if place % ranks.size == ranks.rank:
            stacked[at] = memory.attempt(partial(_probabilities, model, rows, at))
    stacked = ranks.total(torch.from_numpy(stacked)).numpy()  # zeros elsewhere: the sum is exact
    return {head: stacked[:, column] for column, head in enumerate(model.config.heads)}


def _probabilities(model: Ranker, rows: JaggedRows, at: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """(len(at), H) for these rows, `size` of them at once."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = [model(rows.batch(piece).to(device)) for piece in pieces(at, size)]
        return torch.sigmoid(torch.cat(logits).double()).cpu().numpy()


def _epoch(
    training: Training,
    train: JaggedRows,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    size: int,
    generator: torch.Generator,
    memory: RowsAtOnce,
    before: int,
    ranks: Ranks,
    amp: bool,
) -> dict[str, float]:
    """One pass in shuffled order, after `before` steps; mean of its steps of every term of the loss."""
    training.train()
    totals: dict[str, Tensor] = {}
    steps = 0
    for at, ready in _batches(training, train, train.places(size, generator), ranks):
        found = memory.attempt(partial(_gradients, training, train, at, ranks, amp, ready))
        ranks.add_gradients(training.parameters())
        optimizer.step()
        schedule.step()
        for name, term in found.items():
            totals[name] = totals[name] + term if name in totals else term
        steps += 1
        for plugin in training.plugins:
            plugin.after_step(training.ranker, before + steps)
    ranks.check_agreement(training)
    means = {name: float(total) / steps for name, total in ranks.add_terms(totals).items()}
    broken = [name for name, mean in means.items() if not math.isfinite(mean)]
    if broken:
        raise GuardError(
            f"{', '.join(broken)} became {means[broken[0]]} after {steps} steps; the last good state is kept and "
            "no alias moves: lower train.learning_rate or look at dense values of training_rows"
        )
    return means


def _batches(
    training: Training, train: JaggedRows, places: Iterator[NDArray[np.int64]], ranks: Ranks
) -> Iterator[tuple[NDArray[np.int64], RankBatch | None]]:
    """Places of each batch, and on a GPU this process's share of it, made while the GPU works on the one before."""
    if (
        next(training.parameters()).device.type != "cuda"
    ):  # on the CPU a thread would take what the model needs
        return ((at, None) for at in places)
    return ahead(places, lambda at: train.batch(ranks.share(at)))


def _gradients(
    training: Training,
    train: JaggedRows,
    at: NDArray[np.int64],
    ranks: Ranks,
    amp: bool,
    ready: RankBatch | None,
    size: int,
) -> dict[str, Tensor]:
    """Terms () of the loss of this process's share of the rows `at`; gradients of their sum replace the model's.

    The rows go through `size` at a time, in one piece as `ready` where that holds them. Nothing but gradients changes, so
    it may be tried again.
    """
    model = training.ranker
    device, heads = next(model.parameters()).device, model.config.heads
    training.zero_grad(set_to_none=True)
    weight = torch.from_numpy(train.weight[at])
    known = torch.stack(
        [(weight * torch.isfinite(torch.from_numpy(train.labels[head][at]))).sum() for head in heads]
    ).to(device)
    totals: dict[str, Tensor] = {LOSS: torch.zeros((), device=device)}
    prior = torch.zeros((), device=device)
    if ranks.first:  # the prior counts once
        prior = model.linear.prior_energy(shared_sd=SHARED_SD, segment_sd=SEGMENT_SD) / len(train)
    for piece in pieces(ranks.share(at), size):
        whole = ready is not None and len(piece) == ready.rows
        batch = (ready if whole and ready is not None else train.batch(piece)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            out = training(batch)
        terms = {
            LOSS: batch_loss(out.logits.float() if amp else out.logits, batch, heads, known_weight=known),
            PRIOR: prior,
        }
        terms |= training.terms(out, batch, share=len(piece) / len(at))
        sum(terms.values(), start=torch.zeros((), device=device)).backward()  # type: ignore[no-untyped-call]
        for name, term in terms.items():
            totals[name] = totals[name] + term.detach() if name in totals else term.detach()
        prior = torch.zeros((), device=device)
    return totals


def _validation_loss(model: Ranker, rows: JaggedRows, size: int, memory: RowsAtOnce, ranks: Ranks) -> float:
    """Mean over heads of the log loss on rows outside the hold-out; 0 without rows."""
    if len(rows) == 0:
        return 0.0
    predicted = _predict(model, rows, size, memory, ranks)
    losses = []
    for head, p in predicted.items():
        y = rows.labels[head].astype(float)
        known = np.isfinite(y)
        losses.append(NeState.of(y[known], p[known], rows.weight[known].astype(float)).logloss)
    return float(np.nanmean(losses)) if np.isfinite(losses).any() else 0.0


def _agreed(found: dict[str, Any] | None, ranks: Ranks) -> dict[str, Any] | None:
    """What was stored, if every process has read the same pass; else all of them begin anew."""
    passed = torch.tensor(0 if found is None else len(found["epochs"]))
    return found if int(ranks.least(passed)) == -int(ranks.least(-passed)) else None


def _optimizer(
    training: Training, config: TrainConfig, *, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    model = training.ranker
    linear = set(map(id, model.linear.parameters()))
    networks = [w for w in training.parameters() if id(w) not in linear]
    optimizer = torch.optim.AdamW(
        [
            {
                "params": networks,
                "weight_decay": config.weight_decay,
                "lr": config.learning_rate * NETWORK_RATE,
            },
            {"params": list(model.linear.parameters()), "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: 1 - 0.9 * min(at / max(steps, 1), 1))
    return optimizer, schedule
