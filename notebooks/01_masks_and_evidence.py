# %% [markdown]
# # Which events matter for whom
#
# Reads a warehouse that `dynamix run` or `make demo` has written: the newest mask version, the reasons behind its
# verdicts, and what the rankers with and without the mask showed. On Databricks the session that is there is used.

# %%
import json
import os
from pathlib import Path

from pyspark.sql import functions as F

from dynamix.features.tables import Warehouse
from dynamix.jobs.session import get_spark

warehouse = Warehouse(os.environ.get("DYNAMIX_WAREHOUSE", "demo/full/warehouse"))
spark = get_spark("dynamix-notebook")

# %% [markdown]
# ## Segments
# Who is where at the run date: `valid_to` is null in the open row of every user.

# %%
segments = warehouse.read(spark, "segments").where("valid_to IS NULL")
segments.groupBy("segment_id", "segment_name", "tier").count().orderBy("segment_id", "tier").show(
    50, truncate=60
)

# %% [markdown]
# ## Verdicts of the newest mask version
# `drop` is shown to be negligible within the budget; `undecided` is kept because these rows can show neither.

# %%
proposals = warehouse.read(spark, "masks").where("status <> 'control'")
newest = proposals.agg(F.max_by("mask_version", F.struct("run_date", "seq"))).first()[0]
mask = proposals.where(F.col("mask_version") == newest)
mask.groupBy("verdict").count().orderBy("verdict").show()
mask.where("verdict = 'drop'").select("segment_name", "stream", "reason").show(10, truncate=110)

# %% [markdown]
# ## What the rankers showed
# The newest training's evidence: arms on the same validation rows, NE with its user-clustered interval.

# %%
pages = sorted((warehouse.private / "runs").glob("*/evidence.json"), key=lambda p: p.stat().st_mtime)
evidence = json.loads(Path(pages[-1]).read_text(encoding="utf-8")) if pages else {"arms": []}
for arm in evidence["arms"]:
    low, high = arm["ne_ci"]
    print(
        f"{arm['arm']:9s} NE {arm['ne']:.4f} [{low:.4f}, {high:.4f}]  {arm['tokens_per_impression']:.1f} tokens"
    )
print(evidence.get("reason", "no masked arm was trained"))
