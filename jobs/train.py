"""`dynamix train`: rows of the arms → rankers → gates → one registered version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dynamix.errors import ConfigError, GuardError
from dynamix.features.conversions import longest_window_s
from dynamix.jobs.arm_rows import ArmRows, build_arms, load_for, load_truth, set_status, stream_scales
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.life import obsolete
from dynamix.jobs.mask_audit import write_gate
from dynamix.jobs.registration import EVIDENCE, MODEL, Registration
from dynamix.models.contest import (
    GLOBAL,
    KEEP_ALL,
    MASKED,
    Arm,
    Contest,
    Part,
    arm_report,
    baseline_report,
    evaluation,
    hold,
    judge_mask,
    judge_ranker,
    mask_status,
    worth_of_segments,
)
from dynamix.models.evidence import Check, Verdict, write_evidence
from dynamix.models.opinion import CellPrice, held_against, second_opinion
from dynamix.models.registry import (
    CHAMPION,
    RANKER,
    ChildRun,
    Registry,
    Version,
    artefact_folder,
    find,
)
from dynamix.models.service import RankerService, write_artefacts
from dynamix.models.spec import Spec, size_of
from dynamix.models.throughput import Throughput, measure, time_by_tokens
from dynamix.models.warm import WarmStart

TOKEN_SHARES = (0.25, 0.5, 0.75, 1.0)
CHECKPOINTS = "checkpoints"
"""Below `W/_dynamix`: where trainings stand that have not ended."""


@dataclass(frozen=True)
class Decision:
    """What the gates said on validation rows."""

    winner: Arm
    masks: Mapping[str, Verdict]
    status: str  # of the masked arm's version; empty without one
    ranker: Verdict
    champion: Version | None
    prices: list[CellPrice]  # of the cells, by the second opinion; empty without one


def train(
    run: Run,
    *,
    truth: Path | None = None,
    tracking_uri: str = "",
    warm_start: str | None = None,
    register_from: str | None = None,
) -> StepResult:
    """Retire an obsolete mask, train keep-all, masked and one-mask-for-all on the same rows and seeds, gate, register.

    Gates read validation rows outside the hold-out; the test part is evaluated once, after them. Writes
    `training_rows`, the statuses of `masks`, and under the run's folder evidence.json, predictions.parquet
    and the model. GuardError (exit 4) without mature rows, of the validation part too, or with one class only;
    EnvironmentTrouble (exit 5) if the tracking store fails, everything but the registration being on disk by then:
    `register_from` names such a run, and then its model is registered and nothing trained (docs/faults.md 36).
    `warm_start="champion"` begins every arm from the champion's weights; ConfigError (exit 2) where there is none or
    its contract differs.
    """
    config = run.config.train
    registry = run.registry(tracking_uri)
    if register_from is not None:
        kept = Registration.load(run.folder.parent, register_from)
        return StepResult(facts=dict(_registered(run, registry, register_from, kept)))
    champion = find(registry, RANKER, CHAMPION)  # a store that is down is said before hours of training
    start = None if warm_start is None else _warm_start(run, registry, champion)
    retired = _retire_obsolete(run)
    arms = build_arms(run)
    _refuse_no_validation(run, arms)
    contest = hold(
        arms.rows, n_streams=arms.n_streams, n_segments=arms.n_segments, config=config, progress=run.note,
        truth=load_truth(truth), start=start, folder=run.folder, checkpoints=run.warehouse.private / CHECKPOINTS,
    )  # fmt: skip
    decision = decide(run, contest, registry, arms, champion)
    speed = _throughput(contest, run)
    tests = {name: arm.part("test", batch_size=4 * config.batch_size) for name, arm in contest.arms.items()}
    content = evidence(run, contest, decision, arms, speed, tests)
    write_evidence(run.folder / EVIDENCE, content)
    _write_predictions(run, contest, tests)
    _save(run, decision.winner, arms)
    result = _result(contest, decision, arms, content)
    if decision.status and (version := arms.rows[MASKED][0]):
        # before the status: a version that its gate retired has its reasons
        noted = write_gate(run, version, decision.masks, head=contest.head)
        result.tables |= {} if noted is None else {"mask_audit": noted}
        result.tables["masks"] = set_status(run, version, decision.status, by_gate=True)
    registration = _registration(run, contest, decision, arms, speed)
    registration.store(run.folder)
    result.facts |= retired | _registered(run, registry, run.run_id, registration)
    shutil.rmtree(run.warehouse.private / CHECKPOINTS, ignore_errors=True)  # all of trainings that have ended
    run.note(f"train: {result.facts['model']} is {result.facts['alias']}; {decision.ranker.reason}")
    return result


def _refuse_no_validation(run: Run, arms: ArmRows) -> None:
    """GuardError (exit 4), before anything is trained, where no row is there to choose a pass or judge a mask by."""
    if len(arms.rows[KEEP_ALL][1].select("validate", holdout=False)):
        return
    days, wait = arms.calendar.validate.days, longest_window_s(run.config) / 86_400
    raise GuardError(
        f"no validation row: its part has {days:.1f} days, and a row counts once its labels are final, {wait:.1f} days "
        "after the impression; shorten attribution.click_window and attribution.view_window, or ingest more days "
        "(calendar.days)"
    )


def _warm_start(run: Run, registry: Registry, champion: Version | None) -> WarmStart:
    """The champion's weights, once it is clear that training can go on from them."""
    if champion is None:
        raise ConfigError(
            f"--warm-start champion: no version of {RANKER} is champion; leave --warm-start out for the first training"
        )
    folder, _ = artefact_folder(registry, champion.address)
    start = WarmStart.load(folder, champion.address)
    streams = stream_scales(run.warehouse.read(run.spark, "streams"))
    start.refuse_other_contract(
        config=run.config.train, heads=run.config.heads(),
        streams={name: scale.stream_id for name, scale in streams.items()},
    )  # fmt: skip
    run.note(f"train: every arm begins from {champion.address}")
    return start


