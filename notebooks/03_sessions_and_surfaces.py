# Databricks notebook source
# MAGIC %md
# MAGIC # Sessions and surfaces
# MAGIC A session ends with a silence longer than `session.gap`; surfaces are summed up per day, 7 and 28 days.

# COMMAND ----------

from dynamix.jobs import explore, figures
from dynamix.jobs.notebook import open_page, surroundings

dbutils, spark, show = surroundings(globals())
dbutils.widgets.text("warehouse", "demo/full/warehouse", "directory of the tables")
dbutils.widgets.text("run_date", "", "YYYY-MM-DD; empty: the newest")
run = open_page(dbutils.widgets.get("warehouse"), dbutils.widgets.get("run_date"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## How long a session is
# MAGIC The last bar holds sessions of 20 events and more. `converting` is the share with a conversion.

# COMMAND ----------

sizes = explore.session_sizes(run)
show(sizes)
show(figures.bars(sizes, name="events", value="sessions", title="Sessions by their events", unit="sessions"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Sessions over time

# COMMAND ----------

daily = explore.daily_sessions(run)
show(figures.lines(daily, place="day", value="sessions", title="Sessions per day of their start", unit="day"))
show(figures.lines(daily, place="day", value="events_mean", title="Events per session", unit="day"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Surfaces
# MAGIC The newest 28 days. Much dwell with few conversions says nothing yet: what matters is settled per segment, by
# MAGIC effects with intervals, on the page about masks.

# COMMAND ----------

surfaces = explore.surface_totals(run)
show(surfaces)
show(figures.bars(surfaces, name="surface", value="dwell_hours", title="Hours of dwell", unit="hours"))
show(
    figures.bars(surfaces, name="surface", value="censored", title="Censored events", unit="share of events")
)
