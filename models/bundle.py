"""The mask bundle: all that a server without Spark and torch needs to cut a history, as one JSON under 1 MB.

`models/mask_reader.py` reads it with the standard library alone. The golden vectors beside it are raw histories with
the answer of the product's own path (`apply` in models/serving.py), so that reader and product cannot drift apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dynamix.contracts import DWELL_BIN_EDGES_S, N_DWELL_BINS, NO_DWELL_BIN, TIERS
from dynamix.errors import GuardError
from dynamix.features.quotas import HOLDOUT_PER_MILLE, NO_LIMIT
from dynamix.models.hashing import is_held_out
from dynamix.models.mask_reader import CONTRACT, CONTRACT_2, DAY_US, digest, micros
from dynamix.models.segmenter import Segmenter
from dynamix.models.serving import Preparation, apply
from dynamix.segmentation.midnights import LEAD, TIER_DAYS

LIMIT_BYTES = 1_000_000
PUBLISHED = "published"
_NEVER_MASKED = "none"
_VECTORS, _USERS, _LONGEST = 24, 200, 60


@dataclass(frozen=True)
class Origin:
    """Where a bundle comes from: model address, status of its mask version, hash of the config, run date."""

    model: str
    mask_status: str
    config_hash: str
    run_date: str


def mask_status(preparation: Preparation, found: str | None) -> str:
    """Status for the bundle: that in table `masks`, `none` for a model that keeps everything, else `unknown`."""
    return _NEVER_MASKED if not preparation.cells else found or "unknown"


def bundle_text(preparation: Preparation, origin: Origin) -> str:
    """The bundle as JSON text with contract and SHA-256; GuardError above LIMIT_BYTES.

    Segment tables are left out where the model's segmenter is no mixture of one component a segment (`mix`), or sessions
    follow the source's ids: then callers hand in `segment_id` and `tier`.
    """
    content = _content(preparation, origin)
    contract = CONTRACT_2 if preparation.boost_to or "lost" in content else CONTRACT
    whole = {"contract": contract, "sha256": digest(content), "content": content}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if len(text.encode()) >= LIMIT_BYTES:
        raise GuardError(
            f"mask bundle of {origin.model} has {len(text.encode()):,} bytes for {len(preparation.streams)} streams and "
            f"{len(content['quotas'])} segments; allowed: under {LIMIT_BYTES:,}: declare fewer streams or lower "
            "segmentation.k_max"
        )
    return text


def mask_note(preparation: Preparation, status: str) -> str:
    """One sentence on whether this mask is in force; empty for a published one."""
    if status == PUBLISHED:
        return ""
    if status == _NEVER_MASKED:
        return "this model keeps every event: no mask version was published when it was trained"
    told = {"retired": "was retired", "unknown": "stands in no table `masks`"}
    return f"mask version {preparation.mask_version} {told.get(status, f'was never published ({status})')}"


def golden_vectors(preparation: Preparation, *, seed: int = 0) -> list[dict[str, Any]]:
    """Made-up raw histories with the answer of the product's own path: `{"request": ..., "found": ...}` each.

    No user of the warehouse is among them; one in the hold-out, empty and long histories, ties in time, given
    segments are.
    """
    rng = np.random.default_rng(seed)
    requests = [_request(preparation, rng, number) for number in range(_VECTORS)]
    found = answers(preparation, requests), lost_by_event(preparation, requests)
    return [
        {"request": r, "found": f} | ({"lost": lost} if any(lost) else {})
        for r, f, lost in zip(requests, *found, strict=True)
    ]


def answers(preparation: Preparation, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the product says of requests in the form of `MaskBundle.apply`: kept places, segment, tier, hold-out."""
    found = apply(_table(requests), preparation)
    places = np.split(found.kept.place, np.cumsum(np.bincount(found.kept.row, minlength=len(requests)))[:-1])
    return [
        {
            "kept": place.tolist(),
            "segment_id": int(found.segment[i]),
            "tier": TIERS[0] if found.tier[i] else TIERS[1],
            "holdout": bool(found.holdout[i]),
        }
        for i, place in enumerate(places)
    ]


