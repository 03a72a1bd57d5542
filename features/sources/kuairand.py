"""Import of the KuaiRand short-video log (likes-and-hates subset) into canonical raw events.

One row becomes an impression and up to four events of one request and one time: playing, reading comments,
entering the profile, following. The label is engagement with content, never a purchase.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dynamix.errors import InputError
from dynamix.features.sources.files import ImportSummary, hash_ids, read_source, repeat
from dynamix.features.sources.output import TIMESTAMP, raw_events, staged_folder, write_config, write_parquet

FILE_NAME = "processed_standard_kcore_15.tsv"
COLUMNS = dict.fromkeys(
    (
        "user_id", "video_id", "date", "time_ms", "is_click", "is_follow", "is_comment", "is_forward",
        "long_view", "play_time_ms", "duration_ms", "comment_stay_time", "is_profile_enter", "label",
    ),
    "integer",
)  # fmt: skip
"""`hourmin` and `timestamp` are left out: copies of a row differ in them, and `time_ms` is the only clock."""
ATTRIBUTES = ("duration_ms", "is_click", "long_view", "is_comment", "is_forward", "label")
CONFIG: dict[str, object] = {
    "attributes": list(ATTRIBUTES),
    "impression_types": ["impression"],
    "click_types": [],
    "conversion_types": ["profile_enter"],
    "labels": ["conversion"],
    "label_meaning": "profile entered",
    "session": {"rule": "given"},
    "dwell": {"derive": False},
    "attribution": {"click_window": "0s", "view_window": "0s", "join_on": [["request_id", "item_id"]]},
    "history": {"embargo": "60s"},
}


@dataclass(frozen=True)
class _Role:
    """An event that a row gives: where `when` is positive (empty: always), with the dwell of column `dwell`."""

    surface: str
    event_type: str
    when: str = ""
    dwell: str = ""


ROLES = (
    _Role("player", "impression"),
    _Role("player", "view", when="play_time_ms", dwell="play_time_ms"),
    _Role("comments", "view", when="comment_stay_time", dwell="comment_stay_time"),
    _Role("profile", "profile_enter", when="is_profile_enter"),
    _Role("player", "follow", when="is_follow"),
)


def import_kuairand(src: Path, out: Path) -> ImportSummary:
    """Write `out`/events and `out`/dynamix.yaml from the log `src` (the file, or the folder that holds it).

    Grain: one impression a row, and one event each for play time, comment time, profile entry and follow where
    there is one. Copies of a row get equal ids and equal payload, so that ingest counts them as duplicates.
    Dwell is logged (ms), sessions are given (user and UTC+8 day). Raises InputError; nothing is written then.
    """
    path, rows = read_source(src, name=FILE_NAME, columns=COLUMNS)
    negative = [c for c in COLUMNS if pc.min(rows[c]).as_py() < 0]
    if negative:
        raise InputError(f"{path}: negative values in {', '.join(negative)}; is this the file {FILE_NAME}?")
    events = pa.concat_tables([_events(rows, role) for role in ROLES])
    with staged_folder(out) as folder:
        write_parquet(events, folder / "events", files=2)
        write_config(CONFIG, folder / "dynamix.yaml", comment="KuaiRand subset; a 1 is a profile entry")
    counts = {row["values"]: row["counts"] for row in events["event_type"].value_counts().to_pylist()}
    return ImportSummary(path, out, rows_read=rows.num_rows, events=events.num_rows, counts=counts)


def _events(rows: pa.Table, role: _Role) -> pa.Table:
    """The events of one role; a row without it gives none."""
    if role.when:
        rows = rows.filter(pc.greater(rows[role.when], 0))
    user, video = (rows[name].cast(pa.string()) for name in ("user_id", "video_id"))
    surface, event_type = (repeat(name, rows.num_rows) for name in (role.surface, role.event_type))
    known = pc.greater(rows["duration_ms"], 0)
    return raw_events(
        {
            "user_id": user,
            "event_ts": pc.multiply(rows["time_ms"], 1000).cast(TIMESTAMP),
            "event_type": event_type,
            "surface": surface,
            "event_id": hash_ids(user, video, rows["time_ms"], surface, event_type),
            "item_id": video,
            "session_id": pc.binary_join_element_wise(user, rows["date"].cast(pa.string()), "-"),
            "request_id": hash_ids(user, video, rows["time_ms"]),
            **({"dwell_ms": rows[role.dwell]} if role.dwell else {}),
            **{name: rows[name] for name in ATTRIBUTES},
            "duration_ms": pc.if_else(known, rows["duration_ms"], pa.scalar(None, pa.int64())),
        }
    )
