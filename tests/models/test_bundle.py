"""The mask bundle: its reader answers as the product does, alone, and refuses what it does not know."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamix.declarations import EVENT_ATTRIBUTES
from dynamix.errors import GuardError
from dynamix.features.calendar import DAY_US
from dynamix.models import mask_reader
from dynamix.models.bundle import (
    LIMIT_BYTES,
    Origin,
    _held_out,
    answers,
    bundle_text,
    golden_vectors,
    lost_by_event,
    mask_status,
)
from dynamix.models.carried import Carried
from dynamix.models.dwells import DwellRule
from dynamix.models.hashing import spark_xxhash64
from dynamix.models.mask_reader import CONTRACT, CONTRACT_2, MaskBundle, check, xxhash64
from dynamix.models.segmenter import Segmenter
from dynamix.models.serving import Cell, Preparation, StreamScale

GOLDEN = Path(__file__).with_name("golden")
PUBLISHED = Origin("models:/dynamix-ranker/1", "published", "0123456789abcdef", "2026-02-16")
N_STREAMS, SEGMENTS = 5, (4, 2, 7)
NAMES = ["s0/view", "s1/view", "s0/view#buy", "s3/view", "s4/view"]
SINCE = 20_000 * DAY_US


def preparation(seed: int, *, dwell_bins: bool = True, derive: bool = True, boost_to: int = 0) -> Preparation:
    """A drawn model: quotas by tier, own lengths, caps, constants, a session kind, a sensitive stream, a mixture."""
    rng = np.random.default_rng(seed)
    width = (N_STREAMS - 1) * (13 if dwell_bins else 1)  # the last stream is younger than the mixture
    p = rng.dirichlet(np.full(width, 0.1), size=len(SEGMENTS)) + 1e-6
    cells = [
        Cell(segment, tier, name, int(rng.choice([0, 1, 3, 9])))
        for segment in (0, *SEGMENTS)
        for name in NAMES
        for tier in rng.choice(["active", "passive", "*", "none"], size=1).tolist()
        if tier != "none"
    ]
    return Preparation(
        streams={name: StreamScale(i, None, None, is_conversion=i == 1) for i, name in enumerate(NAMES)},
        surfaces=("s",), heads=("click",), item_buckets=10, per_stream=4, total=9, embargo_s=60,
        mask_version="m20260216-00000000", segment_version="s20260216-00000000", cells=tuple(cells),
        segmenter=Segmenter(
            SEGMENTS, np.log(p / p.sum(axis=1, keepdims=True)), np.log([0.5, 0.3, 0.2]), 0.7, 3, 2.0, dwell_bins, SINCE
        ),
        carried=Carried(lengths={2: 1, 3: 12}),
        dwell=DwellRule(derive, False, 30 * 60_000_000, DAY_US, {0: 5_000, 2: 900_000}, {3: (30_000,)}),
        boost_to=boost_to,
    )  # fmt: skip


waits_us = st.sampled_from(
    [0, 1, 2_000_000, 60_000_000, 30 * 60_000_000, 30 * 60_000_001, DAY_US // 3, DAY_US]
)
events = st.lists(
    st.tuples(
        waits_us,
        st.sampled_from([*NAMES, "un/known"]),
        st.sampled_from([None, None, 0, 2.5, 30_000, 7_000.4]),
    ),
    max_size=40,
)
requests = st.tuples(
    st.integers(0, DAY_US), events, st.integers(0, 120), st.sampled_from([None, 0, 2, 99]),
    st.sampled_from([None, None, "active", "passive"]), st.randoms(use_true_random=False),
)  # fmt: skip


def asked(drawn: Any) -> dict[str, Any]:
    offset, listed, user, segment, tier, random = drawn
    now = SINCE + 5 * DAY_US + offset
    back = np.cumsum([wait for wait, *_ in listed]).astype(int).tolist()
    history = [
        {"stream": stream, "ts": now - ago, **({} if ms is None else {"dwell_ms": ms})}
        for ago, (_, stream, ms) in zip(back, listed, strict=True)
    ]
    random.shuffle(history)
    return {
        "user_id": f"user-{user}",
        "request_ts": now,
        "events": history,
        "segment_id": segment,
        "tier": tier,
    }


@settings(max_examples=150)
@given(
    st.lists(requests, min_size=1, max_size=4), st.integers(0, 50), st.booleans(), st.booleans(),
    st.sampled_from([0, 5, 9, 20]),
)  # fmt: skip
def test_the_reader_answers_as_the_product_on_any_history(
    drawn: list[Any], seed: int, dwell_bins: bool, derive: bool, boost_to: int
) -> None:
    own = preparation(seed, dwell_bins=dwell_bins, derive=derive, boost_to=boost_to)
    bundle = MaskBundle(bundle_text(own, PUBLISHED))
    listed = [asked(one) for one in drawn]
    assert [bundle.apply(**one)._asdict() for one in listed] == answers(own, listed)


def losing(seed: int) -> Preparation:
    """The drawn model where about half of the cells keep some of the attributes only."""
    own, rng = preparation(seed), np.random.default_rng(seed)
    kept = [tuple(rng.choice(EVENT_ATTRIBUTES, size=rng.integers(0, 4), replace=False)) for _ in own.cells]
    cells = [
        replace(c, attributes=tuple(sorted(map(str, k)))) if rng.random() < 0.5 else c
        for c, k in zip(own.cells, kept, strict=True)
    ]
    return replace(own, cells=tuple(cells))


@settings(max_examples=60)
@given(st.lists(requests, min_size=1, max_size=4), st.integers(0, 50))
def test_the_reader_says_what_kept_events_lose_as_the_product_does(drawn: list[Any], seed: int) -> None:
    own = losing(seed)
    bundle, asked_for = MaskBundle(bundle_text(own, PUBLISHED)), [asked(one) for one in drawn]
    for one, wanted in zip(asked_for, lost_by_event(own, asked_for), strict=True):
        found = bundle.apply(**one)
        assert [bundle.lost(found, one["events"][place]["stream"]) for place in found.kept] == wanted


def test_a_bundle_that_takes_attributes_has_a_contract_of_its_own_and_its_vectors_notice() -> None:
    own = losing(3)
    text, vectors = bundle_text(own, PUBLISHED), golden_vectors(own)
    assert json.loads(text)["contract"] == CONTRACT_2
    assert json.loads(bundle_text(preparation(0), PUBLISHED))["contract"] == CONTRACT
    assert check(MaskBundle(text), vectors) == [] and any("lost" in v for v in vectors)
    other = MaskBundle(text)
    del other.content["lost"]
    assert check(other, vectors)
    assert not any("lost" in v for v in golden_vectors(preparation(3)))


def test_a_bundle_holds_boosts_and_lost_attributes_side_by_side() -> None:
    """Each part alone, and a vector for each: what is taken out of the bundle is noticed."""
    own = replace(losing(3), boost_to=9)
    boosted = replace(own, cells=(*own.cells, Cell(7, "active", "s0/view", 9)))
    text, vectors = bundle_text(boosted, PUBLISHED), golden_vectors(boosted)
    whole = json.loads(text)
    assert whole["contract"] == CONTRACT_2 and whole["content"]["lost"]
    assert {s["longest"] for s in whole["content"]["streams"].values()} >= {9}
    assert check(MaskBundle(text), vectors) == []
    plain = json.loads(bundle_text(losing(3), PUBLISHED))["content"]
    assert "lost" in plain and not any("longest" in s for s in plain["streams"].values())
    kept = tuple(replace(c, attributes=None) for c in own.cells)
    assert "lost" not in json.loads(bundle_text(replace(own, cells=kept), PUBLISHED))["content"]


@given(st.binary(max_size=80), st.integers(0, 2**64 - 1))
def test_the_reader_s_hash_is_the_one_that_marks_the_hold_out(data: bytes, seed: int) -> None:
    text = data.hex()
    chained = xxhash64(text.encode(), xxhash64(b"holdout", 42))
    assert chained - (chained >> 63 << 64) == spark_xxhash64("holdout", text)
    assert 0 <= xxhash64(data, seed) < 2**64


def stored() -> tuple[str, list[dict[str, Any]]]:
    text = (GOLDEN / "mask-bundle.json").read_text(encoding="utf-8")
    return text, json.loads((GOLDEN / "mask-bundle.golden.json").read_text(encoding="utf-8"))


def test_the_stored_vectors_are_what_product_and_reader_say() -> None:
    """Written once by the product: a change of the rule, the contract or the reader shows here."""
    text, vectors = stored()
    assert bundle_text(preparation(0), PUBLISHED) == text
    assert answers(preparation(0), [v["request"] for v in vectors]) == [v["found"] for v in vectors]
    assert check(MaskBundle(text), vectors) == []


def test_the_stored_vectors_reach_every_branch_that_matters() -> None:
    text, vectors = stored()
    found = [v["found"] for v in vectors]
    assert {v["segment_id"] for v in found} >= {0, *SEGMENTS} and {v["tier"] for v in found} == {
        "active",
        "passive",
    }
    assert any(v["holdout"] for v in found) and any(not v["request"]["events"] for v in vectors)
    broken: dict[str, Any] = {"total": 3, "embargo_us": 10**13, "quotas": {}, "holdout_per_mille": 0}
    for name, value in broken.items():
        other = MaskBundle(text)
        other.content[name] = value
        assert check(other, vectors), f"no vector notices another {name}"


def test_the_vectors_of_an_export_hold_no_real_user_and_agree() -> None:
    own = preparation(3)
    vectors = golden_vectors(own, seed=1)
    assert check(MaskBundle(bundle_text(own, PUBLISHED)), vectors) == []
    assert {v["request"]["user_id"].rpartition("-")[0] for v in vectors} == {"golden-user"}


def test_a_boosted_cell_keeps_more_than_the_base_and_an_older_reader_refuses_the_bundle() -> None:
    """Nine where the base is four; beyond it the total does not count, and no hold-out user has it."""
    cells = (Cell(2, "active", "s0/view", 9), Cell(2, "active", "s4/view", 9))
    own = replace(preparation(0), cells=cells, boost_to=9)
    text = bundle_text(own, PUBLISHED)
    assert json.loads(text)["contract"] == CONTRACT_2 != CONTRACT
    names = (
        ["s0/view"] * 12 + ["s4/view"] * 12 + ["s1/view"]
    )  # the newest last: s1, then s4, whose base is full
    now = SINCE + 5 * DAY_US
    history = [{"stream": s, "ts": now - DAY_US + i * 1_000_000} for i, s in enumerate(names)]
    request: dict[str, Any] = {"request_ts": now, "events": history, "segment_id": 2}
    for tier, user, kept in (
        ("active", "user-0", [*range(3, 12), *range(15, 24), 24]),
        ("passive", "user-0", [*range(8, 12), *range(20, 24), 24]),
        ("active", _held_out(), [*range(8, 12), *range(20, 24), 24]),
    ):
        asked_ = {**request, "user_id": user, "tier": tier}
        assert MaskBundle(text).apply(**asked_).kept == kept
        assert [MaskBundle(text).apply(**asked_)._asdict()] == answers(own, [asked_])
    tight = replace(own, total=6)  # s1, all four of s4, one of s0: cut short, so nothing beyond it
    asked_ = {**request, "user_id": "user-0", "tier": "active"}
    assert answers(tight, [asked_])[0]["kept"] == [11, *range(15, 24), 24]
    vectors = golden_vectors(own, seed=1)
    assert check(MaskBundle(text), vectors) == []
    plain = MaskBundle(bundle_text(replace(own, boost_to=0), PUBLISHED))
    assert check(plain, vectors), "no vector notices a boost"
    assert Preparation.from_json(own.to_json()).boost_to == 9
    assert "boost_to" not in preparation(0).to_json()["rule.json"]


ISOLATED = """
import builtins, sys
real = builtins.__import__
def guarded(name, *rest, **more):
    if name.split(".")[0] in ("dynamix", "numpy", "pyspark", "torch", "pyarrow", "pandas"):
        raise ImportError(name)
    return real(name, *rest, **more)
