"""Attributes that the rule takes from kept cells of a simulated world, beside what their channels truly tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.gates_loss import Bools
from benchmarks.gates_told import EACH, GIVEN, WIDTH, Told, explained
from dynamix.config import MaskConfig
from dynamix.contracts import CHANNELS
from dynamix.features.exposure import OWN
from dynamix.features.recency import BUCKETS
from dynamix.models.metrics import entropy
from dynamix.segmentation.attributes import CHANNELS_OF, Without, after_cuts, dispensable
from dynamix.segmentation.cells import Statistics
from dynamix.segmentation.masks import Verdict
from dynamix.segmentation.quota import Spent, cuts_of

NAMES = tuple(CHANNELS_OF)


@dataclass(frozen=True)
class Lost:
    """Attributes (M, 3), in the order of NAMES, that cells lose, and that they would were the total free (`alone`).

    told: what the histories truly tell by them, cell by cell beside what stays of it, in all; a fraction of H.
    """

    chosen: Bools
    alone: Bools
    told: float

    def of(self, name: str) -> Bools:
        """Which cells (M,) lose this attribute."""
        return np.asarray(self.chosen[:, NAMES.index(name)])


def lost(
    statistics: Statistics, verdicts: Sequence[Verdict], config: MaskConfig, *, told: Told, streams: Sequence[str]
) -> Lost:  # fmt: skip
    """What the rule takes from every verdict's cell after its drops and quotas, and the true price of it."""
    cuts = cuts_of(statistics, verdicts, config)
    cost = after_cuts(statistics, Spent.by_drops(statistics, verdicts), cuts)
    free = config.model_copy(update={"ne_budget": float("inf")})
    chosen, alone = (dispensable(statistics, verdicts, way, spent=cost, cuts=cuts) for way in (config, free))
    n = float(told.n.sum())
    price = sum(nats(told, one, streams.index(one.stream)) for one in chosen)
    return Lost(
        _by_cell(verdicts, chosen),
        _by_cell(verdicts, alone),
        price / (n * entropy(float(told.p.sum()) / n)),
    )


def nats(told: Told, one: Without, stream: int) -> float:
    """What the cell's planted effect is told by its values, over what those that stay tell of it, in nats."""
    use = np.zeros(WIDTH, bool)
    use[:GIVEN] = True
    first, gone = GIVEN + stream * EACH, np.any([_values(name) for name in one.attributes], axis=0)
    use[first : first + EACH] = True
    information, goal = told.information[one.segment_id], told.cross[one.segment_id][:, :, stream]
    by_all = explained(information, goal, use)
    use[first : first + EACH] = ~gone
    return max(by_all - explained(information, goal, use), 0.0)


def _by_cell(verdicts: Sequence[Verdict], found: Sequence[Without]) -> Bools:
    own = {(one.segment_id, one.stream): one.attributes for one in found}
    return np.array([[name in own.get((v.segment_id, v.stream), ()) for name in NAMES] for v in verdicts])


def _values(name: str) -> npt.NDArray[np.bool_]:
    """Values of a stream (EACH,) as in benchmarks/gates_told.py that are empty without the attribute."""
    own = CHANNELS_OF[name]
    return np.array([c in own for c in CHANNELS] + [c in own for c in OWN] * BUCKETS)
