"""The rules once more, in plain Python: what an event becomes, told with lists, dicts and loops.

Nothing here is shared with the code that it judges: no frame, no array, no helper of this folder. It is slow
and meant for samples: tests and `dynamix audit` compare every column with it (docs/faults.md D2). An event is
a dict of the columns of `events`; instants are whole microseconds since 1970, dates are days since 1970.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from dynamix.config import Config

Event = dict[str, Any]
Row = dict[str, Any]
Caps = Mapping[str, int]
Constants = Mapping[str, Sequence[int]]
Kinds = Mapping[tuple[str, str], str | None]
"""(user_id, session_id) -> the session's kind."""

DAY_US = 86_400_000_000
_FIRST_US, _LAST_US = 31_536_000_000_000, 4_102_444_800_000_000  # 1971-01-01 and 2100-01-01
_NOT_PAYLOAD = ("event_id", "ingest_ts", "torn")
_USABLE = ("observed", "derived", "capped")
_LONGEST_MS = 10**12
_BIN_ENDS_MS = (0, 1_000, 2_000, 4_000, 8_000, 15_000, 30_000, 60_000, 120_000, 300_000, 900_000)


def in_order(events: Iterable[Event]) -> list[Event]:
    """Events by event_ts, then event_seq (none first), then ingest_ts, then event_id."""

    def place(event: Event) -> tuple[int, bool, int, int, str]:
        seq = event.get("event_seq")
        return event["event_ts"], seq is not None, seq or 0, event["ingest_ts"], event["event_id"]

    return sorted(events, key=place)


def stream(event: Event) -> str:
    """`surface/event_type`, by which caps and constants go."""
    return f"{event['surface']}/{event['event_type']}"


def declared(event: Event, config: Config) -> str:
    """The entry of `streams:` whose filter the event meets, else `surface/event_type`; without a session kind."""
    for name, entry in sorted(config.streams.items()):
        surface, _, event_type = name.rpartition("/")
        where = entry.where
        if where is None or "#" in event_type:
            continue
        fits = event["surface"] in (where.surface or [surface])
        fits = fits and event["event_type"] in (where.event_type or [event_type])
        if fits and all(_attribute(event, key) in values for key, values in where.attributes.items()):
            return name
    return stream(event)


def _attribute(event: Event, key: str) -> Any:
    if key in ("item_id", "category", "ad_id", "advertiser_id", "campaign_id"):
        return event[key]
    return (event["attributes"] or {}).get(key)


def takes_part(event: Event, config: Config) -> bool:
    """False for an impression, unless the config calls impressions organic."""
    return config.organic_impressions or event["event_type"] not in config.impression_types


# ---------------------------------------------------------------- raw rows


def fates(rows: list[Event], config: Config) -> list[tuple[str, str | None]]:
    """(kept, deduplicated or quarantined; the reason) of each row, in the order given (docs/faults.md 9, 10, 14-17).

    Rows hold parsed values: text, or None where missing; event_ts None where no time can be read; `torn` True
    where a payload cannot. Copies of an event_id: the earliest ingest stays (of equal copies the first given),
    equal payloads are deduplicated, others conflict, and all conflict where the earliest ingest disagrees.
    """
    found: list[tuple[str, str | None]] = [("", None)] * len(rows)
    copies: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        reason = _trouble(row, config)
        if reason is None:
            copies[row["event_id"]].append(number)
        else:
            found[number] = ("quarantined", reason)
    for numbers in copies.values():
        ingest = {n: _known_from(rows[n]) for n in numbers}
        earliest = [n for n in numbers if ingest[n] == min(ingest.values())]
        said = _payload(rows[earliest[0]])
        torn_at_start = any(_payload(rows[n]) != said for n in earliest)
        for n in numbers:
            if torn_at_start or _payload(rows[n]) != said:
                found[n] = ("quarantined", "CONFLICTING_DUPLICATE")
            else:
                found[n] = ("kept" if n == earliest[0] else "deduplicated", None)
    return found


