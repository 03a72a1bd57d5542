"""The gate of a mask that lengthens histories: it has to gain, not only to lose little."""

from __future__ import annotations

from dataclasses import replace

from dynamix.models.evidence import Check, Verdict


def gate_boosts(verdict: Verdict) -> Verdict:
    """The mask gate's verdict on a mask with boosts: published only if delta_ne_pct is below 0 at one-sided 95 %.

    What the mask gate would publish and these rows do not show to gain is `proposed`: more rows or seeds may show it. Any
    other verdict stays, with this check beside the others. Source: docs/method.md A.8.
    """
    upper = verdict.delta.upper95
    check = Check("boosts", upper, "< 0 %", upper < 0)
    checked = replace(verdict, checks=(*verdict.checks, check))
    if check.passed or verdict.status != "published":
        return checked
    reason = f"proposed (boosts not shown to gain: upper 95 % bound {upper:+.4f} %): {verdict.reason}"
    return replace(checked, passed=False, status="proposed", reason=reason)
