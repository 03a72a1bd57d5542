"""The registered model as code: what MLflow runs when it loads `dynamix-ranker` (no pickle)."""

from dynamix.models.registry import declare_ranker

declare_ranker()
