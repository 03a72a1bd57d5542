"""Who competes in the contest of the segmenters: ours by their rules and with K given, and plain clusterings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from benchmarks import segment_coles
from benchmarks.segment_worlds import SegmentWorld
from dynamix.config import SegmentationConfig
from dynamix.segmentation.jagged import Floats, Jagged
from dynamix.segmentation.methods import segmenter
from dynamix.segmentation.neural import Neural

CONFIG = SegmentationConfig()


@dataclass(frozen=True)
class Answer:
    """Posterior (U, K) of a method, its reason, seconds of processor time to fit and to apply."""

    q: Floats
    reason: str
    fit_s: float
    apply_s: float


Fit = Callable[[SegmentWorld, int], Answer]
"""World and number of the starts (0, 1, …) -> answer."""


@dataclass(frozen=True)
class Method:
    """`refit` is False where a second fit for the churn would take minutes."""

    fit: Fit
    refit: bool = True


def asked(name: str, *, k: int | None = None) -> Fit:
    """One of the product's segmenters: fit on the world, apply to all its users."""

    def answer(world: SegmentWorld, starts: int) -> Answer:
        recipe = segmenter(name, CONFIG.model_copy(update={"seed": CONFIG.seed + starts}), k=k)
        if isinstance(recipe, Neural):
            training, search = (replace(c, seed=c.seed + starts) for c in (recipe.training, recipe.search))
            recipe = replace(recipe, training=training, search=search)
        began = time.process_time()
        fitted = recipe.fit(world.inputs, world.evidence)
        between = time.process_time()
        q = fitted.posterior(world.inputs)
        return Answer(q, fitted.reason, between - began, time.process_time() - between)

    return answer


def features_of(inputs: Jagged, *, clr: bool) -> Floats:
    """ln(1 + events) per stream (U, F), or the centred log ratio with .5 added."""
    counts = np.zeros((inputs.n_users, inputs.n_streams))
    np.add.at(counts, (inputs.user_of_event, inputs.stream), 1.0)
    if not clr:
        return np.log1p(counts)
    logs = np.log(counts + 0.5)
    return np.asarray(logs - logs.mean(axis=1, keepdims=True))


def k_means(k: int, *, clr: bool) -> Fit:
    """Hard labels of k-means as posteriors of 0 and 1."""

    def answer(world: SegmentWorld, starts: int) -> Answer:
        began = time.process_time()
        features = features_of(world.inputs, clr=clr)
        labels = KMeans(n_clusters=k, n_init=3, random_state=starts).fit_predict(features)
        return Answer(np.eye(k)[labels], "", time.process_time() - began, 0.0)

    return answer


def gaussian(k: int) -> Fit:
    """A Gaussian mixture with full covariances on the centred log ratio."""

    def answer(world: SegmentWorld, starts: int) -> Answer:
        x = features_of(world.inputs, clr=True)[:, :-1]  # rows sum to 0: the last column is redundant
        began = time.process_time()
        model = GaussianMixture(k, reg_covar=1e-3, random_state=starts).fit(x)
        between = time.process_time()
        return Answer(model.predict_proba(x), "", between - began, time.process_time() - between)

    return answer


def coles(k: int, python: Path) -> Fit:
    """k-means on the embeddings of pytorch-lifestream's CoLES; users without events join the largest cluster."""

    def answer(world: SegmentWorld, starts: int) -> Answer:
        found = segment_coles.embed(world.inputs, python=python, seed=starts)
        began = time.process_time()
        own = KMeans(n_clusters=k, n_init=3, random_state=starts).fit_predict(found.embedding)
        labels = np.full(world.inputs.n_users, np.bincount(own).argmax())
        labels[found.rows] = own
        clustered = time.process_time() - began
        return Answer(np.eye(k)[labels], "", found.fit_s + clustered, found.apply_s)

    return answer


def methods(k: int, *, by_rule: bool = True, lifestream: Path | None = None) -> dict[str, Method]:
    """Every contestant by name: those with a rule for K, then with K given, then the plain clusterings.

    Without `by_rule` mix and neural are only given their K; CoLES competes where `lifestream` names its interpreter.
    """
    found = {"mix": Method(asked("mix")), "neural": Method(asked("neural"), refit=False)} if by_rule else {}
    found |= {name: Method(asked(name)) for name in ("mix-merge", "paper2")}
    found |= {f"{name} given": Method(asked(name, k=k)) for name in ("mix", "neural", "mix-merge")}
    found |= {
        "k-means log counts": Method(k_means(k, clr=False)),
        "k-means CLR": Method(k_means(k, clr=True)),
        "Gaussian mixture CLR": Method(gaussian(k)),
    }
    return found | ({"CoLES + k-means": Method(coles(k, lifestream))} if lifestream else {})
