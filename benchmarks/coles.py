"""CoLES of pytorch-lifestream on exported events: `PYTHON coles.py --events F.npz --out F.npz --seed 0 --passes 6`.

Runs in an environment of its own with `pytorch-lifestream` and torch and without this project; the events are written and
the embeddings read by benchmarks/segment_coles.py. A GRU of 64 reads stream, dwell bin and the silence before an event;
slices of one user's events attract each other, those of different users repel (the package's own loss). One thread.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from ptls.data_load.utils import collate_feature_dict
from ptls.frames import PtlsDataModule
from ptls.frames.coles import ColesDataset, CoLESModule
from ptls.frames.coles.split_strategy import SampleSlices
from ptls.nn import RnnSeqEncoder, TrxEncoder

HIDDEN, EMBEDDING, BATCH, SLICES, RATE = 64, 16, 64, 5, 1e-3
"""Width of the GRU and of an embedding, users of a batch, slices of a user, learning rate."""


def histories(events) -> list[dict[str, torch.Tensor]]:
    """One dictionary a user, in the package's form; category 0 is its padding."""
    first = events["first"]
    columns = {
        "stream": torch.from_numpy(events["stream"] + 1),
        "bin": torch.from_numpy(events["dwell_bin"] + 1),
        "silence": torch.from_numpy(events["silence"]).float(),
        "event_time": torch.arange(len(events["stream"])),
    }
    return [{name: column[a:b] for name, column in columns.items()} for a, b in pairwise(first)]


def model_of(events) -> CoLESModule:
    """The untrained module."""
    sizes = {"stream": int(events["stream"].max()) + 2, "bin": int(events["dwell_bin"].max()) + 2}
    reader = TrxEncoder(
        embeddings={name: {"in": size, "out": EMBEDDING} for name, size in sizes.items()},
        numeric_values={"silence": "identity"},
    )
    return CoLESModule(
        seq_encoder=RnnSeqEncoder(trx_encoder=reader, hidden_size=HIDDEN, type="gru"),
        optimizer_partial=partial(torch.optim.Adam, lr=RATE),
        lr_scheduler_partial=partial(torch.optim.lr_scheduler.StepLR, step_size=30, gamma=0.9),
    )


def embeddings(model: CoLESModule, users: list[dict[str, torch.Tensor]]) -> np.ndarray:
    """Of whole histories (U, 64), of unit length as in the loss."""
    model.eval()
    found = []
    with torch.no_grad():
        for at in range(0, len(users), 512):
            batch = collate_feature_dict(users[at : at + 512])
            found.append(torch.nn.functional.normalize(model.seq_encoder(batch), dim=1).numpy())
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--passes", type=int, default=6)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    pl.seed_everything(options.seed)
    with np.load(options.events) as stored:
        events = {name: stored[name] for name in stored.files}
    users = histories(events)
    mean = len(events["stream"]) / len(users)
    slices = SampleSlices(SLICES, cnt_min=max(1, round(mean / 5)), cnt_max=max(2, round(2 * mean)))
    data = PtlsDataModule(train_data=ColesDataset(users, slices), train_batch_size=BATCH)
    began = time.process_time()
    model = model_of(events)
    trainer = pl.Trainer(
        max_epochs=options.passes, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=0.5,
    )  # fmt: skip
    trainer.fit(model, data)
    between = time.process_time()
    found = embeddings(model, users)
    times = {"fit_s": between - began, "apply_s": time.process_time() - between}
    np.savez(options.out, embedding=found, **times)


if __name__ == "__main__":
    main()
