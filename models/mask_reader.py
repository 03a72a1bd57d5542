"""Which events of a user's history a server keeps, and the user's segment, from a mask bundle. Standard library only.

Copy this file and the bundle to the server. Nothing of DynamiX, NumPy or Spark is needed:

    bundle = MaskBundle.load("mask-bundle.json")
    found = bundle.apply("u1", "2026-02-16T10:00:00", [{"stream": "feed/view", "ts": "2026-02-15T09:00:00"}])
    found.kept, found.segment_id, found.tier     # places of the kept events in the list, oldest first

Times are ISO text (UTC where no zone stands) or whole microseconds since 1970. `check` holds the bundle against the
golden vectors that were exported with it.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections import Counter, namedtuple
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

CONTRACT = "dynamix-mask-bundle/1"
CONTRACT_2 = "dynamix-mask-bundle/2"
"""A mask that a reader of the first contract only must not take: it lengthens streams beyond their `length`, up to
`longest`, or takes attributes from kept events (`lost`); a bundle holds what its mask uses of the two."""
DAY_US = 86_400_000_000
Found = namedtuple("Found", "kept segment_id tier holdout")


class MaskBundle:
    """A mask with its streams, history rule and segment tables. ValueError for another contract or a changed file.

    Warns where the mask is not the published one; `content` says which model, mask and config it is of.
    """

    def __init__(self, text: str) -> None:
        whole = json.loads(text)
        if whole.get("contract") not in (CONTRACT, CONTRACT_2):
            raise ValueError(
                f"mask bundle of contract {whole.get('contract')!r}; this reader knows {CONTRACT} and "
                f"{CONTRACT_2}: export the bundle again and copy the reader that comes with it"
            )
        self.content: dict[str, Any] = whole["content"]
        if digest(self.content) != whole.get("sha256"):
            raise ValueError("mask bundle differs from its sha256: it was changed or torn; copy it again")
        if self.content["mask_status"] != "published":
            warnings.warn(self.content["note"], stacklevel=2)

    @classmethod
    def load(cls, path: str | Path) -> MaskBundle:
        return cls(Path(path).read_text(encoding="utf-8"))

    def apply(
        self, user_id: str, request_ts: Any, events: list[dict[str, Any]], segment_id: int | None = None,
        tier: str | None = None,
    ) -> Found:  # fmt: skip
        """Places of the kept events; segment and tier as given, else from the events before 00:00 UTC of the day.

        Events of streams that the bundle does not know are never kept. ValueError where it has no segment tables and
        the segment or the tier is not given.
        """
        content, now = self.content, micros(request_ts)
        named = [(micros(e["ts"]), i, e) for i, e in enumerate(events) if e["stream"] in content["streams"]]
        past = sorted(named, key=lambda event: event[:2])
        found, active = self._segment(past, now) if segment_id is None or tier is None else (0, False)
        segment = found if segment_id is None else int(segment_id)
        tier = tier or ("active" if active and segment else "passive")
        hashed = xxhash64(user_id.encode(), xxhash64(b"holdout", 42))
        holdout = (hashed - (hashed >> 63 << 64)) % 1000 < content["holdout_per_mille"]
        quotas = {} if holdout else content["quotas"].get(str(segment), {}).get(tier, {})
        kept, seen, total = [], Counter[str](), 0
        for us, place, event in reversed(past):
            stream = event["stream"]
            length = content["streams"][stream]["length"]
            longest = content["streams"][stream].get("longest", length)
            near = seen[stream] < length
            if (
                us >= now - content["embargo_us"]
                or seen[stream] >= longest
                or (near and total == content["total"])
            ):
                continue
            total += near
            if seen[stream] < quotas.get(stream, length):
                kept.append(place)
            seen[stream] += 1
        return Found(kept[::-1], segment, tier, holdout)

    def lost(self, found: Found, stream: str) -> list[str]:
        """Attributes that kept events of the stream lose under this answer of `apply`, of item, category, dwell, recency.

        Hand them to the ranker as missing: no item, no category, no dwell, no age.
        """
        own = {} if found.holdout else self.content.get("lost", {}).get(str(found.segment_id), {})
        return list(own.get(found.tier, {}).get(stream, []))

    def _segment(self, past: list[tuple[int, int, dict[str, Any]]], now: int) -> tuple[int, bool]:
        """Segment id and activity: the posterior of every midnight, left and changed only when another leads."""
        rule, midnight = self.content["segmenter"], now - now % DAY_US
        if rule is None:
            raise ValueError("this mask bundle has no segment tables: hand in segment_id and tier")
        days: dict[int, list[str]] = {}
        for (us, _, event), dwell_bin in zip(past, self._bins(past, now), strict=True):
            stream = self.content["streams"][event["stream"]]
            if stream["segments"] and rule["since_us"] <= us < midnight:
                cell = stream["id"] * rule["n_bins"] + dwell_bin if rule["dwell_bins"] else stream["id"]
                days.setdefault((midnight - 1 - us) // DAY_US, []).append(str(cell))
        scores, events, state, rival = [0.0] * len(rule["ids"]), 0, -1, -1
        for ago in range(max(days, default=-1), -1, -1):
            cells = [cell for cell in days.get(ago, []) if int(cell) < rule["width"]]
            events += len(cells)
            gains = [sum(row.get(c, usual) for c in cells) for usual, row in rule["log_emission"]]
            scores = [s + gain for s, gain in zip(scores, gains, strict=True)]
            q = softmax([s + prior for s, prior in zip(scores, rule["log_prior"], strict=True)])
            best = q.index(max(q))
            sure = q[best] >= rule["confidence"] and events >= rule["min_events"]
            contest = state >= 0 and best != state and q[best] - q[state] >= rule["lead"]
            switch = contest and rival == best and sure
            rival = best if contest and not switch else -1
            state = best if switch or (state < 0 and sure) else state
        week = sum(len(cells) for ago, cells in days.items() if ago < rule["tier_days"])
        active = rule["active_from"] is not None and week >= rule["active_from"]
        return (0 if state < 0 else rule["ids"][state]), active

    def _bins(self, past: list[tuple[int, int, dict[str, Any]]], now: int) -> list[int]:
        """Dwell bin of each event: of the logged dwell, else of the time to its session's next event; last: unknown."""
        rule, bins, first = self.content["dwell"], [], 0
        for i, (us, _, event) in enumerate(past):
            first = us if i == 0 or us - past[i - 1][0] > rule["gap_us"] else first
            stream, ms = self.content["streams"][event["stream"]], event.get("dwell_ms")
            cap, known_us, length = stream["cap_ms"] or math.inf, math.inf, rule["length_us"]
            after = past[i + 1][0] if i + 1 < len(past) else None
            if ms is not None and 0 <= ms < 9e15:
                ms = math.floor(ms + 0.5)
                known_us = math.inf if ms in stream["imputed_ms"] else (min(ms, 10**12) + 1) * 1000
            elif ms is None and rule["derive"] and after is not None and after - us <= rule["gap_us"]:
                ms = (after - us) // 1000
                if piece(after - first, length) == piece(us - first, length):
                    known_us = rule["gap_us"] + 1 if ms > cap else (ms + 1) * 1000
            above = sum(min(ms or 0, cap) > edge for edge in rule["edges_ms"])
            bins.append(above if known_us <= now - us else rule["unknown"])
        return bins


