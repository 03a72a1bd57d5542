"""FuxiCTR's DIN on exported rows: `PYTHON fuxictr_din.py --rows F.npz --din DIN.py --out F.npz --seed 0`.

Runs in an environment of its own with `fuxictr` and torch and without this project; benchmarks/rankers_fuxictr.py
writes the rows and reads the answer. DIN.py is `model_zoo/DIN/src/DIN.py` of a FuxiCTR checkout: the package does not
hold its models. Two strengths of the embeddings' ridge are tried; the one with the least log loss on validation rows
is kept, as is the best pass of each.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from fuxictr.features import FeatureMap

LENGTH, SIZE, PASSES, WIDTH = 100, 512, 10, 16
"""Newest events of a history, rows of a batch, passes at most, embedding width."""
RIDGE = (0.0, 1e-5)
TARGET, HISTORY = ("item", "segment", "surface"), ("hist_item", "hist_stream", "hist_bin")


class Batches:
    """One part of the rows as the dictionaries of tensors that FuxiCTR's models take."""

    def __init__(self, rows, part: int, *, shuffled: bool = False) -> None:
        self.rows = rows
        self.place = np.flatnonzero(rows["part"] == part)
        self.shuffled = shuffled

    def __len__(self) -> int:
        return len(range(0, self._end(), SIZE))

    def _end(self) -> int:
        """Where a training pass ends: its batch norm cannot take a last batch of one row."""
        n = len(self.place)
        return n - 1 if self.shuffled and n % SIZE == 1 else n

    def __iter__(self):
        order = torch.randperm(len(self.place)).numpy() if self.shuffled else np.arange(len(self.place))
        for first in range(0, self._end(), SIZE):
            yield self.batch(self.place[order[first : min(first + SIZE, self._end())]])

    def batch(self, place):
        rows = self.rows
        end = rows["offsets"][place + 1]
        length = np.minimum(end - rows["offsets"][place], LENGTH)
        width = max(1, int(length.max()))
        slot = np.arange(width)[None, :]
        inside = slot < length[:, None]
        index = np.where(inside, end[:, None] - length[:, None] + slot, 0)  # newest events, oldest first
        found = {
            n: torch.from_numpy(rows[n][place].astype(np.int64))
            for n in ("item", "segment", "surface", "tier")
        }
        for name in HISTORY:
            found[name] = torch.from_numpy(np.where(inside, rows[name][index] + 1, 0).astype(np.int64))
        for column in range(rows["dense"].shape[1]):
            found[f"dense{column}"] = torch.from_numpy(rows["dense"][place, column])
        found["label"] = torch.from_numpy(rows["label"][place])
        return found


def features(rows) -> FeatureMap:
    """Fields of the rows: item, segment and surface against the history, tier and numbers beside them."""
    found = FeatureMap("rows", ".")
    size = {
        name: int(rows[name].max(initial=0)) + 2 for name in ("item", "segment", "surface", "tier", *HISTORY)
    }
    size["item"] = size["hist_item"] = int(rows["items"]) + 1
    one = {n: {"type": "categorical", "source": "", "vocab_size": size[n]} for n in (*TARGET, "tier")}
    many = {
        n: {"type": "sequence", "source": "", "vocab_size": size[n], "padding_idx": 0, "max_len": LENGTH,
            "feature_encoder": None}
        for n in HISTORY
    }  # fmt: skip
    numbers = {f"dense{c}": {"type": "numeric", "source": ""} for c in range(rows["dense"].shape[1])}
    found.features = OrderedDict({**one, **many, **numbers})
    found.labels, found.default_emb_dim = ["label"], WIDTH
    found.num_fields = len(found.features)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("rows", "din", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(options.rows) as stored:
        rows = {name: stored[name] for name in stored.files}
    spec = importlib.util.spec_from_file_location("din", options.din)
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    best = None
    for ridge in RIDGE:
        torch.manual_seed(options.seed)
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "rows").mkdir()
            model = zoo.DIN(
                features(rows), model_id=f"din{ridge}", gpu=-1, model_root=scratch, verbose=0, optimizer="adam",
                loss="binary_crossentropy", metrics=["logloss"], monitor="logloss", monitor_mode="min",
                learning_rate=1e-3, embedding_dim=WIDTH, dnn_hidden_units=[128, 64], attention_hidden_units=[64],
                din_target_field=[TARGET], din_sequence_field=[HISTORY], embedding_regularizer=ridge,
            )  # fmt: skip
            model.fit(Batches(rows, 0, shuffled=True), epochs=PASSES, validation_data=Batches(rows, 1))
            p = np.full(len(rows["part"]), np.nan)
            for part in range(3):
                chosen = Batches(rows, part)
                p[chosen.place] = model.predict(chosen)
        y, q = rows["label"][rows["part"] == 1], np.clip(p[rows["part"] == 1], 1e-7, 1 - 1e-7)
        loss = float(-(y * np.log(q) + (1 - y) * np.log1p(-q)).mean())
        if best is None or loss < best[0]:
            best = (loss, p, ridge)
    np.savez(options.out, p=best[1], ridge=best[2])


if __name__ == "__main__":
    main()
