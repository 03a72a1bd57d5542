"""How soon users leave segment 0: the count by hand, and a small world."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.leaving import agreement, left_in_time, share_left
from dynamix.config import SegmentationConfig
from dynamix.segmentation.midnights import Rule

RULE = Rule(confidence=0.9, min_events=15, active_from=0.0)


def test_three_midnights_after_the_fifteenth_event_count_and_later_ones_do_not() -> None:
    events = np.array([[0, 15, 16, 17, 18, 19], [0, 0, 15, 15, 15, 15], [0, 0, 0, 15, 16, 17], [9] * 6])
    component = np.array([[-1, -1, -1, -1, 2, 2], [-1, -1, -1, -1, -1, 1], [-1, -1, 0, 0, 0, 0], [-1] * 6])
    users, own = left_in_time(component, events, RULE)
    assert users.tolist() == [0, 1] and own.tolist() == [2, 1]  # the third is seen too late, the fourth never
    late = component.copy()
    late[0, 4] = -1
    assert left_in_time(late, events, RULE)[1].tolist() == [-1, 1]


def test_agreement_is_by_the_majority_of_each_component() -> None:
    assert agreement(np.array([0, 0, 0, 1, -1]), np.array([3, 3, 1, 2, 0])) == pytest.approx(0.75)
    assert np.isnan(agreement(np.array([-1, -1]), np.array([0, 1])))


def test_on_a_small_world_no_mixture_knows_all_users_in_time() -> None:
    found = share_left(1500, 0, SegmentationConfig(k_max=2, restarts=1, max_iter=10))
    assert found["planted"].users == found["mix"].users > 300
    assert 0.2 < found["planted"].share < 1.0 and found["planted"].right > 0.9
    assert found["planted"].k == 6