def _trouble(row: Event, config: Config) -> str | None:
    """The first reason that applies to a row by itself."""
    for name, reason in (("user_id", "NULL_USER"), ("surface", "NULL_SURFACE"), ("event_type", "NULL_TYPE")):
        if row[name] is None or not row[name].strip(" "):
            return reason
    if row["event_ts"] is None:
        return "BAD_TIMESTAMP"
    if any(not _FIRST_US <= at < _LAST_US for at in (row["event_ts"], _known_from(row))):
        return "TIMESTAMP_RANGE"
    if any(isinstance(value, str) and len(value.encode()) > 1024 for value in row.values()):
        return "ID_TOO_LONG"
    if row.get("torn"):
        return "BAD_PAYLOAD"
    if row["event_ts"] - _known_from(row) > config.future_tolerance_s * 1_000_000:
        return "FUTURE_EVENT"
    return None


def _known_from(row: Event) -> int:
    ingest = row.get("ingest_ts")
    return int(row["event_ts"] if ingest is None else ingest)


def _payload(row: Event) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _NOT_PAYLOAD and value is not None}


# ---------------------------------------------------------------- sessions and dwell


def sessions(events: Iterable[Event], config: Config) -> list[list[Event]]:
    """The pieces of every session as lists of events in order; impressions are in none.

    A silence strictly longer than the gap parts a user's events, whatever day it is. Rule `given`: events of one
    source_session_id belong together, those without one follow the gap rule among themselves. Each event comes
    back as a copy with session_id, session_start and `cut` (True where max_length split the session).
    """
    gap_us = int(config.session.gap_s * 1e6)
    given = config.session.rule == "given"
    lines: dict[tuple[str, str | None], list[Event]] = defaultdict(list)
    for event in in_order(events):
        if takes_part(event, config):
            lines[event["user_id"], event.get("source_session_id") if given else None].append(event)
    found: list[list[Event]] = []
    for (_, source), line in lines.items():
        whole: list[Event] = []
        for event in line:
            if whole and source is None and event["event_ts"] - whole[-1]["event_ts"] > gap_us:
                found += _pieces(whole, config)
                whole = []
            whole.append(event)
        found += _pieces(whole, config)
    return found


def _pieces(whole: list[Event], config: Config) -> list[list[Event]]:
    """Piece k of a session holds what lies in (k L, (k + 1) L] after its first event; piece 0 has that one too."""
    length_us, first_us = int(config.session.max_length_s * 1e6), whole[0]["event_ts"]
    parts: dict[int, list[Event]] = defaultdict(list)
    for event in whole:
        part = 0
        while event["event_ts"] - first_us > (part + 1) * length_us:
            part += 1
        parts[part].append(event)
    pieces = []
    for part, piece in sorted(parts.items()):
        names = [str(first_us), str(part)]
        if config.session.rule == "given":
            source = whole[0].get("source_session_id") or ""
            names += [str(len(source)), source]
        text = "|".join([*names, whole[0]["user_id"]])
        label = {
            "session_id": hashlib.sha256(text.encode()).hexdigest()[:32],
            "session_start": piece[0]["event_ts"],
            "cut": len(parts) > 1,
        }
        pieces.append([event | label for event in piece])
    return pieces


def settle(
    events: Iterable[Event], config: Config, *, caps: Caps | None = None, constants: Constants | None = None
) -> list[Event]:
    """Every event once, with session_id, session_start, `cut`, dwell_ms and dwell_status.

    `dwell_ms` comes in as logged. Logged: observed. Else the whole milliseconds to the session's next event:
    derived. The last event of a session: censored, unknown, never 0. A `bad_dwell`, an impression, or any
    unlogged dwell where `dwell.derive` is off: missing. Logged as one of its stream's constants: imputed. Above the
    cap of its stream (else of `*`): capped.
    """
    everything = list(events)
    settled = []
    for piece in sessions(everything, config):
        for event, after in zip(piece, [*piece[1:], None], strict=True):
            settled.append(event | _dwell(event, after, config, caps or {}, constants or {}))
    for event in everything:
        if not takes_part(event, config):
            alone = {"session_id": None, "session_start": None, "cut": False, "bad_dwell": True}
            settled.append(event | alone | _dwell(event | alone, None, config, caps or {}, constants or {}))
    return settled


