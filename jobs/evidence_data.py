"""Evidence of a training as plain values: arms, gates and what else its file says; how the file is read.

A number that was not measured is None and stays so until it is printed as "not measured".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamix.jobs.files import read_object

ONE_MASK_ARMS = ("one-mask", "one mask", "global", "one_mask")
KEEP_ALL_ARMS = ("keep-all", "keep_all", "full")


@dataclass(frozen=True)
class Arm:
    """One trained arm; NE is log loss over the entropy of the base rate, lower is better."""

    name: str
    mask_version: str = ""
    ne: float | None = None
    ne_low: float | None = None
    ne_high: float | None = None
    calibration: float | None = None
    auc: float | None = None
    gauc: float | None = None
    tokens: float | None = None
    train_rows_s: float | None = None
    infer_rows_s: float | None = None
    per_segment: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """What the training judged: arms on the same rows and the paired difference of masked to keep-all."""

    arms: tuple[Arm, ...] = ()
    delta_ne_pct: float | None = None
    ci: tuple[float, float] | None = None
    resolvable_pct: float | None = None
    decision: str = ""
    reason: str = ""
    label: str = ""
    label_meaning: str = ""
    rows: int | None = None
    positives: int | None = None
    worth_pct: float | None = None
    worth_ci: tuple[float, float] | None = None
    train_rows: int | None = None
    epochs: int | None = None
    model: str = ""
    address: str = ""
    part: str = ""
    test: tuple[Arm, ...] = ()
    winner: str = ""
    alias: str = ""
    ranker_reason: str = ""
    rows_version: int | None = None
    segment_version: str = ""
    lost: tuple[str, ...] = ()

    def arm(self, names: Sequence[str]) -> Arm | None:
        """The first arm whose name contains one of `names`."""
        return next((a for a in self.arms if any(n in a.name.lower() for n in names)), None)

    @property
    def keep_all(self) -> Arm | None:
        return self.arm(KEEP_ALL_ARMS)

    @property
    def one_mask(self) -> Arm | None:
        return self.arm(ONE_MASK_ARMS)

    @property
    def masked(self) -> Arm | None:
        one = self.one_mask
        return next((a for a in self.arms if "mask" in a.name.lower() and a is not one), None)


def number(value: object) -> float | None:
    """A finite float, or None for anything else (None, text, NaN, infinity, booleans)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def whole(value: object) -> int | None:
    """An int, or None for anything that is not a finite number."""
    found = number(value)
    return None if found is None else round(found)


def first_of(source: Mapping[str, Any], *keys: str) -> Any:
    """The first of these keys that is present and not None."""
    return next((source[k] for k in keys if source.get(k) is not None), None)


def interval(value: object) -> tuple[float, float] | None:
    """Two finite numbers in order, from a pair or from a mapping with low and high; else None."""
    if isinstance(value, Mapping):
        value = [first_of(value, "low", "lo", "lower"), first_of(value, "high", "hi", "upper")]
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (min(low, high), max(low, high))


def parse_arm(raw: Mapping[str, Any], *, name: str = "") -> Arm:
    """An arm from the evidence file; unknown keys are ignored, missing ones become None."""
    per_segment: dict[str, float | None] = {}
    for key, value in dict(first_of(raw, "per_segment", "segments") or {}).items():
        per_segment[str(key)] = number(value.get("ne")) if isinstance(value, Mapping) else number(value)
    around = interval(first_of(raw, "ne_ci", "ci")) or (None, None)
    low, high = number(raw.get("ne_low")), number(raw.get("ne_high"))
    return Arm(
        name=str(first_of(raw, "arm", "name") or name),
        mask_version=str(raw.get("mask_version") or ""),
        ne=number(raw.get("ne")),
        ne_low=around[0] if low is None else low,
        ne_high=around[1] if high is None else high,
        calibration=number(raw.get("calibration")),
        auc=number(raw.get("auc")),
        gauc=number(raw.get("gauc")),
        tokens=number(first_of(raw, "tokens_per_impression", "tokens")),
        train_rows_s=number(raw.get("train_rows_s")),
        infer_rows_s=number(raw.get("infer_rows_s")),
        per_segment=per_segment,
    )


