"""Two learned rivals of the masks: one gate a stream, trained with the ranker, and a budget by length of history."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.headline_arms import Bools, Cut, in_line, limits_for, row_of, within
from benchmarks.headline_masks import Priced, convex_steps
from dynamix.config import TrainConfig
from dynamix.models.batch import RankBatch
from dynamix.models.contest import Floats
from dynamix.models.dataset import JaggedRows
from dynamix.models.layers.summary import N_SUMMARY
from dynamix.models.metrics import cross_entropy
from dynamix.models.ranker import Ranker, RankerConfig
from dynamix.models.train import SEGMENT_SD, SHARED_SD, ArmSpec, base_rates, batch_loss, predict, train_arm

GATE_RATE = 0.03
PENALTY = 0.01
"""Nats an impression that a mask of all tokens would cost: a gate closes where its stream's share is worth less."""
LENGTHS = (3, 10, 25, 50, 100)
GROUPS = 5


class GatedRanker(Ranker):
    """The product's ranker with one gate a stream on everything it reads of the history; gates start near 1."""

    def __init__(self, config: RankerConfig, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self.gate_logit = nn.Parameter(torch.full((config.trunk.n_streams,), 2.0))  # (F,)

    def forward(self, batch: RankBatch) -> Tensor:
        gate = torch.sigmoid(self.gate_logit)
        boosted = replace(batch, log_boost=F.logsigmoid(self.gate_logit)[batch.stream])
        r, x = self.trunk(boosted, self.linear.scale * gate.repeat_interleave(N_SUMMARY))
        logits: Tensor = self.heads(r, self.linear(x * gate[None, :, None], batch.segment))
        return logits


def learned_gates(rows: JaggedRows, *, model_config: RankerConfig, config: TrainConfig, seed: int) -> Floats:
    """Gate of every stream (F,) after `config.min_steps` steps on the training rows with the tokens' price in the loss.

    After the idea of gates a field (AutoField, LPFS), written anew: gates and weights are trained together, and the
    ranker that is compared is trained anew on what the gates leave.
    """
    torch.set_num_threads(config.threads)
    train = rows.select("train")
    share = torch.from_numpy(np.bincount(train.stream, minlength=model_config.trunk.n_streams) / train.tokens)
    generator = torch.Generator().manual_seed(seed)
    model = GatedRanker(model_config, seed=seed)
    model.start(
        base_rates(train), train.batch(torch.randperm(len(train), generator=generator)[:8192].numpy())
    )
    own = [w for name, w in model.named_parameters() if name != "gate_logit"]
    optimizer = torch.optim.AdamW(
        [{"params": own, "lr": config.learning_rate}, {"params": [model.gate_logit], "lr": GATE_RATE}],
        weight_decay=0.0,
    )
    steps = 0
    while steps < config.min_steps:
        for batch in train.batches(config.batch_size, generator):
            optimizer.zero_grad(set_to_none=True)
            gate = torch.sigmoid(model.gate_logit)
            prior = model.linear.prior_energy(shared_sd=SHARED_SD, segment_sd=SEGMENT_SD) / len(train)
            loss = batch_loss(model(batch), batch, model_config.heads) + prior
            (loss + PENALTY * (share.to(gate.dtype) @ gate)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1
            if steps == config.min_steps:
                break
    return np.asarray(torch.sigmoid(model.gate_logit).detach().double().numpy())


def closed_first(gates: Floats) -> list[Cut]:
    """Whole streams of one segment for all, the smallest gate first; the one with the greatest stays."""
    return [Cut(0, int(f)) for f in np.argsort(gates, kind="stable")[:-1]]


def by_budget(
    rows: JaggedRows, tokens: int, *, head: str, model_config: RankerConfig, config: TrainConfig, seed: int
) -> Bools:
    """The newest events of every row up to a budget that hangs on how long its history is.

    A ranker trained on histories of random length tells on validation rows what a group of rows (fifths by length)
    loses if it keeps its newest 3 .. 100 events; what costs least a token is cut first. After DCAF (arXiv 2006.09684):
    computation is allotted to users as a knapsack.
    """
    lined = in_line(rows)
    edges = np.quantile(np.diff(rows.offsets), np.arange(1, GROUPS) / GROUPS)
    group = np.searchsorted(edges, np.diff(rows.offsets), side="right")
    drawn = np.random.default_rng(seed).choice([*LENGTHS, lined.tokens], size=len(rows))
    probe = rows.keep_events(lined.rank < drawn[row_of(rows)])
    spec = ArmSpec("budget probe", "headline", seed)
    trained = train_arm(spec, probe, model_config=model_config, config=config)
    validate = rows.select("validate")
    y = validate.labels[head].astype(float)
    known = np.isfinite(y)
    own = np.searchsorted(edges, np.diff(validate.offsets), side="right")
    options: dict[int, list[Priced]] = {}
    whole = cross_entropy(y, predict(trained.model, validate, batch_size=4096)[head])
    rank = in_line(validate).rank
    for length in LENGTHS:
        cut = validate.keep_events(rank < length)
        lost = cross_entropy(y, predict(trained.model, cut, batch_size=4096)[head]) - whole
        gone = np.diff(validate.offsets) - np.diff(cut.offsets)
        for g in range(GROUPS):
            at = known & (own == g)
            if gone[at].sum():
                price = Priced((g, ""), length, float(lost[at].sum()), float(gone[at].sum()))
                options.setdefault(g, []).append(price)
    steps = sorted((price, g, p.events) for g, o in options.items() for price, p in convex_steps(o))
    cuts = [Cut(g, 0, events) for _, g, events in steps] + [Cut(g, 0, 0) for g in range(GROUPS)]
    return within(lined, group, limits_for(lined, group, cuts, tokens))
