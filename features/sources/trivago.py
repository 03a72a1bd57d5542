"""Import of the trivago RecSys Challenge 2019 session log into canonical raw events.

One step becomes one event, and the result list of a click-out is unrolled into one impression a listed item.
The label is a paid click-out, never a purchase. Lists are logged with click-outs only, so every rate on them is
conditional on a click-out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynamix.errors import InputError
from dynamix.features.sources.files import ImportSummary, hash_ids, read_source, repeat
from dynamix.features.sources.output import TIMESTAMP, raw_events, staged_folder, write_config, write_parquet

FILE_NAME = "trivago_val_100k.parquet"
COLUMNS = {
    "user_id": "text",
    "session_id": "text",
    "timestamp": "integer",
    "step": "integer",
    "action_type": "text",
    "reference": "text",
    "platform": "text",
    "city": "text",
    "device": "text",
    "current_filters": "text",
    "impressions": "text",
    "prices": "text",
}
CLICK_OUT = "clickout item"
ACTIONS = {
    "search for destination": ("search", "search_destination", False),
    "search for poi": ("search", "search_poi", False),
    "search for item": ("search", "search_item", True),
    "filter selection": ("filter_sort", "filter", False),
    "change of sort order": ("filter_sort", "sort", False),
    "interaction item image": ("gallery", "image", True),
    "interaction item info": ("item_detail", "info", True),
    "interaction item rating": ("item_detail", "rating", True),
    "interaction item deals": ("item_detail", "deals", True),
    CLICK_OUT: ("result_list", "click_out", True),
}
"""Action -> surface, event type, and whether its reference can be an item id (else it is text)."""
ATTRIBUTES = ("platform", "city", "device", "current_filters", "step", "reference")
CONFIG: dict[str, object] = {
    "attributes": list(ATTRIBUTES),
    "impression_types": ["impression"],
    "click_types": [],
    "conversion_types": ["click_out"],
    "labels": ["conversion"],
    "label_meaning": "paid click-out",
    "session": {"rule": "gap"},
    "dwell": {"derive": True},
    "attribution": {"click_window": "0s", "view_window": "0s", "join_on": [["request_id", "item_id"]]},
    "history": {"embargo": "0s"},
}


def import_trivago(src: Path, out: Path) -> ImportSummary:
    """Write `out`/events and `out`/dynamix.yaml from the log `src` (the file, or the folder that holds it).

    Grain: one event a step plus one impression a listed item; no row is dropped or merged. Steps carry `step` as
    event_seq, since many share a second. Impressions carry the click-out's time, request and attributes,
    and the price as value. Dwell stays empty: it is derived. Raises InputError; nothing is written then.
    """
    path, steps = read_source(src, name=FILE_NAME, columns=COLUMNS)
    _check_actions(path, steps)
    listed, parent, position = _unroll(path, steps)
    request = _request_ids(steps)
    rows = _step_events(steps, request, _clicked_position(steps, listed, parent, position))
    shown = _impressions(steps, request, listed, parent, position)
    events = pa.concat_tables([rows, shown])
    if events.num_rows != steps.num_rows + len(parent):  # the balance promised above
        raise InputError(
            f"{path}: {steps.num_rows} steps and {len(parent)} listed items gave {events.num_rows} events"
        )
    with staged_folder(out) as folder:
        write_parquet(events, folder / "events", files=2)
        write_config(CONFIG, folder / "dynamix.yaml", comment="trivago session log; a 1 is a paid click-out")
    counts = {row["values"]: row["counts"] for row in events["event_type"].value_counts().to_pylist()}
    return ImportSummary(path, out, rows_read=steps.num_rows, events=events.num_rows, counts=counts)


def _check_actions(path: Path, steps: pa.Table) -> None:
    unknown = [a for a in pc.unique(steps["action_type"]).to_pylist() if a not in ACTIONS]
    if unknown:
        raise InputError(
            f"{path}: unknown action_type {', '.join(map(repr, unknown))}; known: {', '.join(ACTIONS)}"
        )


def _unroll(path: Path, steps: pa.Table) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Listed items (item, price), the step they belong to, and their 1-based position."""
    items = pc.split_pattern(steps["impressions"].combine_chunks(), "|")
    prices = pc.split_pattern(steps["prices"].combine_chunks(), "|")
    unequal = pc.sum(
        pc.not_equal(pc.list_value_length(items).fill_null(0), pc.list_value_length(prices).fill_null(0))
    )
    if unequal.as_py():
        raise InputError(f"{path}: {unequal} rows have lists `impressions` and `prices` of different length")
    parent = pc.list_parent_indices(items).to_numpy(zero_copy_only=False)
    lengths = pc.list_value_length(items).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    position = np.arange(len(parent)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
    try:
        price = pc.list_flatten(prices).cast(pa.float64())
    except pa.ArrowInvalid as trouble:
        raise InputError(f"{path}: column prices holds text that is no number: {trouble}") from None
    return pa.table({"item": pc.list_flatten(items), "price": price}), parent, position


def _request_ids(steps: pa.Table) -> pa.Array:
    """hash(user, session, time, step) of click-outs, null elsewhere."""
    ids = hash_ids(*(steps[c] for c in ("user_id", "session_id", "timestamp", "step")))
    clicked = pc.equal(steps["action_type"], CLICK_OUT)
    return pc.if_else(clicked.combine_chunks(), ids, pa.scalar(None, pa.string()))


def _clicked_position(
    steps: pa.Table, listed: pa.Table, parent: np.ndarray, position: np.ndarray
) -> pa.Array:
    """1-based place of a click-out's item in its own list; null where the list lacks it, and for other steps."""
    hit = pc.equal(listed["item"], steps["reference"].take(pa.array(parent))).fill_null(False)
    rows = np.flatnonzero(hit.to_numpy(zero_copy_only=False))[
        ::-1
    ]  # the first of equal items is written last
    place = np.zeros(steps.num_rows, dtype=np.int32)
    place[parent[rows]] = position[rows]
    return pa.array(place, mask=place == 0)


def _step_events(steps: pa.Table, request: pa.Array, position: pa.Array) -> pa.Table:
    surfaces, types, with_item = zip(*ACTIONS.values(), strict=True)
    code = pc.index_in(steps["action_type"], value_set=pa.array(list(ACTIONS))).combine_chunks()
    reference = steps["reference"].combine_chunks()
    is_item = pc.and_(
        pa.array(with_item).take(code), pc.match_substring_regex(reference, r"^\d+$").fill_null(False)
    )
    nothing = pa.scalar(None, pa.string())
    return raw_events(
        {
            **_times(steps),
            "event_id": hash_ids(
                *(
                    steps[c]
                    for c in ("user_id", "session_id", "timestamp", "step", "action_type", "reference")
                )
            ),
            "event_type": pa.array(types).take(code),
            "surface": pa.array(surfaces).take(code),
            "item_id": pc.if_else(is_item, reference, nothing),
            "request_id": request,
            "position": position,
            **{name: steps[name] for name in ATTRIBUTES if name != "reference"},
            "reference": pc.if_else(is_item, nothing, reference),
        }
    )


def _impressions(
    steps: pa.Table, request: pa.Array, listed: pa.Table, parent: np.ndarray, position: np.ndarray
) -> pa.Table:
    rows = pa.array(parent)
    owner = steps.take(rows)
    place = pa.array(position)
    return raw_events(
        {
            **_times(owner),
            "event_id": hash_ids(request.take(rows), place),
            "event_type": repeat("impression", len(parent)),
            "surface": repeat("result_list", len(parent)),
            "item_id": listed["item"],
            "request_id": request.take(rows),
            "position": place,
            "value": listed["price"],
            **{name: owner[name] for name in ATTRIBUTES if name != "reference"},
            "reference": pa.nulls(len(parent), pa.string()),
        }
    )


def _times(steps: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {
        "user_id": steps["user_id"],
        "session_id": steps["session_id"],
        "event_ts": pc.multiply(steps["timestamp"], 1_000_000).cast(TIMESTAMP),
        "event_seq": steps["step"],
    }
