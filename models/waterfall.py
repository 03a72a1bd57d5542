"""From the base rate to one score: what each stream of the history adds, by the ranker's own forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynamix.errors import InputError
from dynamix.models.dataset import JaggedRows, joined
from dynamix.models.service import RankerService


@dataclass(frozen=True)
class Step:
    """A probability before and after one thing became known; `stream_id` is None for the impression itself."""

    stream_id: int | None
    before: float
    after: float

    @property
    def adds(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class Waterfall:
    """Steps from `base` to `score`: each begins where the one before ends, so they sum to score − base exactly."""

    head: str
    base: float
    score: float
    steps: tuple[Step, ...]


def waterfall(
    service: RankerService, row: JaggedRows, *, head: str, base: float, order: Sequence[int]
) -> Waterfall:
    """What the impression itself and then each stream of its history add to the probability of `head`.

    `row` is one keep-all row of `training_rows`. The ranker scores it first without any event, then with the streams
    of `order` added one after the other; streams without an event here are passed over, and what `order` does not
    name comes last, by id. The last score is that of `score_stored`: the mask of the model is applied. A step depends
    on the steps before it, so the fixed order is part of the statement. InputError for another number of rows or a
    head that is not served.
    """
    if len(row) != 1 or head not in service.config.heads:
        raise InputError(
            f"a waterfall is of one row and a served head, given {len(row)} rows and {head!r}; allowed heads: "
            f"{', '.join(service.config.heads)}"
        )
    served = service.as_served(row)
    held = {int(stream) for stream in served.stream}
    streams = [i for i in order if i in held]
    streams += sorted(held - set(streams))
    known = [np.isin(served.stream, streams[:n]) for n in range(len(streams) + 1)]
    p = service.score(joined([served.keep_events(keep) for keep in known]))[head]
    ends = [base, *(float(one) for one in p)]
    steps = [Step(None, ends[0], ends[1])]
    steps += [Step(stream, ends[n + 1], ends[n + 2]) for n, stream in enumerate(streams)]
    return Waterfall(head, base, ends[-1], tuple(steps))
