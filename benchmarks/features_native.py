"""The two feature tables in DuckDB and in Polars, two threads each: baselines of `benchmarks features`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.features_data import GAP_US

_GRID = 2**20

SETTLE = f"""
CREATE OR REPLACE TEMP TABLE settled AS
WITH ordered AS (
  SELECT user_id, surface, surface || '/' || event_type AS stream, event_type = 'conversion' AS converted,
         epoch_us(event_ts) AS us, dwell_ms,
         lag(epoch_us(event_ts)) OVER w AS before, lead(epoch_us(event_ts)) OVER w AS next, lag(surface) OVER w AS earlier
  FROM read_parquet('{{events}}/*.parquet') WHERE event_type <> 'impression'
  WINDOW w AS (PARTITION BY user_id ORDER BY event_ts, event_seq NULLS FIRST, ingest_ts, event_id)
), marked AS (
  SELECT *, before IS NULL OR us - before > {GAP_US} AS begins, next IS NULL OR next - us > {GAP_US} AS ends
  FROM ordered
), dwelt AS (
  SELECT user_id, surface, stream, converted, us, begins,
         CASE WHEN dwell_ms IS NOT NULL THEN dwell_ms WHEN NOT ends THEN (next - us) // 1000 END AS dwell,
         (dwell_ms IS NULL AND ends) AS censored, (NOT begins AND surface <> earlier) AS moved
  FROM marked
)
SELECT user_id, surface, stream, converted, us, dwell, censored, moved,
       max(CASE WHEN begins THEN us END) OVER (PARTITION BY user_id ORDER BY us RANGE UNBOUNDED PRECEDING) AS start
