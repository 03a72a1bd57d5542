"""Order of work on jagged rows: which rows share one batched product, and where their events lie.

rows by length  c c c c c | a a a .      one block of 2 rows padded to 5 slots, one of 2 rows padded to 4:
                b b b b . | d d . .      a slot is the place of one event in a block, `.` is padding
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

BLOCK_SCORES = 1 << 18
"""Scores in one block, 1 MB in float32: two such blocks stay inside a second-level cache of 2 MB."""
WASTED_SCORES = 1 << 15
"""Padded scores that a block may carry: about what the start of one more block costs (measured)."""


@dataclass(frozen=True)
class Block:
    """n rows of one batched product over H heads, padded to `length` slots.

    Copies in and out of (n·H, length, …): `read` and `put` for what lies by event (N, H, …), `read_rows` and
    `put_rows` for what lies by row (B, H, …). A target of `put` has one more event, which takes the padding.
    """

    rows: tuple[int, ...]
    begins: tuple[int, ...]
    lengths: tuple[int, ...]
    heads: int
    device: torch.device

    @property
    def length(self) -> int:
        return self.lengths[0]

    @property
    def packs(self) -> int:
        """n · H, the number of products."""
        return len(self.rows) * self.heads

    @cached_property
    def padding(self) -> Tensor | None:
        """Slots without an event, (n·H, length) bool, or None where there are none."""
        if self.lengths[-1] == self.length:
            return None
        lengths = torch.tensor(self.lengths, device=self.device)[:, None]
        empty = torch.arange(self.length, device=self.device) >= lengths  # (n, length)
        return empty.repeat_interleave(self.heads, 0)

    @cached_property
    def _index(self) -> Tensor:
        """Flat place event · H + head of each slot, (n·H·length,); padding repeats the row's last event."""
        slot = torch.arange(self.length, device=self.device)
        begins = torch.tensor(self.begins, device=self.device)[:, None]
        last = torch.tensor(self.lengths, device=self.device)[:, None] - 1
        event = begins + torch.minimum(slot, last)  # (n, length)
        head = torch.arange(self.heads, device=self.device)[:, None]
        return (event[:, None] * self.heads + head).flatten()

    @cached_property
    def _row_index(self) -> Tensor:
        return torch.tensor(self.rows, device=self.device)

    def read(self, x: Tensor) -> Tensor:
        """Events of x (N, H, …) by slot; padding repeats the last event of its row."""
        if len(self.rows) == 1:
            return x[self.begins[0] : self.begins[0] + self.length].transpose(0, 1).contiguous()
        return x.flatten(0, 1).index_select(0, self._index).view(self.packs, self.length, *x.shape[2:])

    def put(self, target: Tensor, value: Tensor) -> None:
        """Put values by slot into target (N+1, H, …)."""
        if len(self.rows) == 1:
            target[self.begins[0] : self.begins[0] + self.length] = value.transpose(0, 1)
            return
        index, spare = self._index, (target.shape[0] - 1) * self.heads
        if self.padding is not None:
            index = index.masked_fill(self.padding.flatten(), spare)
        target.flatten(0, 1).index_copy_(0, index, value.flatten(0, 1))

    def read_rows(self, x: Tensor) -> Tensor:
        """Rows of x (B, H, …) as (n·H, …)."""
        return x.index_select(0, self._row_index).flatten(0, 1)

    def put_rows(self, target: Tensor, value: Tensor) -> None:
        """Put values (n·H, …) into target (B, H, …)."""
        target.index_copy_(0, self._row_index, value.view(-1, self.heads, *value.shape[1:]))


@dataclass(frozen=True)
class Layout:
    """All rows of a batch in blocks; empty rows are in none. `tokens` = N, `rows` = B."""

    tokens: int
    rows: int
    blocks: tuple[Block, ...]

    @classmethod
    def by_length(cls, offsets: Tensor, heads: int) -> Layout:
        """Rows of similar length share a block, as long as its padding and its size stay small."""
        lengths = offsets.diff().tolist()
        falling = sorted((row for row, n in enumerate(lengths) if n), key=lambda row: -lengths[row])
        groups = [falling[a:b] for a, b in _groups([lengths[row] for row in falling], heads)]
        return cls._of(offsets, heads, groups)

    @classmethod
    def by_row(cls, offsets: Tensor, heads: int) -> Layout:
        """Every row is a block of its own: the same work for a row alone and in any batch."""
        return cls._of(offsets, heads, [[row] for row, n in enumerate(offsets.diff().tolist()) if n])

    @classmethod
    def _of(cls, offsets: Tensor, heads: int, groups: Sequence[Sequence[int]]) -> Layout:
        at = offsets.tolist()
        blocks = tuple(
            Block(
                rows=tuple(group),
                begins=tuple(at[row] for row in group),
                lengths=tuple(at[row + 1] - at[row] for row in group),
                heads=heads,
                device=offsets.device,
            )
            for group in groups
        )
        return cls(at[-1], len(at) - 1, blocks)


def spare(like: Tensor) -> Tensor:
    """Room shaped as (N, H, …) with one more event, which takes the padding."""
    return like.new_empty(like.shape[0] + 1, *like.shape[1:])


def _groups(falling: Sequence[int], heads: int) -> Iterator[tuple[int, int]]:
    """(first, end) of the blocks over lengths in falling order."""
    first, wasted = 0, 0
    for place, n in enumerate(falling):
        wasted += heads * (falling[first] ** 2 - n**2)
        full = heads * falling[first] ** 2 * (place - first + 1) > BLOCK_SCORES
        if place > first and (full or wasted > WASTED_SCORES):
            yield first, place
            first, wasted = place, 0
    if falling:
        yield first, len(falling)
