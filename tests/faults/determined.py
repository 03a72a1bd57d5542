"""A cycle in a process of its own, with the cores and shuffle partitions that it is told: what its tables hold."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as `pythonpath` of the tests

import torch
from cycles import SMALL, open_world
from pyspark.sql import SparkSession

from dynamix.contracts import TABLES
from dynamix.features.content import content_hash
from dynamix.features.tables import Warehouse
from dynamix.jobs.run import execute
from dynamix.models.registry import CHALLENGER, RANKER, Registry, artefact_folder
from dynamix.models.service import STATE

SETTINGS = (*SMALL, "segmentation.k_max=2", "mask.ne_budget=0.45")
NOT_COMPARED = ("run_log",)


def walk(spark: SparkSession, world: Path, place: Path, *, steps: Sequence[str], partitions: int) -> None:
    """These steps of a cycle in a warehouse of its own."""
    spark.conf.set("spark.sql.shuffle.partitions", partitions)
    spark.conf.set("spark.sql.files.maxPartitionBytes", 4_000_000 // partitions)
    spark.conf.set(
        "spark.sql.adaptive.coalescePartitions.enabled", "false"
    )  # else few rows are one partition again
    run = open_world(spark, world, place, *SETTINGS)
    with patch("dynamix.features.timeline.PARCEL_ROWS", 5_000):  # several parcels, and several of them a task
        for step in steps:
            execute(run, step, skip=False, source=str(world) if step == "ingest" else None)


def contents(spark: SparkSession, place: Path) -> dict[str, str]:
    """Content hash of every table, and the hash of the weights of a trained ranker."""
    warehouse = Warehouse(place)
    found = {}
    for name, table in TABLES.items():
        if name in NOT_COMPARED or not warehouse.commits(name):
            continue
        found[name] = content_hash(warehouse.read(spark, name), table)
    if warehouse.commits("training_rows"):
        folder, _ = artefact_folder(Registry(warehouse.private), f"models:/{RANKER}@{CHALLENGER}")
        found["weights"] = weights_hash(folder)
    return found


def weights_hash(folder: Path) -> str:
    """Of names and bits of all weights of a registered ranker."""
    digest = hashlib.sha256()
    for name, value in sorted(torch.load(folder / STATE, weights_only=True).items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:16]


def serve(master: str) -> None:
    """Orders on standard input, {"world": FOLDER, "place": FOLDER, "steps": [...], "partitions": N}.

    The answer to no steps is what the tables hold, and the cores; else it is "done".
    """
    from dynamix.jobs.session import get_spark

    os.environ["DYNAMIX_MASTER"] = master
    spark = get_spark("determined")
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        place = Path(order["place"])
        if order["steps"]:
            walk(spark, Path(order["world"]), place, steps=order["steps"], partitions=order["partitions"])
            print("done", flush=True)
        else:
            cores = spark.sparkContext.defaultParallelism
            print(json.dumps({"cores": cores, **contents(spark, place)}), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
