"""What `audit` holds side by side: rows of the tables as plain numbers, and what of each table is compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, DateType, TimestampType

from dynamix.features.comparison import Shape
from dynamix.features.oracle import Event

COMPARED: Mapping[str, Shape] = {
    shape.table: shape
    for shape in (
        Shape(
            "events",
            ("user_id", "event_id"),
            ("session_id", "session_start", "dwell_ms", "dwell_status", "event_date"),
        ),
        Shape(
            "ebf_session",
            ("user_id", "session_id"),
            (
                "session_start", "session_end", "n_events", "duration_ms", "n_by_stream", "dwell_by_stream",
                "dwell_sum_ms", "n_censored", "conversions", "first_conversion_ms", "surface_entropy",
                "n_transitions", "gap_before_ms", "capped_length", "source_session_id", "session_date",
            ),
        ),
        Shape(
            "ebf_surface",
            ("user_id", "stream", "window_end", "window_days"),
            (
                "n", "dwell_sum", "z_sum", "z_sq_sum", "n_dwell", "n_censored", "last_ts", "decayed_n",
                "conversions", "dwell_hist",
            ),
        ),
        # kappa comes of a second formula here: where little lies between users it is sensitive to the last digits
        Shape(
            "user_stats", ("user_id",), ("baseline_version", "n", "habit", "first_ts", "last_ts"), {"habit": 1e-3}
        ),
        Shape(
            "training_rows",
            ("user_id", "impression_id"),
            (
                "event_ts", "event_date", "request_id", "surface", "item_id", "category", "position", "value", "part",
                "label_mature_ts", "hist_stream", "hist_item", "hist_category", "hist_dwell_bin", "hist_z", "hist_age_s",
            ),
        ),
    )
}  # fmt: skip
"""Key and compared columns of each table; what is not here has no rule in plain Python."""


def compared(table: str, frame: DataFrame) -> Shape:
    """The shape of a table, with `dwell_share` where the table has that column."""
    shape = COMPARED[table]
    more = tuple(name for name in ("dwell_share",) if table == "ebf_surface" and name in frame.columns)
    return Shape(shape.table, shape.key, (*shape.columns, *more), shape.slack)


def plain_rows(frame: DataFrame) -> list[dict[str, Any]]:
    """All rows as dicts: instants as whole microseconds since 1970, dates as days since 1970. One action."""
    columns = [_number(field.name, field.dataType).alias(field.name) for field in frame.schema.fields]
    return [row.asDict() for row in frame.select(columns).collect()]


def _number(name: str, data_type: DataType) -> Column:
    if isinstance(data_type, TimestampType):
        return F.unix_micros(F.col(name))
    if isinstance(data_type, DateType):
        return F.unix_date(F.col(name))
    return F.col(name)


def as_logged(rows: Iterable[Event]) -> list[Event]:
    """Stored events with the dwell that the source logged in place of the settled one."""
    return [row | {"dwell_ms": row["dwell_logged_ms"]} for row in rows]
