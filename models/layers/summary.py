"""Pooled summaries of each stream's history: what a statistic of docs/method.md A.3 sees, inside the ranker."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamix.models.batch import CATEGORY_MATCH, ITEM_MATCH, RANK_EDGES, RankBatch
from dynamix.models.layers.jagged import cell_sum

N_HORIZONS = len(RANK_EDGES) + 1
SUMMARY_CHANNELS = (
    "dwell_3", "dwell_10", "dwell_30", "dwell_all", "curve", "count", "recency", "censored", "presence",
    "match_item", "match_category",
)  # fmt: skip
N_SUMMARY = len(SUMMARY_CHANNELS)


def stream_summary(batch: RankBatch, row: Tensor, n_streams: int) -> Tensor:
    """Summary x (B, F, C) of the kept events, C = SUMMARY_CHANNELS; a stream without events is all zeros.

    dwell_m = Σz/(n+1) over the usable dwells among the newest m events, that is n/(n+1) · mean z;
    curve = dwell_10²; count = log1p(n); recency = −log1p(age of the newest)/10; censored = share of
    events without a usable dwell; match = log1p(events on the candidate's item or category).
    """
    rows, dtype = batch.segment.shape[0], batch.z.dtype
    one = torch.ones_like(batch.z) if batch.keep is None else batch.keep.to(dtype)
    usable = batch.usable.to(dtype) * one
    edges = torch.tensor(RANK_EDGES, device=batch.rank.device)
    horizon = torch.bucketize(batch.rank, edges, right=True)  # rank 0..2 -> 0, 3..9 -> 1, 10..29 -> 2, else 3
    cell = row * n_streams + batch.stream  # (N,)
    cells, fine = rows * n_streams, cell * N_HORIZONS + horizon
    z = cell_sum(batch.z * usable, fine, cells * N_HORIZONS).view(rows, n_streams, N_HORIZONS).cumsum(2)
    n = cell_sum(usable, fine, cells * N_HORIZONS).view(rows, n_streams, N_HORIZONS).cumsum(2)
    dwell = z / (n + 1)  # (B, F, H)
    count = cell_sum(one, cell, cells).view(rows, n_streams)
    present = (count > 0).to(dtype)
    item = cell_sum(one * ((batch.match & ITEM_MATCH) > 0), cell, cells).view(rows, n_streams)
    category = cell_sum(one * ((batch.match & CATEGORY_MATCH) > 0), cell, cells).view(rows, n_streams)
    newest = _newest_age(batch, cell, cells).view(rows, n_streams)
    rest = torch.stack(
        [
            dwell[:, :, 1].square(),
            count.log1p(),
            -newest * present / 10,
            (count - n[:, :, -1]) / count.clamp_min(1),
            present,
            item.log1p(),
            category.log1p(),
        ],
        dim=2,
    )
    return torch.cat([dwell, rest], dim=2)  # (B, F, C)


def _newest_age(batch: RankBatch, cell: Tensor, cells: int) -> Tensor:
    """log1p(age) of the newest kept event of each cell, 0 where there is none; (cells,)."""
    age = batch.log_age if batch.keep is None else batch.log_age.masked_fill(~batch.keep, torch.inf)
    least = age.new_full((cells,), torch.inf).scatter_reduce(0, cell, age, "amin")
    return torch.where(torch.isfinite(least), least, torch.zeros_like(least))


RARE = 1 / 16
"""Share of the rows below which a summary that is not 0 is rare."""


class StreamLinear(nn.Module):
    """Logit part of each head that is linear in the scaled summary, with weights of the row's segment.

    x (B, F, C) float, segment (B,) long -> (B, H). Weights are shared (F·C) plus a deviation per segment
    (G, F·C); both start at zero. `scale` (F·C,) is fitted on training rows (1 until then).
    """

    scale: Tensor

    def __init__(self, *, n_segments: int, n_streams: int, n_heads: int) -> None:
        super().__init__()
        width = n_streams * N_SUMMARY
        self.n_heads = n_heads
        self.shared = nn.Parameter(torch.zeros(n_heads, width))
        self.by_segment = nn.Parameter(torch.zeros(n_segments, n_heads * width))
        self.register_buffer("scale", torch.ones(width))

    def fit_scale(self, x: Tensor) -> None:
        """Divide every summary by its standard deviation on training rows; constants keep scale 1.

        A stream that few of these rows have has a small deviation, and a row that has it would then lie far outside of
        all that training saw. So that of a rare one is at least what it would be in a share RARE of the rows.
        """
        flat = x.flatten(1)
        there = (flat != 0).sum(0)
        size = (flat.square().sum(0) / there.clamp_min(1)).sqrt()  # root mean square of the rows that have it
        sd = flat.std(0, correction=0)
        sd = torch.where(there < RARE * len(flat), torch.maximum(sd, RARE**0.5 * size), sd)
        self.scale.copy_(torch.where(sd > 1e-3, 1 / sd.clamp_min(1e-3), torch.ones_like(sd)))

    def forward(self, x: Tensor, segment: Tensor) -> Tensor:
        scaled = x.flatten(1) * self.scale  # (B, F·C)
        own = F.embedding(segment, self.by_segment).view(-1, self.n_heads, scaled.shape[1])  # (B, H, F·C)
        return scaled @ self.shared.T + (own * scaled.unsqueeze(1)).sum(2)  # (B, H)

    def prior_energy(self, *, shared_sd: float, segment_sd: float) -> Tensor:
        """−log of the Gaussian prior of the weights: deviations are expected to be smaller than shared ones."""
        shared = self.shared.square().sum() / (2 * shared_sd**2)
        return shared + self.by_segment.square().sum() / (2 * segment_sd**2)
