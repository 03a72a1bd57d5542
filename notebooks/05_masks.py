# Databricks notebook source
# MAGIC %md
# MAGIC # Masks and what they cost
# MAGIC The newest mask version: verdicts, what goes per segment, why cells are undecided, what the ranker lost by it,
# MAGIC and what more data would decide.

# COMMAND ----------

from dynamix.jobs import explore, figures
from dynamix.jobs.notebook import open_page, surroundings
from dynamix.jobs.power import power
from dynamix.jobs.report_load import gather

dbutils, spark, show = surroundings(globals())
dbutils.widgets.text("warehouse", "demo/full/warehouse", "directory of the tables")
dbutils.widgets.text("run_date", "", "YYYY-MM-DD; empty: the newest")
run = open_page(dbutils.widgets.get("warehouse"), dbutils.widgets.get("run_date"))
data = gather(run)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Verdicts

# COMMAND ----------

show(figures.heat(data))

# COMMAND ----------

# MAGIC %md
# MAGIC ## What goes
# MAGIC `tokens` are events per impression before the mask, `removed` is the share of them in dropped cells.

# COMMAND ----------

costs = explore.mask_costs(run, data)
show(costs)
show(
    figures.bars(costs, name="segment_name", value="removed", title="Removed tokens", unit="share of tokens")
)
show(figures.bars(costs, name="segment_name", value="undecided", title="Undecided cells", unit="cells"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Why a cell is undecided
# MAGIC A thick bar inside the shade can be dropped, one clear of zero is needed; one across the shade's edge is open.

# COMMAND ----------

show(figures.equivalence(data))

# COMMAND ----------

# MAGIC %md
# MAGIC ## What it costs
# MAGIC Shorter histories to the left; the price in NE is upwards, with 95 % intervals by users.

# COMMAND ----------

show(figures.ne_by_tokens(data))

# COMMAND ----------

# MAGIC %md
# MAGIC ## What more data would decide

# COMMAND ----------

show(power(run).facts["text"])
