"""Labels of impressions: which click and which conversion belongs to which impression, and when that is final.

An impression and an outcome (click or conversion) of the same user are *linked* by the first tuple of
`attribution.join_on` of which both rows have every column; if they differ on it they are not linked, even if
a later tuple would agree. Each outcome goes to the latest linked impression in whose window it falls
(`last_touch`), so no outcome counts twice and no impression is multiplied (docs/faults.md 18, 44).
"""

from __future__ import annotations

from functools import reduce

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from dynamix.config import AttributionConfig, Config
from dynamix.contracts import EVENT_ORDER
from dynamix.errors import ConfigError

SETTINGS = ("short", "first_touch", "any_touch")
"""Attribution settings beside the config's own: windows of half the length; the earliest linked impression in its
window, or every one, in place of the latest. None needs longer windows, so labels are final with the config's own."""
_MARK = "__"
COUNTERS = ("conversions", "attributed", "repeated", "early", "late", "unmatched")


def label_impressions(
    events: DataFrame, *, config: Config, attribution: AttributionConfig | None = None
) -> DataFrame:
    """Impressions to be predicted: the event row with label_click, label_conversion and label_mature_ts.

    label_click is 1.0 iff a click with t_i ≤ t ≤ t_i + click_window belongs to the impression, label_conversion
    iff a conversion does: within click_window where the impression was clicked by then, else within view_window.
    Ties in time between impressions go to the later one in the order of events. A head that the config does not
    serve is NULL. label_mature_ts = event_ts + the longest window that applies: the click may still come as long
    as there are click types, so it is max(click_window, view_window) with them and view_window without.
    `prediction_rows` filters after attribution: an impression that is not predicted still takes its conversion.
    Grain: one row per impression event. `attribution` replaces that of the config. Source: docs/method.md A.1.
    """
    rule = attribution or config.attribution
    labelled = impression_rows(events, config)
    clicks = _clicked(events, config, rule)
    conversions = _converted(_touches(events, config, rule, clicks))
    heads = config.heads()
    for name, won in (("label_click", clicks), ("label_conversion", conversions)):
        flag = won.select("event_id", F.lit(1.0).alias("won"))
        labelled = labelled.join(flag, "event_id", "left")
        served = name.removeprefix("label_") in heads
        label = F.coalesce("won", F.lit(0.0)) if served else F.lit(None).cast("double")
        labelled = labelled.withColumn(name, label).drop("won")
    labelled = labelled.withColumn("label_mature_ts", _after("event_ts", longest_window_s(config, rule)))
    return _predicted(labelled, config)


def setting_label(head: str, setting: str) -> str:
    """Name of a head's label under an attribution setting: `conversion__short`."""
    return f"{head}{_MARK}{setting}"


def served_head(label: str) -> str:
    """The head that a label belongs to, with or without a setting."""
    return label.partition(_MARK)[0]


def with_settings(labelled: DataFrame, events: DataFrame, *, config: Config) -> DataFrame:
    """Rows of `label_impressions` with label_<head>__<setting> of every served head and each of SETTINGS.

    All settings come from one join of outcomes with impressions. A setting's click decides which window its
    conversions have. Grain: unchanged.
    """
    rule = config.attribution
    clicks = _by_setting(_pairs(events, config, rule, config.click_types)).transform(
        _winners, window_s=F.lit(rule.click_window_s)
    )
    clicked = clicks.groupBy("setting", "impression_id").agg(F.min("outcome_ts").alias("clicked_at"))
    touches = _by_setting(_pairs(events, config, rule, config.conversion_types)).join(
        clicked, ["setting", "impression_id"], "left"
    )
    by_then = F.coalesce(F.col("clicked_at") <= F.col("outcome_ts"), F.lit(False))
    window_s = F.when(by_then, rule.click_window_s).otherwise(rule.view_window_s)
    conversions = touches.transform(_winners, window_s=window_s)
    won = {"click": clicks, "conversion": conversions}
    served = [
        won[head].select("impression_id", "setting", F.lit(head).alias("head")) for head in config.heads()
    ]
    names = {(h, s): f"label_{setting_label(h, s)}" for h in config.heads() for s in SETTINGS}
    flags = reduce(DataFrame.unionByName, served).groupBy(F.col("impression_id").alias("event_id")).agg(
        *[
            F.max(((F.col("head") == h) & (F.col("setting") == s)).cast("double")).alias(name)
            for (h, s), name in names.items()
        ]
    )  # fmt: skip
    joined = labelled.join(flags, "event_id", "left")
    return joined.withColumns({name: F.coalesce(name, F.lit(0.0)) for name in names.values()})


