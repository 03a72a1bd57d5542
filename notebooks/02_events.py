# Databricks notebook source
# MAGIC %md
# MAGIC # Events
# MAGIC Which streams there are, how they run over time, what is known of their dwell, and what was refused.

# COMMAND ----------

from dynamix.jobs import explore, figures
from dynamix.jobs.notebook import open_page, surroundings

dbutils, spark, show = surroundings(globals())
dbutils.widgets.text("warehouse", "demo/full/warehouse", "directory of the tables")
dbutils.widgets.text("run_date", "", "YYYY-MM-DD; empty: the newest")
run = open_page(dbutils.widgets.get("warehouse"), dbutils.widgets.get("run_date"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Streams
# MAGIC A stream is a surface and an event type. Impressions are what is predicted; the others are history.

# COMMAND ----------

counts = explore.event_counts(run)
show(counts)
show(figures.bars(counts, name="stream", value="events", title="Events per stream", unit="events"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Over time
# MAGIC A step or a hole here is worth a look before any model is trained on it.

# COMMAND ----------

daily = explore.daily_events(run)
show(figures.lines(daily, place="day", value="events", by="event_type", title="Events per day", unit="day"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Dwell
# MAGIC `observed` was logged, `derived` follows from the next event, `censored` ended with the session: its length
# MAGIC is unknown and is never taken as zero.

# COMMAND ----------

show(explore.dwell_statuses(run))
dwell = explore.dwell_histogram(run)
show(dwell)
title = "Dwell by stream, 28 days"
show(
    figures.lines(
        dwell, place="bin", value="dwells", by="stream", title=title, unit="ln(1 + ms), rounded down"
    )
)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Refused rows
# MAGIC Rows that are no events lie in quarantine with a reason; nothing is dropped silently.

# COMMAND ----------

refused = explore.quarantined(run)
show(refused)
show(figures.bars(refused, name="reason", value="rows", title="Refused raw rows", unit="rows"))
