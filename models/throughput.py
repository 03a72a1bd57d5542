"""Rows and tokens per second of training and inference, the loader measured apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
import torch

from dynamix.config import TrainConfig
from dynamix.models.batch import RankBatch
from dynamix.models.dataset import JaggedRows
from dynamix.models.ranker import Ranker
from dynamix.models.train import batch_loss


@dataclass(frozen=True)
class Throughput:
    """Medians over rounds; seconds per batch of `batch_size` rows follow as rows / rows_per_s."""

    arm: str
    train_rows_per_s: float
    infer_rows_per_s: float
    load_rows_per_s: float
    tokens_per_row: float

    def flat(self) -> dict[str, float]:
        return {k: float(v) for k, v in vars(self).items() if k != "arm"}


def measure(
    arms: Sequence[tuple[str, Ranker, JaggedRows]], *, config: TrainConfig, batches: int = 6, rounds: int = 3
) -> list[Throughput]:
    """Throughput of every arm on the same batches of the same rows, arms interleaved (ABBA) in one run.

    Weights stay as they are: the training step runs on a copy. The first round warms up and is dropped.
    """
    torch.set_num_threads(config.threads)
    size = config.batch_size
    seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name, _, _ in arms}
    for turn in range(rounds + 1):
        ordered = list(arms) if turn % 2 == 0 else list(reversed(arms))
        for name, model, rows in ordered:
            chosen = _places(len(rows), size, batches)
            started = perf_counter()
            loaded = [rows.batch(at) for at in chosen]
            loading = perf_counter() - started
            if turn:
                seen[name].append((_training(model, loaded), _inference(model, loaded), loading))
            else:
                _training(model, loaded[:1]), _inference(model, loaded[:1])
    result = []
    for name, _, rows in arms:
        n = sum(len(at) for at in _places(len(rows), size, batches))
        train, infer, load = (n / max(median(column), 1e-9) for column in zip(*seen[name], strict=True))
        result.append(Throughput(name, train, infer, load, rows.tokens_per_row))
    return result


def fit_line(tokens: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Least-squares (a, b) of seconds = a + b·tokens."""
    b, a = np.polyfit(np.asarray(tokens, float), np.asarray(seconds, float), 1)
    return float(a), float(b)


def time_by_tokens(
    model: Ranker, rows: JaggedRows, *, size: int, shares: Sequence[float]
) -> tuple[float, float]:
    """(a, b) of training seconds a batch = a + b·tokens, from the same rows with thinned histories."""
    tokens, seconds = [], []
    draw = np.random.default_rng(0).random(rows.tokens)
    for share in shares:
        thin = rows.keep_events(draw < share)
        loaded = [thin.batch(at) for at in _places(len(thin), size, 4)]
        _training(model, loaded[:1])
        seconds.append(min(_training(model, loaded) for _ in range(4)) / len(loaded))
        tokens.append(sum(b.tokens for b in loaded) / len(loaded))
    return fit_line(tokens, seconds)


def _places(n: int, size: int, batches: int) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    order = np.random.default_rng(0).permutation(n)[: size * batches]
    return [order[start : start + size] for start in range(0, len(order), size)]


def _training(model: Ranker, batches: Sequence[RankBatch]) -> float:
    copy = Ranker(model.config)
    copy.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(copy.parameters(), lr=0.0)
    started = perf_counter()
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        batch_loss(copy(batch), batch, copy.config.heads).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return perf_counter() - started


def _inference(model: Ranker, batches: Sequence[RankBatch]) -> float:
    model.eval()
    with torch.inference_mode():
        started = perf_counter()
        for batch in batches:
            torch.sigmoid(model(batch))
        return perf_counter() - started
