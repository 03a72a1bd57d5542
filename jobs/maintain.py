"""`dynamix maintain`: tables compacted, files deleted once no pinned version and no job under way needs them."""

from __future__ import annotations

from datetime import UTC, datetime

from dynamix.features.tables import WRITERS
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.retention import KEEP_HOURS, keep_hours, pinned_versions, refuse_short, retention_sql


def maintain(run: Run, *, least: int = KEEP_HOURS, tracking_uri: str = "") -> StepResult:
    """Compact every table and delete files that were removed longer ago than `least` hours and no pin needs.

    The hours of all tables are settled before anything is touched. VACUUM follows the table's own retention and ignores
    hours that it is given, so they become a property; the log reaches as far back as the files do, else a pinned
    version would have files and no entry. `facts["kept"]`: table -> hours and pinned versions. ConfigError (exit 2) for
    fewer than KEEP_HOURS, EnvironmentTrouble (exit 5) where the log has lost a pin: nothing is removed then.
    """
    refuse_short(least)
    place, spark = run.warehouse, run.spark
    pins = pinned_versions(place, run.registry(tracking_uri))
    now = datetime.now(UTC)
    hours: dict[str, int] = {}
    pinned: dict[str, list[int]] = {}
    for name in (name for name in WRITERS if place.exists(spark, name)):
        log = spark.sql(f"DESCRIBE HISTORY {place.sql(name)}").select("version", "timestamp").collect()
        commits = {int(row["version"]): row["timestamp"].astimezone(UTC) for row in log}
        first = place.redacted_before(spark, name)
        pinned[name] = sorted(v for v in pins.get(name, ()) if v >= first)
        hours[name] = keep_hours(commits, pinned[name], now=now, least=least)
    result, lines = StepResult(), []
    for name, kept in hours.items():
        table = place.sql(name)
        for statement in (retention_sql(table, kept), f"OPTIMIZE {table}", f"VACUUM {table}"):
            spark.sql(statement)
        result.tables[name] = place.version(spark, name) or 0
        held = ", ".join(map(str, pinned[name])) or "none"
        lines.append(
            f"{name}: compacted; removed files older than {kept} hours deleted; pinned versions: {held}"
        )
        run.note(f"maintain: {lines[-1]}")
    result.facts = {
        "kept": {name: {"hours": kept, "pinned": pinned[name]} for name, kept in hours.items()},
        "text": "\n".join(lines) or "no table here yet: nothing to maintain",
    }
    return result
