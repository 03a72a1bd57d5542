"""The registered segmenter as code: what MLflow runs when it loads `dynamix-segmenter` (no pickle)."""

from dynamix.models.registry import declare_segmenter

declare_segmenter()
