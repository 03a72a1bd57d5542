"""Paired, user-clustered comparison of two predictions, and the two gates that read it.

Gates see validation rows only. `delta_ne_pct` = (NE_new/NE_base − 1)·100, negative is better: on the same
rows the entropy cancels, so it is a ratio of summed losses (docs/method.md C.1, C.2).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynamix.models.hashing import mix
from dynamix.models.metrics import cross_entropy, gauc, mean_ranks

Floats = NDArray[np.float64]

Z95, Z975, Z90_POWER = 1.6449, 1.9600, 1.2816
UNRESOLVABLE_PCT = 2.0
"""A gate whose rows and seeds cannot resolve this change of NE decides nothing."""
CALIBRATION = (0.99, 1.01)
EVERY = "*"
"""Tier or stream of a check that is not of one."""
MIN_POSITIVES = 20


@dataclass(frozen=True)
class Scored:
    """One head's predictions of one or more seeds on the same rows.

    `p` is (S, R), `y` (R,) labels or true probabilities, `user` and `request` (R,) hashes (0 = no request).
    """

    p: Floats
    y: Floats
    user: NDArray[np.int64]
    request: NDArray[np.int64] | None = None
    weight: Floats | None = None


@dataclass(frozen=True)
class Delta:
    """Change of NE in percent with its 95 % interval over users and seeds."""

    delta_ne_pct: float
    low: float
    high: float
    upper95: float  # one-sided
    user_se: float
    seed_sd: float | None  # None with one seed: then the interval is over users only
    resolvable_pct: float  # smallest harm that these rows and seeds find with power .9
    rows: int
    users: int
    positives: float


@dataclass(frozen=True)
class Check:
    """One rule of a gate: passed iff value is within limit.

    `allowed` is the limit as a number, where it is one; a rule of one segment, tier or cell names it.
    """

    rule: str
    value: float
    limit: str
    passed: bool
    allowed: float | None = None
    segment_id: int | None = None
    tier: str = EVERY
    stream: str = EVERY

    def told(self) -> str:
        """Rule, place, value and limit."""
        place = "" if self.segment_id is None else f" of segment {self.segment_id}"
        place += "" if self.stream == EVERY else f" × {self.stream}"
        place += "" if self.tier == EVERY else f" of {self.tier} users"
        return f"{self.rule}{place} {self.value:+.4f}, allowed {self.limit}"


@dataclass(frozen=True)
class Floor:
    """Change of NE inside one segment, or one tier over all segments, and the most that it may lose (docs/method.md A.7).

    `delta` is None where the group has too few positives; `limit_pct` is in percent of NE, NaN without a delta.
    """

    segment_id: int | None
    tier: str
    positives: float
    delta: Delta | None
    limit_pct: float

    @property
    def name(self) -> str:
        return f"{self.tier} users" if self.segment_id is None else f"segment {self.segment_id}"

    def check(self) -> Check:
        """The upper bound of what the group loses, held against its limit; too few positives refuse nothing."""
        if self.delta is None:
            few = f"not measurable: {self.positives:.0f} positives, {MIN_POSITIVES} are the least"
            return Check("floor", float("nan"), few, True, None, self.segment_id, self.tier)
        upper, limit = self.delta.upper95, f"<= {self.limit_pct:.4f} %"
        return Check(
            "floor", upper, limit, upper <= self.limit_pct, self.limit_pct, self.segment_id, self.tier
        )


@dataclass(frozen=True)
class Verdict:
    """Outcome of a gate: `status` is what it changes, `reason` one sentence with the numbers."""

    passed: bool
    status: str
    reason: str
    delta: Delta
    checks: tuple[Check, ...] = field(default=())
    floors: tuple[Floor, ...] = field(default=())


def poisson_weights(users: NDArray[np.int64], replicate: int) -> Floats:
    """Poisson(1) count of each user in one replicate, from hash(user, replicate) alone; (U,) float."""
    seed = mix(np.array([replicate + 1], np.uint64))
    uniform = (mix(users.view(np.uint64) ^ seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.searchsorted(_POISSON_CDF, uniform, side="right").astype(np.float64)


def _poisson_cdf() -> Floats:
    terms = np.exp(-1.0) / np.cumprod(np.concatenate([[1.0], np.arange(1, 16)]))
    return np.cumsum(terms)


_POISSON_CDF = _poisson_cdf()


def by_user(user: NDArray[np.int64], *columns: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Users, sorted, and the sums of each column over their rows: (U,), (U, len(columns))."""
    users, code = np.unique(user, return_inverse=True)
    sums = np.stack([np.bincount(code, weights=c, minlength=len(users)) for c in columns], axis=1)
    return users, sums.astype(np.float64)


