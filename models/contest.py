"""Arms side by side: trained on the same rows and seeds, judged on validation rows, reported on test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynamix.config import TrainConfig
from dynamix.errors import GuardError
from dynamix.models.baselines import Baseline, fit_logistic
from dynamix.models.batch import EVENT_FIELDS
from dynamix.models.boost_gate import gate_boosts
from dynamix.models.dataset import JaggedRows
from dynamix.models.evidence import (
    Check,
    Delta,
    Scored,
    Verdict,
    calibration_interval,
    compare,
    gate_mask,
    gate_ranker,
    ne_interval,
)
from dynamix.models.floors import floors, groups_of
from dynamix.models.launch import train_seeds
from dynamix.models.metrics import Evaluation, evaluate, oracle_gap_closure
from dynamix.models.spec import Spec
from dynamix.models.train import ArmSpec, Progress, TrainedArm, predict, ranker_config
from dynamix.models.warm import WarmStart

KEEP_ALL, MASKED, GLOBAL = "keep-all", "masked", "global"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """One arm's rows of one part outside the hold-out, with each head's predictions (S, R)."""

    rows: JaggedRows
    p: Mapping[str, Floats]

    def scored(self, head: str) -> Scored:
        """Predictions on the rows whose label is known."""
        return scored_rows(self.rows, head, self.p[head])


@dataclass(frozen=True)
class Arm:
    """One arm, its trainings (one a seed), and its rows with all parts."""

    name: str
    mask_version: str
    rows: JaggedRows
    trained: tuple[TrainedArm, ...]
    validate: Part

    def best(self) -> TrainedArm:
        """The seed with the least validation loss; the first of equals."""
        losses = [min((e["validate_loss"] for e in t.epochs), default=np.inf) for t in self.trained]
        return self.trained[int(np.argmin(losses))]

    def part(self, name: str, *, batch_size: int) -> Part:
        return predicted(self.trained, self.rows.select(name, holdout=False), batch_size=batch_size)


@dataclass(frozen=True)
class Contest:
    """All arms on the same rows with the fitted baselines per head; `truth` maps impression hashes to p."""

    arms: Mapping[str, Arm]
    baselines: Mapping[str, Baseline]
    head: str
    heads: tuple[str, ...]
    truth: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    start: str | None = None
    """Address of the ranker that every arm began from, None for a cold start."""


def scored_rows(rows: JaggedRows, head: str, p: Floats) -> Scored:
    """p (S, R) on the rows with a known label of this head."""
    known = np.isfinite(rows.labels[head])
    return Scored(
        np.atleast_2d(p)[:, known], rows.labels[head][known].astype(float), rows.user[known], rows.request[known],
        rows.weight[known].astype(float),
    )  # fmt: skip


def predicted(trained: Sequence[TrainedArm], rows: JaggedRows, *, batch_size: int) -> Part:
    """Each training's predictions of every head on these rows."""
    each = [predict(t.model, rows, batch_size=batch_size) for t in trained]
    return Part(rows, {head: np.stack([p[head] for p in each]) for head in each[0]})


def same_rows(rows: Mapping[str, JaggedRows]) -> None:
    """GuardError unless every arm holds the same impressions, labels and parts in the same order."""
    first_name, first = next(iter(rows.items()))
    for name, other in rows.items():
        equal = np.array_equal(first.impression_hash, other.impression_hash) and np.array_equal(
            first.part, other.part
        )
        labels = equal and all(
            np.array_equal(y, other.labels[h], equal_nan=True) for h, y in first.labels.items()
        )
        if not labels:
            raise GuardError(
                f"arm {name!r} ({len(other)} rows) and arm {first_name!r} ({len(first)} rows) do not hold the same "
                "impressions: segments or events changed in between; run `dynamix train` again"
            )


def same_histories(a: JaggedRows, b: JaggedRows) -> bool:
    """True iff two arms over the same impressions keep the same events (`same_rows` has been checked)."""
    return np.array_equal(a.offsets, b.offsets) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in EVENT_FIELDS
    )