def _by_setting(pairs: DataFrame) -> DataFrame:
    return pairs.withColumn("setting", F.explode(F.array(*map(F.lit, SETTINGS))))


def _winners(pairs: DataFrame, *, window_s: Column) -> DataFrame:
    """Pairs by setting whose impression gets the outcome."""
    share = F.when(F.col("setting") == "short", 0.5).otherwise(1.0)
    inside = pairs.where((F.col("age_s") >= 0) & (F.col("age_s") <= window_s * share))
    of_outcome = Window.partitionBy("setting", "outcome_id")
    first, last = F.min("place").over(of_outcome), F.max("place").over(of_outcome)
    chosen = F.when(F.col("setting") == "first_touch", first).otherwise(last)
    return inside.withColumn("chosen", chosen).where(
        (F.col("setting") == "any_touch") | (F.col("place") == F.col("chosen"))
    )


def longest_window_s(config: Config, attribution: AttributionConfig | None = None) -> float:
    """Seconds after an impression at which its labels can no longer change."""
    rule = attribution or config.attribution
    return max(rule.click_window_s, rule.view_window_s) if config.click_types else rule.view_window_s


def impression_rows(events: DataFrame, config: Config) -> DataFrame:
    """Events of the impression types, every column."""
    return events.where(F.col("event_type").isin(*config.impression_types))


def impressions_to_predict(events: DataFrame, config: Config) -> DataFrame:
    """Impressions that `prediction_rows` leaves in, without their labels; every column of the event row."""
    return _predicted(impression_rows(events, config), config)


def attribution_counts(events: DataFrame, config: Config) -> DataFrame:
    """One row of counters over all conversions: what became of each (docs/faults.md 18).

    conversions = attributed + repeated + early + late + unmatched: `attributed` are the first of their
    impression, `repeated` the further ones of it (count: one), `early` lie before every linked impression,
    `late` after one but outside every window, `unmatched` have no linked impression at all.
    """
    rule = config.attribution
    touches = _touches(events, config, rule, _clicked(events, config, rule))
    fate = touches.groupBy("outcome_id").agg(
        _latest_eligible().alias("winner"),
        F.bool_or(F.col("age_s") >= 0).alias("after"),
    )
    every = _outcomes(events, config.conversion_types).select(F.col("event_id").alias("outcome_id"))
    joined = every.join(fate, "outcome_id", "left")
    won = F.col("winner").isNotNull()
    after = F.coalesce("after", F.lit(False))
    linked = F.col("after").isNotNull()
    counts = joined.agg(
        F.count("*").alias("conversions"),
        F.count_distinct("winner").alias("attributed"),
        (F.count_if(won) - F.count_distinct("winner")).alias("repeated"),
        F.count_if(~won & linked & ~after).alias("early"),
        F.count_if(~won & after).alias("late"),
        F.count_if(~linked).alias("unmatched"),
    )
    return counts.select(*COUNTERS)


def _clicked(events: DataFrame, config: Config, rule: AttributionConfig) -> DataFrame:
    """event_id and clicked_at (first click) of impressions that a click belongs to."""
    pairs = _pairs(events, config, rule, config.click_types)
    eligible = (F.col("age_s") >= 0) & (F.col("age_s") <= rule.click_window_s)
    winner = F.max_by("impression_id", F.when(eligible, F.col("place")))
    won = pairs.where(eligible).groupBy("outcome_id").agg(
        winner.alias("event_id"), F.first("outcome_ts").alias("outcome_ts")
    )  # fmt: skip
    return won.groupBy("event_id").agg(F.min("outcome_ts").alias("clicked_at"))


def _converted(touches: DataFrame) -> DataFrame:
    """event_id of impressions that at least one conversion belongs to, once each."""
    won = touches.groupBy("outcome_id").agg(_latest_eligible().alias("event_id"))
    return won.where("event_id IS NOT NULL").select("event_id").distinct()


