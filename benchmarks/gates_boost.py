"""Boosts of a simulated world beside the planted horizons: does what is lengthened act beyond the base?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dynamix.config import MaskConfig
from dynamix.features import sim_world as W
from dynamix.segmentation.boost import boosts, candidates
from dynamix.segmentation.cells import Statistics
from dynamix.segmentation.masks import Verdict
from dynamix.segmentation.quota import cuts_of

ACTING = ("strong", "weak", "trace")
"""Kinds that act by a slope."""
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Lengthened:
    """Of every verdict's cell (M,): whether it has the support for a boost, is shown to tell beyond the base, is boosted,
    and truly acts there (`reaches`: by a slope, over a horizon longer than the base).

    share: tokens under the mask, boosts and all, of those without a mask.
    """

    supported: Bools
    shown: Bools
    taken: Bools
    reaches: Bools
    share: float

    @property
    def right(self) -> int:
        """Boosted cells that act beyond the base."""
        return int((self.taken & self.reaches).sum())


def lengthened(
    world: W.World, statistics: Statistics, verdicts: Sequence[Verdict], mask: MaskConfig, *, base: int
) -> Lengthened:
    """What the product boosts on these statistics, after its own drops and cuts; histories keep `base` without boosts."""
    cuts = cuts_of(statistics, verdicts, mask)
    family = {c.cell: c.nats > 0 for c in candidates(statistics, mask)}
    taken = boosts(statistics, verdicts, cuts, mask, base=base)
    cells = [(v.segment_id, v.stream) for v in verdicts]
    tokens = {c: s.tokens for c, s in statistics.by_cell(statistics.heads[0]).items()}
    gone = sum(tokens[v.segment_id, v.stream] for v in verdicts if v.verdict == "drop")
    more = sum(b.tokens for b in taken.values()) - sum(cut.tokens for cut in cuts.values())
    return Lengthened(
        np.array([cell in family for cell in cells]),
        np.array([family.get(cell, False) for cell in cells]),
        np.array([cell in taken for cell in cells]),
        np.array([_reaches(world, segment, stream, base) for segment, stream in cells]),
        1.0 + (more - gone) / sum(tokens.values()),
    )


def _reaches(world: W.World, segment: int, stream: str, base: int) -> bool:
    if segment == 0:
        return False
    at = segment - 1, world.streams.index(stream)
    return bool(world.horizon[at] > base and str(world.kind[at]) in ACTING)
