# Databricks notebook source
# MAGIC %md
# MAGIC # Maintenance: compact the tables, remove files that nobody needs
# MAGIC Versions that a registered ranker or the next increment is pinned to stay readable: `dynamix.jobs.retention`
# MAGIC says how many hours of removed files and of the log that takes. The weekly job runs this page.

# COMMAND ----------

from datetime import UTC, datetime

from delta.tables import DeltaTable

from dynamix.features.sql_text import delta_at
from dynamix.features.tables import WRITERS, Warehouse
from dynamix.jobs.retention import keep_hours, pinned_versions
from dynamix.jobs.session import get_spark
from dynamix.models.registry import Registry

dbutils.widgets.text("warehouse", "demo/full/warehouse", "directory of the tables")  # noqa: F821
dbutils.widgets.text("keep_hours", "168", "hours of removed files to keep at least")  # noqa: F821
warehouse = Warehouse(dbutils.widgets.get("warehouse"))  # noqa: F821
least = int(dbutils.widgets.get("keep_hours"))  # noqa: F821
spark = get_spark("dynamix-maintenance")

# COMMAND ----------

# MAGIC %md
# MAGIC ## How long removed files stay, per table

# COMMAND ----------

pins = pinned_versions(warehouse, Registry(warehouse.private))
now = datetime.now(UTC)
hours = {}
for name in (name for name in WRITERS if warehouse.exists(spark, name)):
    log = DeltaTable.forPath(spark, warehouse.path(name)).history().select("version", "timestamp").collect()
    commits = {row["version"]: row["timestamp"].astimezone(UTC) for row in log}
    pinned = [v for v in pins.get(name, ()) if v >= warehouse.redacted_before(spark, name)]
    hours[name] = keep_hours(commits, pinned, now=now, least=least)
    print(f"{name}: keep {hours[name]} hours; pinned: {sorted(pinned) or 'nothing'}")

# COMMAND ----------

# MAGIC %md
# MAGIC ## Compact and remove
# MAGIC The log must reach as far back as the files do, else a pinned version has files and no entry.

# COMMAND ----------

LOG_DAYS = 30  # Delta's default
for name, kept in hours.items():
    table = DeltaTable.forPath(spark, warehouse.path(name))
    if kept > 24 * LOG_DAYS:
        spark.sql(
            f"ALTER TABLE {delta_at(warehouse.path(name))} SET TBLPROPERTIES "
            f"('delta.logRetentionDuration' = 'interval {kept} hours')"
        )
    table.optimize().executeCompaction()
    table.vacuum(kept)
    print(f"{name}: compacted, files removed more than {kept} hours ago deleted")
