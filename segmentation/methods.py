"""All segmenters by name, and a stored one read back: the only module of the contest that imports torch for everybody."""

from __future__ import annotations

import json

from dynamix.config import SegmentationConfig
from dynamix.errors import ConfigError
from dynamix.segmentation.neural import Neural, NeuralFitted
from dynamix.segmentation.segmenters import (
    FittedSegmenter,
    Mix,
    MixFitted,
    MixMerge,
    MixMergeFitted,
    Paper2,
    Paper2Fitted,
    Segmenter,
)

FITTED = {cls.name: cls for cls in (MixFitted, MixMergeFitted, NeuralFitted, Paper2Fitted)}


def segmenter(name: str, config: SegmentationConfig, *, k: int | None = None) -> Segmenter:
    """The recipe of that name; with `k` that many segments, without choice and guards (paper2 always has two)."""
    recipes: dict[str, Segmenter] = {
        "mix": Mix(config, k),
        "mix-merge": MixMerge(config, k=k),
        "neural": Neural(config, k=k),
        "paper2": Paper2(),
    }
    if name not in recipes:
        raise ConfigError.unknown_name("segmenter", name, sorted(recipes))
    return recipes[name]


def load(text: str) -> FittedSegmenter:
    """The fitted segmenter that `to_json` wrote; ConfigError for an unknown method."""
    tree = json.loads(text)
    if tree.get("method") not in FITTED:
        raise ConfigError.unknown_name("segmenter", str(tree.get("method")), sorted(FITTED))
    return FITTED[tree["method"]].from_tree(tree)
