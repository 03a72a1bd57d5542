"""The steps from base rate to score sum to it, whatever the order, and each is the ranker's own answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dynamix.errors import InputError
from dynamix.models.dataset import JaggedRows
from dynamix.models.export import flattened
from dynamix.models.ranker import Ranker
from dynamix.models.service import RankerService
from dynamix.models.serving import Cell, Preparation, StreamScale
from dynamix.models.waterfall import waterfall

CELLS = tuple(Cell(segment, "*", "s1", 0) for segment in range(3))


@pytest.fixture(name="service")
def fixture_service(ranker: Ranker) -> RankerService:
    """The ranker under a mask without stream 1."""
    scales = {f"s{i}": StreamScale(i, 0.0, 1.0) for i in range(4)}
    prepared = Preparation(
        scales, ("feed", "search"), ("click", "conversion"), 50, 50, 200, 60.0, cells=CELLS
    )
    return RankerService(flattened(ranker), ranker.config, prepared)


def in_double(rows: JaggedRows) -> JaggedRows:
    """So that the ranker of the fixture, which is in double precision, takes them."""
    names = ("z", "log_age", "dense")
    return replace(rows, **{name: getattr(rows, name).astype(np.float64) for name in names})


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2], []])
def test_the_bars_lead_from_the_base_rate_to_the_score(
    rows: JaggedRows, service: RankerService, order: list[int]
) -> None:
    rows = in_double(rows)
    longest = int(np.argmax(np.diff(rows.offsets)))
    one = rows.take(np.array([longest]))
    found = waterfall(service, one, head="conversion", base=0.1, order=order)
    assert found.score == pytest.approx(float(service.score_stored(one)["conversion"][0]), abs=1e-12)
    ends = [step.before for step in found.steps] + [found.score]
    assert ends[0] == 0.1 and ends[1:] == [step.after for step in found.steps]  # no gap, so the sum is exact
    seen = [step.stream_id for step in found.steps]
    held = {int(stream) for stream in one.stream} - {1}  # the mask takes stream 1 away
    assert seen[0] is None and set(seen[1:]) == held
    assert seen[1 : 1 + len([i for i in order if i in held])] == [i for i in order if i in held]


def test_a_step_is_the_score_with_the_streams_up_to_it(rows: JaggedRows, service: RankerService) -> None:
    rows = in_double(rows)
    one = rows.take(np.array([int(np.argmax(np.diff(rows.offsets)))]))
    found = waterfall(service, one, head="click", base=0.3, order=[2, 0, 3])
    bare = one.keep_events(np.zeros(one.tokens, bool))
    assert found.steps[0].after == pytest.approx(float(service.score(bare)["click"][0]), abs=1e-12)
    second = next(step for step in found.steps if step.stream_id == 0)
    some = one.keep_events(np.isin(one.stream, [2, 0]))
    assert second.after == pytest.approx(float(service.score(some)["click"][0]), abs=1e-12)
    assert abs(second.adds) > 1e-6


def test_an_impression_without_events_has_one_step(rows: JaggedRows, service: RankerService) -> None:
    empty = in_double(rows).take(np.array([int(np.argmin(np.diff(rows.offsets)))]))
    assert empty.tokens == 0
    found = waterfall(service, empty, head="click", base=0.3, order=[0])
    assert [step.stream_id for step in found.steps] == [None] and found.steps[0].after == found.score


def test_more_than_one_row_and_an_unserved_head_are_refused(rows: JaggedRows, service: RankerService) -> None:
    with pytest.raises(InputError, match="allowed heads: click, conversion"):
        waterfall(service, rows, head="click", base=0.3, order=[])
    with pytest.raises(InputError, match="'sale'"):
        waterfall(service, rows.take(np.array([0])), head="sale", base=0.3, order=[])