def hold(
    arms: Mapping[str, tuple[str, JaggedRows]],
    *,
    n_streams: int,
    n_segments: int,
    config: TrainConfig,
    progress: Progress,
    truth: Mapping[str, NDArray[np.generic]] | None = None,
    start: WarmStart | None = None,
    folder: Path | None = None,
    checkpoints: Path | None = None,
) -> Contest:
    """Train every arm with every seed and fit the baselines. GuardError if a served label has one class only.

    `arms` maps an arm to (mask_version, rows); keep-all must be among them. With `start` every arm begins there.
    `folder` takes the files and the log of a training in several processes (models/launch.py), `checkpoints` where each
    training stands (models/checkpoint.py).
    """
    same_rows({name: rows for name, (_, rows) in arms.items()})
    keep_all = arms[KEEP_ALL][1]
    heads = tuple(keep_all.labels)
    train = keep_all.select("train").cap_users(config.max_rows)
    baselines = {head: fit_logistic(train, head, n_streams=n_streams) for head in heads}
    done: dict[str, Arm] = {}
    for name, (version, rows) in arms.items():
        twin = next((a for a in done.values() if same_histories(a.rows, rows)), None)
        if twin is not None:  # training is deterministic: the same rows and seeds give the same weights
            progress(f"{name}: its histories are those of {twin.name}, trained once")
            trained = tuple(replace(t, spec=ArmSpec(name, version, t.spec.seed)) for t in twin.trained)
            done[name] = replace(twin, name=name, mask_version=version, trained=trained)
            continue
        model_config = ranker_config(rows, n_streams=n_streams, n_segments=n_segments, config=config)
        trained = train_seeds(
            [ArmSpec(name, version, seed) for seed in config.seeds], rows,
            model_config=model_config, config=config, progress=progress, start=start, folder=folder,
            checkpoints=checkpoints,
        )  # fmt: skip
        validate = predicted(
            trained, rows.select("validate", holdout=False), batch_size=config.batch_size * 4
        )
        done[name] = Arm(name, version, rows, trained, validate)
    head = "conversion" if "conversion" in heads else heads[0]
    return Contest(done, baselines, head, heads, truth or {}, None if start is None else start.address)


def judge_mask(
    contest: Contest, *, ne_budget: float, config: TrainConfig, second_opinion: Sequence[Check] = (),
    boosted: bool = False,
) -> dict[str, Verdict]:  # fmt: skip
    """Mask gate of every head with its floors, of the main one with the second opinion; empty without a masked arm.

    `boosted` masks go through `gate_boosts` for the main head.
    """
    if MASKED not in contest.arms:
        return {}
    masked, keep_all = contest.arms[MASKED].validate, contest.arms[KEEP_ALL].validate
    found = {}
    for head in contest.heads:
        new, base = masked.scored(head), keep_all.scored(head)
        groups = groups_of(masked.rows, np.isfinite(masked.rows.labels[head]))
        found[head] = gate_mask(
            new, base, ne_budget=ne_budget, replicates=config.bootstrap,
            floors=floors(new, base, groups, ne_budget=ne_budget, replicates=config.bootstrap),
            further=second_opinion if head == contest.head else (),
        )  # fmt: skip
    return found | {contest.head: gate_boosts(found[contest.head])} if boosted else found


def mask_status(contest: Contest, verdicts: Mapping[str, Verdict]) -> str:
    """`published` iff the main head passes and no other head is shown to be harmed; else the worst status."""
    main = verdicts[contest.head].status
    if any(v.status == "retired" for v in verdicts.values()):
        return "retired"
    return main


