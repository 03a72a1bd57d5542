"""Sessions and dwell by brute force in plain Python: loops over one user's sorted list, nothing shared with Spark.

Events are dicts of the raw columns; times are whole milliseconds since 1970.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

Event = dict[str, Any]
IMPRESSION = "impression"
CONVERSION = "conversion"


def in_order(events: Iterable[Event]) -> list[Event]:
    """By (ts, event_seq with NULL first, ingest, event_id)."""

    def key(event: Event) -> tuple[int, int, int, str]:
        seq = event["event_seq"]
        return (event["ts"], -1 if seq is None else seq, event["ingest"], event["event_id"])

    return sorted(events, key=key)


def sessions(events: Iterable[Event], *, gap_ms: int, max_ms: int, given: bool = False) -> list[list[Event]]:
    """Lists of events that belong together, impressions left out. One pass per user, a gap at a time."""
    groups: dict[tuple[str, str | None], list[Event]] = defaultdict(list)
    for event in in_order(events):
        if event["event_type"] != IMPRESSION:
            groups[event["user_id"], event["source_session_id"] if given else None].append(event)
    found: list[list[Event]] = []
    for (_, source), own in groups.items():
        current: list[Event] = []
        for event in own:
            silent = bool(current) and event["ts"] - current[-1]["ts"] > gap_ms and source is None
            if silent:
                found += cut(current, max_ms)
                current = []
            current.append(event)
        found += cut(current, max_ms)
    return found


def cut(session: list[Event], max_ms: int) -> list[list[Event]]:
    """Pieces of a session: piece k holds what lies in (k L, (k+1) L] after its first event."""
    pieces: dict[int, list[Event]] = defaultdict(list)
    for event in session:
        since, k = event["ts"] - session[0]["ts"], 0
        while since > (k + 1) * max_ms:
            k += 1
        pieces[k].append(event)
    return [pieces[k] for k in sorted(pieces)]


def dwells(found: Iterable[list[Event]], *, derive: bool = True) -> dict[str, tuple[str, int | None]]:
    """event_id → (status, ms) of session events."""
    result: dict[str, tuple[str, int | None]] = {}
    for session in found:
        for i, event in enumerate(session):
            if event["dwell_ms"] is not None:
                result[event["event_id"]] = ("observed", event["dwell_ms"])
            elif not derive:
                result[event["event_id"]] = ("missing", None)
            elif i + 1 < len(session):
                result[event["event_id"]] = ("derived", session[i + 1]["ts"] - event["ts"])
            else:
                result[event["event_id"]] = ("censored", None)
    return result


def summary(session: list[Event], dwell: Mapping[str, tuple[str, int | None]]) -> dict[str, Any]:
    """The sums of one session, by name as in ebf_session."""
    start, end = session[0]["ts"], session[-1]["ts"]
    known: dict[str, int] = defaultdict(int)
    for event in session:
        value = dwell[event["event_id"]][1]
        if value is not None:
            known[stream(event)] += value
    converted = [event["ts"] for event in session if event["event_type"] == CONVERSION]
    surfaces = Counter(event["surface"] for event in session)
    shares = [n / len(session) for n in surfaces.values()]
    pairs = itertools.pairwise(session)
    return {
        "session_start": start,
        "session_end": end,
        "n_events": len(session),
        "duration_ms": end - start,
        "n_by_stream": dict(Counter(stream(event) for event in session)),
        "dwell_by_stream": dict(known),
        "dwell_sum_ms": sum(known.values()),
        "n_censored": sum(dwell[event["event_id"]][0] == "censored" for event in session),
        "conversions": len(converted),
        "first_conversion_ms": converted[0] - start if converted else None,
        "surface_entropy": -sum(p * math.log(p) for p in shares),
        "n_transitions": sum(a["surface"] != b["surface"] for a, b in pairs),
    }


def stream(event: Event) -> str:
    return f"{event['surface']}/{event['event_type']}"


def cap(values: Iterable[int], quantile: float) -> int:
    """Upper edge, in whole ms, of the quarter bin in ln(1+ms) at which the counts reach the quantile."""
    bins = sorted(math.floor(4 * math.log1p(value)) for value in values)
    needed = next(b for i, b in enumerate(bins, 1) if i >= quantile * len(bins))
    return math.floor(math.exp((needed + 1) / 4) - 1)