def replicate_sums(users: NDArray[np.int64], sums: Floats, *, replicates: int) -> Floats:
    """Bootstrap sums (B, C) of per-user sums (U, C), users drawn with Poisson(1) weights."""
    return np.stack([poisson_weights(users, b) @ sums for b in range(replicates)])


def compare(new: Scored, base: Scored, *, replicates: int) -> Delta:
    """Delta of `new` against `base`: seeds are averaged inside a user, then users are drawn.

    The seed variance enters the interval as sd²/S of the per-seed deltas, paired by seed where both have
    as many; with one seed it is unknown and left out, which `seed_sd` None says.
    """
    w = np.ones(len(new.y)) if new.weight is None else new.weight
    loss_new = np.stack([cross_entropy(new.y, p) * w for p in new.p])
    loss_base = np.stack([cross_entropy(base.y, p) * w for p in base.p])
    users, sums = by_user(new.user, loss_new.mean(0), loss_base.mean(0))
    drawn = replicate_sums(users, sums, replicates=replicates)
    point = 100 * (sums[:, 0].sum() / sums[:, 1].sum() - 1)
    each = 100 * (drawn[:, 0] / np.maximum(drawn[:, 1], 1e-300) - 1)
    user_se = float(each.std(ddof=1))
    seed_sd = _seed_sd(loss_new.sum(1), loss_base.sum(1))
    seeds = min(len(new.p), len(base.p)) if len(base.p) > 1 else len(new.p)
    se = float(np.hypot(user_se, (seed_sd or 0.0) / np.sqrt(seeds)))
    return Delta(
        float(point), float(point - Z975 * se), float(point + Z975 * se), float(point + Z95 * se), user_se,
        seed_sd, (Z95 + Z90_POWER) * se, len(new.y), len(users), float(w @ new.y),
    )  # fmt: skip


def _seed_sd(new: Floats, base: Floats) -> float | None:
    if len(new) < 2:
        return None
    paired = base if len(base) == len(new) else np.full(len(new), base.mean())
    return float((100 * (new / paired - 1)).std(ddof=1))


def ne_interval(scored: Scored, *, replicates: int) -> tuple[float, float, float]:
    """NE with its user-clustered 95 % interval; NaN where only one class is present."""
    w = np.ones(len(scored.y)) if scored.weight is None else scored.weight
    loss = np.mean([cross_entropy(scored.y, p) for p in scored.p], axis=0) * w
    users, sums = by_user(scored.user, loss, scored.y * w, w)
    drawn = np.concatenate([sums.sum(0, keepdims=True), replicate_sums(users, sums, replicates=replicates)])
    rate = drawn[:, 1] / np.maximum(drawn[:, 2], 1e-9)
    inside = np.clip(rate, 1e-12, 1 - 1e-12)
    h = -(inside * np.log(inside) + (1 - inside) * np.log1p(-inside))
    ne = np.where((rate > 0) & (rate < 1), drawn[:, 0] / np.maximum(drawn[:, 2], 1e-9) / h, np.nan)
    low, high = np.nanquantile(ne[1:], [0.025, 0.975]) if np.isfinite(ne[1:]).any() else (np.nan, np.nan)
    return float(ne[0]), float(low), float(high)


def calibration_interval(scored: Scored, *, replicates: int) -> tuple[float, float, float]:
    """Σp/Σy with its user-clustered 95 % interval; NaN without positives."""
    w = np.ones(len(scored.y)) if scored.weight is None else scored.weight
    users, sums = by_user(scored.user, scored.p.mean(0) * w, scored.y * w)
    if sums[:, 1].sum() <= 0:
        return float("nan"), float("nan"), float("nan")
    drawn = replicate_sums(users, sums, replicates=replicates)
    ratios = drawn[:, 0] / np.maximum(drawn[:, 1], 1e-9)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(sums[:, 0].sum() / sums[:, 1].sum()), float(low), float(high)


