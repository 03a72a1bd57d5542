"""The ranker: trunk, segment-weighted stream summaries and named heads, one logit per row and label."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynamix.models.batch import RankBatch
from dynamix.models.heads import Heads
from dynamix.models.layers.jagged import row_index
from dynamix.models.layers.summary import StreamLinear, stream_summary
from dynamix.models.trunks.base import TrunkConfig, initialise
from dynamix.models.trunks.build import build_trunk


@dataclass(frozen=True)
class RankerConfig:
    """Everything that a state dict does not say; stored beside it as JSON."""

    trunk: TrunkConfig
    heads: tuple[str, ...]
    surfaces: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RankerConfig:
        return cls.from_tree(json.loads(text))

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> RankerConfig:
        """From what JSON gives back."""
        trunk = TrunkConfig(**{**tree["trunk"], "hidden": tuple(tree["trunk"]["hidden"])})
        return cls(trunk=trunk, heads=tuple(tree["heads"]), surfaces=tuple(tree["surfaces"]))


class Ranker(nn.Module):
    """RankBatch -> logits (B, H) in the order of `config.heads`. Starts as the base rate of each head."""

    def __init__(self, config: RankerConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.trunk = build_trunk(config.trunk)
        initialise(self.trunk, seed=seed)
        self.linear = StreamLinear(
            n_segments=config.trunk.n_segments, n_streams=config.trunk.n_streams, n_heads=len(config.heads)
        )
        self.heads = Heads(self.trunk.width_out, config.heads)

    def forward(self, batch: RankBatch) -> Tensor:
        return self.represent(batch)[1]

    def represent(self, batch: RankBatch) -> tuple[Tensor, Tensor]:
        """Row vectors r (B, D) of the trunk, and the logits (B, H) of them."""
        r, x = self.trunk(batch, self.linear.scale)
        device = r.device.type
        if torch.is_autocast_enabled(device):  # weights of summaries and the logit itself need the digits
            with torch.autocast(device, enabled=False):
                return r.float(), self.heads(r.float(), self.linear(x.float(), batch.segment))
        return r, self.heads(r, self.linear(x, batch.segment))

    def start(self, base_rates: Mapping[str, float], sample: RankBatch) -> None:
        """Set the biases to the base rates and the summary scales to those of a sample of training rows."""
        self.heads.start_at(base_rates)
        with torch.no_grad():
            row = row_index(sample.offsets, sample.tokens)
            self.linear.fit_scale(stream_summary(sample, row, self.config.trunk.n_streams))

    def load(self, state: Mapping[str, Tensor]) -> Ranker:
        """Itself with these weights, in evaluation mode."""
        self.load_state_dict(state)
        return self.eval()
