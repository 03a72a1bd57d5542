"""Every table of the warehouse as data: columns, types, keys, partitions, allowed values.

This is the single source: creating a table, checking a frame, the Great Expectations suite and the
reference page are generated from here. Types are Spark SQL type strings.
"""

from __future__ import annotations

from dataclasses import dataclass, field

EVENT_ORDER = ("event_ts", "event_seq", "ingest_ts", "event_id")
"""Total order of a user's events: ties in time break from left to right, nulls first."""

N_DWELL_BINS = 13
DWELL_BIN_EDGES_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0)
"""Upper ends (inclusive, seconds) of dwell bins 0..10; 11 is above, 12 means no dwell."""
NO_DWELL_BIN = 12

DWELL_STATUSES = ("observed", "derived", "censored", "capped", "imputed", "missing")
QUARANTINE_REASONS = (
    "NULL_USER",
    "NULL_SURFACE",
    "NULL_TYPE",
    "BAD_TIMESTAMP",
    "TIMESTAMP_RANGE",
    "FUTURE_EVENT",
    "CONFLICTING_DUPLICATE",
    "BAD_PAYLOAD",
    "ID_TOO_LONG",
)
CHANNELS = ("dwell", "count", "recency", "censored", "presence", "match")
"""Channel block of a stream's exposure (docs/method.md A.3), in storage order; `joint` is the block test."""
VERDICTS = ("keep", "drop", "boost", "undecided")
STATUSES = ("proposed", "published", "retired", "control")
TIERS = ("active", "passive")
PARTS = ("train", "validate", "test")
COLD_SEGMENT = 0


@dataclass(frozen=True)
class Column:
    """One column: `sql_type` as Spark SQL writes it, `allowed` for a closed set of values."""

    name: str
    sql_type: str
    nullable: bool = True
    comment: str = ""
    allowed: tuple[str, ...] = ()
    check: str = ""


