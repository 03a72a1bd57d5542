# Databricks notebook source
# MAGIC %md
# MAGIC # Segments
# MAGIC Who is in which segment at the run date, what these users do more than others, how their conversions go with
# MAGIC dwell, and who changed lately.

# COMMAND ----------

from dynamix.jobs import explore, figures
from dynamix.jobs.monitor import moves
from dynamix.jobs.notebook import open_page, surroundings
from dynamix.jobs.report_load import gather

dbutils, spark, show = surroundings(globals())
dbutils.widgets.text("warehouse", "demo/full/warehouse", "directory of the tables")
dbutils.widgets.text("run_date", "", "YYYY-MM-DD; empty: the newest")
dbutils.widgets.text("segment", "1", "id of the segment to look into")
run = open_page(dbutils.widgets.get("warehouse"), dbutils.widgets.get("run_date"))
segment = int(dbutils.widgets.get("segment"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Sizes
# MAGIC `active` users have at least the median of a week's events; segment 0 is cold.

# COMMAND ----------

sizes = explore.segment_sizes(run).selectExpr("*", "concat(segment_id, ' ', tier) AS place")
show(sizes)
show(figures.bars(sizes, name="place", value="users", title="Users per segment and tier", unit="users"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## What they do
# MAGIC `lift` is a stream's share of the segment's events over its share among all users.

# COMMAND ----------

streams = explore.segment_streams(run)
show(streams)
mine = streams.where(f"segment_id = {segment}")
show(
    figures.bars(
        mine, name="stream", value="lift", title=f"Lift in segment {segment}", unit="1 = as everybody"
    )
)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Dwell and conversion
# MAGIC Predictive, not causal: users who stay longer differ in more than that.

# COMMAND ----------

show(figures.dwell_curves(gather(run)))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Who changed
# MAGIC Users by their segment `monitor.days` ago and now, both warm.

# COMMAND ----------

show(moves(run))
