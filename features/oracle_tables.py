"""The rows of the feature tables once more, in plain Python, summed straight from settled events.

The other half of features/oracle.py, which says what a settled event is. Every column is told apart from the
code that it judges; sums of reals round each addend to a multiple of 2^-20, as docs/method.md A.2.4 has it.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from dynamix.config import Config
from dynamix.features.oracle import DAY_US, Event, Row, declared, in_order, takes_part, usable


def ebf_session(settled: Iterable[Event], config: Config) -> list[Row]:
    """Rows of `ebf_session`, every column but session_kind (a fitted model's word), from settled events."""
    own: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in in_order(settled):
        if event["session_id"] is not None:
            own[event["user_id"], event["session_id"]].append(event)
    rows = [_session_row(events, config) for events in own.values()]
    rows.sort(key=lambda row: (row["user_id"], row["session_start"], row["session_id"]))
    ends: dict[str, int] = {}
    for row in rows:
        before = ends.get(row["user_id"])
        row["gap_before_ms"] = None if before is None else max((row["session_start"] - before) // 1000, 0)
        ends[row["user_id"]] = max(row["session_end"], before or 0)
    return rows


def _session_row(events: list[Event], config: Config) -> Row:
    start, end = events[0]["event_ts"], events[-1]["event_ts"]
    dwells: Counter[str] = Counter()
    for event in events:
        if event["dwell_ms"] is not None and event["dwell_status"] != "imputed":
            dwells[declared(event, config)] += event["dwell_ms"]
    converted = [event["event_ts"] for event in events if event["event_type"] in config.conversion_types]
    surfaces = [event["surface"] for event in events]
    shares = [n / len(events) for n in Counter(surfaces).values()]
    return {
        "user_id": events[0]["user_id"],
        "session_id": events[0]["session_id"],
        "session_start": start,
        "session_end": end,
        "n_events": len(events),
        "duration_ms": (end - start) // 1000,
        "n_by_stream": dict(Counter(declared(event, config) for event in events)),
        "dwell_by_stream": dict(dwells),
        "dwell_sum_ms": sum(dwells.values()),
        "n_censored": sum(event["dwell_status"] == "censored" for event in events),
        "conversions": len(converted),
        "first_conversion_ms": (converted[0] - start) // 1000 if converted else None,
        "surface_entropy": sum(_to_grid(-share * math.log(share)) for share in shares),
        "n_transitions": sum(a != b for a, b in itertools.pairwise(surfaces)),
        "capped_length": events[0]["cut"],
        "source_session_id": next(
            (e["source_session_id"] for e in events if e.get("source_session_id") is not None), None
        ),
        "session_date": start // DAY_US,
    }


def ebf_surface(settled: Iterable[Event], config: Config, *, end: int, days: int) -> list[Row]:
    """Rows of `ebf_surface` for the window of `days` (0: all) days before day `end`, straight from the events.

    One row per user and stream, and per user and `surface/*`. decayed_n halves every 7 days, or as the stream
    declares; a window of one day counts each event whole. dwell_share is a row's part of the user's usable dwell in
    the window, None of 0.
    """
    cells: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in settled:
        age = end - event["event_ts"] // DAY_US - 1
        if takes_part(event, config) and age >= 0 and (days == 0 or age < days):
            cells[event["user_id"], declared(event, config)].append(event)
            cells[event["user_id"], f"{event['surface']}/*"].append(event)
    rows = [_surface_row(*key, events, config, end, days) for key, events in cells.items()]
    total: Counter[str] = Counter()
    for row in rows:
        total[row["user_id"]] += row["dwell_sum"] if row["stream"].endswith("/*") else 0
    for row in rows:
        whole = total[row["user_id"]]
        row["dwell_share"] = row["dwell_sum"] / whole if whole else None
    return rows


def surface_table(settled: Iterable[Event], config: Config, *, run_day: int) -> list[Row]:
    """What `ebf_surface` holds after a run of day `run_day`: every day's rows, and the windows that end there.

    7, 28 and all days, or those that the stream declares.
    """
    events = list(settled)
    ends = sorted({event["event_ts"] // DAY_US + 1 for event in events})
    rows = [row for end in ends for row in ebf_surface(events, config, end=end, days=1)]
    own = {name: entry.windows for name, entry in config.streams.items() if entry.windows is not None}
    lengths = {7, 28, 0}.union(*own.values()) - {1}
    windows = (row for days in lengths for row in ebf_surface(events, config, end=run_day, days=days))
    return rows + [row for row in windows if row["window_days"] in own.get(row["stream"], (7, 28, 0))]


def _surface_row(user: str, name: str, events: list[Event], config: Config, end: int, days: int) -> Row:
    known = [event["dwell_ms"] for event in events if usable(event)]
    logs = [math.log1p(ms) for ms in known]
    per_day = Counter(event["event_ts"] // DAY_US for event in events)
    entry = config.streams.get(name)
    half_life = (entry.half_life_days if entry else None) or 7
    decayed = sum(_to_grid(n * 2 ** (-(end - 1 - day) / half_life)) for day, n in per_day.items())
    return {
        "user_id": user,
        "stream": name,
        "window_end": end,
        "window_days": days,
        "n": len(events),
        "dwell_sum": sum(known),
        "z_sum": sum(map(_to_grid, logs)),
        "z_sq_sum": sum(_to_grid(x * x) for x in logs),
        "n_dwell": len(known),
        "n_censored": sum(event["dwell_status"] == "censored" for event in events),
        "last_ts": max(event["event_ts"] for event in events),
        "decayed_n": float(len(events)) if days == 1 else decayed,
        "conversions": sum(event["event_type"] in config.conversion_types for event in events),
        "dwell_hist": dict(Counter(math.floor(4 * x) for x in logs)),
    }


def _to_grid(value: float) -> float:
    """Nearest multiple of 2^-20."""
    return round(value * 2**20) / 2**20


def residuals(
    settled: Iterable[Event], config: Config, *, mu: Mapping[str, float], start: int, end: int
) -> dict[str, list[float]]:
    """ln(1 + ms) - mu of each user's usable dwells with start <= event_ts < end, on streams that have a mu."""
    found: dict[str, list[float]] = defaultdict(list)
    for event in settled:
        inside = takes_part(event, config) and start <= event["event_ts"] < end
        if inside and usable(event) and declared(event, config) in mu:
            found[event["user_id"]].append(math.log1p(event["dwell_ms"]) - mu[declared(event, config)])
    return found


def shrinkage(groups: Iterable[list[float]]) -> float:
    """kappa = variance within users / variance between them by one-way ANOVA moments; infinite where none lies between.

    docs/method.md A.2.3: within = SS_w/(N - k), between = (SS_b/(k - 1) - within)/n0, n0 = (N - sum n^2/N)/(k - 1).
    """
    known = [group for group in groups if group]
    count, users = sum(map(len, known)), len(known)
    if users < 2 or count == users:
        return math.inf
    grand = sum(map(sum, known)) / count
    means = [sum(group) / len(group) for group in known]
    inside = sum((x - mean) ** 2 for group, mean in zip(known, means, strict=True) for x in group)
    across = sum(len(group) * (mean - grand) ** 2 for group, mean in zip(known, means, strict=True))
    within = inside / (count - users)
    size = (count - sum(len(group) ** 2 for group in known) / count) / (users - 1)
    between = (across / (users - 1) - within) / size
    return within / between if between > 0 else math.inf


def user_stats(events: Iterable[Event], habits: Mapping[str, list[float]], *, kappa: float) -> list[Row]:
    """user_id, n, habit, first_ts and last_ts; `habits` are the `residuals` of the habit window."""
    times: dict[str, list[int]] = defaultdict(list)
    for event in events:
        times[event["user_id"]].append(event["event_ts"])
    rows = []
    for user, own in times.items():
        r = habits.get(user, [])
        habit = 0.0 if not r or math.isinf(kappa) else sum(r) / (len(r) + kappa)
        rows.append({"user_id": user, "n": len(r), "habit": habit, "first_ts": min(own), "last_ts": max(own)})
    return rows
