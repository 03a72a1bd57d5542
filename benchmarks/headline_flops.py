"""Rows per second where the history is a fifth, half and four fifths of a ranker's FLOPs.

The product's transformer trunk (`hstu`) with the layers above it widened until the history has the asked share of the
matrix products of a forward pass, as torch counts them. The gain of a mask follows that share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from benchmarks.headline_arms import Bools
from dynamix.config import TrainConfig
from dynamix.models.batch import ragged_take
from dynamix.models.dataset import JaggedRows
from dynamix.models.ranker import Ranker, RankerConfig
from dynamix.models.spec import size_of
from dynamix.models.throughput import measure

SHARES = (0.2, 0.5, 0.8)
TIMED = ("all", "one", "ours", "quota")
ROWS, ROUNDS = 1024, 9
WIDEST = 8192


def history_share(config: RankerConfig, rows: JaggedRows) -> float:
    """Share of the FLOPs of a forward pass that goes with the events."""
    model, none = Ranker(config), rows.keep_events(np.zeros(rows.tokens, bool))
    whole, rest = (size_of(model, r)["flops_per_row"] for r in (rows, none))
    return 1.0 - rest / whole


def model_at(rows: JaggedRows, base: RankerConfig, share: float) -> RankerConfig:
    """`base` with an hstu trunk and layers of w and w/2 above it, w such that the history has that share of the FLOPs.

    ValueError where no width from 8 on gives it within .03.
    """
    some = rows.take(sample(rows))
    low, high = 3.0, float(np.log2(WIDEST))
    for _ in range(12):
        middle = (low + high) / 2
        found = _wide(base, middle)
        low, high = (middle, high) if history_share(found, some) > share else (low, middle)
    found = _wide(base, (low + high) / 2)
    reached = history_share(found, some)
    if abs(reached - share) > 0.03:
        raise ValueError(
            f"the history is {reached:.0%} of the FLOPs, not {share:.0%}, at {found.trunk.hidden}"
        )
    return found


def _wide(base: RankerConfig, log_width: float) -> RankerConfig:
    width = round(2.0**log_width)
    return replace(base, trunk=replace(base.trunk, kind="hstu", hidden=(width, max(width // 2, 1))))


def sample(rows: JaggedRows) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Places of the rows that are timed, in order."""
    return np.sort(np.random.default_rng(0).permutation(len(rows))[:ROWS])


def rate_lines(
    rows: JaggedRows, keeps: Mapping[str, Bools], models: Mapping[float, RankerConfig], config: TrainConfig
) -> list[str]:
    """A table: rows per second of every arm as multiples of the first's, interleaved in one run, a column a share."""
    some = sample(rows)
    _, index = ragged_take(rows.offsets, some)
    few = rows.take(some)
    quick = config.model_copy(update={"batch_size": ROWS // 2})
    columns = {}
    for share, model_config in models.items():
        model = Ranker(model_config)
        arms = [(name, model, few.keep_events(keep[index])) for name, keep in keeps.items()]
        columns[share] = {t.arm: t for t in measure(arms, config=quick, batches=2, rounds=ROUNDS)}
    head = " | ".join(f"history at {share:.0%}: training, inference" for share in models)
    lines = ["", f"| arm | {head} |", "|---" * (1 + len(models)) + "|"]
    for name in keeps:
        cells = []
        for column in columns.values():
            own, first = column[name], column[next(iter(keeps))]
            cells.append(
                f"{own.train_rows_per_s / first.train_rows_per_s:.2f}x, "
                f"{own.infer_rows_per_s / first.infer_rows_per_s:.2f}x"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines
