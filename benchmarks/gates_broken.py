"""The broken variants that the gates must notice: one switch each on the path that the numbers take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from dynamix.config import MaskConfig
from dynamix.contracts import CHANNELS
from dynamix.features.calendar import Calendar
from dynamix.features.exposure import OWN
from dynamix.features.gram import EACH, GramSums
from dynamix.features.recency import BUCKETS, SHARED, WHOLE_STREAM, RecencySums
from dynamix.features.relevance import C, CellSums
from dynamix.segmentation import certify
from dynamix.segmentation.bounds import Quadratic
from dynamix.segmentation.cells import Statistics
from dynamix.segmentation.effects import moments
from dynamix.segmentation.masks import Verdict, judge
from dynamix.segmentation.selection import Chain

Floats = npt.NDArray[np.float64]
Moments = Callable[[CellSums], tuple[Floats, Floats, Floats]]
Rule = Callable[[Statistics, MaskConfig], list[Verdict]]
Of = TypeVar("Of", GramSums, RecencySums)
_DWELLS_BY_RECENCY = np.concatenate(
    [np.ones(SHARED), np.zeros(len(WHOLE_STREAM)), np.tile([name == "dwell" for name in OWN], BUCKETS)]
)
"""1 for what all streams share and for the dwell of each bucket (WIDTH,)."""


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


def judge_dwell(statistics: Statistics, config: MaskConfig) -> list[Verdict]:
    """The same in the sums over all streams and in those by recency: of each the dwell alone."""
    together = {key: _of_dwell(sums, _dwells_of_streams(sums)) for key, sums in statistics.together.items()}
    recency = {key: _of_dwell(sums, _DWELLS_BY_RECENCY) for key, sums in statistics.recency.items()}
    return judge(replace(statistics, together=together, recency=recency), config)


def _dwells_of_streams(sums: GramSums) -> Floats:
    """1 for what all streams share, for a stream's dwell and its square (W,)."""
    own = np.ones(len(sums.wx))
    for first in range(SHARED, len(own), EACH):
        own[first : first + C] = 0.0
        own[first + CHANNELS.index("dwell")] = 1.0
    return own


def _of_dwell(sums: Of, own: Floats) -> Of:
    """The sums with everything 0 that is not `own` (W,)."""
    longer = np.append(own, 1.0)
    return replace(
        sums, wx=sums.wx * own, wxx=sums.wxx * np.outer(own, own), a=sums.a * longer,
        aa=sums.aa * np.outer(longer, longer),
    )  # fmt: skip


def beside_all(sums: GramSums, order: Sequence[int]) -> list[Quadratic]:
    """What each stream adds to all others, whether they go or stay, in place of those before it."""
    found = []
    for stream in order:
        chain = Chain(sums)
        for other in order:
            if other != stream:
                chain.take(other)
        found.append(chain.adds(stream))
    return found


def each_alone(statistics: Statistics, config: MaskConfig) -> list[Verdict]:
    """No stream is judged beside others: both copies stay."""
    return judge(replace(statistics, together={}), config)


def no_second_look(statistics: Statistics, config: MaskConfig) -> list[Verdict]:
    """Nothing is tested anew once its copy is gone: two copies clear each other (docs/method.md E16)."""
    with patch.object(certify, "along", beside_all):
        return judge(statistics, config)


def absence_of_evidence(statistics: Statistics, config: MaskConfig) -> list[Verdict]:
    """Dropped wherever relevance is not shown, p > .05, in place of shown to be small (docs/method.md E12)."""
    return [replace(v, verdict="keep" if v.effect.lcb > 0 else "drop") for v in judge(statistics, config)]


SOUND = Variant("as it is")
BROKEN = (
    Variant("last dwell = 0", "S0", "coverage", settings=("dwell.censor_last=false",)),
    Variant("habit of the same window", "S1-late", "centre", calendar=same_window),
    Variant("drop where p > .05", "S2", "loss", rule=absence_of_evidence),
    Variant("no floor of positives", "S2", "support", rule=absence_of_evidence),
    Variant("no floor for cold users", "S6", "cold", rule=absence_of_evidence),
    Variant("naive variance", "null-clustered", "type-I", moments=naive),
    Variant("dwell only", "S8", "strong", moments=dwell_only, rule=judge_dwell),
    Variant("no second look at a copy", "S3-exact", "strong", rule=no_second_look),
    Variant("each stream alone", "S3", "copies", rule=each_alone),
)
