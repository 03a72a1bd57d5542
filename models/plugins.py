"""What a training may add to the ranker's own: heads, loss terms, wraps. Without a plugin it is the plain training.

A plugin only adds, so plugins compose; what they add leaves with them, but for heads that are to be served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import TypeAlias

import torch
from torch import Tensor, nn

from dynamix.errors import ConfigError
from dynamix.models.batch import RankBatch
from dynamix.models.heads import Heads
from dynamix.models.ranker import Ranker


@dataclass(frozen=True)
class PluginHead:
    """One more logit, linear in r, zero at start; only with `serve` it is part of the ranker that is kept."""

    name: str
    serve: bool = False


@dataclass(frozen=True)
class Output:
    """r (B, D), logits (B, H) of the labels, and those of the plugins' heads by name, each (B,)."""

    r: Tensor
    logits: Tensor
    extra: Mapping[str, Tensor]


Forward: TypeAlias = Callable[[RankBatch], Output]


class TrainerPlugin:
    """Base of all plugins; what is not overridden adds nothing. `name` stands before its loss terms in logs."""

    name = "plugin"
    options: Mapping[str, float] | None = None
    """What builds it anew in a training process (models/launched.py); None: it works in this process only."""

    def heads(self) -> Sequence[PluginHead]:
        """Heads beside the ranker's own."""
        return ()

    def loss_terms(self, out: Output, batch: RankBatch) -> Mapping[str, Tensor]:
        """Terms () to be added to the loss, by name, each a mean over the rows of `batch`.

        A batch may come in pieces (docs/faults.md 38); each counts by its share of the rows.
        """
        return {}

    def wrap_module(self, forward: Forward) -> Forward:
        """What runs in place of the ranker while training. It may run twice for one step, to the same result."""
        return forward

    def after_step(self, ranker: Ranker, step: int) -> None:
        """Called after each optimiser step; `step` counts from 1 over all passes."""

    def on_day_end(self, ranker: Ranker, day: date) -> None:
        """Called once at the end with the newest day trained on: the cycle trains once a day. Weights may change."""

    def export(self, ranker: Ranker) -> Ranker:
        """The ranker to be kept, from the one that was trained."""
        return ranker


class Training(nn.Module):
    """A ranker with the heads of its plugins, as it is trained. ConfigError where two heads share a name."""

    def __init__(self, ranker: Ranker, plugins: Sequence[TrainerPlugin]) -> None:
        super().__init__()
        own = [head for plugin in plugins for head in plugin.heads()]
        names = [*ranker.config.heads, *(head.name for head in own)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"heads {', '.join(twice)} stand twice; allowed: names that no label or plugin has"
            )
        self.ranker = ranker
        self.plugins = tuple(plugins)
        self.own = tuple(own)
        self.extra = Heads(ranker.trunk.width_out, [head.name for head in own]) if own else None
        wrapped: Forward = self._output
        for plugin in plugins:
            wrapped = plugin.wrap_module(wrapped)
        self._wrapped = wrapped

    def forward(self, batch: RankBatch) -> Output:
        return self._wrapped(batch)

    def terms(self, out: Output, batch: RankBatch, *, share: float) -> dict[str, Tensor]:
        """Loss terms of all plugins as `plugin/term`, each times `share`, the piece's part of the batch."""
        return {
            f"{plugin.name}/{name}": term * share
            for plugin in self.plugins
            for name, term in plugin.loss_terms(out, batch).items()
        }

    def export(self) -> Ranker:
        """The ranker to be kept: without the plugins' heads, but for those with `serve`, which follow the labels'."""
        ranker = self.ranker
        if self.extra is not None and any(head.serve for head in self.own):
            ranker = with_heads(ranker, self.extra, [head.name for head in self.own if head.serve])
        for plugin in self.plugins:
            ranker = plugin.export(ranker)
        return ranker

    def _output(self, batch: RankBatch) -> Output:
        r, logits = self.ranker.represent(batch)
        if self.extra is None:
            return Output(r, logits, {})
        found = self.extra(r, torch.zeros_like(r[:, :1]))  # (B, K)
        return Output(r, logits, {name: found[:, k] for k, name in enumerate(self.extra.names)})


def with_heads(ranker: Ranker, extra: Heads, names: Sequence[str]) -> Ranker:
    """A ranker that also serves these heads of `extra`, behind its own; they have no part linear in the summary."""
    grown = Ranker(replace(ranker.config, heads=(*ranker.config.heads, *names)))
    at = [extra.names.index(name) for name in names]
    state = dict(ranker.state_dict())
    for name, more in (("heads.out.weight", extra.out.weight), ("heads.out.bias", extra.out.bias)):
        state[name] = torch.cat([state[name], more.detach()[at]])
    for name in ("linear.shared", "linear.by_segment"):  # (H, W), (G, H·W): zeros behind
        new = torch.zeros_like(grown.get_parameter(name), device=state[name].device)
        new[: state[name].shape[0], : state[name].shape[1]] = state[name]
        state[name] = new
    grown.load_state_dict(state)
    return grown