def _retire_obsolete(run: Run) -> dict[str, str]:
    """Retire the published mask where its time is over or the last watch found it harmful: a fact that says why."""
    found = obsolete(run)
    if found is None:
        return {}
    version, why = found
    set_status(run, version, "retired")
    run.note(f"train: {version} is retired, {why}")
    return {"retired": f"{version} {why}"}


def _registered(run: Run, registry: Registry, run_id: str, registration: Registration) -> dict[str, str]:
    """Register what the training `run_id` left; facts of the version, which its evidence names from then on."""
    folder = run.folder.parent / run_id
    version, alias = registration.register(registry, folder)
    content = json.loads((folder / EVIDENCE).read_text(encoding="utf-8"))
    model = {"name": RANKER, "version": version.version}
    write_evidence(folder / EVIDENCE, {**content, "model": model, "alias": alias})
    return {"model": version.address, "model_version": version.version, "alias": alias}


def decide(
    run: Run, contest: Contest, registry: Registry, arms: ArmRows, champion: Version | None
) -> Decision:
    """Both gates on validation rows: masked wins if its gate passes, else keep-all; then against the champion.

    With `train.stream_dropout` the second opinion has its say on what the mask drops.
    """
    config, budget = run.config.train, run.config.mask.ne_budget
    prices = _second_opinion(run, contest) if config.stream_dropout else []
    against = _against(run, contest, arms, prices) if MASKED in contest.arms else ()
    longer = MASKED in contest.arms and arms.boost_to(run, contest.arms[MASKED].mask_version) > 0
    masks = judge_mask(contest, ne_budget=budget, config=config, second_opinion=against, boosted=longer)
    status = mask_status(contest, masks) if masks else ""
    for head, verdict in masks.items():
        run.note(f"train: mask gate, {head}: {verdict.reason}")
    winner = contest.arms[MASKED if status == "published" else KEEP_ALL]
    p = None if champion is None else _champion_scores(run, registry, champion, contest, arms)
    ranker = judge_ranker(contest, winner, p, ne_budget=budget, config=config)
    return Decision(winner, masks, status, ranker, champion, prices)


def _champion_scores(
    run: Run, registry: Registry, champion: Version, contest: Contest, arms: ArmRows
) -> NDArray[np.float64]:
    """The champion's probabilities on the validation rows, prepared with its own mask, buckets and surfaces."""
    folder, _ = artefact_folder(registry, champion.address)
    service = RankerService.load(folder)
    if contest.head not in service.config.heads:
        raise ConfigError(
            f"champion {champion.address} serves {service.config.heads}, the gate compares {contest.head!r}; keep the "
            "label in `labels:` or start in a new warehouse"
        )
    rows = load_for(run, service.preparation, pinned=arms.table_version)
    return service.score_stored(rows.select("validate", holdout=False))[contest.head]


