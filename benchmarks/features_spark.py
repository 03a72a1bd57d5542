"""The two feature tables on Spark: the product, and two ways to write them with its built-in operators."""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import Column, DataFrame, Window, WindowSpec
from pyspark.sql import functions as F

from benchmarks.features_data import GAP_US
from dynamix.config import load_config
from dynamix.features.engine import ebf_tables
from dynamix.features.engine_hot import hot_users
from dynamix.jobs.session import get_spark

_GRID = float(2**20)
_SESSION = (
    "user_id", "session_start", "session_end", "n_events", "duration_ms", "n_by_stream", "dwell_by_stream",
    "dwell_sum_ms", "n_censored", "conversions", "first_conversion_ms", "surface_entropy", "n_transitions",
    "gap_before_ms",
)  # fmt: skip
_SURFACE = (
    "user_id", "stream", "window_end", "n", "dwell_sum", "z_sum", "z_sq_sum", "n_dwell", "n_censored", "last_ts",
    "conversions", "dwell_hist",
)  # fmt: skip


class Product:
    """`ebf_tables` on events without sessions; hot users are looked for within the time."""

    def __init__(self) -> None:
        self.spark = get_spark("features-bench")
        # session_window knows no largest length: out of reach for all sides
        self.config = load_config(settings=["session.max_length_s=60d"])

    def run(self, events: Path, out: Path) -> None:
        """Write both tables."""
        frame = self.spark.read.parquet(str(events / "*.parquet"))
        hot = hot_users(frame, config=self.config)
        tables = ebf_tables(frame, config=self.config, hot=hot)
        tables.packed.persist()
        tables.sessions.select(*_SESSION).write.parquet(str(out / "sessions"))
        tables.surfaces.select(*_SURFACE).write.parquet(str(out / "surfaces"))
        tables.packed.unpersist()


class LagCumsum:
    """Window functions for sessions and dwells, then grouped sums; the settled events are kept for both outputs."""

    def __init__(self) -> None:
        self.spark = get_spark("features-bench")

    def run(self, events: Path, out: Path) -> None:
        """Write both tables."""
        settled = self.settled(self.spark.read.parquet(str(events / "*.parquet")))
        settled = settled.drop("event_seq", "ingest_ts", "event_id").persist()
        self.sessions(settled).write.parquet(str(out / "sessions"))
        surfaces(settled).write.parquet(str(out / "surfaces"))
        settled.unpersist()

    def settled(self, events: DataFrame) -> DataFrame:
        """Events with dwell, censored, moved and the start of their session."""
        line = Window.partitionBy("user_id").orderBy("event_ts", "event_seq", "ingest_ts", "event_id")
        start = F.max(F.when(F.col("begins"), F.col("us"))).over(
            line.rowsBetween(Window.unboundedPreceding, 0)
        )
        return dwelt(events, line).withColumn("start", start)

    def sessions(self, settled: DataFrame) -> DataFrame:
        """Rows by (user, session): cells of a stream, then of a surface, then the session."""
        cells = settled.groupBy("user_id", "start", "surface", "stream").agg(*_sums())
        entry = F.struct("stream", "n", "dwell")
        places = cells.groupBy("user_id", "start", "surface").agg(
            *_again(), F.collect_list(entry).alias("streams")
        )
        whole = places.groupBy("user_id", "start").agg(
            *_again(),
            F.collect_list("n").alias("counts"),
            F.flatten(F.collect_list("streams")).alias("streams"),
        )
        return finished(whole)


class SessionWindow(LagCumsum):
    """`session_window` and groupBy; dwells and moves, which it cannot give, by one lag and one lead."""

    def settled(self, events: DataFrame) -> DataFrame:
        """Events with dwell, censored and moved."""
        line = Window.partitionBy("user_id").orderBy("event_ts", "event_seq", "ingest_ts", "event_id")
        return dwelt(events, line)

    def sessions(self, settled: DataFrame) -> DataFrame:
        """Rows by (user, session window), with a conditional sum for each stream and surface there is."""
        streams = sorted(row["stream"] for row in settled.select("stream").distinct().collect())
        places = sorted({name.split("/")[0] for name in streams})
        # windows that touch are one: a silence of exactly the gap does not part
        window = F.session_window("event_ts", f"{GAP_US} microseconds")
        grouped = settled.groupBy("user_id", window).agg(
            F.min("us").alias("start"),
            *_sums(),
            *[F.count_if(F.col("stream") == name).alias(f"n:{name}") for name in streams],
            *[F.sum(F.when(F.col("stream") == name, F.col("dwell"))).alias(f"d:{name}") for name in streams],
            *[F.count_if(F.col("surface") == name).alias(f"s:{name}") for name in places],
        )
        entries = F.array(
            *[
                F.struct(
                    F.lit(name).alias("stream"),
                    F.col(f"n:{name}").alias("n"),
                    F.col(f"d:{name}").alias("dwell"),
                )
                for name in streams
            ]
        )
        counts = F.filter(F.array(*[F.col(f"s:{name}") for name in places]), lambda n: n > 0)
        found = F.filter(entries, lambda entry: entry["n"] > 0)
        return finished(grouped.withColumns({"streams": found, "counts": counts}))


