"""DIN-type trunk: target attention over the ragged history beside the pooled summaries of the streams."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynamix.models.batch import RankBatch
from dynamix.models.layers.attention import TargetAttention
from dynamix.models.layers.jagged import row_index
from dynamix.models.layers.summary import N_SUMMARY, stream_summary
from dynamix.models.trunks.base import Represented, Trunk, TrunkConfig, perceptron


class DinTrunk(Trunk):
    """The candidate asks, the events answer: a softmax whose scores hold the gate's log weights."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__(config)
        width = config.width
        self.attention = TargetAttention(width)
        self.summary = nn.Linear(config.n_streams * N_SUMMARY, width)
        self.mlp = perceptron((4 * width, *config.hidden))
        self.width_out = config.hidden[-1]

    def forward(self, batch: RankBatch, scale: Tensor) -> Represented:
        row = row_index(batch.offsets, batch.stream.shape[0])  # (N,)
        x = stream_summary(batch, row, self.config.n_streams)  # (B, F, C)
        candidate = self.candidate(batch)  # (B, D)
        bias = self.log_weight(batch, row)  # (N,)
        pooled = self.attention(candidate, self.events(batch), bias, batch.offsets, row, batch.keep)  # (B, D)
        pressed = self.summary(x.flatten(1) * scale)  # (B, D)
        r = self.mlp(torch.cat([candidate, pooled, candidate * pooled, pressed], dim=1))
        return r, x
