# Databricks notebook source
# MAGIC %md
# MAGIC # A model of your own on `features_user`
# MAGIC Writes the day's wide rows into a time series feature table of Unity Catalog and trains a logistic regression
# MAGIC on labelled impressions, each with the features as of its own time.
# MAGIC
# MAGIC **Not executed in this project**: it needs Unity Catalog and `databricks-feature-engineering` (ML runtimes have
# MAGIC it). Tested here are the statement, the rows and the arguments that it takes from `dynamix.jobs.feature_table`.

# COMMAND ----------

from datetime import date
from pathlib import Path

import mlflow
from databricks.feature_engineering import FeatureEngineeringClient, FeatureLookup
from pyspark.sql import functions as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dynamix.features.tables import Warehouse
from dynamix.jobs.feature_table import create_sql, lookup_arguments, user_columns, user_rows
from dynamix.jobs.session import get_spark
from dynamix.jobs.settings import resolve_config

dbutils.widgets.text("warehouse", "", "directory of the tables")  # noqa: F821
dbutils.widgets.text("table", "main.dynamix.features_user", "catalog.schema.table")  # noqa: F821
dbutils.widgets.text("run_date", "", "YYYY-MM-DD, as given to dynamix features")  # noqa: F821
place = Path(dbutils.widgets.get("warehouse"))  # noqa: F821
table = dbutils.widgets.get("table")  # noqa: F821
run_date = date.fromisoformat(dbutils.widgets.get("run_date"))  # noqa: F821
warehouse, spark = Warehouse(place), get_spark("dynamix-features-user")
config = resolve_config(warehouse=place, events=None, files=[], settings=[])

# COMMAND ----------

# MAGIC %md
# MAGIC ## The table and the rows of this run date

# COMMAND ----------

streams = [row["stream"] for row in warehouse.read(spark, "streams").select("stream").collect()]
features = user_columns(streams, config)
spark.sql(create_sql(table, features))
segments = warehouse.read(spark, "segments")
newest = segments.agg(F.max("segment_version")).first()[0]
mask = warehouse.read(spark, "masks").where("status = 'published'")
rows = user_rows(
    warehouse.read(spark, "ebf_surface"),
    segments.where(F.col("segment_version") == newest),
    mask,
    features=features,
    run_date=run_date,
)
writer = rows.write.mode("overwrite").option("replaceWhere", f"ts = '{run_date} 00:00:00'")
writer.option("mergeSchema", "true").saveAsTable(table)  # a new stream is a new column

# COMMAND ----------

# MAGIC %md
# MAGIC ## Labelled impressions with features as of their time

# COMMAND ----------

labelled = warehouse.read(spark, "training_rows").where("mask_version = 'keep-all' AND part = 'train'")
labelled = labelled.select("user_id", "event_ts", F.col("label_conversion").alias("label"))
client = FeatureEngineeringClient()
lookups = [FeatureLookup(**lookup_arguments(table, features))]
training = client.create_training_set(
    df=labelled, feature_lookups=lookups, label="label", exclude_columns=["user_id", "event_ts"]
)
frame = training.load_df().toPandas().fillna(0)  # no row of the user before the impression
model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
model.fit(frame.drop(columns="label"), frame["label"])
client.log_model(model=model, artifact_path="model", flavor=mlflow.sklearn, training_set=training)
