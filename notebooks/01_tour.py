# Databricks notebook source
# MAGIC %md
# MAGIC # A tour in five minutes
# MAGIC What a finished warehouse says: who can do without which events, at what cost, and why some cells stay open.
# MAGIC The other pages go into each of these. Without parameters the warehouse of `make demo` is shown.

# COMMAND ----------

from dynamix.jobs import explore, figures
from dynamix.jobs.notebook import open_page, surroundings
from dynamix.jobs.report_load import gather

dbutils, spark, show = surroundings(globals())
dbutils.widgets.text("warehouse", "demo/full/warehouse", "directory of the tables")
dbutils.widgets.text("run_date", "", "YYYY-MM-DD; empty: the newest")
run = open_page(dbutils.widgets.get("warehouse"), dbutils.widgets.get("run_date"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## The receipt
# MAGIC The result in plain words, each number with its uncertainty.

# COMMAND ----------

data = gather(run)
show(figures.receipt(data))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Who
# MAGIC Segments are found from behaviour, without labels. Segment 0 is cold: too few events to tell.

# COMMAND ----------

sizes = explore.segment_sizes(run)
show(sizes)
segments = sizes.groupBy("segment_id", "segment_name").agg({"users": "sum"}).orderBy("segment_id")
show(figures.bars(segments, name="segment_name", value="sum(users)", title="Users per segment", unit="users"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## What each of them needs
# MAGIC A stream is dropped where its effect is shown to be negligible, kept where it is shown to matter, and kept as
# MAGIC *undecided* where these rows can show neither.

# COMMAND ----------

show(figures.heat(data))
show(figures.equivalence(data))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Does the ranker agree?
# MAGIC It was trained with and without the mask on the same rows. Lower is better.

# COMMAND ----------

show(figures.arms(data))
