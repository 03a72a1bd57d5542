"""`init`: look at a stranger's own table and propose a commented `dynamix.yaml`. Asks nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from dynamix.contracts import RAW_COLUMNS, REQUIRED_RAW
from dynamix.errors import ConfigError, InputError

SAMPLE_ROWS = 200_000
_FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
_ALIASES: dict[str, tuple[str, ...]] = {
    "user_id": (
        "user",
        "uid",
        "userid",
        "visitorid",
        "visitor_id",
        "visitor",
        "customer_id",
        "customer",
        "member_id",
        "member",
        "account_id",
        "account",
        "client_id",
        "person_id",
        "profile_id",
        "device_id",
        "cookie_id",
        "cookie",
    ),
    "event_ts": (
        "timestamp",
        "ts",
        "time",
        "event_time",
        "event_timestamp",
        "time_ms",
        "datetime",
        "created_at",
        "happened_at",
        "occurred_at",
        "event_at",
        "logged_at",
    ),
    "event_type": ("event", "action", "action_type", "type", "event_name"),
    "surface": ("page", "channel", "placement", "tab", "screen", "section", "module"),
    "item_id": (
        "item",
        "itemid",
        "product_id",
        "product",
        "sku",
        "video_id",
        "content_id",
        "article_id",
        "reference",
    ),
    "session_id": ("session", "sessionid", "visit_id"),
    "request_id": ("request", "requestid", "query_id"),
    "dwell_ms": ("dwell", "play_time_ms", "duration_watched", "time_spent_ms"),
    "position": ("rank", "slot"),
    "category": ("cat", "category_id", "genre"),
    "ingest_ts": ("ingested_at", "received_at", "load_ts"),
    "value": ("price", "amount", "revenue"),
}
_ROLES = {
    "impression_types": ("impression", "impr", "show", "exposure", "ad_view"),
    "click_types": ("click", "ad_click", "tap"),
    "conversion_types": (
        "conversion",
        "purchase",
        "order",
        "transaction",
        "checkout",
        "buy",
        "signup",
        "lead",
    ),
}
_UNIT_BOUNDS = {"s": (3.1e7, 4.1e9), "ms": (3.1e10, 4.1e12), "us": (3.1e13, 4.1e15)}  # years 1971 to 2099


@dataclass(frozen=True)
class Proposal:
    """What `init` found: the YAML text and what a person still has to settle."""

    path: Path
    text: str
    missing: tuple[str, ...]
    rows_seen: int


def init(events: Path) -> Proposal:
    """Profile the first rows of `events` and write `dynamix.yaml` beside them.

    Raises InputError where nothing can be read, ConfigError where a dynamix.yaml is there already.
    """
    sample = read_sample(events)
    folder = events if events.is_dir() else events.parent
    path = folder / "dynamix.yaml"
    if path.exists():
        raise ConfigError(f"{path} exists already; move it away to have a new one proposed")
    columns = propose_columns(list(sample.columns), times=_times(sample))
    text = _yaml(sample, columns)
    path.write_text(text, encoding="utf-8")
    missing = tuple(name for name in REQUIRED_RAW if name not in columns)
    return Proposal(path=path, text=text, missing=missing, rows_seen=len(sample))


def read_sample(events: Path) -> pd.DataFrame:
    """The first rows of a Parquet, CSV or JSON-lines file or folder."""
    if not events.exists():
        raise InputError(f"--events {events}: no such file or folder; check the path")
    root = events / "events" if (events / "events").is_dir() else events
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in _FORMATS)
    if not files:
        raise InputError(
            f"--events {events}: no {', '.join(_FORMATS)} file in it; allowed formats are these and Delta"
        )
    kind = _FORMATS.get(files[0].suffix)
    if kind is None:
        raise InputError(
            f"--events {events}: format {files[0].suffix!r} is not known; allowed: {', '.join(_FORMATS)}"
        )
    try:
        sample: pd.DataFrame = ds.dataset([str(f) for f in files], format=kind).head(SAMPLE_ROWS).to_pandas()
    except pa.ArrowInvalid as trouble:
        raise InputError(
            f"--events {events}: cannot be read as {kind}: {str(trouble).splitlines()[0]}"
        ) from None
    if sample.empty:
        raise InputError.empty(str(events))
    return sample


def propose_columns(names: Sequence[str], *, times: Sequence[str] = ()) -> dict[str, str]:
    """Canonical column → the user's own column, by equal name first, then by common aliases.

    Where no name says when an event was, the only one of the columns `times` is taken, if there is just one.
    """
    lower = {name.lower(): name for name in names}
    found: dict[str, str] = {}
    for column in RAW_COLUMNS:
        for candidate in (column.name, *_ALIASES.get(column.name, ())):
            if candidate in lower and lower[candidate] not in found.values():
                found[column.name] = lower[candidate]
                break
    left = [name for name in times if name not in found.values()]
    if "event_ts" not in found and len(left) == 1:
        found["event_ts"] = left[0]
    return found


def _times(sample: pd.DataFrame) -> list[str]:
    """Columns that hold instants by their type."""
    return [str(name) for name in sample.columns if pd.api.types.is_datetime64_any_dtype(sample[name])]


def time_unit(values: pd.Series) -> str | None:
    """Unit of numeric times whose median lies between 1971 and 2099 in exactly that unit; None for text."""
    if not pd.api.types.is_numeric_dtype(values):
        return None
    median = float(values.median())
    for unit, (low, high) in _UNIT_BOUNDS.items():
        if low <= median <= high:
            return unit
    return None


def propose_roles(types: Sequence[str]) -> dict[str, list[str]]:
    """Event types that look like impressions, clicks and conversions."""
    return {
        role: [t for t in types if t.lower() in words or any(t.lower().endswith(f"_{w}") for w in words)]
        for role, words in _ROLES.items()
    }


def _yaml(sample: pd.DataFrame, columns: Mapping[str, str]) -> str:
    lines = ["# Proposed by `dynamix init` from the first rows; read each line, change what is wrong."]
    lines.append("columns:  # canonical name: your name")
    lines += [f"  {name}: {own}" for name, own in columns.items() if name != own] or ["  {}"]
    lines += [
        f"# NOT FOUND, required: {name}; map it under columns" for name in REQUIRED_RAW if name not in columns
    ]
    unit = time_unit(sample[columns["event_ts"]]) if "event_ts" in columns else None
    if unit:
        lines.append(f"time_unit: {unit}  # from the size of the numbers")
    if "event_type" in columns:
        counts = sample[columns["event_type"]].astype("string").value_counts()
        lines.append(f"# event types seen: {', '.join(f'{k} ({v})' for k, v in counts.head(20).items())}")
        for role, types in propose_roles([str(t) for t in counts.index]).items():
            lines.append(f"{role}: [{', '.join(types)}]")
    keys = [key for key in (["request_id", "item_id"], ["ad_id"], ["item_id"]) if set(key) <= set(columns)]
    if keys:
        shown = ", ".join("[" + ", ".join(key) + "]" for key in keys)
        lines.append("attribution:  # a conversion belongs to the latest impression that shares these")
        lines.append(f"  join_on: [{shown}]")
        lines.append(
            "  click_window: 24h  # labels are final after the longer window; 5 of 42 days validate, so keep it short"
        )
        lines.append("  view_window: 24h")
    derive = "dwell_ms" not in columns
    lines.append(f"dwell: {{derive: {str(derive).lower()}}}  # true: gap to the next event of the session")
    text = "\n".join(lines) + "\n"
    return text.replace(
        "columns:  # canonical name: your name\n  {}\n", "columns: {}  # canonical name: your name\n"
    )
