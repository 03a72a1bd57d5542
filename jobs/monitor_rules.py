"""Is a refit due? The decision of `monitor`, a function of what was observed; it reads no table (docs/method.md C.7)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt

from dynamix.config_parts import MonitorConfig
from dynamix.features.drift import NOISE_SD, Finding
from dynamix.models.metrics import NeState, entropy

PARTS = ("loss", "n", "positives", "predicted")
"""Sums over rows: log loss (nats), rows, label-1 rows, predicted probabilities; the fields of a NeState."""
DWELL = "psi of dwell"


@dataclass(frozen=True)
class MaskInUse:
    """The published mask version, or the newest proposed one where none is published."""

    version: str
    status: str
    run_date: date


@dataclass(frozen=True)
class Scored:
    """Scored impressions of one label and segment whose label is known.

    `moments` (4, 4) is Σ_u a_u a_uᵀ over users, a_u the sums of PARTS over the user's rows. `trained_ne` is the
    model's NE on that segment's validation rows, None where no evidence names it.
    """

    label: str
    segment_id: int
    state: NeState
    moments: npt.NDArray[np.float64]
    trained_ne: float | None = None


@dataclass(frozen=True)
class Moved:
    """Users who were in this warm segment some days ago and are in any warm one now; `moved` are in another."""

    segment_id: int
    users: int
    moved: int


@dataclass(frozen=True)
class Observed:
    """All that is judged. `notes` are sentences on what could not be looked at."""

    run_date: date
    mask: MaskInUse | None = None
    drift: tuple[Finding, ...] = ()
    scored: tuple[Scored, ...] = ()
    moved: tuple[Moved, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """One comparison; beyond its limit a refit is due. `kind` is mask_age, psi, calibration, ne or churn.

    `value` and `limit` are what is compared: days, PSI, |ln ratio|, ln ratio, share.
    """

    kind: str
    name: str
    value: float
    limit: float
    due: bool
    sentence: str


@dataclass(frozen=True)
class Decision:
    """The checks, worst first within their kind's order; `look` names changes that a refit does not mend."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    look: tuple[str, ...] = ()

    @property
    def due(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.due)

    def lines(self) -> list[str]:
        """One line a check, then what was not looked at, then the answer."""
        shown = [f"{'DUE ' if check.due else 'ok  '} {check.sentence}" for check in self.checks]
        shown += [f"LOOK {sentence}" for sentence in self.look]
        shown += [f"     {sentence}" for sentence in self.notes]
        return [*shown, self.answer()]

    def answer(self) -> str:
        """Whether a refit is due, and what asks for it."""
        if not self.due:
            return f"No refit is due: {len(self.checks)} checks, none beyond its limit."
        kinds = sorted({check.kind.replace("_", " ") for check in self.due})
        return f"A refit is due: {len(self.due)} of {len(self.checks)} checks ({', '.join(kinds)})."


def judge(observed: Observed, config: MonitorConfig) -> Decision:
    """Every check that the observations allow, against its limit in the config and what chance explains.

    Drift findings other than PSI of dwell (missing values, shares) ask for a look at the source, not for a refit.
    """
    notes = list(observed.notes)
    checks: list[Check] = []
    if observed.mask is not None:
        checks.append(_mask_age(observed.mask, observed.run_date, config))
    checks += _worst_first(_psi(found, config) for found in observed.drift if found.measure == DWELL)
    checks += _worst_first(_scores(observed.scored, config, notes))
    checks += _worst_first(_churn(one, config) for one in observed.moved if one.users)
    look = tuple(
        _drift_sentence(found, config) for found in observed.drift if found.drifted and found.measure != DWELL
    )
    return Decision(tuple(checks), tuple(notes), look)


def _worst_first(checks: Iterable[Check]) -> list[Check]:
    return sorted(checks, key=lambda check: (check.kind, -check.value / check.limit, check.name))


