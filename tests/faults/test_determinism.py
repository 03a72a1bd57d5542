"""One world, config and seed: the same tables, masks and weights, whatever the cores and partitions.

That of feature tables alone is tested by tests/features/test_properties.py in the ordinary suite.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faults.processes import served

from dynamix.features.simulate import simulate
from dynamix.jobs.run import STEPS

pytestmark = pytest.mark.spark

MACHINES = (("local[1]", 1), ("local[2]", 4), ("local[2]", 7))
"""Cores, and partitions of a shuffle; sources are read in as many pieces."""


@pytest.mark.slow
def test_a_whole_cycle_does_not_depend_on_cores_and_partitions(tmp_path: Path) -> None:
    """Each in a process of its own: segments, statistics, masks, training rows, scores, and the weights bit by bit."""
    world = tmp_path / "world"
    simulate(world, preset="S0", users=300, days=14, seed=3)
    found = {}
    for master, partitions in MACHINES:
        with served("determined.py", master) as process:
            place = tmp_path / f"{master}-{partitions}"
            for steps in (*([step] for step in STEPS), []):
                said = process.ask(world=str(world), place=str(place), steps=steps, partitions=partitions)
            answer = json.loads(said)
            assert answer.pop("cores") == int(master[6])
            found[master, partitions] = answer
    first = found[MACHINES[0]]
    assert {"segments", "cell_stats", "masks", "training_rows", "scores", "weights"} <= first.keys()
    others = {machine: {name for name in first if first[name] != own[name]} for machine, own in found.items()}
    assert others == {machine: set() for machine in MACHINES}
