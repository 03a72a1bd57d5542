"""How long removed files of a table must stay so that every pinned version can still be read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime

from dynamix.contracts import EVENTS_QUARANTINE, TRAINING_ROWS
from dynamix.errors import ConfigError, EnvironmentTrouble
from dynamix.features.tables import Warehouse
from dynamix.jobs.baseline import stored_mark
from dynamix.models.registry import CHALLENGER, CHAMPION, RANKER, Registry, find

KEEP_HOURS = 168
"""Delta's own default: readers and writers that are under way need the files of the last days."""
LOG_HOURS = 720
"""Delta's own default for the log, which must reach as far back as the files do: an entry without files is no version."""


def pinned_versions(warehouse: Warehouse, registry: Registry) -> dict[str, set[int]]:
    """Table -> commit numbers that a later step or a reader of a model still asks for.

    `training_rows` as the champion and the challenger were trained on; `events_quarantine` as of the last
    ingest, from which the next increment counts.
    """
    pins: dict[str, set[int]] = {}
    for alias in (CHAMPION, CHALLENGER):
        found = find(registry, RANKER, alias)
        if found is not None and "training_rows_version" in found.tags:
            pins.setdefault(TRAINING_ROWS.name, set()).add(int(found.tags["training_rows_version"]))
    mark = stored_mark(warehouse)
    if mark is not None:
        pins.setdefault(EVENTS_QUARANTINE.name, set()).add(mark.quarantine)
    return pins


def keep_hours(
    commits: Mapping[int, datetime], pinned: Iterable[int], *, now: datetime, least: int = KEEP_HOURS
) -> int:
    """Whole hours for VACUUM and the log: at least `least`, and back to before anything pinned was overwritten.

    `commits` maps the commits that the log still holds to their times. Files of version v are removed by
    commit v + 1 at the earliest, those of the newest by a compaction that runs now; v needs the time since then
    and an hour to spare. EnvironmentTrouble (exit 5) where a pinned version is no longer in the log.
    """
    hours = least
    for version in sorted(set(pinned)):
        if version not in commits:
            raise EnvironmentTrouble(
                f"pinned version {version} is not in the log, which holds {min(commits)} to {max(commits)}; "
                "nothing was removed: run the step that writes the table, so that the pin moves on"
            )
        overwritten = min((time for v, time in commits.items() if v > version), default=now)
        hours = max(hours, math.ceil((now - overwritten).total_seconds() / 3600) + 1)
    return hours


def refuse_short(hours: int) -> None:
    """ConfigError (exit 2) below KEEP_HOURS: a job under way could lose files that it needs (docs/faults.md 28)."""
    if hours < KEEP_HOURS:
        raise ConfigError(
            f"keep_hours {hours} is shorter than Delta's own retention; allowed: {KEEP_HOURS} or more. To erase users at "
            "once run `dynamix forget`"
        )


def retention_sql(table: str, hours: int) -> str:
    """Statement that makes removed files of a table, as SQL names it, stay for `hours`, and the log as long.

    As properties of the table: since Delta 4 VACUUM ignores the hours that it is given, and time travel ends with them.
    """
    refuse_short(hours)
    files = f"'delta.deletedFileRetentionDuration' = 'interval {hours} hours'"
    log = f"'delta.logRetentionDuration' = 'interval {max(hours, LOG_HOURS)} hours'"
    return f"ALTER TABLE {table} SET TBLPROPERTIES ({files}, {log})"