@dataclass(frozen=True)
class Table:
    """A Delta table: its grain is `key`; `partition_by` is what a rewrite replaces."""

    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    partition_by: tuple[str, ...] = ()
    comment: str = ""
    fingerprinted: bool = True
    unhashed: tuple[str, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def ddl(self) -> str:
        """Columns as a Spark schema string, nullability included."""
        return ", ".join(f"`{c.name}` {c.sql_type}{'' if c.nullable else ' NOT NULL'}" for c in self.columns)


def _col(name: str, sql_type: str, comment: str = "", **more: object) -> Column:
    return Column(name=name, sql_type=sql_type, comment=comment, **more)  # type: ignore[arg-type]


def _key(name: str, sql_type: str = "string", comment: str = "") -> Column:
    return Column(name=name, sql_type=sql_type, nullable=False, comment=comment)


RAW_COLUMNS: tuple[Column, ...] = (
    _key("user_id"),
    _key("event_ts", "timestamp", "instant of the event, UTC"),
    _key("event_type"),
    _key("surface"),
    _col("event_id", "string", "hash of the payload where the source has none"),
    _col("ingest_ts", "timestamp", "when the row became known; event_ts where absent"),
    _col("event_seq", "bigint", "order among equal times"),
    _col("item_id", "string"),
    _col("category", "string"),
    _col("ad_id", "string"),
    _col("advertiser_id", "string"),
    _col("campaign_id", "string"),
    _col("conversion_type", "string"),
    _col("session_id", "string", "the source's own session id"),
    _col("request_id", "string"),
    _col("position", "int", "1 = top"),
    _col("dwell_ms", "bigint", "logged dwell, milliseconds"),
    _col("value", "double"),
    _col("sample_weight", "double"),
    _col("score_logged", "double"),
)
REQUIRED_RAW = ("user_id", "event_ts", "event_type", "surface")
ID_COLUMNS = (
    "user_id", "event_id", "item_id", "category", "ad_id", "advertiser_id", "campaign_id",
    "conversion_type", "session_id", "request_id", "event_type", "surface",
)  # fmt: skip

EVENTS = Table(
    "events",
    key=("event_id",),
    partition_by=("event_date",),
    columns=(
        _key("event_id"),
        _key("user_id"),
        _key("event_ts", "timestamp"),
        _key("event_type"),
        _key("surface"),
        _key("ingest_ts", "timestamp"),
        _col("event_seq", "bigint"),
        _col("item_id", "string"),
        _col("category", "string"),
        _col("ad_id", "string"),
        _col("advertiser_id", "string"),
        _col("campaign_id", "string"),
        _col("conversion_type", "string"),
        _col("source_session_id", "string", "session id of the source"),
        _col("request_id", "string"),
        _col("position", "int"),
        _col(
            "dwell_ms", "bigint", "milliseconds; NULL when unknown", check="dwell_ms IS NULL OR dwell_ms >= 0"
        ),
        Column("dwell_status", "string", nullable=False, allowed=DWELL_STATUSES),
        _col("dwell_logged_ms", "bigint", "as the source logged it: a later event settles dwell_ms anew"),
        _key("bad_dwell", "boolean", "logged, but no length of time"),
        _col("value", "double"),
        _col("sample_weight", "double"),
        _col("score_logged", "double"),
        _col("session_id", "string", "our session: hash(user, first event_ts, part); NULL for impressions"),
        _col("session_start", "timestamp"),
        _col("attributes", "map<string,string>", "further event information named in the config"),
        _key("event_date", "date", "UTC day of event_ts"),
    ),
    comment="Canonical events, one row per event_id.",
)

EVENTS_QUARANTINE = Table(
    "events_quarantine",
    key=("row_hash", "reason"),
    columns=(
        _key("row_hash", "string", "hash of the raw row, so that a rerun replaces it"),
        Column("reason", "string", nullable=False, allowed=QUARANTINE_REASONS),
        _key("raw", "string", "the raw row as JSON"),
        _col("hint", "string", "what the value looks like, e.g. milliseconds read as seconds"),
        _key("copies", "bigint", "equal raw rows"),
        _col("event_id", "string", "of a conflicting copy, so that later copies meet it"),
        _col("seen_date", "date", "UTC day of the later of its two times; NULL where neither is readable"),
        _key("run_id"),
    ),
    unhashed=("run_id",),
    comment="Rows that are no events, with the reason.",
)

STREAMS = Table(
    "streams",
    key=("stream_id",),
    columns=(
        _key("stream_id", "smallint", "by first appearance, ties by name, never reused"),
        _key("stream", "string", "surface/event_type"),
        _key("first_seen", "timestamp"),
        _key("is_conversion", "boolean", "never input of a segmenter"),
        _key("has_dwell", "boolean", "false when more than half of its events have no dwell (no_dwell)"),
        _col("mu", "double", "mean of ln(1+dwell_ms), usable dwell of the baseline window"),
        _col("sigma", "double", "its standard deviation"),
        _col("baseline_version", "string"),
    ),
)

EBF_SESSION = Table(
    "ebf_session",
    key=("user_id", "session_id"),
    partition_by=("session_date",),
    columns=(
        _key("user_id"),
        _key("session_id"),
        _key("session_start", "timestamp"),
        Column("session_end", "timestamp", nullable=False, check="session_end >= session_start"),
        _key("n_events", "bigint"),
        _key("duration_ms", "bigint"),
        _key("n_by_stream", "map<string,bigint>"),
        _key("dwell_by_stream", "map<string,bigint>", "sum of known dwell, ms"),
        _key("dwell_sum_ms", "bigint"),
        _key("n_censored", "bigint"),
        _key("conversions", "bigint"),
        _col("first_conversion_ms", "bigint", "time from start to the first conversion"),
        _key("surface_entropy", "double", "nats"),
        _key("n_transitions", "bigint", "changes of surface between neighbouring events"),
        _col("gap_before_ms", "bigint", "silence since the previous session; NULL for the first"),
        _key("capped_length", "boolean", "split by session.max_length"),
        _col("source_session_id", "string"),
        _col(
            "session_kind", "string", "by the frozen mixture; NULL where the session holds conversions only"
        ),
        _key("session_date", "date", "UTC day of session_start"),
    ),
)

EBF_SURFACE = Table(
    "ebf_surface",
    key=("user_id", "stream", "window_end", "window_days"),
    # by both: then days and windows give way to new ones without a look at their rows
    partition_by=("window_days", "window_end"),
    columns=(
        _key("user_id"),
        _key("stream", "string", "surface/event_type, or surface/* for the surface's total"),
        _key("window_end", "date", "exclusive"),
        _key("window_days", "int", "1, 7, 28; 0 = decayed, half-life 7 days"),
        _key("n", "bigint"),
        _key("dwell_sum", "bigint", "ms"),
        _key("z_sum", "double", "sum of ln(1+dwell_ms), addends rounded to 2^-20"),
        _key("z_sq_sum", "double"),
        _key("n_dwell", "bigint", "events with a usable dwell"),
        _key("n_censored", "bigint"),
        _key("last_ts", "timestamp"),
        _key("decayed_n", "double"),
        _key("conversions", "bigint"),
        _col(
            "dwell_share",
            "double",
            "of the user's usable dwell in the window, over streams; NULL where it is 0",
        ),
        _key("dwell_hist", "map<int,bigint>", "counts in bins of a quarter in ln(1+ms)"),
    ),
)

USER_STATS = Table(
    "user_stats",
    key=("user_id", "baseline_version"),
    columns=(
        _key("user_id"),
        _key("baseline_version"),
        _key("n", "bigint", "usable dwells in the habit window"),
        _key("habit", "double", "shrunken mean of ln(1+dwell_ms) - mu, from the earlier window only"),
        _key("first_ts", "timestamp"),
        _key("last_ts", "timestamp"),
    ),
)

CELL_STATS = Table(
    "cell_stats",
    key=("segment_version", "segment_id", "tier", "stream", "label", "channel", "window_end"),
    columns=(
        _key("segment_version"),
        _key("segment_id", "int"),
        _key("tier", "string", "* = both"),
        _key("stream"),
        _key("label"),
        Column("channel", "string", nullable=False, allowed=(*CHANNELS, "joint")),
        _key("window_end", "date"),
        _key("given", "string", "none | baseline | champion"),
        _key("half", "int", "0 or 1: user half of the cross-fit; -1: both"),
        _key("impressions", "bigint"),
        _key("positives", "bigint", "label-1 impressions of the segment that have the stream"),
        _key("tokens", "double", "mean events per impression before the mask"),
        _col("score", "double", "s = sum of (x - mean) r"),
        _col("information", "double", "I = sum of w (x - mean)^2"),
        _col("score_var", "double", "V = sum over users of s_u^2"),
        _col("beta", "double", "log-odds per standard deviation of x"),
        _col("se", "double", "user-clustered"),
        _col("beta_within", "double", "of deviations from the user's mean; per SD of x as beta is"),
        _col("se_within", "double"),
        _col("beta_between", "double", "of users' means"),
        _col("se_between", "double"),
        _col("relevance", "double", "fraction of the segment's entropy H"),
        _col("relevance_lcb", "double"),
        _col("relevance_ucb", "double"),
        _key("dof", "int", "rank of the block"),
        _key("sums", "array<double>", "mergeable state"),
    ),
)

SEGMENTS = Table(
    "segments",
    key=("user_id", "segment_version", "valid_from"),
    columns=(
        _key("user_id"),
        _key("segment_version"),
        _key("valid_from", "timestamp"),
        _key("segment_id", "int", "0 = cold"),
        _key("segment_name"),
        Column("tier", "string", nullable=False, allowed=TIERS),
        _key("posterior", "map<int,double>"),
        _key("n_events", "bigint", "usable events the posterior rests on"),
        _col("valid_to", "timestamp", "NULL = current"),
    ),
)

SEGMENT_REGISTRY = Table(
    "segment_registry",
    key=("segment_id", "segment_version"),
    columns=(
        _key("segment_id", "int"),
        _key("segment_version"),
        _key("segment_name"),
        _key("method"),
        _key("prototype", "array<double>", "emission over streams x dwell bins"),
        _key("share", "double"),
        _key("parent_ids", "array<int>"),
        Column("event", "string", nullable=False, allowed=("birth", "death", "merge", "keep")),
        _key("guards", "map<string,double>"),
        _key("verdict"),
        _key("baseline_version"),
    ),
)

MASKS = Table(
    "masks",
    key=("mask_version", "segment_id", "tier", "stream"),
    columns=(
        _key("mask_version"),
        _key("seq", "bigint"),
        _key("segment_version"),
        _key("segment_id", "int"),
        _key("segment_name"),
        _key("tier", "string", "* = both"),
        _key("stream"),
        _key("keep", "boolean"),
        Column(
            "quota",
            "int",
            nullable=False,
            comment="newest events kept; 0 iff dropped",
            check="(quota = 0) = (NOT keep)",
        ),
        _key("boost", "double", "log weight, 0 = none"),
        _col("attributes", "array<string>", "kept attributes; NULL = all"),
        _col("relevance", "double", "of the joint channel, fraction of H"),
        _col("relevance_lcb", "double"),
        _col("relevance_ucb", "double"),
        _key("positives", "bigint"),
        _key("tokens", "double"),
        Column("verdict", "string", nullable=False, allowed=VERDICTS),
        _key("reason", "string", "one sentence with n, bound and budget"),
        Column("status", "string", nullable=False, allowed=STATUSES),
        _key("run_date", "date"),
        _key("run_id"),
    ),
    unhashed=("run_id", "status", "seq"),
)

MASK_AUDIT = Table(
    "mask_audit",
    key=("mask_version", "segment_id", "tier", "stream", "rule"),
    columns=(
        _key("mask_version"),
        _key("segment_id", "int"),
        _key("tier"),
        _key("stream"),
        _key("rule"),
        _col("value", "double"),
        _col("limit", "double"),
        _key("passed", "boolean"),
    ),
)

TRAINING_ROWS = Table(
    "training_rows",
    key=("mask_version", "impression_id"),
    partition_by=("mask_version", "event_date"),
    columns=(
        _key("mask_version"),
        _key("impression_id"),
        _key("user_id"),
        _key("event_ts", "timestamp"),
        _key("event_date", "date"),
        _col("request_id", "string"),
        _key("surface"),
        _col("item_id", "string"),
        _col("category", "string"),
        _col("position", "int"),
        _col("label_click", "double"),
        _col("label_conversion", "double"),
        _key("label_mature_ts", "timestamp"),
        _key("weight", "double"),
        Column("part", "string", nullable=False, allowed=PARTS),
        _key("segment_id", "int"),
        _key("tier", "string"),
        _key("segment_version"),
        _key("holdout", "boolean", "keep-all users: full history in every version"),
        _col("value", "double"),
        _key("hist_stream", "array<smallint>", "oldest first; equal lengths in all hist_ arrays"),
        _key("hist_item", "array<string>"),
        _key("hist_category", "array<string>"),
        _key("hist_dwell_bin", "array<tinyint>"),
        _key("hist_z", "array<float>"),
        _key("hist_age_s", "array<float>"),
    ),
)

SCORES = Table(
    "scores",
    key=("impression_id", "label", "model_version"),
    columns=(
        _key("impression_id"),
        _key("label"),
        _key("model_version"),
        _key("user_id"),
        _key("score", "double"),
        _key("mask_version"),
        _key("segment_id", "int"),
        _key("tier"),
        _key("scored_at", "timestamp"),
    ),
    unhashed=("scored_at",),
)

RUN_LOG = Table(
    "run_log",
    key=("run_id", "step"),
    columns=(
        _key("run_id"),
        _key("step"),
        _key("run_date", "date"),
        _key("status", "string", "done | skipped | failed"),
        _key("config_hash"),
        _key("fingerprint"),
        _key("input_versions", "map<string,string>"),
        _key("output_versions", "map<string,string>"),
        _col("rows_read", "bigint"),
        _col("rows_kept", "bigint"),
        _col("rows_deduplicated", "bigint"),
        _col("rows_quarantined", "bigint"),
        _key("counters", "map<string,double>"),
        _key("seconds", "double"),
        _key("message", "string"),
        _key("logged_at", "timestamp"),
    ),
    fingerprinted=False,
    unhashed=("run_id", "logged_at", "seconds"),
)

OPT_OUT = Table(
    "opt_out",
    key=("user_id",),
    columns=(_key("user_id"), _key("since", "timestamp", "when the user was first seen to have opted out")),
    comment="Users who are in no statistic and no training; absent where nobody opted out.",
)
"""Not among TABLES: a warehouse need not have it, and it may be written by other hands."""

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        EVENTS, EVENTS_QUARANTINE, STREAMS, EBF_SESSION, EBF_SURFACE, USER_STATS, CELL_STATS, SEGMENTS,
        SEGMENT_REGISTRY, MASKS, MASK_AUDIT, TRAINING_ROWS, SCORES, RUN_LOG,
    )
}  # fmt: skip