def evidence(
    run: Run,
    contest: Contest,
    decision: Decision,
    arms: ArmRows,
    speed: list[Throughput],
    tests: Mapping[str, Part],
) -> dict[str, object]:
    """Content of evidence.json: the gates with every number they read, then the test part."""
    config, head = run.config.train, contest.head
    rates = {s.arm: {"train_rows_s": s.train_rows_per_s, "infer_rows_s": s.infer_rows_per_s,
                     "load_rows_s": s.load_rows_per_s} for s in speed}  # fmt: skip
    cost = size_of(decision.winner.best().model, decision.winner.rows)
    cost |= {
        name: rate for name, rate in rates.get(decision.winner.name, {}).items() if name != "load_rows_s"
    }
    content: dict[str, object] = {
        "run_id": run.run_id, "part": "validate", "label": head, "label_meaning": run.config.meaning(head),
        "arms": [arm_report(contest, a, a.validate, config=config) | rates.get(n, {}) for n, a in contest.arms.items()],
        "test": {n: arm_report(contest, a, tests[n], config=config) for n, a in contest.arms.items()},
        "baselines": {"validate": baseline_report(contest, contest.arms[KEEP_ALL].validate.rows),
                      "test": baseline_report(contest, tests[KEEP_ALL].rows)},
        "mask_gate": decision.masks, "ranker_gate": decision.ranker, "winner": decision.winner.name,
        "pinned": {"training_rows": arms.table_version},
        "segment_version": arms.segment_version, "config_hash": run.config.digest(),
        "train_rows": len(contest.arms[KEEP_ALL].rows.select("train")),
        "epochs": len(contest.arms[KEEP_ALL].best().epochs),
        "test_rows_warm": int((tests[KEEP_ALL].rows.segment > 0).sum()),
        "calendar_lost": list(arms.calendar.lost), "warm_start": contest.start,
        "spec": Spec.of(decision.winner.trained, config, start=contest.start), "cost": cost,
    }  # fmt: skip
    if decision.masks:
        delta = decision.masks[head].delta
        content |= {
            "delta_ne_pct": delta.delta_ne_pct, "ci": [delta.low, delta.high], "resolvable_pct": delta.resolvable_pct,
            "rows": delta.rows, "positives": round(delta.positives), "decision": decision.status,
            "reason": decision.masks[head].reason,
        }  # fmt: skip
    if config.stream_dropout:
        content["second_opinion"] = _by_name(decision.prices, arms)
    worth = worth_of_segments(contest, config=config)
    if worth is not None:
        content |= {"worth_of_segments_pct": worth.delta_ne_pct, "worth_ci": [worth.low, worth.high]}
    a, b = time_by_tokens(
        decision.winner.best().model, contest.arms[KEEP_ALL].rows, size=config.batch_size, shares=TOKEN_SHARES
    )
    return content | {"batch_seconds": {"intercept": a, "per_token": b, "batch_size": config.batch_size}}


def _second_opinion(run: Run, contest: Contest) -> list[CellPrice]:
    """Prices of the cells by one more ranker, on keep-all rows."""
    run.note("train: second opinion on the cells by a ranker with stream dropout")
    keep_all = contest.arms[KEEP_ALL]
    return second_opinion(
        keep_all.rows, contest.head, model_config=keep_all.best().model.config, config=run.config.train,
        progress=run.note, folder=run.folder,
    )  # fmt: skip


def _by_name(prices: list[CellPrice], arms: ArmRows) -> list[dict[str, object]]:
    names = {scale.stream_id: name for name, scale in arms.streams.items()}
    return [{**vars(price), "stream": names[price.stream_id]} for price in prices]


def _against(run: Run, contest: Contest, arms: ArmRows, prices: list[CellPrice]) -> tuple[Check, ...]:
    """The prices of what the masked arm drops, held against the budget of a cell."""
    dropped = {
        (cell.segment_id, arms.streams[cell.stream].stream_id): cell.stream
        for cell in arms.cells[contest.arms[MASKED].mask_version]
        if cell.quota == 0
    }
    rows = contest.arms[KEEP_ALL].validate.rows
    return held_against(prices, dropped, rows, contest.head, delta=run.config.mask.delta)


def _throughput(contest: Contest, run: Run) -> list[Throughput]:
    run.note("train: throughput of the arms")
    listed = [(name, arm.best().model, arm.rows) for name, arm in contest.arms.items()]
    return measure(listed, config=run.config.train, batches=8, rounds=5)


def _write_predictions(run: Run, contest: Contest, tests: Mapping[str, Part]) -> None:
    """predictions.parquet: impression, arm, part, head, seed-mean p; validation and test rows."""
    tables = []
    for name, arm in contest.arms.items():
        for part, scored in (("validate", arm.validate), ("test", tests[name])):
            for head in contest.heads:
                n = len(scored.rows)
                tables.append(
                    pa.table({"impression_id": pa.array(scored.rows.impression, pa.string()), "arm": [name] * n,
                              "part": [part] * n, "label": [head] * n, "y": scored.rows.labels[head],
                              "p": scored.p[head].mean(0)})
                )  # fmt: skip
    pq.write_table(pa.concat_tables(tables), run.folder / "predictions.parquet")


