"""A plugin that hides whole cells from a ranker while it trains, so that it learns to do without any of them."""

from __future__ import annotations

import torch

from dynamix.models.batch import RankBatch
from dynamix.models.layers.jagged import row_index
from dynamix.models.plugins import Forward, Output, TrainerPlugin
from dynamix.models.ranker import Ranker


class StreamDropout(TrainerPlugin):
    """Each step leaves whole cells out of its histories, drawn anew: every cell goes with probability `rate`."""

    name = "stream-dropout"

    def __init__(self, *, n_segments: int, n_streams: int, rate: float, seed: int) -> None:
        self.shape, self.rate = (n_segments, n_streams), rate
        self.options = {"n_segments": n_segments, "n_streams": n_streams, "rate": rate, "seed": seed}
        self.generator = torch.Generator().manual_seed(seed)
        self.kept = self._draw()  # (G, F) bool; of one step, however often its batch is tried

    def wrap_module(self, forward: Forward) -> Forward:
        """The same on histories without the events of this step's cells."""

        def without(batch: RankBatch) -> Output:
            row = row_index(batch.offsets, batch.tokens)
            kept = self.kept.to(batch.stream.device)
            return forward(batch.removed(kept[batch.segment.index_select(0, row), batch.stream]))

        return without

    def after_step(self, ranker: Ranker, step: int) -> None:
        self.kept = self._draw()

    def _draw(self) -> torch.Tensor:
        return torch.rand(self.shape, generator=self.generator) >= self.rate
