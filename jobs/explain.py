"""`dynamix explain STREAM`: what a stream is and what lies in it, or why a segment keeps or drops it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import Row
from pyspark.sql import functions as F

from dynamix.contracts import CELL_STATS, MASKS
from dynamix.declarations import Declaration, base_stream
from dynamix.errors import ConfigError, GuardError
from dynamix.features.dwell import ALL_STREAMS
from dynamix.features.streams import stream_events
from dynamix.jobs.baseline import stored_mark
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.features import seen_events

_VERDICT = (
    "verdict", "reason", "keep", "quota", "boost", "relevance", "relevance_lcb", "relevance_ucb", "positives", "tokens"
)  # fmt: skip
_SLOPES = ("dwell", "count", "match")
"""Channels whose slopes are told apart within and between users."""


def explain(run: Run, stream: str, *, segment: str | None = None) -> StepResult:
    """The stream's declaration and what the tables hold of it; with `segment` (id or name) the mask's verdict on it.

    ConfigError (exit 2) for a stream or segment that does not exist, with the nearest names; GuardError (exit 4)
    where the tables are not written yet.
    """
    rows = {str(r["stream"]): r for r in run.warehouse.read(run.spark, "streams").collect()}
    if stream not in rows and stream not in run.config.streams:
        raise ConfigError.unknown_name("stream", stream, sorted({*rows, *run.config.streams}))
    found = _declared(run, stream, rows.get(stream)) if segment is None else _judged(run, stream, segment)
    result = StepResult()
    result.facts = {"explain": found, "text": "\n".join(_lines(found))}
    return result


def _declared(run: Run, stream: str, row: Row | None) -> dict[str, Any]:
    """Declaration, row of `streams`, and counts of the stream's events before the run date."""
    declaration = run.config.declaration(stream)
    found: dict[str, Any] = {
        "stream": stream,
        "declared": "in the config" if declaration.declared else "by the data (no entry under `streams:`)",
        "filter": declaration.events.text(),
        "length": declaration.length,
        "attributes": list(declaration.attributes),
        "windows": [_window(days, declaration) for days in declaration.windows],
        "columns": list(declaration.columns()),
        "protected": declaration.protected,
        "sensitive": declaration.sensitive,
    }
    names = ("stream_id", "first_seen", "is_conversion", "has_dwell", "mu", "sigma", "baseline_version")
    found |= {name: None if row is None else row[name] for name in names}
    return found | _contents(run, declaration) | _frozen(run, declaration)


def _contents(run: Run, declaration: Declaration) -> dict[str, Any]:
    """Rows in `events` and shares of the dwell statuses; of the stream without kind where the stream has one."""
    base = base_stream(declaration.stream)
    events = stream_events(seen_events(run), config=run.config).where(F.col("stream") == base)
    counts = {
        str(r["dwell_status"]): int(r["count"]) for r in events.groupBy("dwell_status").count().collect()
    }
    total = sum(counts.values())
    return {
        "counted": base,
        "rows": total,
        "dwell_statuses": {
            name: n / total for name, n in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))
        },
    }


def _frozen(run: Run, declaration: Declaration) -> dict[str, Any]:
    """Caps and filled-in constants (ms) that `ingest` froze, by `surface/event_type` of the filter."""
    mark = stored_mark(run.warehouse)
    caps, imputed = (mark.baseline.caps_ms, mark.baseline.imputed_ms) if mark else ({}, {})
    pairs = declaration.events.pairs | {declaration.events.own}
    raw = sorted("/".join(pair) for pair in pairs)
    capped = {name: caps.get(name, caps.get(ALL_STREAMS)) for name in raw}
    return {"caps_ms": capped, "imputed_ms": {name: list(imputed[name]) for name in raw if name in imputed}}


def _window(days: int, declaration: Declaration) -> str:
    return f"{days}d" if days else f"all days, half-life {declaration.half_life_days}d"


