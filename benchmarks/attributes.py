"""Bytes of the training rows of a mask version with all attributes and without those it takes: `benchmarks attributes`.

Both sets of rows are written by the product's own kernel as Parquet, in one partition; sizes of the history's columns are
those of the files. Rows and events are the same, which is checked first.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.features.conversions import label_impressions
from dynamix.features.streams import event_columns
from dynamix.features.tables import Warehouse
from dynamix.features.training import training_rows
from dynamix.jobs.arm_rows import mask_rows
from dynamix.jobs.context import Run
from dynamix.jobs.explain import current_mask
from dynamix.jobs.features import cycle_calendar, seen_events
from dynamix.jobs.frames import held
from dynamix.jobs.kinds import kinded_sessions
from dynamix.jobs.mask import newest_segments
from dynamix.jobs.session import get_spark
from dynamix.jobs.settings import resolve_config


def main(root: Path) -> None:
    """Print bytes by history column under the newest proposed or published mask, with its attributes and with all."""
    spark, place = get_spark(), Warehouse(root)
    day = place.read(spark, "masks").agg(F.max("run_date").alias("d")).collect()[0]["d"]
    config = resolve_config(warehouse=root, events=None, files=[], settings=[])
    run = Run(spark, place, config, day, "bench", quiet=True)
    version, status = current_mask(run)
    grid = mask_rows(run, version)
    kept = grid.where("keep")
    cells, fewer = kept.count(), kept.where("attributes IS NOT NULL").count()
    print(f"mask {version} ({status}): {fewer} of {cells} kept cells lose attributes")
    made = _inputs(run)
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for name, masks in (("all", grid.drop("attributes")), ("less", grid)):
            frame = training_rows(masks=masks, mask_version=version, **made)
            one = frame.repartition(1).sortWithinPartitions("user_id", "event_ts", "impression_id")
            one.write.parquet(f"{folder}/{name}")
            found.append(_sizes(Path(folder) / name))
    (rows, events, whole), (_, _, less) = found
    if found[0][:2] != found[1][:2]:
        raise ValueError(
            f"{found[1][:2]} rows and events where {found[0][:2]} are expected: the two sets differ"
        )
    print(f"{rows:,} rows, {events:,} events in both; bytes with all attributes, without those taken, ratio")
    for column in sorted(whole):
        print(
            f"  {column:15} {whole[column]:>12,} {less[column]:>12,}  {less[column] / max(whole[column], 1):.3f}"
        )


def _inputs(run: Run) -> dict[str, object]:
    """What `training_rows` takes beside the mask, as `train` makes it."""
    events = seen_events(run)
    calendar = cycle_calendar(run, events)
    streams = run.warehouse.read(run.spark, "streams")
    stats = run.warehouse.read(run.spark, "user_stats")
    stats = stats.where(F.col("baseline_version") == calendar.baseline_version)
    history: DataFrame = held(
        event_columns(events, streams, stats, run.config, sessions=kinded_sessions(run))
    )
    return {
        "events": history, "impressions": held(label_impressions(events, config=run.config)),
        "segments": newest_segments(run)[0], "calendar": calendar, "config": run.config, "streams": streams,
    }  # fmt: skip


def _sizes(folder: Path) -> tuple[int, int, Counter[str]]:
    """Rows, history events, and compressed bytes by history column, of all columns (`all`) and of `hist_*` together."""
    rows, events, sizes = 0, 0, Counter[str]()
    for path in sorted(folder.glob("*.parquet")):
        file = pq.ParquetFile(path)
        rows += file.metadata.num_rows
        events += sum(len(own) for own in file.read(["hist_stream"])["hist_stream"].to_pylist())
        for group in range(file.metadata.num_row_groups):
            for place in range(file.metadata.num_columns):
                column = file.metadata.row_group(group).column(place)
                name, size = column.path_in_schema.split(".")[0], column.total_compressed_size
                sizes.update({name: size, "hist_*": size} if name.startswith("hist_") else {})
                sizes["all"] += size
    return rows, events, sizes