FROM dwelt
"""

SESSIONS = f"""
COPY (
WITH cells AS (
  SELECT user_id, start, surface, stream, count(*) AS n, sum(dwell)::BIGINT AS dwell, max(us) AS last,
         count(*) FILTER (WHERE censored) AS censored, count(*) FILTER (WHERE converted) AS conversions,
         min(us) FILTER (WHERE converted) AS first, count(*) FILTER (WHERE moved) AS moves
  FROM settled GROUP BY ALL
), surfaces AS (
  SELECT user_id, start, sum(n)::BIGINT AS n, sum(dwell)::BIGINT AS dwell, max(last) AS last,
         sum(censored)::BIGINT AS censored, sum(conversions)::BIGINT AS conversions, min(first) AS first,
         sum(moves)::BIGINT AS moves, list({{{{'k': stream, 'n': n, 'd': dwell}}}}) AS streams
  FROM cells GROUP BY user_id, start, surface
), sessions AS (
  SELECT user_id, start, sum(n)::BIGINT AS n_events, sum(dwell)::BIGINT AS dwell, max(last) AS last,
         sum(censored)::BIGINT AS n_censored, sum(conversions)::BIGINT AS conversions, min(first) AS first,
         sum(moves)::BIGINT AS n_transitions, list(n) AS counts, list_sort(flatten(list(streams))) AS streams
  FROM surfaces GROUP BY user_id, start
)
SELECT user_id, make_timestamptz(start) AS session_start, make_timestamptz(last) AS session_end, n_events,
       (last - start) // 1000 AS duration_ms,
       map(list_transform(streams, lambda x: x.k), list_transform(streams, lambda x: x.n)) AS n_by_stream,
       map(list_transform(list_filter(streams, lambda x: x.d IS NOT NULL), lambda x: x.k),
           list_transform(list_filter(streams, lambda x: x.d IS NOT NULL), lambda x: x.d)) AS dwell_by_stream,
       coalesce(dwell, 0) AS dwell_sum_ms, n_censored, conversions, (first - start) // 1000 AS first_conversion_ms,
       list_sum(list_transform(counts, lambda c:
         floor(-(c / n_events) * ln(c / n_events) * {_GRID} + 0.5) / {_GRID})) AS surface_entropy,
       n_transitions,
       (start - lag(last) OVER (PARTITION BY user_id ORDER BY start)) // 1000 AS gap_before_ms
FROM sessions
) TO '{{out}}' (FORMAT parquet, COMPRESSION snappy)
"""

SURFACES = f"""
COPY (
WITH logged AS (
  SELECT user_id, surface, stream, us, us // 86400000000 AS day, dwell, censored, converted, ln(1 + dwell) AS x
  FROM settled
), cells AS (
  SELECT user_id, day, surface, stream, floor(4 * x)::INTEGER AS bin, count(*) AS n, sum(dwell)::BIGINT AS dwell,
         sum(floor(x * {_GRID} + 0.5) / {_GRID}) AS z, sum(floor(x * x * {_GRID} + 0.5) / {_GRID}) AS zz,
         count(x) AS known, count(*) FILTER (WHERE censored) AS censored,
         count(*) FILTER (WHERE converted) AS conversions, max(us) AS last
  FROM logged GROUP BY ALL
), merged AS (
  SELECT user_id, day, stream, bin, n, dwell, z, zz, known, censored, conversions, last FROM cells
  UNION ALL
  SELECT user_id, day, surface || '/*', bin, sum(n)::BIGINT, sum(dwell)::BIGINT, sum(z), sum(zz), sum(known)::BIGINT,
         sum(censored)::BIGINT, sum(conversions)::BIGINT, max(last)
  FROM cells GROUP BY user_id, day, surface, bin
)
SELECT user_id, stream, (DATE '1970-01-01' + (day + 1)::INTEGER) AS window_end, sum(n)::BIGINT AS n,
       coalesce(sum(dwell), 0)::BIGINT AS dwell_sum, coalesce(sum(z), 0) AS z_sum, coalesce(sum(zz), 0) AS z_sq_sum,
       sum(known)::BIGINT AS n_dwell, sum(censored)::BIGINT AS n_censored, make_timestamptz(max(last)) AS last_ts,
       sum(conversions)::BIGINT AS conversions,
       map_from_entries(coalesce(list_sort(
         list({{{{'k': bin, 'v': n}}}}) FILTER (WHERE bin IS NOT NULL)), [])) AS dwell_hist
FROM merged GROUP BY user_id, stream, day
) TO '{{out}}' (FORMAT parquet, COMPRESSION snappy)
"""


class DuckDB:
    """One connection with two threads; the events with their sessions are a temporary table that both outputs read."""

    def __init__(self) -> None:
        import duckdb

        self.connection = duckdb.connect()
        self.connection.execute("SET threads = 2; SET preserve_insertion_order = false; SET TimeZone = 'UTC'")

    def run(self, events: Path, out: Path) -> None:
        """Write both tables."""
        for name in ("sessions", "surfaces"):
            (out / name).mkdir(parents=True)
        self.connection.execute(SETTLE.format(events=events))
        self.connection.execute(SESSIONS.format(out=out / "sessions" / "0.parquet"))
        self.connection.execute(SURFACES.format(out=out / "surfaces" / "0.parquet"))
        self.connection.execute("DROP TABLE settled")


class Polars:
    """Lazy frames; two threads by POLARS_MAX_THREADS, which the caller sets before the import."""

    def __init__(self) -> None:
        import polars

        self.pl = polars

    def run(self, events: Path, out: Path) -> None:
        """Write both tables."""
        for name in ("sessions", "surfaces"):
            (out / name).mkdir(parents=True)
        settled = self._settled(events).collect()
        self._sessions(settled.lazy()).sink_parquet(out / "sessions" / "0.parquet", compression="snappy")
        self._surfaces(settled.lazy()).sink_parquet(out / "surfaces" / "0.parquet", compression="snappy")

    def _settled(self, events: Path) -> Any:
        pl = self.pl
        us, user = pl.col("us"), pl.col("user_id")
        ordered = (
            pl.scan_parquet(events / "*.parquet")
            .filter(pl.col("event_type") != "impression")
            .sort("user_id", "event_ts", "event_seq", "ingest_ts", "event_id", nulls_last=False)
            .select(
                "user_id",
                "surface",
                "dwell_ms",
                (pl.col("surface") + "/" + pl.col("event_type")).alias("stream"),
                (pl.col("event_type") == "conversion").alias("converted"),
                pl.col("event_ts").dt.epoch("us").alias("us"),
            )
        )
        opens = (user != user.shift()) | (us - us.shift() > GAP_US)
        marked = ordered.with_columns(opens.fill_null(True).alias("begins"))
        ends = pl.col("begins").shift(-1).fill_null(True)
        return marked.with_columns(
            pl.when(pl.col("dwell_ms").is_not_null())
            .then(pl.col("dwell_ms"))
            .when(~ends)
            .then((us.shift(-1) - us) // 1000)
            .alias("dwell"),
            (pl.col("dwell_ms").is_null() & ends).alias("censored"),
            (~pl.col("begins") & (pl.col("surface") != pl.col("surface").shift())).alias("moved"),
            pl.col("begins").cum_sum().alias("session"),
        ).drop("begins", "dwell_ms")

    def _sessions(self, settled: Any) -> Any:
        pl = self.pl
        us = pl.col("us")
        cells = settled.group_by("session", "surface", "stream").agg(
            pl.len().cast(pl.Int64).alias("n"), pl.col("dwell").sum(), pl.col("dwell").count().alias("known")
        )
        streams = (
            cells.sort("session", "stream")
            .group_by("session")
            .agg(
                pl.struct(pl.col("stream").alias("key"), pl.col("n").alias("value")).alias("n_by_stream"),
                pl.struct(pl.col("stream").alias("key"), pl.col("dwell").alias("value"))
                .filter(pl.col("known") > 0)
                .alias("dwell_by_stream"),
            )
        )
        share = pl.col("n") / pl.col("total")
        entropy = (
            cells.group_by("session", "surface")
            .agg(pl.col("n").sum())
            .with_columns(pl.col("n").sum().over("session").alias("total"))
            .group_by("session")
            .agg(((-share * share.log() * _GRID + 0.5).floor() / _GRID).sum().alias("surface_entropy"))
        )
        plain = settled.group_by("session").agg(
            pl.col("user_id").first(),
            us.min().alias("start"),
            us.max().alias("last"),
            pl.len().cast(pl.Int64).alias("n_events"),
            pl.col("dwell").sum().alias("dwell_sum_ms"),
            pl.col("censored").sum().cast(pl.Int64).alias("n_censored"),
            pl.col("converted").sum().cast(pl.Int64).alias("conversions"),
            us.filter(pl.col("converted")).min().alias("first"),
            pl.col("moved").sum().cast(pl.Int64).alias("n_transitions"),
        )
        joined = plain.join(streams, on="session").join(entropy, on="session").sort("session")
        before = pl.when(pl.col("user_id") == pl.col("user_id").shift()).then(pl.col("last").shift())
        moment = pl.Datetime("us", "UTC")
        return joined.select(
            "user_id",
            pl.col("start").cast(moment).alias("session_start"),
            pl.col("last").cast(moment).alias("session_end"),
            "n_events",
            ((pl.col("last") - pl.col("start")) // 1000).alias("duration_ms"),
            "n_by_stream",
            "dwell_by_stream",
            "dwell_sum_ms",
            "n_censored",
            "conversions",
            ((pl.col("first") - pl.col("start")) // 1000).alias("first_conversion_ms"),
            "surface_entropy",
            "n_transitions",
            ((pl.col("start") - before) // 1000).alias("gap_before_ms"),
        )

    def _surfaces(self, settled: Any) -> Any:
        pl = self.pl
        x = pl.col("x")
        logged = settled.with_columns(
            (pl.col("us") // 86_400_000_000).alias("day"), pl.col("dwell").log1p().alias("x")
        )
        sums = [pl.col(name).sum() for name in ("n", "dwell", "z", "zz", "known", "censored", "conversions")]
        cells = logged.group_by(
            "user_id", "day", "surface", "stream", (4 * x).floor().cast(pl.Int32).alias("bin")
        ).agg(
            pl.len().cast(pl.Int64).alias("n"),
            pl.col("dwell").sum(),
            ((x * _GRID + 0.5).floor() / _GRID).sum().alias("z"),
            ((x * x * _GRID + 0.5).floor() / _GRID).sum().alias("zz"),
            x.count().cast(pl.Int64).alias("known"),
            pl.col("censored").sum().cast(pl.Int64),
            pl.col("converted").sum().cast(pl.Int64).alias("conversions"),
            pl.col("us").max().alias("last"),
        )
        total = cells.group_by("user_id", "day", "surface", "bin").agg(*sums, pl.col("last").max())
        total = total.with_columns((pl.col("surface") + "/*").alias("stream"))
        columns = (
            "user_id",
            "day",
            "stream",
            "bin",
            "n",
            "dwell",
            "z",
            "zz",
            "known",
            "censored",
            "conversions",
            "last",
        )
        both = pl.concat([cells.select(columns), total.select(columns)])
        entry = pl.struct(pl.col("bin").alias("key"), pl.col("n").alias("value"))
        return (
            both.group_by("user_id", "stream", "day")
            .agg(
                pl.col("n").sum().alias("n"),
                pl.col("dwell").sum().alias("dwell_sum"),
                pl.col("z").sum().alias("z_sum"),
                pl.col("zz").sum().alias("z_sq_sum"),
                pl.col("known").sum().alias("n_dwell"),
                pl.col("censored").sum().alias("n_censored"),
                pl.col("last").max().cast(pl.Datetime("us", "UTC")).alias("last_ts"),
                pl.col("conversions").sum().alias("conversions"),
                entry.filter(pl.col("bin").is_not_null())
                .sort_by(pl.col("bin").drop_nulls())
                .alias("dwell_hist"),
            )
            .with_columns((pl.col("day") + 1).cast(pl.Int32).cast(pl.Date).alias("window_end"))
            .drop("day")
        )
