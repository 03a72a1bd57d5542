"""How many segments: held-out likelihood of the next window among the numbers that pass the guards.

Guards (docs/method.md A.4.4): smallest share, perplexity, agreement of models fitted on disjoint halves of the
users (split-half ARI), and that segments are not lengths (η² of log event count). Stability and length need
at least 200 users with at least 30 usable events; without them nothing above one segment may be claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dynamix.config import SegmentationConfig
from dynamix.features.grid import on_grid
from dynamix.segmentation.blocks import INPUT, NEXT, CountBlock
from dynamix.segmentation.em import Counts, reduce_blocks
from dynamix.segmentation.mixture import Mixture, adjusted_rand, predictive

Floats = npt.NDArray[np.float64]
MEASURABLE_USERS = 200
MEASURABLE_EVENTS = 30
PERPLEXITY_SHARE = 0.6


@dataclass(frozen=True)
class Trial:
    """One number of segments: the fit on all users and the fits on the two halves of the users."""

    full: Mixture
    half_a: Mixture
    half_b: Mixture

    @property
    def k(self) -> int:
        return self.full.k


@dataclass(frozen=True)
class Measured:
    """Additive measurements of all trials; T trials in order.

    `next_gram` (T, T) holds Σ_u l_u l_uᵀ of the predictive log likelihoods and `next_sum` (T,) their sums, so that
    any two trials can be compared user by user; `tables` are contingency tables of the halves' assignments;
    `lengths` per trial (K, 3): users, Σ ln n, Σ (ln n)² of the users with enough events.
    """

    users: int
    long_users: int
    next_sum: Floats
    next_gram: Floats
    tables: tuple[Floats, ...]
    lengths: tuple[Floats, ...]

    def __add__(self, other: Measured) -> Measured:
        return Measured(
            self.users + other.users,
            self.long_users + other.long_users,
            self.next_sum + other.next_sum,
            self.next_gram + other.next_gram,
            tuple(a + b for a, b in zip(self.tables, other.tables, strict=True)),
            tuple(a + b for a, b in zip(self.lengths, other.lengths, strict=True)),
        )


@dataclass(frozen=True)
class Verdict:
    """What the guards say of one number of segments; `refused` is empty when it may be used."""

    k: int
    heldout: float
    numbers: Mapping[str, float]
    refused: str


@dataclass(frozen=True)
class Choice:
    """The chosen number of segments, the reason in a sentence, and every verdict beside it."""

    k: int
    reason: str
    verdicts: tuple[Verdict, ...]

    @property
    def chosen(self) -> Verdict:
        return next(v for v in self.verdicts if v.k == self.k)


def measure(counts: Counts, trials: Sequence[Trial], *, width: int) -> Measured:
    """One pass over the users: prediction of the next window, agreement of the halves, length by segment."""

    def work(block: CountBlock) -> Measured:
        first, following = block.matrix(width, INPUT), block.matrix(width, NEXT)
        both = first + following
        n = np.asarray(both.sum(axis=1)).ravel()
        seen = (np.asarray(first.sum(axis=1)).ravel() > 0) & (np.asarray(following.sum(axis=1)).ravel() > 0)
        ahead = np.stack([on_grid(predictive(t.full, first[seen], following[seen])) for t in trials], axis=1)
        long = n >= MEASURABLE_EVENTS
        log_n = on_grid(np.log(n[long]))
        tables, lengths = [], []
        for trial in trials:
            a, b, full = (
                m.scores(both[long]).argmax(axis=1) for m in (trial.half_a, trial.half_b, trial.full)
            )
            table = np.zeros((trial.k, trial.k))
            np.add.at(table, (a, b), 1.0)
            tables.append(table)
            parts = [
                np.bincount(full, weights=w, minlength=trial.k) for w in (None, log_n, on_grid(log_n**2))
            ]
            lengths.append(np.stack(parts, axis=1).astype(np.float64))
        return Measured(
            int(seen.sum()),
            int(long.sum()),
            ahead.sum(axis=0),
            on_grid(ahead.T @ ahead),
            tuple(tables),
            tuple(lengths),
        )

    t = len(trials)
    zero = Measured(
        0, 0, np.zeros(t), np.zeros((t, t)),
        tuple(np.zeros((x.k, x.k)) for x in trials), tuple(np.zeros((x.k, 3)) for x in trials),
    )  # fmt: skip
    return reduce_blocks(counts, work, Measured.__add__, zero)


def choose(trials: Sequence[Trial], found: Measured, *, config: SegmentationConfig) -> Choice:
    """The smallest number of segments within one standard error of the best held-out likelihood.

    Only numbers that pass every guard compete; one segment always may. The error is that of the paired
    difference per user, so users who are hard to predict for every model cancel.
    """
    verdicts = tuple(_judge(place, trial, found, config) for place, trial in enumerate(trials))
    allowed = [i for i, v in enumerate(verdicts) if not v.refused]
    best = max(allowed, key=lambda i: (verdicts[i].heldout, -trials[i].k))
    near = [i for i in allowed if _gap(found, best, i) <= _gap_error(found, best, i)]
    chosen = min(near, key=lambda i: trials[i].k)
    k = trials[chosen].k
    refused = "; ".join(f"K={v.k}: {v.refused}" for v in verdicts if v.refused)
    reason = f"K={k} of K={trials[0].k}..{trials[-1].k} by held-out likelihood" + (
        f" (refused: {refused})" if refused else ""
    )
    return Choice(k, reason, verdicts)


def _gap(found: Measured, best: int, other: int) -> float:
    return float(found.next_sum[best] - found.next_sum[other])


def _gap_error(found: Measured, best: int, other: int) -> float:
    """Standard error of Σ_u (l_best − l_other) over users."""
    g = found.next_gram
    square = g[best, best] - 2 * g[best, other] + g[other, other]
    n = max(found.users, 1)
    return float(np.sqrt(max(square - _gap(found, best, other) ** 2 / n, 0.0)))


def _judge(place: int, trial: Trial, found: Measured, config: SegmentationConfig) -> Verdict:
    heldout = float(found.next_sum[place]) / max(found.users, 1)
    share = np.exp(trial.full.log_pi)
    perplexity = float(np.exp(-(share * np.log(share)).sum()))
    ari = adjusted_rand(found.tables[place])
    eta2 = length_eta2(found.lengths[place])
    numbers = {
        "heldout_nats_per_user": heldout,
        "min_share": float(share.min()),
        "perplexity": perplexity,
        "split_half_ari": ari,
        "length_eta2": eta2,
        "measured_users": float(found.long_users),
    }
    return Verdict(trial.k, heldout, numbers, refusal(trial.k, numbers, config))


def refusal(k: int, numbers: Mapping[str, float], config: SegmentationConfig) -> str:
    """The first guard that these numbers of K segments fail, in words; empty when they pass, and for K = 1."""
    if k == 1:
        return ""
    users, share, perplexity = (numbers[name] for name in ("measured_users", "min_share", "perplexity"))
    ari, eta2 = numbers["split_half_ari"], numbers["length_eta2"]
    rules = (
        (users < MEASURABLE_USERS, f"not measurable, {users:.0f} users have "
         f"{MEASURABLE_EVENTS} or more events, {MEASURABLE_USERS} are needed"),
        (share < config.min_share, f"smallest share {share:.4f} < {config.min_share}"),
        (perplexity < PERPLEXITY_SHARE * k, f"perplexity {perplexity:.2f} < {PERPLEXITY_SHARE} K"),
        (ari < config.stability, f"split-half ARI {ari:.2f} < {config.stability}"),
        (eta2 > config.max_length_eta2, f"segments explain {eta2:.2f} of log length > {config.max_length_eta2}"),
    )  # fmt: skip
    return next((text for failed, text in rules if failed), "")


def length_eta2(lengths: Floats) -> float:
    """Share of the variance of ln n that lies between segments; lengths (K, 3) as in `Measured`."""
    users, total, square = lengths.sum(axis=0)
    if users < 2:
        return 0.0
    mean = total / users
    variance = square - users * mean**2
    filled = lengths[:, 0] > 0
    between = (lengths[filled, 1] ** 2 / lengths[filled, 0]).sum() - users * mean**2
    return float(max(between, 0.0) / variance) if variance > 1e-12 * users else 0.0
