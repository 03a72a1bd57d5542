"""What the newest drift comparison and the newest `monitor` found, as plain values read from the runs' folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamix.jobs.files import read_object


@dataclass(frozen=True)
class Compared:
    """One comparison with its limit; beyond it is drift, or a reason for a refit."""

    what: str
    name: str
    value: float
    limit: float
    beyond: bool
    sentence: str

    @property
    def of_limit(self) -> float:
        return self.value / self.limit if self.limit else 0.0


@dataclass(frozen=True)
class Drift:
    """What `ingest` held against the first write's events; the largest share of its limit first."""

    run_id: str
    found: tuple[Compared, ...]

    @property
    def beyond(self) -> int:
        return sum(one.beyond for one in self.found)


@dataclass(frozen=True)
class Watch:
    """The newest answer of `monitor`: of which mask, its checks, what it could not judge."""

    run_date: str
    mask_version: str
    answer: str
    checks: tuple[Compared, ...]
    not_judged: tuple[str, ...]


def newest_drift(private: Path) -> Drift | None:
    """From the newest run that left `drift.json`; None where none did. Damaged files are passed over."""
    for path in sorted(private.glob("runs/*/drift.json"), reverse=True):
        told = read_object(path)
        if told is not None:
            found = [_compared(one, "measure", "drifted") for one in told.get("findings", [])]
            return Drift(path.parent.name, _worst_first(found))
    return None


def as_watch(told: Mapping[str, Any]) -> Watch:
    """From the content of `monitor.json`."""
    checks = [_compared(one, "kind", "due") for one in told.get("checks", [])]
    return Watch(
        str(told.get("run_date") or ""),
        str(told.get("mask_version") or ""),
        str(told.get("answer") or ""),
        _worst_first(checks),
        tuple(str(one) for one in told.get("not_judged", [])),
    )


def _worst_first(found: list[Compared]) -> tuple[Compared, ...]:
    return tuple(sorted(found, key=lambda one: (-one.of_limit, one.what, one.name)))


def _compared(one: Mapping[str, Any], what: str, beyond: str) -> Compared:
    return Compared(
        str(one[what]).replace("_", " "), str(one["name"]), float(one["value"]), float(one["limit"]),
        bool(one[beyond]), str(one["sentence"]),
    )  # fmt: skip