def _dwell(event: Event, after: Event | None, config: Config, caps: Caps, constants: Constants) -> Row:
    if event["dwell_ms"] is not None and event["dwell_ms"] in constants.get(stream(event), ()):
        return {"dwell_ms": event["dwell_ms"], "dwell_status": "imputed"}
    if event["dwell_ms"] is not None:
        status, ms = "observed", event["dwell_ms"]
    elif event.get("bad_dwell") or not config.dwell.derive:
        status, ms = "missing", None
    elif after is None:
        status, ms = "censored", None
    else:
        status, ms = "derived", (after["event_ts"] - event["event_ts"]) // 1000
    cap = caps.get(stream(event), caps.get("*"))
    if ms is not None and cap is not None and ms > cap:
        status, ms = "capped", cap
    return {"dwell_ms": ms, "dwell_status": status}


def cap(values: Iterable[int], quantile: float) -> int:
    """Upper edge, in whole ms, of the quarter bin in ln(1 + ms) at which the counts reach the quantile."""
    bins = sorted(math.floor(4 * math.log1p(value)) for value in values)
    needed = next(number for i, number in enumerate(bins, 1) if i >= quantile * len(bins))
    return math.floor(math.exp((needed + 1) / 4) - 1)


def usable(event: Event) -> bool:
    """True where the dwell may enter a statistic: known, and neither censored, imputed nor missing."""
    return event["dwell_ms"] is not None and event["dwell_status"] in _USABLE


# ---------------------------------------------------------------- history


def history(
    settled: Iterable[Event], impression: Event, config: Config, *, kinds: Kinds | None = None
) -> list[Event]:
    """The kept events of an impression, oldest first (docs/faults.md 44): of those `visible` the newest of each stream.

    As many as the stream declares, else per_stream; of these the newest total.
    """
    used: Counter[str] = Counter()
    kept: list[Event] = []
    for event in visible(settled, impression, config, kinds=kinds):
        if used[event["stream"]] < _length(event["stream"], config) and len(kept) < config.history.total:
            used[event["stream"]] += 1
            kept.append(event)
    return kept[::-1]


def visible(
    settled: Iterable[Event], impression: Event, config: Config, *, kinds: Kinds | None = None
) -> Iterator[Event]:
    """Events that an impression may know, newest first, each with `stream` as the impression sees it.

    Of the same user, strictly before event_ts - embargo, known (ingest_ts) at the impression unless the rule is
    `run_date`, of another request (none differs from all).
    """
    rule = config.history
    before_us = impression["event_ts"] - round(rule.embargo_s * 1e6)
    everything = list(settled)
    closed = _closed_us(everything, config) if kinds is not None else {}
    for event in reversed(in_order(everything)):
        if event["user_id"] != impression["user_id"] or not takes_part(event, config):
            continue
        same_request = (
            impression["request_id"] is not None and event["request_id"] == impression["request_id"]
        )
        known = rule.as_known_at == "run_date" or event["ingest_ts"] <= impression["event_ts"]
        if event["event_ts"] >= before_us or same_request or not known:
            continue
        name = declared(event, config)
        if kinds is not None and event["session_id"] and event["event_type"] not in config.conversion_types:
            session = event["user_id"], event["session_id"]
            kind = kinds.get(session) if impression["event_ts"] > closed[session] else "open"
            name = f"{name}#{kind}" if kind else name
        yield event | {"stream": name}


