"""DLRM-type trunk (Naumov et al. 2019): sums of events per stream, and the dot products of everything with everything."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynamix.models.batch import RankBatch
from dynamix.models.layers.gate import StreamGate
from dynamix.models.layers.interaction import Interaction, stream_sums
from dynamix.models.layers.jagged import row_index
from dynamix.models.layers.summary import N_SUMMARY, stream_summary
from dynamix.models.trunks.base import N_TIERS, Represented, Trunk, TrunkConfig, perceptron

FIELDS = ("item", "surface", "segment", "tier", "dense", "summary")


class DlrmTrunk(Trunk):
    """One vector a field and one a stream, no attention: what an event weighs hangs on segment, tier and stream alone."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__(config)
        self.tier_gate = StreamGate(N_TIERS, config.n_streams)
        self.summary = nn.Linear(config.n_streams * N_SUMMARY, config.width)
        self.interaction = Interaction(len(FIELDS), config.n_streams, config.width, config.hidden[0])
        self.mlp = perceptron(config.hidden)
        self.width_out = config.hidden[-1]

    def forward(self, batch: RankBatch, scale: Tensor) -> Represented:
        row = row_index(batch.offsets, batch.stream.shape[0])  # (N,)
        x = stream_summary(batch, row, self.config.n_streams)  # (B, F, C)
        log_weight = self.log_weight(batch, row) + self.tier_gate(batch.tier, batch.stream, row)  # (N,)
        weight = log_weight.exp()
        if batch.keep is not None:
            weight = weight * batch.keep
        cells = batch.segment.shape[0] * self.config.n_streams
        sums = stream_sums(self.events(batch), weight, row * self.config.n_streams + batch.stream, cells)
        fields = torch.stack(
            [
                self.item(batch.item_id), self.surface(batch.surface), self.segment(batch.segment),
                self.tier(batch.tier), self.dense(batch.dense), self.summary(x.flatten(1) * scale),
            ],
            dim=1,
        )  # fmt: skip
        met = self.interaction(fields, sums.view(-1, self.config.n_streams, self.config.width))
        return self.mlp(torch.relu(met)), x