def _touches(events: DataFrame, config: Config, rule: AttributionConfig, clicks: DataFrame) -> DataFrame:
    """Linked pairs of conversions and impressions with `eligible`: within the window that applies."""
    pairs = _pairs(events, config, rule, config.conversion_types)
    by_then = F.lit(False)
    if config.click_types:
        pairs = pairs.join(clicks.withColumnRenamed("event_id", "impression_id"), "impression_id", "left")
        by_then = F.coalesce(F.col("clicked_at") <= F.col("outcome_ts"), F.lit(False))
    window = F.when(by_then, rule.click_window_s).otherwise(rule.view_window_s)
    return pairs.withColumn("eligible", (F.col("age_s") >= 0) & (F.col("age_s") <= window))


def _latest_eligible() -> Column:
    """Latest eligible impression of an outcome, NULL where there is none."""
    return F.max_by("impression_id", F.when(F.col("eligible"), F.col("place")))


def _pairs(events: DataFrame, config: Config, rule: AttributionConfig, types: tuple[str, ...]) -> DataFrame:
    """Every linked pair once: impression_id, place (total order), outcome_id, outcome_ts, age_s.

    One equi-join per key tuple; a pair that shares an earlier complete tuple is left to that tuple's join.
    """
    names = _key_columns(rule)
    _check_keys(names, events)
    shown = impression_rows(events, config).select(
        "user_id",
        F.col("event_id").alias("impression_id"),
        F.col("event_ts").alias("shown_ts"),
        F.struct(*EVENT_ORDER).alias("place"),
        *[F.col(name).alias(f"i_{name}") for name in names],
    )
    outcomes = _outcomes(events, types).select(
        F.col("user_id").alias("o_user_id"),
        F.col("event_id").alias("outcome_id"),
        F.col("event_ts").alias("outcome_ts"),
        *[F.col(name).alias(f"o_{name}") for name in names],
    )
    joined = []
    for position, key in enumerate(rule.join_on):
        equal = [F.col(f"i_{name}") == F.col(f"o_{name}") for name in key]
        earlier = [~_both_complete(other) for other in rule.join_on[:position]]
        condition = reduce(Column.__and__, [F.col("user_id") == F.col("o_user_id"), *equal, *earlier])
        joined.append(shown.join(outcomes, condition))
    age_s = (F.unix_micros("outcome_ts") - F.unix_micros("shown_ts")) / 1e6
    pairs = reduce(DataFrame.unionByName, joined)
    return pairs.select("impression_id", "place", "outcome_id", "outcome_ts", age_s.alias("age_s"))


def _both_complete(key: tuple[str, ...]) -> Column:
    have = [F.col(f"{side}_{name}").isNotNull() for name in key for side in "io"]
    return reduce(Column.__and__, have)


def _key_columns(rule: AttributionConfig) -> list[str]:
    if not rule.join_on or not all(rule.join_on):
        raise ConfigError.bad_value("attribution.join_on", rule.join_on, "at least one tuple of column names")
    return list(dict.fromkeys(name for key in rule.join_on for name in key))


def _check_keys(names: list[str], events: DataFrame) -> None:
    unknown = [name for name in names if name not in events.columns]
    if unknown:
        raise ConfigError.bad_value(
            "attribution.join_on", ", ".join(unknown), "columns of events, e.g. item_id"
        )


def _outcomes(events: DataFrame, types: tuple[str, ...]) -> DataFrame:
    return events.where(F.col("event_type").isin(*types) if types else F.lit(False))


def _after(column: str, seconds: float) -> Column:
    return F.timestamp_micros(F.unix_micros(column) + F.lit(round(seconds * 1e6)).cast("bigint"))


def _predicted(labelled: DataFrame, config: Config) -> DataFrame:
    if not config.prediction_rows.strip():
        return labelled
    try:
        return labelled.where(config.prediction_rows)
    except AnalysisException as trouble:
        reason = str(trouble).split(";")[0].splitlines()[0]
        raise ConfigError(
            f"config key 'prediction_rows' has value {config.prediction_rows!r}: {reason}; "
            "allowed: a Spark SQL condition on columns of events, e.g. surface = 'search'"
        ) from None
