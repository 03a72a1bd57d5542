"""FuxiCTR's DIN as one of the rankers: the rows go to a process of another environment, its predictions come back.

DYNAMIX_FUXICTR_PYTHON names an interpreter with `fuxictr` and torch, DYNAMIX_FUXICTR_DIN the file
`model_zoo/DIN/src/DIN.py` of a checkout of the same release. It reads the newest 100 events of a history: item, stream
and dwell bin against the candidate's item, segment and surface. The summaries that our rankers read, and the matches
they are told of, it does not get; both are part of our models.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynamix.errors import EnvironmentTrouble
from dynamix.models.contest import Floats
from dynamix.models.dataset import JaggedRows

PYTHON, DIN = "DYNAMIX_FUXICTR_PYTHON", "DYNAMIX_FUXICTR_DIN"
SCRIPT = Path(__file__).with_name("fuxictr_din.py")


@dataclass(frozen=True)
class Elsewhere:
    """Probabilities that were predicted in another process, by impression hash (ascending)."""

    impression: NDArray[np.int64]
    p: Floats

    def predict(self, rows: JaggedRows) -> Floats:
        """Probabilities (R,). KeyError for a row that was not among those handed over."""
        place = np.searchsorted(self.impression, rows.impression_hash)
        place = np.minimum(place, len(self.impression) - 1)
        if not (self.impression[place] == rows.impression_hash).all():
            raise KeyError("a row was not handed to the other process")
        return self.p[place]


def is_there() -> bool:
    """Whether both variables are set."""
    return bool(os.environ.get(PYTHON) and os.environ.get(DIN))


def fit(rows: JaggedRows, head: str, *, items: int, seed: int) -> Elsewhere:
    """Train there on the training rows whose label is known. EnvironmentTrouble where it cannot be run."""
    if not is_there():
        raise EnvironmentTrouble(
            f"{PYTHON} and {DIN} are not both set: an interpreter with fuxictr, and its file model_zoo/DIN/src/DIN.py"
        )
    known = rows.take(np.flatnonzero(np.isfinite(rows.labels[head])))
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "rows.npz", Path(folder) / "p.npz"
        np.savez(given, **exported(known, head), items=items)
        command = [os.environ[PYTHON], str(SCRIPT), "--rows", str(given), "--din", os.environ[DIN]]
        done = subprocess.run(
            [*command, "--out", str(answer), "--seed", str(seed)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise EnvironmentTrouble(
                f"{SCRIPT.name} ended with {done.returncode}: {done.stderr[-500:]}; run it by hand to see more"
            )
        with np.load(answer) as found:
            p = found["p"]
    order = np.argsort(known.impression_hash, kind="stable")
    return Elsewhere(known.impression_hash[order], p[order])


def exported(rows: JaggedRows, head: str) -> dict[str, NDArray[np.generic]]:
    """What the script reads: ragged histories, the candidate, and the label."""
    return {
        "offsets": rows.offsets, "part": rows.part, "item": rows.item_id, "segment": rows.segment,
        "surface": rows.surface, "tier": rows.tier, "dense": rows.dense, "hist_item": rows.item,
        "hist_stream": rows.stream, "hist_bin": rows.dwell_bin, "label": rows.labels[head],
    }  # fmt: skip