def judge_ranker(
    contest: Contest, winner: Arm, champion: Floats | None, *, ne_budget: float, config: TrainConfig
) -> Verdict:
    """Ranker gate of the main head: against the champion's p (R,) on the same rows, else base rate and LR."""
    head, part = contest.head, winner.validate
    if champion is not None:
        rivals = {"champion": scored_rows(part.rows, head, champion)}
    else:
        rates = np.full(len(part.rows), contest.baselines[head].base_rate)
        logistic = contest.baselines[head].predict(contest.arms[KEEP_ALL].validate.rows)
        rivals = {
            "base rate": scored_rows(part.rows, head, rates),
            "logistic regression": scored_rows(part.rows, head, logistic),
        }
    return gate_ranker(
        part.scored(head), rivals, ne_budget=ne_budget, replicates=config.bootstrap, superior=champion is None
    )


def worth_of_segments(contest: Contest, *, config: TrainConfig) -> Delta | None:
    """Masked against one mask for all on the same validation rows: negative means that segments pay."""
    if MASKED not in contest.arms or GLOBAL not in contest.arms:
        return None
    one = contest.arms[GLOBAL].validate.scored(contest.head)
    return compare(contest.arms[MASKED].validate.scored(contest.head), one, replicates=config.bootstrap)


def evaluation(contest: Contest, rows: JaggedRows, head: str, p: Floats) -> Evaluation:
    """Metrics of p (R,), averaged over seeds beforehand, with the expected NE where the truth is known."""
    return evaluate(
        rows.labels[head].astype(float), p, weight=rows.weight.astype(float), request=rows.request,
        segment=rows.segment, true_p=true_p(contest, rows, head),
    )  # fmt: skip


def true_p(contest: Contest, rows: JaggedRows, head: str) -> Floats | None:
    """True p (R,) of the main head, None where any row has none."""
    if head != contest.head or not contest.truth:
        return None
    ids, p = contest.truth["impression_hash"], contest.truth["p"]
    place = np.clip(np.searchsorted(ids, rows.impression_hash), 0, len(ids) - 1)
    if not np.array_equal(ids[place], rows.impression_hash):
        return None
    return np.asarray(p[place], np.float64)


def arm_report(contest: Contest, arm: Arm, part: Part, *, config: TrainConfig) -> dict[str, object]:
    """Everything the evidence says of one arm on one part, every head; the main head's numbers on top."""
    heads = {}
    for head in contest.heads:
        p = part.p[head].mean(0)
        found: dict[str, object] = dict(vars(evaluation(contest, part.rows, head, p)))
        scored = part.scored(head)
        _, low, high = ne_interval(scored, replicates=config.bootstrap)
        _, cal_low, cal_high = calibration_interval(scored, replicates=config.bootstrap)
        found |= {
            "ne_ci": [low, high],
            "calibration_ci": [cal_low, cal_high],
            "per_segment": found.pop("segment_ne"),
        }
        truth = true_p(contest, part.rows, head)
        if truth is not None:
            found["oracle_gap_closure"] = oracle_gap_closure(truth, p)
        heads[head] = found
    return {
        "arm": arm.name, "mask_version": arm.mask_version, **heads[contest.head], "heads": heads,
        "spec": Spec.of(arm.trained, config, start=contest.start),
        "tokens_per_impression": part.rows.tokens_per_row, "tokens": part.rows.tokens,
        "seeds": [t.spec.seed for t in arm.trained], "epochs": [t.epochs for t in arm.trained],
        "device": arm.trained[0].device,
        "batch_size": config.batch_size,
        "rows_at_once": min(trained.rows_at_once for trained in arm.trained),
    }  # fmt: skip


def baseline_report(contest: Contest, rows: JaggedRows) -> dict[str, object]:
    """Base rate and logistic regression on the keep-all rows of one part, every head."""
    found: dict[str, object] = {}
    for head, baseline in contest.baselines.items():
        logistic = baseline.predict(rows) if len(rows) else np.zeros(0)
        found[head] = {
            "base_rate": evaluation(contest, rows, head, np.full(len(rows), baseline.base_rate)),
            "logistic": evaluation(contest, rows, head, logistic),
        }
        truth = true_p(contest, rows, head)
        if truth is not None:
            found[f"{head}_oracle_gap_closure_logistic"] = oracle_gap_closure(truth, logistic)
    return found