def _closed_us(events: Iterable[Event], config: Config) -> dict[tuple[str, str], int]:
    """The last instant at which a session still counts as open: its end and the gap, or its last ingest."""
    closed: dict[tuple[str, str], int] = {}
    for event in events:
        if event["session_id"] is None:
            continue
        session = event["user_id"], event["session_id"]
        until = event["event_ts"] + round(config.session.gap_s * 1e6)
        if config.history.as_known_at == "impression":
            until = max(until, event["ingest_ts"] - 1)
        closed[session] = max(until, closed.get(session, until))
    return closed


def _length(name: str, config: Config) -> int:
    own, base = (config.streams.get(n) for n in (name, name.split("#")[0]))
    lengths = [entry.length for entry in (own, base) if entry is not None and entry.length is not None]
    return lengths[0] if lengths else config.history.per_stream


def _carries(name: str, attribute: str, config: Config) -> bool:
    """False where the stream, or else the stream without its kind, declares attributes without this one."""
    own, base = (config.streams.get(n) for n in (name, name.split("#")[0]))
    listed = [entry.attributes for entry in (own, base) if entry is not None and entry.attributes is not None]
    return not listed or attribute in listed[0]


def history_columns(
    kept: list[Event],
    impression: Event,
    config: Config,
    *,
    scales: Mapping[str, Mapping[str, Any]],
    habit: float,
) -> Row:
    """The hist_ arrays of `training_rows`; `scales` holds stream_id, mu, sigma and has_dwell of each stream."""

    def column(attribute: str, of: Callable[[Event], Any], empty: Any = None) -> list[Any]:
        return [of(e) if _carries(e["stream"], attribute, config) else empty for e in kept]

    def dwell(of: Callable[[Event], Any], empty: Any) -> list[Any]:
        return column("dwell", lambda event: of(event) if told(event, impression, config) else empty, empty)

    return {
        "hist_stream": [scales[event["stream"]]["stream_id"] for event in kept],
        "hist_item": column("item", lambda event: event["item_id"]),
        "hist_category": column("category", lambda event: event["category"]),
        "hist_dwell_bin": dwell(dwell_bin, 12),
        "hist_z": dwell(lambda event: _z(event, scales[event["stream"]], habit), 0.0),
        "hist_age_s": column("recency", lambda event: (impression["event_ts"] - event["event_ts"]) / 1e6),
    }


def told(event: Event, impression: Event, config: Config) -> bool:
    """True where the event's dwell, or that nobody will know it, is known at the impression (docs/faults.md D2).

    A logged dwell: a millisecond after its end; a derived one as well, for then its session's next event has come.
    A censored one, and a derived one cut at its cap: the gap later, when no next event can come any more.
    """
    if event["dwell_status"] == "censored" or (
        event["dwell_status"] == "capped" and event.get("dwell_logged_ms") is None
    ):
        return bool(event["event_ts"] + round(config.session.gap_s * 1e6) < impression["event_ts"])
    ms = event["dwell_ms"] if event.get("dwell_logged_ms") is None else event["dwell_logged_ms"]
    return ms is None or bool(event["event_ts"] + (min(ms, _LONGEST_MS) + 1) * 1000 <= impression["event_ts"])


def dwell_bin(event: Event) -> int:
    """0 to 10 by upper ends 0, 1, 2, 4, 8, 15, 30, 60, 120, 300 and 900 s, 11 above, 12 without a usable dwell."""
    return sum(event["dwell_ms"] > edge for edge in _BIN_ENDS_MS) if usable(event) else 12


def _z(event: Event, scale: Mapping[str, Any], habit: float) -> float:
    if not (usable(event) and scale["has_dwell"] and scale["mu"] is not None and scale["sigma"]):
        return 0.0
    z = (math.log1p(event["dwell_ms"]) - scale["mu"] - habit) / scale["sigma"]
    return float(min(3.0, max(-3.0, z)))