def _save(run: Run, winner: Arm, arms: ArmRows) -> None:
    preparation = arms.preparation(run, mask_version=winner.mask_version, surfaces=winner.rows.surfaces)
    write_artefacts(run.folder / MODEL, winner.best().model, preparation, example=winner.rows)


def _result(contest: Contest, decision: Decision, arms: ArmRows, content: Mapping[str, object]) -> StepResult:
    result = StepResult(warnings=list(arms.calendar.lost))
    result.tables["training_rows"] = arms.table_version
    for name, arm in contest.arms.items():
        key = name.replace("-", "_")
        scored = arm.validate.p[contest.head].mean(0)
        found = evaluation(contest, arm.validate.rows, contest.head, scored)
        result.metrics |= {
            f"{key}_ne": found.ne,
            f"{key}_auc": found.auc,
            f"{key}_calibration": found.calibration,
        }
        result.metrics[f"{key}_tokens_per_impression"] = arm.rows.tokens_per_row
    if decision.masks:
        result.metrics["delta_ne_pct"] = decision.masks[contest.head].delta.delta_ne_pct
        result.facts["mask_gate"] = decision.masks[contest.head].reason
    result.metrics = {k: v for k, v in result.metrics.items() if np.isfinite(v)}
    result.facts |= {"winner": decision.winner.name, "ranker_gate": decision.ranker.reason}
    result.counters["rows_read"] = len(contest.arms[KEEP_ALL].rows)
    return result


def _registration(
    run: Run, contest: Contest, decision: Decision, arms: ArmRows, speed: list[Throughput]
) -> Registration:
    """What the registry is told of this training."""
    tags = {
        "mask_version": decision.winner.mask_version, "segment_version": arms.segment_version,
        "config_hash": run.config.digest(), "run_id": run.run_id, "run_date": str(run.run_date),
        "training_rows_version": str(arms.table_version), "label_meaning": run.config.meaning(contest.head),
    }  # fmt: skip
    return Registration(
        parent=f"train {run.run_id}", children=tuple(_children(contest)), params=run.config.train.model_dump(),
        metrics=_version_metrics(contest, decision.winner, speed), tags=tags, example=example_request(run, arms),
        champion=decision.champion.version if decision.champion else None,
    )  # fmt: skip


def _version_metrics(contest: Contest, winner: Arm, speed: list[Throughput]) -> dict[str, float]:
    found = evaluation(contest, winner.validate.rows, contest.head, winner.validate.p[contest.head].mean(0))
    rates = next((s.flat() for s in speed if s.arm == winner.name), {})
    return found.flat("validate_") | rates


def _children(contest: Contest) -> list[ChildRun]:
    """One child run per arm and seed with its own validation metrics."""
    children = []
    for name, arm in contest.arms.items():
        for place, trained in enumerate(arm.trained):
            found = evaluation(contest, arm.validate.rows, contest.head, arm.validate.p[contest.head][place])
            children.append(
                ChildRun(
                    f"{name} seed {trained.spec.seed}",
                    {
                        "arm": name,
                        "seed": trained.spec.seed,
                        "mask_version": arm.mask_version,
                        "device": trained.device,
                        "rows_at_once": trained.rows_at_once,
                    },
                    found.flat("validate_"),
                    {"arm": name, "seed": str(trained.spec.seed)},
                )
            )
    return children


def example_request(run: Run, arms: ArmRows) -> pd.DataFrame:
    """One made-up raw request that names real streams; the registered input example."""
    now = pd.Timestamp(run.run_date)
    events = [
        {"stream": name, "item_id": "item", "ts": (now - pd.Timedelta(hours=n + 1)).isoformat(),
         "dwell_ms": 1000.0 * (n + 1), "category": "category"}
        for n, name in enumerate(list(arms.streams)[:3])
    ]  # fmt: skip
    surface = next(iter(arms.rows.values()))[1].surfaces
    return pd.DataFrame(
        {"user_id": ["user"], "request_ts": [now], "item_id": ["item"], "surface": [surface[0] if surface else "feed"],
         "position": [1.0], "events": [events], "segment_id": [0.0], "category": ["category"], "value": [0.0]}
    )  # fmt: skip


__all__ = ["GLOBAL", "decide", "evidence", "train"]
