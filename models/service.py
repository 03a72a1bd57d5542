"""The registered ranker without MLflow: artefact folder in, probabilities of raw requests out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from dynamix.errors import EnvironmentTrouble
from dynamix.models.carried import CARRIED
from dynamix.models.dataset import JaggedRows
from dynamix.models.dwells import DWELL
from dynamix.models.export import export_ranker, flattened, run_program, to_bytes
from dynamix.models.ranker import Ranker, RankerConfig
from dynamix.models.serving import Preparation, prepare

PROGRAM, STATE, CONFIG = "ranker.pt2", "state.pt", "ranker.json"
_EVENT = pa.struct(
    [
        ("stream", pa.string()), ("item_id", pa.string()), ("ts", pa.timestamp("us")), ("dwell_ms", pa.float64()),
        ("category", pa.string()), ("session_id", pa.string()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class RankerService:
    """A ranker with its preparation; scores raw requests and rows of `training_rows` alike."""

    program: nn.Module
    config: RankerConfig
    preparation: Preparation

    @classmethod
    def load(cls, folder: Path) -> RankerService:
        """Service from the files that `write_artefacts` made; on the CPU.

        From the state dict, never from the exported program: that is code, and a registry may hold anybody's.
        """
        ranker = load_ranker(folder)
        return cls(
            flattened(ranker),
            ranker.config,
            load_preparation(folder),
        )

    def logits(self, rows: JaggedRows, *, batch_size: int = 4096) -> NDArray[np.float64]:
        """Logits (R, H) in the order of the rows."""
        parts = [run_program(self.program, batch).double().numpy() for batch in rows.batches(batch_size)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.config.heads)))

    def score(self, rows: JaggedRows) -> dict[str, NDArray[np.float64]]:
        """Probability (R,) of each head."""
        p = 1 / (1 + np.exp(-self.logits(rows)))
        return {head: p[:, column] for column, head in enumerate(self.config.heads)}

    def score_stored(self, keep_all: JaggedRows) -> dict[str, NDArray[np.float64]]:
        """Probability (R,) of each head for keep-all rows of `training_rows`: this model's mask is applied here.

        Of a model with boosts, for rows collected up to its `boost_to` (COLLECTED in features/training.py).
        """
        return self.score(self.as_served(keep_all))

    def as_served(self, keep_all: JaggedRows) -> JaggedRows:
        """Keep-all rows as this model takes them: under its mask.

        Segments that the model has never seen count as cold, events of streams it has never seen are left out.
        """
        trunk = self.config.trunk
        known = np.where(keep_all.segment < trunk.n_segments, keep_all.segment, 0)
        rows = replace(keep_all, segment=known).keep_events(keep_all.stream < trunk.n_streams)
        own = self.preparation
        return rows.under_mask(own.quotas(), own.base(), own.attributes())

    def predict(self, requests: pd.DataFrame) -> pd.DataFrame:
        """One row per request, in order: a column per head and the segment_id that it was served with."""
        rows, segment = prepare(request_table(requests), self.preparation)
        segment = np.where(segment < self.config.trunk.n_segments, segment, 0)
        rows = replace(rows, segment=segment)
        return pd.DataFrame({**self.score(rows), "segment_id": segment}, index=requests.index)


def write_artefacts(folder: Path, ranker: Ranker, preparation: Preparation, *, example: JaggedRows) -> Path:
    """Folder with exported program, state dict, config and the preparation's files; CPU only.

    EnvironmentTrouble (exit 5) where it cannot be written.
    """
    first = example.batch(np.arange(min(8, len(example))))
    program, files = to_bytes(export_ranker(ranker, first)), preparation.to_json()
    with _written(folder):
        (folder / PROGRAM).write_bytes(program)
        write_ranker(folder, ranker)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def artefact_names(folder: Path) -> list[str]:
    """The files of an artefact folder that `RankerService.load` reads."""
    return [STATE, CONFIG, *_preparation_names(folder)]


def _preparation_names(folder: Path) -> list[str]:
    names = ["rule.json", "streams.json", "masks.json", "segmenter.json", "habits.json"]
    return names + [name for name in (CARRIED, DWELL) if (folder / name).is_file()]  # older models lack them


def write_ranker(folder: Path, ranker: Ranker) -> None:
    """State dict and config into a folder, made if need be: what `load_ranker` reads. Errors as `write_artefacts`."""
    with _written(folder):
        torch.save(ranker.state_dict(), folder / STATE)
        (folder / CONFIG).write_text(ranker.config.to_json(), encoding="utf-8")


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """EnvironmentTrouble (exit 5) where a file of the model cannot be written: the disk is full, or the folder closed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError) as trouble:  # torch says RuntimeError of a disk that is full
        said = str(trouble).splitlines()[0][:120]
        raise EnvironmentTrouble(
            f"model folder {folder} cannot be written ({said}); nothing was registered and no alias moved: free space "
            "there, then train again"
        ) from trouble


def load_preparation(folder: Path) -> Preparation:
    """What turns a raw request into the model's input, from the files that `write_artefacts` made."""
    names = _preparation_names(folder)
    return Preparation.from_json({name: (folder / name).read_text(encoding="utf-8") for name in names})


def load_ranker(folder: Path) -> Ranker:
    """The ranker from state dict and config: tensors and JSON, nothing that runs.

    EnvironmentTrouble (exit 5) where the file of weights is torn or holds anything but tensors.
    """
    config = RankerConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as trouble:
        raise EnvironmentTrouble(
            f"model file {folder / STATE} is torn or holds more than weights ({type(trouble).__name__}); nothing of it "
            "was run: take another version (`dynamix score --model`), or find out who wrote this one"
        ) from trouble
    return Ranker(config).load(state)


def request_table(requests: pd.DataFrame) -> pa.Table:
    """Arrow table of raw requests; events become structs, instants UTC without a zone."""
    columns: dict[str, pa.Array] = {}
    for name in requests.columns:
        if name == "events":
            columns[name] = _events([row if row is not None else [] for row in requests[name]])
        elif name == "request_ts":
            stamps = pd.to_datetime(requests[name], utc=True).dt.tz_localize(None)
            columns[name] = pa.array(stamps, pa.timestamp("us"))
        else:
            columns[name] = pa.array(requests[name].tolist(), from_pandas=True)
    return pa.table(columns)


def _events(rows: Sequence[Sequence[Mapping[str, Any]]]) -> pa.Array:
    """Lists of event structs, one a request; instants of any ISO form as UTC without a zone."""
    flat = [event for row in rows for event in row]
    fields = {f.name: [event.get(f.name) for event in flat] for f in _EVENT}
    stamps = pd.to_datetime([event["ts"] for event in flat], utc=True, format="ISO8601")
    arrays = [
        pa.array(stamps.tz_localize(None).as_unit("us") if f.name == "ts" else fields[f.name], f.type)
        for f in _EVENT
    ]
    ends = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.StructArray.from_arrays(arrays, fields=list(_EVENT)))