def _mask_age(mask: MaskInUse, run_date: date, config: MonitorConfig) -> Check:
    days = (run_date - mask.run_date).days
    sentence = f"mask {mask.version} ({mask.status}) is {days} days old, limit {config.mask_age_days}"
    return Check("mask_age", mask.version, days, config.mask_age_days, days > config.mask_age_days, sentence)


def _psi(found: Finding, config: MonitorConfig) -> Check:
    return Check("psi", found.name, found.value, found.limit, found.drifted, _drift_sentence(found, config))


def _drift_sentence(found: Finding, config: MonitorConfig) -> str:
    return (
        f"{found.measure} of {found.name}: {found.baseline:.4g} in the days of the mask, {found.now:.4g} in the newest "
        f"{config.days} after it ({found.value:.3g}, limit {found.limit:.3g})"
    )


def _scores(scored: Iterable[Scored], config: MonitorConfig, notes: list[str]) -> Iterator[Check]:
    for one in scored:
        where = f"{one.label} in segment {one.segment_id}"
        positives = one.state.positives
        if positives < config.min_positives or positives >= one.state.n:
            notes.append(
                f"calibration and NE of {where}: not judged, {positives:.0f} positives in {one.state.n:.0f} rows, "
                f"fewer than {config.min_positives} say little"
            )
            continue
        yield _calibration(one, where, config)
        yield _ne(one, where, config)


def log_calibration(one: Scored) -> tuple[float, float]:
    """ln(Σp/Σy) and its standard error, users clustered (delta method). Needs positives and predictions."""
    s = one.state
    gradient = np.array([0.0, 0.0, -1 / s.positives, 1 / s.predicted])
    return math.log(s.calibration), _standard_error(gradient, one)


def log_ne(one: Scored) -> tuple[float, float]:
    """ln NE and its standard error, users clustered (delta method). Needs both classes.

    NE = (L/n) / H(Y/n), so d ln NE = dL/L − dn/n − (H'/H)·(dY/n − Y dn/n²) with H' = ln((1 − p)/p).
    """
    s = one.state
    p = s.positives / s.n
    slope = math.log((1 - p) / p) / entropy(p)
    gradient = np.array([1 / s.loss, -1 / s.n + slope * p / s.n, -slope / s.n, 0.0])
    return math.log(s.ne), _standard_error(gradient, one)


def _standard_error(gradient: npt.NDArray[np.float64], one: Scored) -> float:
    # the gradient of a ratio is orthogonal to the totals: the moments need not be centred
    return math.sqrt(max(float(gradient @ one.moments @ gradient), 0.0))


def _calibration(one: Scored, where: str, config: MonitorConfig) -> Check:
    value, se = log_calibration(one)
    limit = max(math.log(config.calibration), NOISE_SD * se)
    sentence = (
        f"calibration of {where}: {math.exp(value):.3g} predicted for each seen ({one.state.positives:.0f} positives), "
        f"limits {math.exp(-limit):.3g} and {math.exp(limit):.3g}"
    )
    return Check("calibration", where, abs(value), limit, abs(value) > limit, sentence)


def _ne(one: Scored, where: str, config: MonitorConfig) -> Check:
    reference = 1.0 if one.trained_ne is None else one.trained_ne
    against = "1, that of the base rate" if one.trained_ne is None else f"{reference:.4f} at training"
    value, se = log_ne(one)
    value -= math.log(reference)
    limit = max(math.log1p(config.ne_rise), NOISE_SD * se)
    sentence = f"NE of {where}: {one.state.ne:.4f} against {against}, limit {reference * math.exp(limit):.4f}"
    return Check("ne", where, value, limit, value > limit, sentence)


def _churn(one: Moved, config: MonitorConfig) -> Check:
    share = one.moved / one.users
    limit = config.churn + NOISE_SD * math.sqrt(config.churn * (1 - config.churn) / one.users)
    where = f"segment {one.segment_id}"
    sentence = (
        f"churn of {where}: {one.moved:,} of {one.users:,} users are in another one than {config.days} days before "
        f"({share:.1%}, limit {limit:.1%})"
    )
    return Check("churn", where, share, limit, share > limit, sentence)
