"""What `train` refuses before it trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dynamix.config import Config
from dynamix.errors import GuardError
from dynamix.jobs.train import _refuse_no_validation
from dynamix.models.contest import KEEP_ALL


class Rows:
    def __init__(self, n: int) -> None:
        self.n = n

    def select(self, part: str, *, holdout: bool) -> range:
        assert (part, holdout) == ("validate", False)
        return range(self.n)


def arms(n: int) -> Any:
    calendar = SimpleNamespace(validate=SimpleNamespace(days=5.0))
    return SimpleNamespace(rows={KEEP_ALL: (KEEP_ALL, Rows(n))}, calendar=calendar)


def test_without_a_final_label_in_the_validation_part_nothing_is_trained() -> None:
    """As with the default click window of seven days, which is longer than that part of 42 days."""
    run: Any = SimpleNamespace(config=Config())
    said = r"its part has 5\.0 days, .* final, 7\.0 days after .*click_window"
    with pytest.raises(GuardError, match=said) as refused:
        _refuse_no_validation(run, arms(0))
    assert refused.value.exit_code == 4
    _refuse_no_validation(run, arms(1))
