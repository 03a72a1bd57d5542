"""HSTU-type trunk: a transformer with pointwise attention over the kept history and, behind it, the candidate.

row of 2 events   e0 e1 c | the candidate c is the newest token and sees all; an event sees itself and older ones
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynamix.models.batch import RankBatch
from dynamix.models.kernels.interaction import join_order
from dynamix.models.layers.gate import CellBias
from dynamix.models.layers.hstu import HstuLayer, Tokens
from dynamix.models.layers.jagged import row_index
from dynamix.models.layers.summary import N_SUMMARY, stream_summary
from dynamix.models.trunks.base import N_TIERS, Represented, Trunk, TrunkConfig, perceptron

LONGEST_LOG_AGE = 16.0
"""Clock of an event = log1p(age in s) / 16: 1 at about 100 days; the candidate's is 0."""


class HstuTrunk(Trunk):
    """Layers over events and candidate; the last one works the candidate's row out alone.

    Segment and tier stand in the candidate, in a bias of each head by segment × stream and tier × stream, and in the
    gate, which weighs an event's value. An event's place is its age, so removing and masking agree.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__(config)
        heads, width = config.attention_heads, config.width
        self.cell_bias = CellBias(config.n_segments, N_TIERS, config.n_streams, heads)
        self.layers = nn.ModuleList(HstuLayer(width, heads) for _ in range(config.layers))
        self.summary = nn.Linear(config.n_streams * N_SUMMARY, width)
        self.mlp = perceptron((4 * width, *config.hidden))
        self.width_out = config.hidden[-1]

    def forward(self, batch: RankBatch, scale: Tensor) -> Represented:
        row = row_index(batch.offsets, batch.stream.shape[0])  # (N,)
        x = stream_summary(batch, row, self.config.n_streams)  # (B, F, C)
        candidate = self.candidate(batch)  # (B, D)
        order, tokens = self._tokens(batch, row)
        h = torch.cat([self.events(batch), candidate]).index_select(0, order)  # (N + B, D)
        for layer in self.layers[:-1]:
            h = layer(h, tokens)
        newest: Tensor = self.layers[-1].newest(h, tokens)  # type: ignore[operator]
        pressed = self.summary(x.flatten(1) * scale)  # (B, D)
        return self.mlp(torch.cat([candidate, newest, candidate * newest, pressed], dim=1)), x

    def _tokens(self, batch: RankBatch, row: Tensor) -> tuple[Tensor, Tokens]:
        """Order of the tokens in (events, candidates), and what the layers know of them."""
        order, offsets = join_order(batch.offsets, batch.stream.shape[0])
        bias = self.cell_bias(batch.segment, batch.tier, batch.stream, row)  # (N, H)
        none = batch.log_age.new_zeros(batch.segment.shape[0])

        def joined(events: Tensor, candidates: Tensor) -> Tensor:
            return torch.cat([events, candidates]).index_select(0, order)

        keep = None if batch.keep is None else joined(batch.keep, torch.ones_like(none, dtype=torch.bool))
        return order, Tokens(
            offsets=offsets,
            clock=joined(batch.log_age / LONGEST_LOG_AGE, none),
            log_weight=joined(self.log_weight(batch, row), none),
            bias=joined(bias, none.unsqueeze(1).expand(-1, bias.shape[1])),
            keep=keep,
            last=offsets[1:] - 1,
        )
