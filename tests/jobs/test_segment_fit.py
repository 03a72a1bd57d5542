"""What a fit on the driver refuses before it begins."""

from __future__ import annotations

import pytest
import torch

from dynamix.config import load_config
from dynamix.errors import EnvironmentTrouble
from dynamix.jobs.segment_fit import _recipe
from dynamix.segmentation.neural import Neural


def test_a_gpu_that_is_not_there_is_said_before_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(
        settings=["segmentation.method=neural", "segmentation.device=cuda", "segmentation.seed=3"]
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentTrouble, match=r"segmentation\.device=cuda"):
        _recipe(config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    recipe = _recipe(config)
    assert isinstance(recipe, Neural)
    assert {(t.device, t.seed) for t in (recipe.training, recipe.search)} == {("cuda", 3)}
    assert recipe.search.steps < recipe.training.steps
