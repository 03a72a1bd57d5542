"""Raw rows as ingest and plan see them: read, user ids hashed where that is asked for, forgotten users left out."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame

from dynamix.features.pseudonyms import with_pseudonyms
from dynamix.features.raw import read_raw
from dynamix.jobs.context import Run
from dynamix.jobs.forgotten import load_forgotten
from dynamix.jobs.user_lists import user_key


@dataclass(frozen=True)
class RawRows:
    """Rows that count as read, and those of forgotten users, None where nobody was forgotten."""

    rows: DataFrame
    forgotten: DataFrame | None = None


def open_raw(run: Run, events: str) -> RawRows:
    """The source's rows under canonical names; errors as of `read_raw`, EnvironmentTrouble without a key to hash by."""
    key = user_key(run.config)
    raw = read_raw(run.spark, events, config=run.config)
    if key is not None:
        raw = with_pseudonyms(raw, key=key)
    forgotten = load_forgotten(run.warehouse.private)
    if not forgotten.hashes:
        return RawRows(raw)
    return RawRows(*forgotten.split(run.spark, raw))
