"""One interface for all segmenters, and the three without a network: mix, mix-merge, paper2 (docs/method.md A.4.0).

A segmenter is fitted on jagged events of the two windows (and labelled impressions of the evidence window, where it uses
them) and gives a posterior for any users from their events alone, as a pure function that a Spark UDF may close over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from dynamix.config import SegmentationConfig
from dynamix.segmentation.em import user_half
from dynamix.segmentation.fitted import FittedSegmenter, MixFitted, MixMergeFitted, Paper2Fitted
from dynamix.segmentation.jagged import Jagged
from dynamix.segmentation.mix import fit_given, fit_mixture
from dynamix.segmentation.readout import Readout, View, fit_readout
from dynamix.segmentation.slopes import Evidence, explained, merge_alike, pooled_slopes, slope_sums

OVER_SEGMENTS = 16
"""Clusters that mix-merge starts from."""
_QUANTILES = np.linspace(0.05, 0.95, 19)


class Segmenter(Protocol):
    """A recipe: `fit` on inputs, with evidence where there is some (user rows are those of the inputs)."""

    name: ClassVar[str]

    def fit(self, inputs: Jagged, evidence: Evidence | None = None) -> FittedSegmenter:
        """GuardError when no user has an event in the input window."""


@dataclass(frozen=True)
class Mix:
    """The multinomial mixture of docs/method.md A.4.3, K by the next window; with `k` that number, without guards."""

    name: ClassVar[str] = "mix"
    config: SegmentationConfig
    k: int | None = None

    def fit(self, inputs: Jagged, evidence: Evidence | None = None) -> MixFitted:
        """The mixture; evidence is not used."""
        counts, streams = inputs.counts(dwell_bins=self.config.dwell_bins), inputs.n_streams
        if self.k is None:
            found = fit_mixture(counts, n_streams=streams, config=self.config)
        else:
            found = fit_given(
                counts, n_streams=streams, k=self.k, config=self.config, reason=f"K={self.k} as given"
            )
        group = np.arange(found.mixture.k, dtype=np.int64)
        return MixFitted(found.mixture, group, self.config.dwell_bins, found.choice.reason)


@dataclass(frozen=True)
class MixMerge:
    """Over-segment, then merge greedily the clusters whose slopes differ least (docs/method.md A.4.3).

    Clusters come from composition, segments from what they mean for conversion; at most `config.k_max` remain.
    """

    name: ClassVar[str] = "mix-merge"
    config: SegmentationConfig
    start: int = OVER_SEGMENTS
    k: int | None = None

    def fit(self, inputs: Jagged, evidence: Evidence | None = None) -> MixMergeFitted:
        """Without evidence no slopes differ: one segment. With `k` the merging stops there, else where it gains most."""
        found = fit_given(
            inputs.counts(dwell_bins=self.config.dwell_bins), n_streams=inputs.n_streams, k=self.start,
            config=self.config, reason="over-segmented",
        )  # fmt: skip
        alone = MixMergeFitted(
            found.mixture, np.arange(self.start, dtype=np.int64), self.config.dwell_bins, "one segment"
        )
        if evidence is None or not len(evidence.user):
            zero = np.zeros(self.start, np.int64)
            return MixMergeFitted(
                alone.mixture, zero, alone.dwell_bins, "K=1: no evidence window, no slopes to compare"
            )
        cluster = alone.posterior(inputs).argmax(axis=1)
        sums = slope_sums(evidence, cluster, user_half(inputs.users), n_groups=self.start)
        group, gains = merge_alike(sums, k_max=self.config.k_max, k=self.k)
        k = int(group.max()) + 1
        reason = f"K={k} of {self.start} clusters by cross-fitted slopes, gains {', '.join(f'{g:.1f}' for g in gains)}"
        return MixMergeFitted(alone.mixture, group, alone.dwell_bins, reason)


@dataclass(frozen=True)
class Paper2:
    """Active and passive by dwell-implied conversion log-odds, the literal reading of the paper's digest (A.4.3)."""

    name: ClassVar[str] = "paper2"

    def fit(self, inputs: Jagged, evidence: Evidence | None = None) -> Paper2Fitted:
        """The border among 19 quantiles of a at which slopes per group explain most; one segment without evidence."""
        if evidence is None or not len(evidence.user):
            none = np.zeros(inputs.n_streams)
            return Paper2Fitted(
                none, 0.0, 1.0, np.zeros(1), Readout(), "K=1: no evidence window, all slopes 0"
            )
        beta = pooled_slopes(evidence)
        a = inputs.exposure() @ beta
        half = np.zeros(inputs.n_users, np.int64)
        borders = np.unique(np.quantile(a[inputs.events > 0], _QUANTILES))
        worth = [
            explained(slope_sums(evidence, (a < border).astype(np.int64), half, n_groups=2).half(0))
            for border in borders
        ]
        border = float(borders[int(np.argmax(worth))])
        share = float((a >= border).mean())
        if not 0 < share < 1:
            return Paper2Fitted(beta, border, 1.0, np.zeros(1), Readout(), "K=1: all users are alike")
        rough = Paper2Fitted(beta, border, float(a.std()), np.log([0.5, 0.5]), Readout(), "")
        views = [View(rough.evidence(half), half.events.astype(np.float64)) for half in inputs.halves()]
        reason = f"K=2: active at or above {border:.4g} log-odds, {share:.1%} of the users"
        return Paper2Fitted(
            beta,
            border,
            rough.scale,
            rough.log_prior,
            fit_readout(views[0], views[1], rough.log_prior),
            reason,
        )
