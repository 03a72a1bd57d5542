"""Controls beside the keep rule: nothing dropped, the same tokens dropped by chance, one mask for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from dynamix.segmentation.cells import Cell, Statistics
from dynamix.segmentation.masks import Protection, Verdict


def keep_everything(verdicts: list[Verdict]) -> list[Verdict]:
    """The same cells, all kept."""
    return [replace(v, verdict="keep", reason=f"rule none: {v.reason}") for v in verdicts]


def random_verdicts(
    verdicts: list[Verdict], statistics: Statistics, *, seed: int, protection: Protection
) -> list[Verdict]:
    """Cells in the order of a hash of (seed, segment, stream) dropped until the tokens of the given drops are reached.

    Protected streams stay and every segment keeps at least one stream. The control of method.md C.4.
    """
    head = statistics.heads[0]

    def tokens(v: Verdict) -> float:
        sums = statistics.of((v.segment_id, v.stream), head)
        return sums.tokens if sums is not None else 0.0

    goal = sum(tokens(v) for v in verdicts if v.verdict == "drop")

    def draw(v: Verdict) -> bytes:
        return blake2b(f"{seed}|{v.segment_id}|{v.stream}".encode(), digest_size=8).digest()

    left = {v.segment_id: sum(o.segment_id == v.segment_id for o in verdicts) for v in verdicts}
    gone: set[tuple[int, str]] = set()
    spent = 0.0
    for v in sorted(verdicts, key=draw):
        if spent + tokens(v) > goal or v.stream in protection.protected or left[v.segment_id] == 1:
            continue
        gone.add((v.segment_id, v.stream))
        left[v.segment_id] -= 1
        spent += tokens(v)
    return [
        replace(v, verdict="drop", reason="rule random: drawn by hash to the tokens of the bound's drops")
        if (v.segment_id, v.stream) in gone
        else replace(v, verdict="keep", reason="rule random: not drawn")
        for v in verdicts
    ]


def global_verdicts(pooled: Sequence[Verdict], cells: Sequence[Cell]) -> list[Verdict]:
    """The verdicts of all users together (one a stream), given to every cell."""
    by_stream = {v.stream: v for v in pooled}
    return [
        replace(by_stream[stream], segment_id=segment, reason=f"one mask for all: {by_stream[stream].reason}")
        for segment, stream in cells
    ]
