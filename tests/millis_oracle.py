"""The product's plain-Python oracle (features/oracle.py) for events in whole milliseconds, as raw_events.py has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dynamix.config import Config, load_config
from dynamix.features import oracle
from dynamix.features.oracle import cap, stream
from dynamix.features.oracle_tables import ebf_session

__all__ = ["CONVERSION", "IMPRESSION", "cap", "dwells", "sessions", "stream", "summary"]

Event = dict[str, Any]
IMPRESSION = "impression"
CONVERSION = "conversion"
_INSTANTS = ("session_start", "session_end")
_NOT_SUMMED = ("user_id", "session_id", "gap_before_ms", "capped_length", "source_session_id", "session_date")


def sessions(events: Iterable[Event], *, gap_ms: int, max_ms: int, given: bool = False) -> list[list[Event]]:
    """Lists of events that belong together, impressions left out."""
    rule = "given" if given else "gap"
    limits = f"session.gap_s={gap_ms / 1000}", f"session.max_length_s={max_ms / 1000}"
    config = load_config(settings=[f"session.rule={rule}", *limits])
    fine = [e | {"event_ts": e["ts"] * 1000, "ingest_ts": e["ingest"] * 1000} for e in events]
    return oracle.sessions(fine, config)


def dwells(found: Iterable[list[Event]], *, derive: bool = True) -> dict[str, tuple[str, int | None]]:
    """event_id -> (status, ms) of session events."""
    config = load_config(
        settings=[f"dwell.derive={derive}", "session.gap_s=1000000000", "session.max_length_s=1000000000"]
    )
    settled = [event for session in found for event in oracle.settle(session, config)]
    return {event["event_id"]: (event["dwell_status"], event["dwell_ms"]) for event in settled}


def summary(session: list[Event], dwell: dict[str, tuple[str, int | None]]) -> dict[str, Any]:
    """The sums of one session, by name as in ebf_session; instants in milliseconds."""
    status = [dwell[event["event_id"]] for event in session]
    events = [
        event | {"dwell_status": name, "dwell_ms": ms}
        for event, (name, ms) in zip(session, status, strict=True)
    ]
    (row,) = ebf_session(events, Config())
    return {
        name: value // 1000 if name in _INSTANTS else value
        for name, value in row.items()
        if name not in _NOT_SUMMED
    }
