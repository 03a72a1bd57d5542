"""The logging policy that a continued world serves: the published mask of a warehouse, for users under it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import functions as F

from dynamix.contracts import MASKS, SEGMENTS
from dynamix.errors import GuardError
from dynamix.features.sim_continue import ContinuedSummary, continue_world
from dynamix.features.tables import Warehouse
from dynamix.jobs.places import place_of
from dynamix.jobs.session import get_spark
from dynamix.models.hashing import is_held_out


def continue_with(out: Path, masks: str) -> ContinuedSummary:
    """Another week of the world in `out`, logged under the published mask of the warehouse `masks`.

    GuardError (exit 4) where that warehouse has no published mask.
    """
    place, spark = place_of(masks), get_spark()
    published = place.read(spark, MASKS.name).where(F.col("status") == "published")
    rows = published.select("mask_version", "segment_version", "segment_id", "stream", "keep").collect()
    if not rows:
        raise GuardError(
            f"--masks {masks}: no mask is published there; run `dynamix run`, or leave --masks out"
        )
    dropped: dict[int, set[str]] = {}
    for cell in rows:
        if not cell["keep"]:
            dropped.setdefault(int(cell["segment_id"]), set()).add(str(cell["stream"]))
    segments = _segments(place, str(rows[0]["segment_version"]))

    def policy(users: list[str], streams: tuple[str, ...]) -> NDArray[np.bool_]:
        gone = np.zeros((len(users), len(streams)), bool)
        for row, user in enumerate(users):
            own = dropped.get(segments.get(user, 0), set())
            if own and not is_held_out(user):
                gone[row] = [stream in own for stream in streams]
        return gone

    return continue_world(out, policy=policy, masks=str(rows[0]["mask_version"]))


def _segments(place: Warehouse, version: str) -> dict[str, int]:
    """Segment of every user now, in the version that the mask is for."""
    current = place.read(get_spark(), SEGMENTS.name).where(
        (F.col("segment_version") == version) & F.col("valid_to").isNull()
    )
    table = current.select("user_id", "segment_id").toArrow()
    return dict(zip(table["user_id"].to_pylist(), table["segment_id"].to_pylist(), strict=True))
