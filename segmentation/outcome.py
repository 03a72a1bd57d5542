"""What a fit of any method leaves for ids, names, registry and guards (docs/method.md A.4.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dynamix.config import SegmentationConfig
from dynamix.segmentation.blocks import INPUT, NEXT, cell_width
from dynamix.segmentation.fitted import FittedSegmenter, MixFitted
from dynamix.segmentation.guards import MEASURABLE_EVENTS, length_eta2, refusal
from dynamix.segmentation.jagged import Ints, Jagged
from dynamix.segmentation.mix import Fitted
from dynamix.segmentation.mixture import Mixture

NO_EVIDENCE = "none"


@dataclass(frozen=True)
class Outcome:
    """A fitted segmenter and what is told of it.

    summary: mean emission (K, J) and share of users of every segment, which for `mix` is the mixture itself; numbers:
    what guards look at and what the fit rested on; evidence: which labels it saw, `none` without.
    """

    segmenter: FittedSegmenter
    summary: Mixture
    numbers: Mapping[str, float]
    evidence: str = NO_EVIDENCE

    @property
    def k(self) -> int:
        return self.segmenter.k

    @property
    def reason(self) -> str:
        """Why this number of segments."""
        return self.segmenter.reason


def outcome_of_mixture(found: Fitted, *, dwell_bins: bool) -> Outcome:
    """Of a mixture fitted on Spark."""
    group = np.arange(found.mixture.k, dtype=np.int64)
    segmenter = MixFitted(found.mixture, group, dwell_bins, found.choice.reason)
    numbers = {**found.choice.chosen.numbers, "iterations": float(found.iterations)}
    return Outcome(segmenter, found.mixture, numbers, found.evidence)


def outcome_in_memory(
    segmenter: FittedSegmenter, inputs: Jagged, *, config: SegmentationConfig, evidence: str
) -> Outcome:
    """Of a segmenter fitted on these users of the two windows: emission P_k ∝ Σ_u q_u(k) C_u + a, share ∝ Σ_u q_u(k) + 1.

    Numbers of A.4.4's guards as far as they need no further fit; those that the method itself looked at come on top.
    """
    width = cell_width(inputs.n_streams, dwell_bins=config.dwell_bins)
    counts = inputs.counts(dwell_bins=config.dwell_bins).matrix(width, INPUT, NEXT)
    q = segmenter.posterior(inputs)
    cells = np.asarray((counts.T @ q).T) + config.emission_prior
    users = q.sum(axis=0) + 1.0
    summary = Mixture(np.log(cells / cells.sum(axis=1, keepdims=True)), np.log(users / users.sum()))
    numbers = {**_numbers(summary, q.argmax(axis=1), inputs), **getattr(segmenter, "numbers", {})}
    return Outcome(segmenter, summary, numbers | {"fit_users": float(inputs.n_users)}, evidence)


def doubts(found: Outcome, config: SegmentationConfig) -> str:
    """The first limit of A.4.4 that the chosen segments overstep, in words; empty without.

    `mix` and `neural` refuse such a number of segments themselves; `mix-merge` and `paper2` choose by slopes alone.
    """
    return refusal(found.k, {"split_half_ari": 1.0, **found.numbers}, config)


def _numbers(summary: Mixture, label: Ints, inputs: Jagged) -> dict[str, float]:
    share = np.exp(summary.log_pi)
    long = inputs.events >= MEASURABLE_EVENTS
    log_n = np.log(inputs.events[long])
    sums = [np.bincount(label[long], weights=w, minlength=summary.k) for w in (None, log_n, log_n**2)]
    return {
        "min_share": float(share.min()),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "measured_users": float(long.sum()),
        "length_eta2": length_eta2(np.stack(sums, axis=1).astype(np.float64)),
    }