def gate_mask(
    masked: Scored, keep_all: Scored, *, ne_budget: float, replicates: int, floors: Sequence[Floor] = (),
    further: Sequence[Check] = (),
) -> Verdict:  # fmt: skip
    """May the mask be published? Masked against keep-all on the same validation rows and seeds.

    Passes iff the one-sided upper 95 % bound of delta_ne_pct is within ε_gate = max(NE budget, what the rows
    and seeds can resolve), the arms' Σp agree within 1 %, 1 lies in the interval of the masked arm's Σp/Σy
    unless it lies outside keep-all's too, request-level GAUC is not worse than chance allows, no segment or tier falls
    below its floor (models/floors.py), and the `further` checks hold. Status: `published`, `proposed` (rows cannot
    tell) or `retired` (shown to harm, all users together, in a group, or by a further check).
    """
    delta = compare(masked, keep_all, replicates=replicates)
    gate_pct = max(100 * ne_budget, delta.resolvable_pct)
    shown = (*(floor.check() for floor in floors), *further)
    checks = (
        Check("ne", delta.upper95, f"<= {gate_pct:.4f} %", delta.upper95 <= gate_pct, gate_pct),
        _same_total(masked, keep_all),
        _calibrated(masked, keep_all, replicates),
        _gauc_check(masked, keep_all, replicates),
        *shown,
    )
    too_small = (
        delta.resolvable_pct > max(UNRESOLVABLE_PCT, 100 * ne_budget) or delta.positives < MIN_POSITIVES
    )
    passed = all(check.passed for check in checks) and not too_small
    numbers = (
        f"delta_ne_pct {delta.delta_ne_pct:+.4f} [{delta.low:+.4f}, {delta.high:+.4f}] on {delta.rows} rows, "
        f"{delta.positives:.0f} positives, gate {gate_pct:.4f} %"
    )
    numbers += _floors_told(floors)
    shown_harm = delta.low > 100 * ne_budget and delta.positives >= MIN_POSITIVES
    shown_harm |= any(not check.passed for check in shown)
    if too_small and not shown_harm:
        status, why = "proposed", "unresolvable"
    elif passed:
        status, why = "published", f"resolved to {gate_pct:.3f} %"
    else:
        status, why = "retired", "; ".join(c.told() for c in checks if not c.passed)
    return Verdict(passed, status, f"{status} ({why}): {numbers}", delta, checks, tuple(floors))


def _floors_told(floors: Sequence[Floor]) -> str:
    """How many groups hold their floor, and which have too few positives for one; empty without groups."""
    measured = [f for f in floors if f.delta is not None]
    unknown = [f.name for f in floors if f.delta is None]
    text = (
        f", floors hold in {sum(f.check().passed for f in measured)} of {len(measured)} groups"
        if measured
        else ""
    )
    return text + (f", not measurable: {', '.join(unknown)}" if unknown else "")


def gate_ranker(
    challenger: Scored, rivals: Mapping[str, Scored], *, ne_budget: float, replicates: int, superior: bool
) -> Verdict:
    """May the challenger take `champion`? It must hold against every rival on the same validation rows.

    `superior` (no champion yet: base rate and logistic regression): the upper 95 % bound must be below 0.
    Else (against the champion): delta_ne_pct must not be positive beyond ε_gate, as in the mask gate.
    """
    deltas = {name: compare(challenger, rival, replicates=replicates) for name, rival in rivals.items()}
    checks = []
    for name, delta in deltas.items():
        limit = 0.0 if superior else max(100 * ne_budget, delta.resolvable_pct)
        ok = delta.upper95 < limit if superior else delta.upper95 <= limit
        checks.append(
            Check(f"ne against {name}", delta.upper95, f"{'<' if superior else '<='} {limit:.4f} %", ok)
        )
    worst = max(deltas.values(), key=lambda d: d.upper95)
    if worst.positives < MIN_POSITIVES:
        checks.append(Check("positives", worst.positives, f">= {MIN_POSITIVES}", False))
    passed = all(c.passed for c in checks)
    told = "; ".join(f"{n} {d.delta_ne_pct:+.3f} % [{d.low:+.3f}, {d.high:+.3f}]" for n, d in deltas.items())
    word = "promoted to champion" if passed else "stays challenger"
    return Verdict(
        passed, "champion" if passed else "challenger", f"{word}: against {told}", worst, tuple(checks)
    )


