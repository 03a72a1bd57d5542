"""What the mask saves: tokens, seconds, and money at prices that somebody stated."""

from __future__ import annotations

from dataclasses import dataclass

from dynamix.jobs.evidence_data import Arm, Evidence
from dynamix.jobs.numbers import change, pct
from dynamix.jobs.report_data import ReportData


@dataclass(frozen=True)
class Saving:
    """One thing of keep-all beside masked, in words; `saved` is "not measured" where either is missing."""

    what: str
    full: str
    masked: str
    saved: str


def savings(data: ReportData) -> list[str]:
    """What the mask saves: tokens, seconds, and money where prices are given."""
    if all(c.keep and not c.cut for c in data.cells):
        return ["Saved: nothing, as nothing is dropped or cut."]
    e = data.evidence
    full, masked = (e.keep_all, e.masked) if e is not None else (None, None)
    if e is None or full is None or masked is None:
        return [
            "Saved: not measured, the arms were not trained; the share of events above is from the statistics."
        ]
    return [f"Saved: {_tokens(full, masked)}; {_seconds(e, full, masked)}.", _money(data, e, full, masked)]


def _tokens(full: Arm, masked: Arm) -> str:
    if not full.tokens or masked.tokens is None:
        return "tokens not measured"
    gone = 1 - masked.tokens / full.tokens
    return f"{pct(gone)} of the tokens ({full.tokens:.1f} → {masked.tokens:.1f} an impression)"


def _seconds(e: Evidence, full: Arm, masked: Arm) -> str:
    parts = []
    hours = training_hours_saved(e, full, masked)
    if full.train_rows_s and masked.train_rows_s:
        parts.append(f"training {change(masked.train_rows_s, full.train_rows_s)} rows/s")
        if hours is not None:
            parts.append(f"{3600 * hours:+.1f} s less in this training")
        else:
            per_million = 1e6 / full.train_rows_s - 1e6 / masked.train_rows_s
            parts.append(f"{per_million:+.1f} s less per million rows")
    if full.infer_rows_s and masked.infer_rows_s:
        parts.append(f"inference {change(masked.infer_rows_s, full.infer_rows_s)} rows/s")
    return ", ".join(parts) + " (timed once, on this machine)" if parts else "seconds not measured"


def training_hours_saved(e: Evidence, full: Arm, masked: Arm) -> float | None:
    """Hours that one training takes less under the mask; None where rows or rates are missing."""
    before, after = _training_hours(e, full), _training_hours(e, masked)
    return None if before is None or after is None else before - after


def _money(data: ReportData, e: Evidence, full: Arm, masked: Arm) -> str:
    if not data.per_training_hour and not data.per_billion_inferences:
        hours = training_hours_saved(e, full, masked)
        scale = (
            ""
            if hours is None
            else f" At 1 {data.currency} an hour, to scale from and no price, {hours:+.4f} {data.currency} per training."
        )
        return (
            "Money: no prices given; set prices.per_training_hour and prices.per_billion_inferences in the config."
            + scale
        )
    parts = []
    hours = training_hours_saved(e, full, masked)
    if data.per_training_hour:
        parts.append(
            "per training not measured"
            if hours is None
            else f"{hours * data.per_training_hour:+.4f} {data.currency} per training"
        )
    if data.per_billion_inferences:
        if full.infer_rows_s and masked.infer_rows_s:
            saved = data.per_billion_inferences * (1 - full.infer_rows_s / masked.infer_rows_s)
            parts.append(f"{saved:+.2f} {data.currency} per billion inferences")
        else:
            parts.append("per billion inferences not measured")
    return f"Money saved at the given prices: {', '.join(parts)}."


def side_by_side(data: ReportData) -> list[Saving]:
    """Tokens, seconds and money of keep-all and masked; empty where the two arms were not trained.

    Money stands at the config's prices; without any it is per unit of currency that an hour costs, so no price is
    made up.
    """
    e = data.evidence
    full, masked = (e.keep_all, e.masked) if e is not None else (None, None)
    if e is None or full is None or masked is None:
        return []
    train = [_per_million(arm.train_rows_s) for arm in (full, masked)]
    infer = [_per_million(arm.infer_rows_s) for arm in (full, masked)]
    hours = [_training_hours(e, arm) for arm in (full, masked)]
    price = data.per_training_hour or 1.0
    money = [None if h is None else h * price for h in hours]
    named = f"{data.currency} per training, at {price:g} an hour"
    if not data.per_training_hour:
        named = f"{data.currency} per training, per {data.currency} that an hour costs (no price given)"
    found = [
        _compared("tokens an impression", full.tokens, masked.tokens, "{:,.1f}"),
        _compared("seconds of training per million rows", train[0], train[1], "{:,.1f}"),
        _compared("seconds of inference per million impressions", infer[0], infer[1], "{:,.1f}"),
        _compared(named, money[0], money[1], "{:,.4f}"),
    ]
    if data.per_billion_inferences:
        billion = data.per_billion_inferences
        share = full.infer_rows_s / masked.infer_rows_s if full.infer_rows_s and masked.infer_rows_s else None
        named = f"{data.currency} per billion inferences, at {billion:g} with keep-all"
        found.append(_compared(named, billion, None if share is None else billion * share, "{:,.2f}"))
    return found


def _compared(what: str, full: float | None, masked: float | None, form: str) -> Saving:
    before, after = ("not measured" if value is None else form.format(value) for value in (full, masked))
    saved = "not measured" if masked is None or not full else pct(1 - masked / full)
    return Saving(what, before, after, saved)


def _per_million(rows_per_s: float | None) -> float | None:
    return 1e6 / rows_per_s if rows_per_s else None


def _training_hours(e: Evidence, arm: Arm) -> float | None:
    if not (e.train_rows and arm.train_rows_s):
        return None
    return e.train_rows * (e.epochs or 1) / arm.train_rows_s / 3600
