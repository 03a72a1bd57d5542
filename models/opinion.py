"""Second opinion on cells from one more ranker: it learns to do without any of them, then prices each by a forward pass.

Statistics price a cell (segment × stream) one by one and along a line (docs/method.md A.3). A ranker sees all of them
together, but one trained on whole histories is at a loss where a stream is missing; one that has met histories without
whole cells is not, so the change of its NE is what the cell tells beside the others. A cell is dropped only where both
agree: where the model shows that a drop of the statistics costs more than its budget, the gate refuses the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dynamix.config import TrainConfig
from dynamix.models import evidence
from dynamix.models.dataset import JaggedRows
from dynamix.models.evidence import Z975, Check, by_user, replicate_sums
from dynamix.models.floors import holm
from dynamix.models.launch import train_seeds
from dynamix.models.metrics import Floats, cross_entropy
from dynamix.models.ranker import Ranker, RankerConfig
from dynamix.models.stream_dropout import StreamDropout
from dynamix.models.train import ArmSpec, predict
from dynamix.segmentation.bounds import cell_budget, entropy


@dataclass(frozen=True)
class CellPrice:
    """What a cell is worth to a ranker: change of NE in percent, over all rows, when its events are removed.

    With its 95 % interval over users; positive: the ranker does worse without the cell. `tokens`: events removed.
    """

    segment_id: int
    stream_id: int
    delta_ne_pct: float
    low: float
    high: float
    tokens: int


def price_cells(
    ranker: Ranker, rows: JaggedRows, head: str, *, replicates: int, batch_size: int
) -> list[CellPrice]:
    """Price of every cell with events in `rows`, one forward pass a stream; the dearest first, ties by ids.

    Intervals are of the paired difference, users drawn with Poisson(1) weights (docs/method.md C.2).
    """
    rows = rows.take(np.flatnonzero(np.isfinite(rows.labels[head])))
    y, weight = rows.labels[head].astype(np.float64), rows.weight.astype(np.float64)

    def losses(own: JaggedRows) -> Floats:
        return cross_entropy(y, predict(ranker, own, batch_size=batch_size)[head]) * weight

    whole = losses(rows)
    event_segment = np.repeat(rows.segment, np.diff(rows.offsets))
    cells: list[tuple[int, int, int]] = []
    columns = [whole]
    for f in np.unique(rows.stream):
        more = losses(rows.keep_events(rows.stream != f)) - whole
        for g in np.unique(event_segment[rows.stream == f]):
            cells.append((int(g), int(f), int(((rows.stream == f) & (event_segment == g)).sum())))
            columns.append(np.where(rows.segment == g, more, 0.0))
    users, sums = by_user(rows.user, *columns)
    drawn = replicate_sums(users, sums, replicates=replicates)
    total, each = sums.sum(0), 100 * drawn[:, 1:] / np.maximum(drawn[:, :1], 1e-300)
    found = []
    for place, (g, f, tokens) in enumerate(cells):
        price, se = 100 * float(total[place + 1] / total[0]), float(each[:, place].std(ddof=1))
        found.append(CellPrice(g, f, price, price - Z975 * se, price + Z975 * se, tokens))
    return sorted(found, key=lambda c: (-c.delta_ne_pct, c.segment_id, c.stream_id))


def second_opinion(
    rows: JaggedRows,
    head: str,
    *,
    model_config: RankerConfig,
    config: TrainConfig,
    progress: Callable[[str], None] = lambda text: None,
    folder: Path | None = None,
) -> list[CellPrice]:
    """Prices of the cells on the validation rows outside the hold-out, by a ranker trained with stream dropout.

    `config.stream_dropout` is the probability that a step leaves a cell out. `folder` and errors as in `train_seeds`.
    """
    trunk, seed = model_config.trunk, config.seeds[0]
    dropout = StreamDropout(
        n_segments=trunk.n_segments, n_streams=trunk.n_streams, rate=config.stream_dropout, seed=seed
    )
    (trained,) = train_seeds(
        [ArmSpec("second opinion", "keep-all", seed)], rows, model_config=model_config, config=config,
        progress=progress, plugins=lambda spec: [dropout], folder=folder,
    )  # fmt: skip
    return price_cells(
        trained.model, rows.select("validate", holdout=False), head,
        replicates=config.bootstrap, batch_size=4 * config.batch_size,
    )  # fmt: skip


def held_against(
    prices: Sequence[CellPrice], dropped: Mapping[tuple[int, int], str], rows: JaggedRows, head: str, *, delta: float
) -> tuple[Check, ...]:  # fmt: skip
    """One check a dropped cell (segment, stream id; with the stream's name): is its price shown to exceed its budget?

    The budget is that of the keep rule, ε_cell for `delta` log-odds per SD, taken on these rows and weighed by the
    segment's share of their entropy: percent of NE over all rows, as the prices. The value is the price's lower bound,
    with Holm's quantile over the cells that are checked, so that a mask without a disagreement passes in 19 of 20 cases.
    Cells without events in these rows, or of a segment under MIN_POSITIVES positives, are not checked.
    """
    known = np.isfinite(rows.labels[head])
    y, segment = rows.labels[head][known].astype(np.float64), rows.segment[known]
    weight = rows.weight[known].astype(np.float64)
    whole = weight.sum() * entropy(float(weight @ y / max(weight.sum(), 1e-300)))
    asked = [
        p
        for p in prices
        if (p.segment_id, p.stream_id) in dropped
        and y[segment == p.segment_id].sum() >= evidence.MIN_POSITIVES
    ]
    budgets, errors = [], []
    for price in asked:
        own = segment == price.segment_id
        n = weight[own].sum()
        rate = float(weight[own] @ y[own] / n)
        budgets.append(100 * cell_budget(rate, delta) * n * entropy(rate) / whole)
        errors.append((price.high - price.low) / (2 * Z975))
    beyond = [p.delta_ne_pct - budget for p, budget in zip(asked, budgets, strict=True)]
    quantiles = holm([b / max(se, 1e-12) for b, se in zip(beyond, errors, strict=True)])
    found = []
    for price, budget, se, z in zip(asked, budgets, errors, quantiles, strict=True):
        least = price.delta_ne_pct - z * se
        check = Check("second opinion", least, f"<= {budget:.4f} %", least <= budget, budget)
        name = dropped[price.segment_id, price.stream_id]
        found.append(replace(check, segment_id=price.segment_id, stream=name))
    return tuple(found)