def _same_total(new: Scored, base: Scored) -> Check:
    ratio = float(new.p.mean(0).sum() / max(base.p.mean(0).sum(), 1e-300))
    low, high = CALIBRATION
    return Check(
        "calibration ratio", ratio, f"{low}..{high}", low <= ratio <= high, low if ratio < 1 else high
    )


def _calibrated(new: Scored, base: Scored, replicates: int) -> Check:
    """1 inside the masked arm's interval; a shift that keep-all shares is no harm of the mask."""
    ratio, low, high = calibration_interval(new, replicates=replicates)
    _, base_low, base_high = calibration_interval(base, replicates=replicates)
    shared = not base_low <= 1 <= base_high
    return Check("calibration", ratio, f"1 in [{low:.3f}, {high:.3f}]", shared or low <= 1 <= high)


def _gauc_check(new: Scored, base: Scored, replicates: int) -> Check:
    """Non-inferior request-level AUC: the upper 95 % bound of the loss is within what users resolve.

    The value is the change of GAUC, the limit that bound solved for it.
    """
    if new.request is None or not (new.request != 0).any():
        return Check("gauc", float("nan"), "no requests", True)
    new_area, groups = gauc(new.y, new.p.mean(0), new.request)
    base_area, _ = gauc(base.y, base.p.mean(0), base.request if base.request is not None else new.request)
    if groups == 0:
        return Check("gauc", float("nan"), "no request holds both classes", True)
    se = _gauc_se(new, base, min(replicates, 200))
    loss = base_area - new_area
    most = max(0.001, (Z95 + Z90_POWER) * se) - Z95 * se
    return Check("gauc", -loss, f">= {-most:+.5f}", loss <= most, -most)


def _gauc_se(new: Scored, base: Scored, replicates: int) -> float:
    """Bootstrap SE over users of the paired difference of GAUC, from per-request areas."""
    assert new.request is not None  # the caller checked; for the type checker
    keys, area_new, rows = request_areas(new.y, new.p.mean(0), new.request)
    _, area_base, _ = request_areas(base.y, base.p.mean(0), new.request)
    owner = new.user[_first_row(new.request, keys)]
    users, sums = by_user(owner, (area_new - area_base) * rows, rows)
    drawn = replicate_sums(users, sums, replicates=replicates)
    return float((drawn[:, 0] / np.maximum(drawn[:, 1], 1e-9)).std(ddof=1))


def request_areas(
    y: Floats, p: Floats, request: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Requests with both classes, their AUC and their rows."""
    keys, code = np.unique(request, return_inverse=True)
    positive = y > 0.5
    ranks = mean_ranks(code, p)
    rows, k = np.bincount(code).astype(float), np.bincount(code, weights=positive)
    both = (k > 0) & (k < rows) & (keys != 0)
    rank_sum = np.bincount(code, weights=ranks * positive)
    area = (rank_sum[both] - k[both] * (k[both] + 1) / 2) / (k[both] * (rows - k)[both])
    return keys[both], area, rows[both]


def _first_row(request: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int64]:
    order = np.argsort(request, kind="stable")
    return order[np.searchsorted(request[order], keys)]


def rows_of(scored: Scored, at: NDArray[np.bool_]) -> Scored:
    """The same predictions on the rows where `at` (R,) is True."""
    weight = None if scored.weight is None else scored.weight[at]
    request = None if scored.request is None else scored.request[at]
    return Scored(scored.p[:, at], scored.y[at], scored.user[at], request, weight)


def write_evidence(path: Path, content: Mapping[str, object]) -> Path:
    """Write evidence.json: sorted keys, NaN as null, dataclasses as objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(_plain(content), indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8"
    )
    return path


def _plain(value: object) -> object:
    if hasattr(value, "__dataclass_fields__"):
        return _plain(asdict(value))  # type: ignore[call-overload]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return value
    if isinstance(value, Sequence):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value.tolist()]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, int) else str(value)