def _judged(run: Run, stream: str, segment: str) -> dict[str, Any]:
    """The verdict of the current mask on the stream in a segment, a row for each tier it tells apart."""
    version, status = current_mask(run)
    grid = run.warehouse.read(run.spark, MASKS.name).where(F.col("mask_version") == version)
    known = {int(r["segment_id"]): str(r["segment_name"]) for r in
             grid.select("segment_id", "segment_name").distinct().collect()}  # fmt: skip
    segment_id = _segment(segment, known)
    rows = (
        grid.where((F.col("segment_id") == segment_id) & (F.col("stream") == stream))
        .orderBy("tier")
        .collect()
    )
    return {
        "stream": stream,
        "segment": segment_id,
        "segment_name": known[segment_id],
        "mask_version": version,
        "status": status,
        "tiers": {str(r["tier"]): _verdict(r) for r in rows},
        "slopes": _slopes(run, stream, segment_id, sorted({str(r["segment_version"]) for r in rows})),
    }


def _verdict(row: Row) -> dict[str, Any]:
    """The row's verdict; with the attributes that its events carry where the mask takes others."""
    kept = {} if row["attributes"] is None else {"attributes": list(row["attributes"])}
    return {name: row[name] for name in _VERDICT} | kept


def _slopes(run: Run, stream: str, segment_id: int, versions: Sequence[str]) -> dict[str, str]:
    """Within- and between-user slopes by label and channel, from the newest statistics of the mask's segments."""
    if not run.warehouse.exists(run.spark, CELL_STATS.name):
        return {}
    stats = run.warehouse.read(run.spark, CELL_STATS.name)
    own = stats.where(
        F.col("segment_version").isin(*versions)
        & (F.col("segment_id") == segment_id)
        & (F.col("stream") == stream)
        & F.col("channel").isin(*_SLOPES)
    )
    rows = own.select(
        "window_end", "label", "channel", "beta_within", "se_within", "beta_between", "se_between"
    ).collect()
    newest = max((r["window_end"] for r in rows), default=None)
    return {
        f"{r['label']} {r['channel']}": f"within users {r['beta_within']:+.3f} (se {r['se_within']:.3f}), "
        f"between {r['beta_between']:+.3f} (se {r['se_between']:.3f}) log-odds per SD"
        for r in sorted(rows, key=lambda r: (r["label"], _SLOPES.index(r["channel"])))
        if r["window_end"] == newest
    }


def current_mask(run: Run, *, statuses: Sequence[str] = ("published", "proposed")) -> tuple[str, str]:
    """Name and status of the newest mask version up to the run date that has the first of `statuses`, else the next.

    Controls and retired versions judge nothing: GuardError (exit 4) where there are no others.
    """
    masks = run.warehouse.read(run.spark, MASKS.name).where(F.col("run_date") <= F.lit(run.run_date))
    versions = masks.select("mask_version", "status", "run_date", "seq").distinct().collect()
    for status in statuses:
        own = [r for r in versions if r["status"] == status]
        if own:
            newest = max(own, key=lambda r: (r["run_date"], r["seq"], r["mask_version"]))
            return str(newest["mask_version"]), status
    raise GuardError(
        f"table 'masks' has no {' or '.join(statuses)} version up to the run date; run `dynamix mask`"
    )


def _segment(asked: str, known: Mapping[int, str]) -> int:
    """Id of a segment that was named by id or by name."""
    for number, name in sorted(known.items()):
        if asked in (str(number), name):
            return number
    raise ConfigError.unknown_name(
        "segment", asked, [t for n, name in sorted(known.items()) for t in (str(n), name)]
    )


def _lines(found: Mapping[str, Any], indent: str = "") -> list[str]:
    """`name: value` lines; nested mappings and long lists are indented below their name."""
    width = max((len(name) for name, value in found.items() if not _nested(value)), default=0)
    lines = []
    for name, value in found.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name}", *_lines(value, indent + "  ")]
        elif _nested(value):
            lines += [f"{indent}{name}", *[f"{indent}  {item}" for item in value]]
        else:
            lines.append(f"{indent}{name:{width}}  {_said(value)}")
    return lines


def _nested(value: Any) -> bool:
    return bool(value) and (isinstance(value, Mapping) or (isinstance(value, list) and len(value) > 6))


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None or value == {} else str(value)
