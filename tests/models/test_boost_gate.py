"""A mask with boosts is published only where it is shown to gain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dynamix.models.boost_gate import gate_boosts
from dynamix.models.evidence import Scored, Verdict, gate_mask


def judged(shrink: float) -> Verdict:
    """The mask gate on 4,000 rows; log-odds are the true ones times `shrink` in the masked arm, times .6 in keep-all."""
    rng = np.random.default_rng(0)
    user, row = np.repeat(np.arange(800), 5), np.arange(4_000)
    logit = rng.normal(0, 1.5, 4_000)
    y = (rng.random(4_000) < 1 / (1 + np.exp(-logit))).astype(float)
    arms = [
        Scored((1 / (1 + np.exp(-scale * logit)))[None], y, user, row, np.ones(4_000))
        for scale in (shrink, 0.6)
    ]
    return gate_mask(*arms, ne_budget=0.01, replicates=100)


def test_a_mask_that_gains_stays_published_with_the_check_beside_the_others() -> None:
    verdict = judged(1.0)
    found = gate_boosts(verdict)
    assert verdict.delta.upper95 < 0 and found.passed and found.status == "published"
    assert (
        found.checks[:-1] == verdict.checks and found.checks[-1].rule == "boosts" and found.checks[-1].passed
    )


def test_a_mask_that_only_loses_little_is_proposed_as_its_boosts_pay_for_nothing() -> None:
    verdict = judged(0.6)
    assert verdict.status == "published" and verdict.delta.upper95 >= 0
    found = gate_boosts(verdict)
    assert (found.passed, found.status) == (False, "proposed")
    assert found.reason.startswith(
        "proposed (boosts not shown to gain: upper 95 % bound +0.0000 %): published"
    )
    assert not found.checks[-1].passed


@pytest.mark.parametrize("status", ["retired", "proposed"])
def test_what_the_mask_gate_refuses_stays_refused(status: str) -> None:
    refused = replace(judged(0.6), status=status, passed=False)
    found = gate_boosts(refused)
    assert (found.status, found.reason, found.passed) == (status, refused.reason, False)
