"""Which windows each stream has in `ebf_surface`, and how fast its decayed count halves (docs/method.md A.2.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dynamix.config import Config
from dynamix.declarations import DEFAULT_HALF_LIFE_DAYS, DEFAULT_WINDOWS


@dataclass(frozen=True)
class WindowPlan:
    """Windows and half-lives of the declared streams that differ from the defaults; all others have the defaults.

    Day rows (length 1) are kept for every stream: windows are sums of them.
    """

    windows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    half_life_days: Mapping[str, int] = field(default_factory=dict)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Every length beyond a day that some stream has, ascending, 0 last."""
        every = {*DEFAULT_WINDOWS, *(days for own in self.windows.values() for days in own)} - {1}
        return tuple(sorted(every, key=lambda days: (days == 0, days)))

    def asks(self, length: int, streams: Sequence[str]) -> npt.NDArray[np.bool_]:
        """True for the streams (F,) that have a window of this length."""
        return np.array([length in self.windows.get(name, DEFAULT_WINDOWS) for name in streams], bool)

    def half_lives(self, streams: Sequence[str]) -> npt.NDArray[np.float64]:
        """Days (F,) in which a stream's decayed count halves."""
        return np.array([self.half_life_days.get(n, DEFAULT_HALF_LIFE_DAYS) for n in streams], np.float64)


def window_plan(config: Config) -> WindowPlan:
    """The windows that the config declares."""
    declared = {name: config.declaration(name) for name in config.streams}
    return WindowPlan(
        {name: d.windows for name, d in declared.items() if d.windows != DEFAULT_WINDOWS},
        {
            name: d.half_life_days
            for name, d in declared.items()
            if d.half_life_days != DEFAULT_HALF_LIFE_DAYS
        },
    )
