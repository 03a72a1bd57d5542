"""The ranker as an exported program: a flat tuple of tensors in, logits out, any B and N."""

from __future__ import annotations

import io
from dataclasses import fields, replace

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dynamix.models.batch import EVENT_FIELDS, ROW_FIELDS, RankBatch
from dynamix.models.ranker import Ranker

INPUTS = ("offsets", *ROW_FIELDS, *EVENT_FIELDS)


class _Flat(nn.Module):
    """The ranker over the tensors of INPUTS, in that order."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(
        self, offsets: Tensor, segment: Tensor, tier: Tensor, surface: Tensor, item_id: Tensor, dense: Tensor,
        stream: Tensor, item: Tensor, dwell_bin: Tensor, z: Tensor, usable: Tensor, log_age: Tensor, match: Tensor,
        rank: Tensor,
    ) -> Tensor:  # fmt: skip
        batch = RankBatch(
            offsets,
            segment,
            tier,
            surface,
            item_id,
            dense,
            stream,
            item,
            dwell_bin,
            z,
            usable,
            log_age,
            match,
            rank,
        )
        return self.ranker(batch)  # type: ignore[no-any-return]


def export_ranker(ranker: Ranker, example: RankBatch) -> ExportedProgram:
    """Exported program on the CPU with dynamic B ≥ 2 and N ≥ 2; `example` needs at least two of each.

    B = 1 is specialised by torch.export, so `run_program` pads to two rows and two events.
    """
    ready = padded(example)
    rows, tokens = Dim("rows", min=2), Dim("tokens", min=2)
    shapes = tuple(
        {0: rows + 1} if name == "offsets" else {0: rows if name in ROW_FIELDS else tokens} for name in INPUTS
    )
    with torch.no_grad():
        return torch.export.export(_Flat(ranker.cpu().eval()), flat(ready), dynamic_shapes=shapes)


def flat(batch: RankBatch) -> tuple[Tensor, ...]:
    """The tensors of INPUTS."""
    return tuple(getattr(batch, name) for name in INPUTS)


def run_program(program: nn.Module, batch: RankBatch) -> Tensor:
    """Logits (B, H) of an exported program's module for any B ≥ 1 and N ≥ 0."""
    rows = batch.rows
    with torch.inference_mode():
        return program(*flat(padded(batch)))[:rows]  # type: ignore[no-any-return]


def padded(batch: RankBatch) -> RankBatch:
    """At least two rows and two events: one more row is added, which owns two neutral events."""
    if batch.rows >= 2 and batch.tokens >= 2:
        return batch

    def grown(name: str, extra: int) -> Tensor:
        old: Tensor = getattr(batch, name)
        return torch.cat([old, old.new_zeros((extra, *old.shape[1:]))])

    events = {name: grown(name, 2) for name in EVENT_FIELDS}
    row = {name: grown(name, 1) for name in ROW_FIELDS}
    offsets = torch.cat([batch.offsets, batch.offsets[-1:] + 2])
    return replace(batch, offsets=offsets, **row, **events, labels={}, weight=None, user=None)


def to_bytes(program: ExportedProgram) -> bytes:
    """The program as a pt2 archive."""
    out = io.BytesIO()
    torch.export.save(program, out)
    return out.getvalue()


def flattened(ranker: Ranker) -> nn.Module:
    """The ranker with the inputs of an exported program, for `run_program`."""
    return _Flat(ranker.cpu().eval())


def from_bytes(data: bytes) -> nn.Module:
    """A module that runs the stored program. Only for archives of your own: reading one can run any code.

    torch.export.load falls back to full unpickling, evaluates the sizes and executes the guards that stand in it.
    """
    module: nn.Module = torch.export.load(io.BytesIO(data)).module()
    return module


assert {f.name for f in fields(RankBatch)} >= set(INPUTS)