def piece(since_us: int, length_us: int) -> int:
    """Number of the longest sessions that fit before an event, so long after its session's first one."""
    return 0 if since_us == 0 else (since_us - 1) // length_us


def softmax(scores: list[float]) -> list[float]:
    """Shares in proportion to exp(score)."""
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def micros(moment: Any) -> int:
    """Whole microseconds since 1970 UTC of ISO text; a number is taken as it is."""
    if isinstance(moment, int):
        return moment
    stamp = datetime.fromisoformat(moment)
    stamp = stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)
    return (stamp - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def digest(content: dict[str, Any]) -> str:
    """SHA-256 of the content as compact JSON with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def xxhash64(data: bytes, seed: int) -> int:
    """The 64-bit xxHash of `data`, unsigned."""
    p1, p2, p3, p4, p5 = (
        0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5,
    )  # fmt: skip
    m, at, n = (1 << 64) - 1, 0, len(data)

    def turn(x: int, bits: int) -> int:
        return ((x & m) << bits | (x & m) >> (64 - bits)) & m

    def word(size: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

    h = seed + p5
    if n >= 32:
        lanes = [seed + p1 + p2, seed + p2, seed, seed - p1]
        while at + 32 <= n:
            for i in range(4):
                lanes[i], at = turn(lanes[i] + word(8) * p2, 31) * p1 & m, at + 8
        h = sum(turn(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
        for lane in lanes:
            h = (h ^ turn(lane * p2, 31) * p1 & m) * p1 + p4 & m
    h = h + n & m
    while at + 8 <= n:
        h, at = turn(h ^ turn(word(8) * p2, 31) * p1 & m, 27) * p1 + p4 & m, at + 8
    while at + 4 <= n:
        h, at = turn(h ^ word(4) * p1 & m, 23) * p2 + p3 & m, at + 4
    while at < n:
        h, at = turn(h ^ word(1) * p5 & m, 11) * p1 & m, at + 1
    h = (h ^ h >> 33) * p2 & m
    h = (h ^ h >> 29) * p3 & m
    return h ^ h >> 32


def check(bundle: MaskBundle, vectors: list[dict[str, Any]]) -> list[int]:
    """Numbers of the golden vectors that the reader answers differently; none where bundle and reader agree."""
    wrong = []
    for number, vector in enumerate(vectors):
        found, events = bundle.apply(**vector["request"]), vector["request"]["events"]
        lost = [bundle.lost(found, events[place]["stream"]) for place in found.kept]
        if found._asdict() != vector["found"] or lost != vector.get("lost", [[] for _ in lost]):
            wrong.append(number)
    return wrong