builtins.__import__ = guarded
import json, mask_reader
bundle = mask_reader.MaskBundle.load("mask-bundle.json")
print(mask_reader.check(bundle, json.load(open("mask-bundle.golden.json"))))
"""


def test_the_reader_works_alone_with_the_standard_library(tmp_path: Path) -> None:
    for path in (*GOLDEN.iterdir(), Path(mask_reader.__file__)):
        shutil.copy(path, tmp_path / path.name)
    # -S: no site-packages, so nothing installed can be imported
    done = subprocess.run(
        [sys.executable, "-S", "-c", ISOLATED], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_another_contract_and_a_changed_file_are_refused() -> None:
    whole = json.loads(stored()[0])
    with pytest.raises(
        ValueError,
        match=rf"contract 'dynamix-mask-bundle/9'; this reader knows {CONTRACT} and {CONTRACT_2}: export",
    ):
        MaskBundle(json.dumps({**whole, "contract": "dynamix-mask-bundle/9"}))
    whole["content"]["total"] += 1
    with pytest.raises(ValueError, match="differs from its sha256"):
        MaskBundle(json.dumps(whole))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("retired", "mask version m20260216-00000000 was retired"),
        ("proposed", r"m20260216-00000000 was never published \(proposed\)"),
        (None, "stands in no table `masks`"),
    ],
)
def test_a_mask_that_is_not_in_force_is_said_when_the_bundle_is_read(found: str | None, said: str) -> None:
    own = preparation(0)
    with pytest.warns(UserWarning, match=said):
        MaskBundle(bundle_text(own, replace(PUBLISHED, mask_status=mask_status(own, found))))


def test_a_model_without_a_mask_says_so_and_a_published_one_says_nothing() -> None:
    bare = replace(preparation(0), cells=(), mask_version="keep-all")
    with pytest.warns(UserWarning, match="keeps every event"):
        MaskBundle(bundle_text(bare, replace(PUBLISHED, mask_status=mask_status(bare, None))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MaskBundle(stored()[0])


def test_without_segment_tables_the_caller_hands_in_the_segment() -> None:
    """No mixture in the model, or sessions by the source's ids, which a reader does not know."""
    own = preparation(0)
    given_ids = replace(own, dwell=replace(own.dwell, given=True))
    for one in (replace(own, segmenter=None), given_ids):
        bundle = MaskBundle(bundle_text(one, PUBLISHED))
        assert bundle.content["segmenter"] is None
        history = [{"stream": "s0/view", "ts": SINCE + i} for i in range(4)]
        request: dict[str, Any] = {"user_id": "user-1", "request_ts": SINCE + DAY_US, "events": history}
        with pytest.raises(ValueError, match="hand in segment_id and tier"):
            bundle.apply(**request, segment_id=2)
        request |= {"segment_id": 2, "tier": "active"}
        assert [bundle.apply(**request)._asdict()] == answers(one, [request])


