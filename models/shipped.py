"""A registered ranker as bytes, for processes that see neither the registry nor its disk: Spark's executors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import torch

from dynamix.models.dataset import JaggedRows, rows_from_table
from dynamix.models.service import RankerService, artefact_names

SCORED = pa.schema(
    [
        ("impression_id", pa.string()), ("user_id", pa.string()), ("label", pa.string()), ("score", pa.float64()),
        ("segment_id", pa.int32()), ("tier", pa.string()),
    ]
)  # fmt: skip
"""One row an impression and served head."""
SCORED_DDL = "impression_id string, user_id string, label string, score double, segment_id int, tier string"

_opened: dict[str, RankerService] = {}


@dataclass(frozen=True)
class ShippedRanker:
    """The files of an artefact folder that a service is loaded from, name -> content.

    It travels in the closure of a function for executors, which needs no `SparkContext` (Spark Connect has none).
    """

    files: Mapping[str, bytes]

    @classmethod
    def pack(cls, folder: Path) -> ShippedRanker:
        """From the folder that `write_artefacts` made; the exported program, which is code, stays behind."""
        return cls({name: (folder / name).read_bytes() for name in artefact_names(folder)})

    def open(self) -> RankerService:
        """The service, loaded once in a process for the same files."""
        key = sha256(
            b"\0".join(name.encode() + b"\0" + self.files[name] for name in sorted(self.files))
        ).hexdigest()
        if key not in _opened:
            with TemporaryDirectory() as place:
                for name, content in self.files.items():
                    (Path(place) / name).write_bytes(content)
                _opened[key] = RankerService.load(Path(place))
        return _opened[key]

    def on_executor(self, table: pa.Table) -> pa.Table:
        """Rows of SCORED of a block in the columns of `training_rows` under keep-all, with one thread of torch.

        An executor has a task for each of its cores already.
        """
        torch.set_num_threads(1)
        service = self.open()
        rows = rows_from_table(
            table, heads=service.config.heads, item_buckets=service.preparation.item_buckets,
            surfaces=service.preparation.surfaces, in_order=True,
        )  # fmt: skip
        return scored_table(service, rows, users=table.column("user_id"))


def scored_table(
    service: RankerService, keep_all: JaggedRows, *, users: pa.Array | pa.ChunkedArray
) -> pa.Table:
    """Rows of SCORED from keep-all rows and the ids of their users (R,), head after head."""
    tiers = pa.array(np.where(keep_all.tier > 0, "active", "passive"))
    n = len(keep_all)
    return pa.concat_tables(
        pa.table(
            [pa.array(keep_all.impression, pa.string()), users, pa.array([head] * n, pa.string()), pa.array(p),
             pa.array(keep_all.segment.astype(np.int32)), tiers],
            schema=SCORED,
        )
        for head, p in service.score_stored(keep_all).items()
    )  # fmt: skip