def parse_evidence(raw: Mapping[str, Any]) -> Evidence:
    """Evidence from its JSON object; every key is optional.

    Where the flat keys are absent, those of a nested gate (`mask_gate` or `gate`: status, reason, delta) count.
    """
    raw = {**_gate(raw), **{k: v for k, v in raw.items() if v is not None}}
    listed = raw.get("arms") or []
    if isinstance(listed, Mapping):
        arms = tuple(parse_arm(value, name=str(key)) for key, value in listed.items())
    else:
        arms = tuple(parse_arm(value) for value in listed if isinstance(value, Mapping))
    worth = first_of(raw, "worth_of_segments_pct", "worth_pct", "worth_of_segments")
    nested = worth if isinstance(worth, Mapping) else {}
    model = first_of(raw, "model", "registered")
    address = ""
    if isinstance(model, Mapping):
        address = f"models:/{model.get('name')}/{model.get('version')}"
        model = " version ".join(str(model[k]) for k in ("name", "version") if k in model)
    return Evidence(
        arms=arms,
        delta_ne_pct=number(raw.get("delta_ne_pct")),
        ci=interval(first_of(raw, "ci", "delta_ne_ci", "delta_ne_pct_ci")),
        resolvable_pct=number(raw.get("resolvable_pct")),
        decision=str(raw.get("decision") or ""),
        reason=str(raw.get("reason") or ""),
        label=str(raw.get("label") or ""),
        label_meaning=str(raw.get("label_meaning") or ""),
        rows=whole(raw.get("rows")),
        positives=whole(raw.get("positives")),
        worth_pct=number(first_of(nested, "delta_ne_pct", "pct")) if nested else number(worth),
        worth_ci=interval(first_of(raw, "worth_ci", "worth_of_segments_ci") or nested.get("ci")),
        train_rows=whole(raw.get("train_rows")),
        epochs=whole(raw.get("epochs")),
        model=str(model or ""),
        address=address,
        part=str(raw.get("part") or ""),
        test=tuple(parse_arm(arm, name=str(name)) for name, arm in _inner(raw, "test").items()),
        winner=str(raw.get("winner") or ""),
        alias=str(raw.get("alias") or ""),
        ranker_reason=str(_inner(raw, "ranker_gate").get("reason") or ""),
        rows_version=whole(_inner(raw, "pinned").get("training_rows")),
        segment_version=str(raw.get("segment_version") or ""),
        lost=tuple(str(one) for one in raw.get("calendar_lost") or ()),
    )


def _inner(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = raw.get(key)
    return found if isinstance(found, Mapping) else {}


def _gate(raw: Mapping[str, Any]) -> dict[str, Any]:
    gate = first_of(raw, "mask_gate", "gate")
    if not isinstance(gate, Mapping):
        return {}
    delta = gate.get("delta")
    flat: dict[str, Any] = dict(delta) if isinstance(delta, Mapping) else {}
    return flat | {
        "ci": [flat.get("low"), flat.get("high")],
        "decision": gate.get("status"),
        "reason": gate.get("reason"),
    }


def fits(evidence: Evidence, mask_version: str) -> bool:
    """False iff the evidence says that its masked arm is of another mask version."""
    masked = evidence.masked
    return masked is None or not masked.mask_version or masked.mask_version == mask_version


def newest_evidence(private: Path) -> tuple[Evidence, str] | None:
    """The evidence of the newest run that has any, with that run's id; damaged files are passed over."""
    for path in sorted(private.glob("runs/*/evidence.json"), reverse=True):
        raw = read_object(path)
        if raw is not None:
            return parse_evidence(raw), path.parent.name
    return None