def rows_of(text: str) -> Iterator[float]:
    for usual, row in json.loads(text)["content"]["segmenter"]["log_emission"]:
        yield from (usual, *row.values())


def test_large_worlds_fit_and_a_larger_one_is_refused() -> None:
    """60 streams and 8 segments are well inside; a bundle that is too large is not written at all."""
    many = {f"surface{i}/event": StreamScale(i, None, None) for i in range(60)}
    rng = np.random.default_rng(0)

    def world(k: int) -> Preparation:
        log_p = np.log(rng.dirichlet(np.ones(60 * 13), size=k))
        segmenter = Segmenter(tuple(range(1, k + 1)), log_p, np.zeros(k), 0.9, 15, math.inf)
        cells = tuple(Cell(g, "*", name, 50) for g in range(k + 1) for name in many)
        return replace(preparation(0), streams=many, segmenter=segmenter, cells=cells)

    text = bundle_text(world(8), PUBLISHED)
    assert len(text.encode()) < LIMIT_BYTES / 3
    assert json.loads(text)["content"]["segmenter"]["active_from"] is None and all(
        map(math.isfinite, rows_of(text))
    )
    with pytest.raises(GuardError, match="allowed: under 1,000,000"):
        bundle_text(world(60), PUBLISHED)


def test_times_are_read_as_text_and_as_numbers() -> None:
    for text in (
        "2026-02-16T10:00:00.000001",
        "2026-02-16T10:00:00.000001Z",
        "2026-02-16T12:00:00.000001+02:00",
    ):
        assert mask_reader.micros(text) == mask_reader.micros(1_771_236_000_000_001)
