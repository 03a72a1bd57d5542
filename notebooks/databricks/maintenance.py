# Databricks notebook source
# MAGIC %md
# MAGIC # Maintenance: compact the tables, remove files that nobody needs
# MAGIC Versions that a registered ranker or the next increment is pinned to stay readable: `dynamix.jobs.retention`
# MAGIC says how many hours of removed files and of the log that takes. The weekly job runs this page.

# COMMAND ----------

from datetime import UTC, datetime

from delta.tables import DeltaTable

from dynamix.features.tables import WRITERS, Warehouse
from dynamix.jobs.retention import keep_hours, pinned_versions, refuse_short, retention_sql
from dynamix.jobs.session import get_spark
from dynamix.models.registry import Registry

dbutils.widgets.text("warehouse", "demo/full/warehouse", "directory of the tables")  # noqa: F821
dbutils.widgets.text("keep_hours", "168", "hours of removed files to keep at least")  # noqa: F821
warehouse = Warehouse(dbutils.widgets.get("warehouse"))  # noqa: F821
least = int(dbutils.widgets.get("keep_hours"))  # noqa: F821
refuse_short(least)
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
# MAGIC VACUUM follows the table's own retention and ignores hours that it is given, so the hours become a property.
# MAGIC The log reaches as far back as the files do, else a pinned version has files and no entry.

# COMMAND ----------

for name, kept in hours.items():
    spark.sql(retention_sql(warehouse.path(name), kept))
    table = DeltaTable.forPath(spark, warehouse.path(name))
    table.optimize().executeCompaction()
    table.vacuum()
    print(f"{name}: compacted, files removed more than {kept} hours ago deleted")