def lost_by_event(preparation: Preparation, requests: list[dict[str, Any]]) -> list[list[list[str]]]:
    """What the mask takes from each kept event of each request: names of attributes, empty where it carries all."""
    found = apply(_table(requests), preparation)
    lost = found.lost(preparation)
    each = [[name for name, gone in lost.items() if gone[i]] for i in range(len(found.kept.row))]
    ends = np.cumsum(np.bincount(found.kept.row, minlength=len(requests)))
    return [each[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _content(preparation: Preparation, origin: Origin) -> dict[str, Any]:
    dwell, carried, counted = preparation.dwell, preparation.carried, preparation.counted_as()
    streams = {
        name: {
            "id": int(counted[scale.stream_id]),
            "length": carried.lengths.get(scale.stream_id, preparation.per_stream),
            "segments": not scale.is_conversion,
            "cap_ms": dwell.caps_ms.get(scale.stream_id),
            "imputed_ms": list(dwell.imputed_ms.get(scale.stream_id, ())),
        }
        for name, scale in preparation.streams.items()
    }
    if preparation.boost_to:
        ids = np.array([scale.stream_id for scale in preparation.streams.values()])
        longest = preparation.base().lengthened(ids, preparation.boost_to)
        for stream, length in zip(streams.values(), longest.tolist(), strict=True):
            stream["longest"] = length
    segmenter = _segment_tables(preparation)
    lost = _lost(preparation)
    return {
        **vars(origin),
        **({"lost": lost} if lost else {}),
        "note": mask_note(preparation, origin.mask_status),
        "mask_version": preparation.mask_version,
        "segment_version": preparation.segment_version,
        "streams": streams,
        "total": preparation.total,
        "embargo_us": round(preparation.embargo_s * 1e6),
        "holdout_per_mille": HOLDOUT_PER_MILLE,
        "quotas": _quotas(preparation),
        "segmenter": None if segmenter is None else _segmenter(segmenter),
        "dwell": {
            "derive": dwell.derive,
            "gap_us": dwell.gap_us,
            "length_us": dwell.length_us,
            "edges_ms": [edge * 1000 for edge in DWELL_BIN_EDGES_S],
            "unknown": NO_DWELL_BIN,
        },
    }


def _quotas(preparation: Preparation) -> dict[str, dict[str, dict[str, int]]]:
    """Newest events kept by segment, tier and stream; what is not named has no limit."""
    table, ids = preparation.quotas(), {s.stream_id: name for name, s in preparation.streams.items()}
    return {
        str(segment): {
            tier: {ids[f]: int(row[f]) for f in sorted(ids) if row[f] != NO_LIMIT}
            for tier, row in zip(TIERS, grid, strict=True)
        }
        for segment, grid in enumerate(table)
    }


def _segment_tables(preparation: Preparation) -> Segmenter | None:
    """The mixture by which a reader works out segments; None where callers hand them in."""
    found = preparation.segmenter
    return found if isinstance(found, Segmenter) and not (found.group or preparation.dwell.given) else None


def _lost(preparation: Preparation) -> dict[str, dict[str, dict[str, list[str]]]]:
    """Attributes that kept events lose by segment, tier and stream; cells that lose none are not named."""
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    for attribute, table in preparation.attributes().items():
        for name, scale in preparation.streams.items():
            for segment, place in np.argwhere(table[:, :, scale.stream_id] == 0).tolist():
                own = found.setdefault(str(segment), {}).setdefault(TIERS[place], {})
                own.setdefault(name, []).append(attribute)
    return found


def _segmenter(segmenter: Segmenter) -> dict[str, Any]:
    """The mixture; a row of the emission is its most frequent value and the cells that differ, to the last bit."""
    finite = np.isfinite(segmenter.active_from)
    return segmenter.to_tree() | {
        "log_emission": [_sparse(row) for row in segmenter.log_emission],
        "width": segmenter.log_emission.shape[1],
        "active_from": segmenter.active_from if finite else None,
        "n_bins": N_DWELL_BINS,
        "lead": LEAD,
        "tier_days": TIER_DAYS,
    }


def _sparse(row: NDArray[np.float64]) -> tuple[float, dict[str, float]]:
    values, counts = np.unique(row, return_counts=True)
    usual = float(values[counts.argmax()])
    return usual, {str(cell): float(value) for cell, value in enumerate(row) if value != usual}


def _table(requests: list[dict[str, Any]]) -> pa.Table:
    """Requests in the form of `MaskBundle.apply` as the columns that `apply` takes."""
    event = pa.struct([("stream", pa.string()), ("ts", pa.timestamp("us")), ("dwell_ms", pa.float64())])
    events = [[{**e, "ts": micros(e["ts"])} for e in r["events"]] for r in requests]
    return pa.table(
        {
            "user_id": pa.array([r["user_id"] for r in requests], pa.string()),
            "request_ts": pa.array([micros(r["request_ts"]) for r in requests], pa.timestamp("us")),
            "surface": pa.nulls(len(requests), pa.string()),
            "events": pa.array(events, pa.list_(event)),
            "segment_id": pa.array([r.get("segment_id") for r in requests], pa.int64()),
            "tier": pa.array([r.get("tier") for r in requests], pa.string()),
        }
    )


def _request(preparation: Preparation, rng: np.random.Generator, number: int) -> dict[str, Any]:
    """A history of 0 to some hundred events over about two weeks, in bursts; a few streams dominate."""
    since = 0 if preparation.segmenter is None else preparation.segmenter.since_us
    now = since + int(rng.integers(10 * DAY_US, 30 * DAY_US))
    n = 0 if number == 0 else int(rng.integers(1, _LONGEST + 2 * preparation.boost_to))
    waits = np.where(rng.random(n) < 0.2, rng.exponential(0.3 * DAY_US, n), rng.exponential(60e6, n))
    waits[rng.random(n) < 0.05] = 0
    back = np.cumsum(waits)
    names = list(preparation.streams)
    weight = rng.dirichlet(np.full(len(names), 0.3))
    chosen = rng.choice(len(names), size=n, p=weight)
    dwell = np.where(rng.random(n) < 0.5, np.nan, np.exp(rng.normal(9, 2, n)))
    events = [
        {"stream": names[f] if rng.random() < 0.98 else "unknown/stream", "ts": now - int(b)}
        | ({} if np.isnan(d) else {"dwell_ms": round(float(d), 3)})
        for f, b, d in zip(chosen, back, dwell, strict=True)
    ]
    rng.shuffle(events)
    user = f"golden-user-{int(rng.integers(_USERS))}" if number else _held_out()
    alone = _segment_tables(preparation) is None
    given: Mapping[str, Any] = {"segment_id": int(rng.integers(4))} if alone or number % 5 == 4 else {}
    if alone:
        given = {**given, "tier": TIERS[int(rng.integers(2))]}
    return {"user_id": user, "request_ts": now, "events": events, **given}


def _held_out() -> str:
    """The first made-up user of the hold-out."""
    users = (f"golden-user-{number}" for number in range(10_000))
    return next(u for u in users if is_held_out(u))