def dwelt(events: DataFrame, line: WindowSpec) -> DataFrame:
    """Narrow events with begins, dwell, censored and moved from the neighbours in the user's line."""
    us = F.col("us")
    begins = F.coalesce(us - F.lag("us").over(line) > GAP_US, F.lit(True))
    wait = F.lead("us").over(line) - us
    follows = F.coalesce(wait <= GAP_US, F.lit(False))
    narrow = events.where("event_type <> 'impression'").withColumn("us", F.unix_micros("event_ts"))
    marked = narrow.withColumns(
        {"begins": begins, "wait": F.when(follows, wait), "earlier": F.lag("surface").over(line)}
    )
    dwell = F.coalesce("dwell_ms", F.expr("wait div 1000"))
    return marked.select(
        "user_id",
        "event_ts",
        "event_seq",
        "ingest_ts",
        "event_id",
        "us",
        "surface",
        F.concat_ws("/", "surface", "event_type").alias("stream"),
        (F.col("event_type") == "conversion").alias("converted"),
        "begins",
        dwell.alias("dwell"),
        dwell.isNull().alias("censored"),
        (~F.col("begins") & (F.col("surface") != F.col("earlier"))).alias("moved"),
    )


def _sums() -> list[Column]:
    return [
        F.count(F.lit(1)).alias("n"),
        F.sum("dwell").alias("dwell"),
        F.max("us").alias("last"),
        F.count_if("censored").alias("censored"),
        F.count_if("converted").alias("conversions"),
        F.min(F.when(F.col("converted"), F.col("us"))).alias("first"),
        F.count_if("moved").alias("moves"),
    ]


def _again() -> list[Column]:
    sums = [F.sum(name).alias(name) for name in ("n", "dwell", "censored", "conversions", "moves")]
    return [*sums, F.max("last").alias("last"), F.min("first").alias("first")]


def finished(whole: DataFrame) -> DataFrame:
    """Columns of the session table from sums, `streams` (stream, n, dwell) and `counts` per surface."""
    streams = F.array_sort("streams")
    known = F.filter(streams, lambda entry: entry["dwell"].isNotNull())
    share = F.transform("counts", lambda n: n / F.col("n"))
    addends = F.transform(share, lambda p: F.floor(-p * F.log(p) * _GRID + 0.5) / _GRID)
    line = Window.partitionBy("user_id").orderBy("start")
    return whole.select(
        "user_id",
        F.timestamp_micros("start").alias("session_start"),
        F.timestamp_micros("last").alias("session_end"),
        F.col("n").alias("n_events"),
        F.expr("(last - start) div 1000").alias("duration_ms"),
        F.map_from_entries(F.transform(streams, lambda e: F.struct(e["stream"], e["n"]))).alias(
            "n_by_stream"
        ),
        F.map_from_entries(F.transform(known, lambda e: F.struct(e["stream"], e["dwell"]))).alias(
            "dwell_by_stream"
        ),
        F.coalesce("dwell", F.lit(0).cast("bigint")).alias("dwell_sum_ms"),
        F.col("censored").alias("n_censored"),
        "conversions",
        F.expr("(first - start) div 1000").alias("first_conversion_ms"),
        F.aggregate(addends, F.lit(0.0), lambda total, x: total + x).alias("surface_entropy"),
        F.col("moves").alias("n_transitions"),
        ((F.col("start") - F.lag("last").over(line)) / 1000).cast("bigint").alias("gap_before_ms"),
    )


def surfaces(settled: DataFrame) -> DataFrame:
    """User × stream × day with the totals of surfaces: cells of a histogram bin first, so that both sum few rows."""
    x = F.col("x")
    logged = settled.withColumns({"day": F.expr("us div 86400000000"), "x": F.log1p("dwell")})
    cells = logged.groupBy(
        "user_id", "day", "surface", "stream", F.floor(4 * x).cast("int").alias("bin")
    ).agg(
        F.count(F.lit(1)).alias("n"),
        F.sum("dwell").alias("dwell"),
        F.sum(F.rint(x * _GRID) / _GRID).alias("z"),
        F.sum(F.rint(x * x * _GRID) / _GRID).alias("zz"),
        F.count("x").alias("known"),
        F.count_if("censored").alias("censored"),
        F.count_if("converted").alias("conversions"),
        F.max("us").alias("last"),
    )
    names = ("n", "dwell", "z", "zz", "known", "censored", "conversions")
    total = cells.groupBy("user_id", "day", F.concat("surface", F.lit("/*")).alias("stream"), "bin").agg(
        *[F.sum(name).alias(name) for name in names], F.max("last").alias("last")
    )
    both = cells.drop("surface").unionByName(total)
    entry = F.when(F.col("bin").isNotNull(), F.struct("bin", "n"))
    return (
        both.groupBy("user_id", "stream", "day")
        .agg(
            F.sum("n").alias("n"),
            F.coalesce(F.sum("dwell"), F.lit(0).cast("bigint")).alias("dwell_sum"),
            F.coalesce(F.sum("z"), F.lit(0.0)).alias("z_sum"),
            F.coalesce(F.sum("zz"), F.lit(0.0)).alias("z_sq_sum"),
            F.sum("known").alias("n_dwell"),
            F.sum("censored").alias("n_censored"),
            F.timestamp_micros(F.max("last")).alias("last_ts"),
            F.sum("conversions").alias("conversions"),
            F.map_from_entries(F.array_sort(F.collect_list(entry))).alias("dwell_hist"),
        )
        .withColumn("window_end", F.expr("date_from_unix_date(CAST(day + 1 AS INT))"))
        .drop("day")
    )
