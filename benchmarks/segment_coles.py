"""CoLES of pytorch-lifestream: the events go to a process of another environment, embeddings of the users come back.

`--lifestream PYTHON` names an interpreter with `pytorch-lifestream` and torch. It sees of every event the stream, the
dwell bin and the silence before its session, as `neural` does.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dynamix.errors import EnvironmentTrouble
from dynamix.segmentation.jagged import Floats, Ints, Jagged

SCRIPT = Path(__file__).with_name("coles.py")


@dataclass(frozen=True)
class Embedded:
    """Rows (V,) of the users with events, their embeddings (V, D), processor seconds there to fit and to apply."""

    rows: Ints
    embedding: Floats
    fit_s: float
    apply_s: float


def embed(inputs: Jagged, *, python: Path, seed: int) -> Embedded:
    """Train there on all users with events and embed them. EnvironmentTrouble where it cannot be run."""
    rows = np.flatnonzero(inputs.events > 0)
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "events.npz", Path(folder) / "embedding.npz"
        np.savez(given, **exported(inputs.take(rows)))
        command = [
            str(python),
            str(SCRIPT),
            "--events",
            str(given),
            "--out",
            str(answer),
            "--seed",
            str(seed),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise EnvironmentTrouble(
                f"--lifestream {python} cannot be run ({error}); name an interpreter with pytorch-lifestream"
            ) from error
        if done.returncode:
            raise EnvironmentTrouble(
                f"{SCRIPT.name} ended with {done.returncode}: {done.stderr[-500:]}; run it by hand to see more"
            )
        with np.load(answer) as found:
            return Embedded(
                rows, found["embedding"].astype(np.float64), float(found["fit_s"]), float(found["apply_s"])
            )


def exported(inputs: Jagged) -> dict[str, npt.NDArray[np.generic]]:
    """What the script reads: offsets of the users' events, and per event stream, dwell bin, ln(1 + hours of silence)."""
    silence = np.zeros(len(inputs.stream))
    silence[inputs.first_event[:-1]] = inputs.gap
    first = inputs.first_event[inputs.first_session]
    return {"first": first, "stream": inputs.stream, "dwell_bin": inputs.dwell_bin, "silence": silence}
