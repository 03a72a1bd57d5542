"""Verdicts that other attribution settings contradict, and effects that lie between users only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from dynamix.config import MaskConfig
from dynamix.contracts import CHANNELS
from dynamix.features.conversions import SETTINGS, setting_label
from dynamix.features.relevance import BETWEEN, NUISANCE, WHOLE, WITHIN, C, CellSums, block_sums, user_sums
from dynamix.segmentation.cells import Statistics
from dynamix.segmentation.masks import judge
from dynamix.segmentation.robustness import flip, lies_between_users, slopes_apart

Floats = npt.NDArray[np.float64]
CONFIG = MaskConfig(delta=0.20, ne_budget=0.005)
HEAD, DWELL = "conversion", CHANNELS.index("dwell")
ROWS, EACH = 40_000, 4
USER = np.arange(ROWS) // EACH


def exposure(rng: np.random.Generator) -> Floats:
    """x (B, 2, 6): streams `f` and `most` with a dwell that varies within and between users alike."""
    x = np.zeros((ROWS, 2, C))
    own = rng.normal(size=(ROWS // EACH, 2))[USER]
    x[:, :, DWELL] = np.sqrt(0.5) * (own + rng.normal(size=(ROWS, 2)))
    x[:, :, CHANNELS.index("presence")] = 1.0
    x[:, :, CHANNELS.index("count")] = np.log1p(rng.integers(1, 5, (ROWS, 2)))
    return x


def drawn_labels(rng: np.random.Generator, x: Floats, effect: Floats | float) -> Floats:
    line = -2 + np.asarray(effect) + 0.8 * x[:, 1, DWELL]
    return np.asarray((rng.random(ROWS) < 1 / (1 + np.exp(-line))).astype(float))


def statistics(x: Floats, labels: dict[str, Floats]) -> Statistics:
    sums: dict[tuple[int, str, str, int, int], CellSums] = {}
    for label, y in labels.items():
        for half in (0, 1):
            mine = np.flatnonzero(half == USER % 2)
            part = (
                x[mine],
                np.zeros((len(mine), len(NUISANCE))),
                y[mine],
                np.full(len(mine), y.mean()),
                USER[mine],
            )
            found = [(WHOLE, block_sums(*part))]
            if label == HEAD:
                found += [(w, block_sums(*(v[USER[mine] // 2 % 3 == w] for v in part))) for w in (0, 1, 2)]
                found += zip((WITHIN, BETWEEN), user_sums(*part), strict=True)
            for window, packed in found:
                for f, name in enumerate(("f", "most")):
                    sums[1, name, label, half, window] = CellSums.unpack(packed[f])
    settings = tuple(s for s in SETTINGS if setting_label(HEAD, s) in labels)
    return Statistics(sums, (HEAD,), settings=settings)


def under(effects: dict[str, float], seed: int = 0) -> Statistics:
    """Stream `f` with an effect of its own under each setting (`own` is the config's)."""
    rng = np.random.default_rng(seed)
    x = exposure(rng)
    labels = {
        HEAD if s == "own" else setting_label(HEAD, s): drawn_labels(rng, x, effect * x[:, 0, DWELL])
        for s, effect in effects.items()
    }
    return statistics(x, labels)


@pytest.mark.parametrize("seed", range(3))
def test_a_drop_that_another_setting_contradicts_is_undecided(seed: int) -> None:
    calm = {"own": 0.0, "short": 0.0, "first_touch": 0.0, "any_touch": 0.0}
    found = {v.stream: v for v in judge(under(calm, seed), CONFIG)}
    assert found["f"].verdict == "drop"
    found = {v.stream: v for v in judge(under(calm | {"any_touch": 0.5}, seed), CONFIG)}
    assert found["f"].verdict == "undecided"
    assert found["f"].reason.startswith("attribution: conversion at least ")
    assert "by setting any_touch, at most" in found["f"].reason
    assert found["most"].verdict == "keep"


def test_relevance_that_another_setting_refutes_is_undecided() -> None:
    found = {v.stream: v for v in judge(under({"own": 0.5, "short": 0.0}), CONFIG)}
    assert found["f"].verdict == "undecided" and "by setting own" in found["f"].reason
    assert "by short" in found["f"].reason


def test_settings_that_say_the_same_or_too_little_contradict_nothing() -> None:
    agreed = under({"own": 0.5, "short": 0.4, "first_touch": 0.5})
    assert flip(agreed, (1, "f"), CONFIG) is None
    assert flip(replace(agreed, settings=()), (1, "f"), CONFIG) is None
    both = under({"own": 0.5, "short": 0.0})
    assert flip(both, (1, "f"), CONFIG) is not None
    rare = {
        key: replace(s, with_stream=1.0) if key[2] != HEAD else s for key, s in both.sums.items()
    }  # a setting without the positives to decide refutes nothing
    assert flip(replace(both, sums=rare), (1, "f"), CONFIG) is None


def split(within: float, between: float, seed: int = 0) -> Statistics:
    rng = np.random.default_rng(seed)
    x = exposure(rng)
    mean = np.repeat(x[:, 0, DWELL].reshape(-1, EACH).mean(axis=1), EACH)
    return statistics(x, {HEAD: drawn_labels(rng, x, within * (x[:, 0, DWELL] - mean) + between * mean)})


@pytest.mark.parametrize(("within", "between"), [(0.0, 0.6), (0.6, 0.0), (0.5, 0.5), (-0.4, 0.6)])
def test_slopes_within_and_between_users_are_the_planted_ones(within: float, between: float) -> None:
    found = slopes_apart(split(within, between), (1, "f"), HEAD)["dwell"]
    # beside the effect of the other stream, which is left out, slopes shrink a little
    assert found.within == pytest.approx(within, abs=0.03 + 4 * found.within_se)
    assert found.between == pytest.approx(between, abs=0.03 + 4 * found.between_se)
    assert 0 < found.within_se < 0.1 and 0 < found.between_se < 0.1


def test_an_effect_between_users_only_is_kept_and_said_to_be_user_level() -> None:
    found = {v.stream: v for v in judge(split(0.0, 0.7), CONFIG)}
    assert found["f"].verdict == "keep" and found["f"].reason.startswith("user-level: ")
    assert "within users at most" in found["f"].reason
    found = {v.stream: v for v in judge(split(0.5, 0.5), CONFIG)}
    assert found["f"].verdict == "keep" and found["f"].reason.startswith("dwell: ")
    assert lies_between_users(split(0.6, 0.0), (1, "f"), HEAD, CONFIG) is None


def test_an_exposure_that_never_changes_within_a_user_has_no_slope_there() -> None:
    rng = np.random.default_rng(0)
    x = exposure(rng)
    x[:, 0, DWELL] = rng.normal(size=ROWS // EACH)[USER]
    found = slopes_apart(statistics(x, {HEAD: drawn_labels(rng, x, 0.4 * x[:, 0, DWELL])}), (1, "f"), HEAD)
    assert (found["dwell"].within, found["dwell"].within_se) == (0.0, 0.0)
    assert found["dwell"].between == pytest.approx(0.4, abs=0.08)
    assert found["presence"] == type(found["presence"])(0.0, 0.0, 0.0, 0.0)
