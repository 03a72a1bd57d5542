# Databricks notebook source
# MAGIC %md
# MAGIC # Train and register
# MAGIC The rankers with and without the mask on the same rows: what they showed, which one was registered, and who holds
# MAGIC the aliases. Trains only where no evidence on the newest mask version is there, or where you ask for it.

# COMMAND ----------

from dynamix.jobs import explore, figures
from dynamix.jobs.notebook import open_page, surroundings
from dynamix.jobs.report_load import gather
from dynamix.jobs.run import execute

dbutils, spark, show = surroundings(globals())
dbutils.widgets.text("warehouse", "demo/full/warehouse", "directory of the tables")
dbutils.widgets.text("run_date", "", "YYYY-MM-DD; empty: the newest")
dbutils.widgets.text("retrain", "if needed", "yes, no, or 'if needed'")
run = open_page(dbutils.widgets.get("warehouse"), dbutils.widgets.get("run_date"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Training
# MAGIC Gates read validation rows only; the test part is read once, after them.

# COMMAND ----------

data = gather(run)
choice = dbutils.widgets.get("retrain")
if choice == "yes" or (choice == "if needed" and not explore.judged(data)):
    found = execute(run, "train", skip=False)
    show(f"{found.facts['model']} is {found.facts['alias']}; {found.facts['ranker_gate']}")
    data = gather(run)

# COMMAND ----------

# MAGIC %md
# MAGIC ## What the arms showed
# MAGIC NE is log loss over the entropy of the base rate: below 1 beats the base rate, lower is better.

# COMMAND ----------

show(figures.arms(data))
show(figures.ne_by_tokens(data))
show(explore.trainings(run))

# COMMAND ----------

# MAGIC %md
# MAGIC ## What it means
# MAGIC The last lines are the receipt's: the expected change with its interval, and what these rows can resolve.

# COMMAND ----------

show(figures.receipt(data))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Who serves
# MAGIC `challenger` is the newest version, `champion` the one whose gate passed. Each is pinned to its masks.

# COMMAND ----------

show(explore.aliases(run))
