# Databricks notebook source
# MAGIC %md
# MAGIC # Monitor
# MAGIC Is a refit due? The checks of `dynamix monitor`, each as a share of its limit, and how they ran so far.

# COMMAND ----------

from dynamix.jobs import explore, figures
from dynamix.jobs.monitor import monitor, moves
from dynamix.jobs.notebook import open_page, surroundings

dbutils, spark, show = surroundings(globals())
dbutils.widgets.text("warehouse", "demo/full/warehouse", "directory of the tables")
dbutils.widgets.text("run_date", "", "YYYY-MM-DD; empty: the newest")
run = open_page(dbutils.widgets.get("warehouse"), dbutils.widgets.get("run_date"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## The answer
# MAGIC Limits come from the config (`monitor.*`, `drift.*`) and never lie below what chance explains. What could not be
# MAGIC looked at is named. The answer is kept in the run's folder.

# COMMAND ----------

found = monitor(run)
show(figures.checks(found))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Scores
# MAGIC The newest scored day whose labels are known. Calibration is predicted over seen positives.

# COMMAND ----------

scored = explore.scored_segments(run)
show(scored)
place = "label_and_segment"
show(figures.bars(scored, name=place, value="calibration", title="Calibration", unit="predicted over seen"))
show(figures.bars(scored, name=place, value="ne", title="NE of the newest scored day", unit="NE"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Segments
# MAGIC Users by their segment `monitor.days` ago and now.

# COMMAND ----------

show(moves(run))

# COMMAND ----------

# MAGIC %md
# MAGIC ## So far
# MAGIC The worst check of each kind over the run dates at which `monitor` was asked.

# COMMAND ----------

past = explore.past_checks(run)
show(past)
title = "Worst check of each kind"
show(
    figures.lines(past, place="run_date", value="of_limit", by="kind", title=title, unit="share of the limit")
)
