"""The broken variants that the gates must notice: one switch each on the path that the numbers take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dynamix.config import MaskConfig
from dynamix.contracts import CHANNELS
from dynamix.features.calendar import Calendar
from dynamix.features.relevance import C, CellSums
from dynamix.segmentation.effects import moments
from dynamix.segmentation.masks import Statistics, Verdict, judge

Floats = npt.NDArray[np.float64]
Moments = Callable[[CellSums], tuple[Floats, Floats, Floats]]
Rule = Callable[[Statistics, MaskConfig], list[Verdict]]


@dataclass(frozen=True)
class Variant:
    """How numbers are made: config settings, the calendar, the moments behind `effect`, and the rule; as they are.

    world and gate: the preset in which the gate of that name has to fail ("" for the product as it is).
    """

    name: str
    world: str = ""
    gate: str = ""
    settings: tuple[str, ...] = ()
    calendar: Callable[[Calendar], Calendar] = lambda calendar: calendar
    moments: Moments = moments
    rule: Rule = judge


def same_window(calendar: Calendar) -> Calendar:
    """Habits from the window that they are subtracted in (docs/method.md E2)."""
    return replace(calendar, habit=calendar.statistics)


def naive(sums: CellSums) -> tuple[Floats, Floats, Floats]:
    """The model's own variance in place of the one between users (docs/method.md E13)."""
    score, information, _ = moments(sums)
    return score, information, information


def dwell_only(sums: CellSums) -> tuple[Floats, Floats, Floats]:
    """All channels but the dwell without score and information: match among them (docs/method.md A.3)."""
    score, information, variance = moments(sums)
    own = np.arange(C) == CHANNELS.index("dwell")
    both = np.outer(own, own)
    return score * own, information * both, variance * both


def absence_of_evidence(statistics: Statistics, config: MaskConfig) -> list[Verdict]:
    """Dropped wherever relevance is not shown, p > .05, in place of shown to be small (docs/method.md E12)."""
    return [replace(v, verdict="keep" if v.effect.lcb > 0 else "drop") for v in judge(statistics, config)]


SOUND = Variant("as it is")
BROKEN = (
    Variant("last dwell = 0", "S0", "coverage", settings=("dwell.censor_last=false",)),
    Variant("habit of the same window", "S1-late", "centre", calendar=same_window),
    Variant("drop where p > .05", "S2", "loss", rule=absence_of_evidence),
    Variant("naive variance", "null-clustered", "type-I", moments=naive),
    Variant("dwell only", "S8", "strong", moments=dwell_only),
)
