"""All recipes of segmenters by name; only this module and the network's own import torch."""

from __future__ import annotations

from dataclasses import replace

from dynamix.config import SegmentationConfig
from dynamix.errors import ConfigError
from dynamix.segmentation.neural import SEARCH_STEPS, Neural
from dynamix.segmentation.segmenters import Mix, MixMerge, Paper2, Segmenter
from dynamix.segmentation.train import TrainConfig


def segmenter(name: str, config: SegmentationConfig, *, k: int | None = None) -> Segmenter:
    """The recipe of that name; with `k` that many segments, without choice and guards (paper2 always has two)."""
    training = TrainConfig(seed=config.seed, device=config.device)
    search = replace(training, steps=SEARCH_STEPS)
    recipes: dict[str, Segmenter] = {
        "mix": Mix(config, k),
        "mix-merge": MixMerge(config, k=k),
        "neural": Neural(config, training, search, k),
        "paper2": Paper2(),
    }
    if name not in recipes:
        raise ConfigError.unknown_name("segmenter", name, sorted(recipes))
    return recipes[name]
