"""Relevance beside other streams against explicit projections, the greedy choice, and of two copies exactly one goes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.feature_selection import f_classif

from benchmarks.gates_broken import no_second_look
from dynamix.config import MaskConfig
from dynamix.contracts import CHANNELS
from dynamix.features.gram import GramSums, columns_of, gram_sums
from dynamix.features.recency import SHARED
from dynamix.features.relevance import WHOLE, CellSums, block_sums
from dynamix.segmentation.cells import ROWS_PER_VALUE, Cell, Statistics
from dynamix.segmentation.certify import joint_bound, losses
from dynamix.segmentation.effects import block_quadratic, block_test, given_rest
from dynamix.segmentation.masks import Protection, Verdict, judge
from dynamix.segmentation.quota import Spent
from dynamix.segmentation.selection import Chain, along, carrier, classic, greedy

Floats = npt.NDArray[np.float64]
DWELL, COUNT, PRESENCE = (CHANNELS.index(name) for name in ("dwell", "count", "presence"))
CONFIG = MaskConfig(delta=0.20, ne_budget=0.005)
HEAD = "conversion"


def exposures(rng: np.random.Generator, rows: int, streams: int) -> Floats:
    """x (B, F, 6): independent dwell, count and match exposures of streams that everybody has."""
    x = np.zeros((rows, streams, len(CHANNELS)))
    x[:, :, DWELL] = rng.normal(size=(rows, streams))
    x[:, :, COUNT] = np.log1p(rng.integers(1, 6, (rows, streams)))
    x[:, :, CHANNELS.index("match")] = rng.random((rows, streams)) < 0.3
    x[:, :, PRESENCE] = 1.0
    return x


def copy(rng: np.random.Generator, x: Floats, *, of: int, to: int, correlation: float = 0.98) -> None:
    """Make stream `to` a near-copy of stream `of`."""
    noise = rng.normal(size=len(x))
    x[:, to] = x[:, of]
    x[:, to, DWELL] = correlation * x[:, of, DWELL] + np.sqrt(1 - correlation**2) * noise


def labels(rng: np.random.Generator, line: Floats) -> Floats:
    return np.asarray((rng.random(len(line)) < 1 / (1 + np.exp(-line))).astype(float))


def drawn(seed: int = 0, rows: int = 3_000) -> tuple[Floats, Floats, Floats, Floats, Any]:
    """x of four streams, the second a copy of the first; stream 0 and 3 act."""
    rng = np.random.default_rng(seed)
    x = exposures(rng, rows, 4)
    copy(rng, x, of=0, to=1)
    y = labels(rng, -2 + 0.5 * x[:, 0, DWELL] + 0.4 * x[:, 3, COUNT])
    return x, rng.normal(size=(rows, SHARED)), y, np.full(rows, y.mean()), np.arange(rows) // 3


def test_a_stream_adds_what_its_residual_says() -> None:
    x, shared, y, p, user = drawn()
    sums = GramSums.unpack(gram_sums(x, shared, y, p, user))
    values = np.concatenate([x, x[:, :, [DWELL]] ** 2], axis=2)
    chain = Chain(sums)
    for stream in (3, 0):
        chain.take(stream)
    known = np.column_stack([np.ones(len(y)), shared, values[:, 3], values[:, 0]])
    w, r = p * (1 - p), y - p
    root = np.sqrt(w)[:, None]
    own = values[:, 2] - known @ np.linalg.lstsq(root * known, root * values[:, 2], rcond=None)[0]
    own = own[:, own.std(axis=0) > 1e-6]
    whitened = own @ np.linalg.inv(np.linalg.cholesky(own.T @ (w[:, None] * own))).T
    by_user = np.array([(whitened * r[:, None])[user == u].sum(axis=0) for u in np.unique(user)])
    expected = block_quadratic(by_user.sum(axis=0), by_user.T @ by_user)
    found = chain.adds(2)
    assert (found.q, found.trace, found.square) == pytest.approx(
        (expected.q, expected.trace, expected.square)
    )


def test_what_streams_add_in_turn_is_their_joint_block_test_in_any_order() -> None:
    sums = GramSums.unpack(gram_sums(*drawn()))
    own = np.concatenate([columns_of(f) for f in range(4)])
    expected, _ = block_test(*given_rest(sums, own, np.arange(SHARED)), sums.w)
    for order in itertools.islice(itertools.permutations(range(4)), 0, 24, 7):
        added = along(sums, order)
        assert sum(q.q for q in added) == pytest.approx(expected.q, rel=1e-6)


def test_a_copy_adds_nothing_to_its_original_and_everything_without_it() -> None:
    sums = GramSums.unpack(gram_sums(*drawn(rows=20_000)))
    alone = along(sums, [1])[0]
    beside = along(sums, [0, 1])[1]
    assert alone.lower() > 300 and beside.lower() == 0 and beside.upper() < 40
    assert carrier(sums, 1, [2, 3, 0]) == 0


def test_the_greedy_choice_takes_the_most_relevant_and_its_copy_last() -> None:
    sums = GramSums.unpack(gram_sums(*drawn(rows=20_000)))
    order = greedy([sums], [0, 1, 2, 3])
    assert order[0] in (0, 1) and order[1] == 3
    assert greedy([sums], [0, 1, 2], start=[3])[0] == order[0]
    brute = list[int]()
    while len(brute) < 4:
        gains = {f: along(sums, [*brute, f])[-1].estimate for f in range(4) if f not in brute}
        brute.append(max(gains, key=lambda f: gains[f]))
    assert order == brute
    assert greedy([sums, sums], [0, 1, 2, 3]) == order


def test_equal_streams_are_taken_in_the_order_given() -> None:
    x, *rest = drawn()
    x[:, 1] = x[:, 0]
    sums = GramSums.unpack(gram_sums(x, *rest))
    for streams in ([0, 1, 2, 3], [1, 0, 2, 3]):
        order = greedy([sums], streams)
        assert [f for f in order if f in (0, 1)] == streams[:2]


def test_a_segment_whose_streams_are_all_constant_gives_no_relevance() -> None:
    _, shared, y, p, user = drawn()
    sums = GramSums.unpack(gram_sums(np.zeros((len(y), 2, len(CHANNELS))), shared, y, p, user))
    assert [(q.q, q.trace) for q in along(sums, [0, 1])] == [(0.0, 0.0), (0.0, 0.0)]


def textbook_mrmr(x: Floats, y: Floats, k: int, criterion: str) -> list[int]:
    """F statistic over, or minus, the mean absolute correlation, by scikit-learn and NumPy."""
    relevance = f_classif(x, y)[0]
    correlation = np.abs(np.corrcoef(x, rowvar=False))
    taken = [int(np.argmax(relevance))]
    while len(taken) < k:
        redundancy = correlation[:, taken].mean(axis=1)
        gain = relevance / np.maximum(redundancy, 1e-3) if criterion == "miq" else relevance - redundancy
        gain[taken] = -np.inf
        taken.append(int(np.argmax(gain)))
    return taken


@pytest.mark.parametrize("criterion", ["miq", "mid"])
@pytest.mark.parametrize("seed", range(3))
def test_the_classic_criterion_is_that_of_the_textbook(criterion: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = exposures(rng, 2_000, 10)
    x[:, :, DWELL] = rng.normal(size=(2_000, 10)) + 1.5 * rng.normal(size=(2_000, 3))[:, np.arange(10) % 3]
    y = labels(rng, -1 + x[:, :, DWELL] @ rng.normal(0, 0.3, 10))
    sums = GramSums.unpack(
        gram_sums(x, np.zeros((2_000, SHARED)), y, np.full(2_000, y.mean()), np.arange(2_000))
    )
    found = classic(sums, list(range(10)), k=6, criterion=criterion)
    assert found == textbook_mrmr(x[:, :, DWELL], y, 6, criterion)


def statistics(
    x: Floats, y: Floats | Mapping[str, Floats], *, names: tuple[str, ...], segment: Any = None
) -> Statistics:
    """Cells, thirds and sums over all streams of users with two impressions each."""
    rows = len(x)
    user = np.arange(rows) // 2
    half, window = user % 2, user // 2 % 3
    segments = np.ones(rows, np.int64) if segment is None else segment
    heads = y if isinstance(y, Mapping) else {HEAD: y}
    sums: dict[tuple[int, str, str, int, int], CellSums] = {}
    together = {}
    for (head, label), g, h in itertools.product(heads.items(), np.unique(segments), (0, 1)):
        mine = (segments == g) & (half == h)
        rest = (np.zeros((rows, SHARED)), label, np.full(rows, label.mean()), user)
        for days in (WHOLE, 0, 1, 2):
            take = mine if days == WHOLE else mine & (window == days)
            packed = block_sums(x[take], *(v[take] for v in rest), has_dwell=np.ones(x[take].shape[:2], bool))
            for f, name in enumerate(names):
                sums[int(g), name, head, h, days] = CellSums.unpack(packed[f])
        together[int(g), head, h] = GramSums.unpack(gram_sums(x[mine], *(v[mine] for v in rest)))
    return Statistics(sums, tuple(heads), together, {name: f for f, name in enumerate(names)})


def verdicts(found: list[Verdict]) -> dict[Cell, str]:
    return {(v.segment_id, v.stream): v.verdict for v in found}


def pair(seed: int = 0, *, names: tuple[str, ...] = ("a", "b", "null", "most")) -> Statistics:
    """Streams 0 and 1 are copies of equal right: one latent exposure acts, and both tell it nearly."""
    rng = np.random.default_rng(seed)
    x = exposures(rng, 40_000, 4)
    copy(rng, x, of=0, to=1)
    told = (x[:, 0, DWELL] + x[:, 1, DWELL]) / 2
    return statistics(x, labels(rng, -2 + 0.4 * told + 0.8 * x[:, 3, DWELL]), names=names)


@pytest.mark.parametrize("seed", range(3))
def test_of_two_copies_exactly_one_goes_and_the_sentence_names_the_other(seed: int) -> None:
    found = {v.stream: v for v in judge(pair(seed), CONFIG)}
    gone = [f for f in ("a", "b") if found[f].verdict == "drop"]
    assert len(gone) == 1
    other = {"a": "b", "b": "a"}[gone[0]]
    assert found[gone[0]].reason.startswith("redundant: ") and other in found[gone[0]].reason
    assert found[other].verdict == "keep" and found["most"].verdict == "keep"
    assert found["null"].verdict == "drop" and found["null"].reason.startswith("negligible: ")
    beside = {f: next(c for c in found[f].checks if c.rule == "beside") for f in found}
    assert beside[gone[0]].passed and not beside[other].passed


def test_without_a_second_look_both_copies_go() -> None:
    found = verdicts(no_second_look(pair(), CONFIG))
    assert found[1, "a"] == found[1, "b"] == "drop"


def test_alone_both_copies_stay() -> None:
    found = verdicts(judge(replace(pair(), together={}), CONFIG))
    assert found[1, "a"] == found[1, "b"] == "keep" and found[1, "null"] == "drop"


def test_the_same_sums_give_the_same_verdicts_in_any_order_of_the_keys() -> None:
    found = pair()
    turned = replace(
        found, sums=dict(reversed(found.sums.items())), together=dict(reversed(found.together.items())),
        place=dict(reversed(found.place.items())),
    )  # fmt: skip
    assert judge(found, CONFIG) == judge(turned, CONFIG)


def test_of_three_copies_two_go() -> None:
    rng = np.random.default_rng(5)
    x = exposures(rng, 40_000, 4)
    copy(rng, x, of=0, to=1)
    copy(rng, x, of=0, to=2)
    y = labels(rng, -2 + 0.4 * x[:, 0, DWELL] + 0.8 * x[:, 3, DWELL])
    found = verdicts(judge(statistics(x, y, names=("a", "b", "c", "most")), CONFIG))
    assert sorted(found[1, f] for f in "abc") == ["drop", "drop", "keep"]


def test_a_protected_copy_stays_and_the_other_goes() -> None:
    for name, other in (("a", "b"), ("b", "a")):
        found = verdicts(judge(pair(), CONFIG, protection=Protection(frozenset({name}))))
        assert (found[1, name], found[1, other]) == ("keep", "drop")


def test_a_stream_that_only_acts_beside_another_stays() -> None:
    rng = np.random.default_rng(2)
    x = exposures(rng, 60_000, 3)
    x[:, 1, DWELL] = (x[:, 0, DWELL] + x[:, 1, DWELL]) / np.sqrt(2)
    line = 0.5 * x[:, 0, DWELL] - 0.5 * np.sqrt(0.5) * x[:, 1, DWELL]  # alone, stream 1 says nothing
    found = statistics(x, labels(rng, -2 + line + 0.8 * x[:, 2, DWELL]), names=("a", "b", "most"))
    alone = next(v for v in judge(replace(found, together={}), CONFIG) if v.stream == "b")
    assert abs(alone.effect.channels["dwell"].beta) < 0.05
    assert verdicts(judge(found, CONFIG))[1, "b"] != "drop"


def test_a_copy_goes_only_where_it_is_one_under_every_head() -> None:
    rng = np.random.default_rng(3)
    x = exposures(rng, 40_000, 4)
    copy(rng, x, of=0, to=1, correlation=0.995)
    x[:, 1, CHANNELS.index("match")] = rng.random(40_000) < 0.3  # its own match, which only clicks follow
    line = -2 + 0.5 * x[:, 0, DWELL] + 0.8 * x[:, 3, DWELL]
    heads = {"click": labels(rng, line + x[:, 1, CHANNELS.index("match")]), HEAD: labels(rng, line)}
    names = ("a", "b", "null", "most")
    one = verdicts(judge(statistics(x, heads[HEAD], names=names), CONFIG))
    assert sorted((one[1, "a"], one[1, "b"])) == ["drop", "keep"]
    found = verdicts(judge(statistics(x, heads, names=names), CONFIG))
    assert (found[1, "a"], found[1, "b"]) == ("drop", "keep")


def test_a_segment_with_too_few_impressions_for_its_values_is_judged_cell_by_cell() -> None:
    rng = np.random.default_rng(4)
    rows = 20_000
    x = exposures(rng, rows, 3)
    width = SHARED + 3 * len(columns_of(0))
    few = 2 * (ROWS_PER_VALUE * width - 4)
    segment = np.where(np.arange(rows) < few, 2, 1)
    found = statistics(x, labels(rng, -2 + 0.5 * x[:, 0, DWELL]), names=("a", "b", "c"), segment=segment)
    assert found.all_streams(1, HEAD) is not None and found.all_streams(2, HEAD) is None
    bound = joint_bound(found, CONFIG, eligible=frozenset(found.cells), wanted=lambda joint: joint.cells)
    assert set(bound.order) == {1}
    assert set(losses(found, HEAD, half=0, order=bound.order)) == set(found.cells)


def test_pooling_adds_the_sums_over_all_streams() -> None:
    rng = np.random.default_rng(6)
    x = exposures(rng, 4_000, 2)
    segment = np.where(np.arange(4_000) < 1_200, 1, 2)
    found = statistics(x, labels(rng, -1 + x[:, 0, DWELL]), names=("a", "b"), segment=segment)
    parts = [found.all_streams(g, HEAD) for g in (1, 2)]
    pooled = found.pooled().all_streams(0, HEAD)
    assert pooled is not None and parts[0] is not None and parts[1] is not None
    assert pooled.pack() == pytest.approx((parts[0] + parts[1]).pack())


def test_drops_cost_the_cuts_what_they_say_beside_the_streams_that_stay() -> None:
    found = pair()
    decided = judge(found, CONFIG)
    gone = {v.stream for v in decided if v.verdict == "drop"}
    spent, scale = Spent.by_drops(found, decided).of(HEAD, 0)
    sums = found.all_streams(1, HEAD, half=0)
    assert sums is not None
    own = np.concatenate([columns_of(found.place[f]) for f in sorted(gone)])
    rest = np.setdiff1d(np.arange(len(sums.wx)), own)
    expected, _ = block_test(*given_rest(sums, own, rest), sums.w)
    assert spent.q == pytest.approx(expected.q, rel=1e-3)
    assert spent.upper() * scale < CONFIG.ne_budget
