"""Metamorphic relations and the oracle over drawn event lists; and five planted bugs that they must find.

Hypothesis draws the cases, every case stands in several variants under user ids of its own, and one Spark job
takes them all: that a case comes out as it would alone is the relation of disjoint users (docs/faults.md D2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import metamorphic as m
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dynamix.config import Config, load_config
from dynamix.features.dwell import derive_dwell
from dynamix.features.sessions import assign_sessions

pytestmark = pytest.mark.spark

MANY = [200, pytest.param(5_000, marks=pytest.mark.slow)]
BASE = ("time_unit=us", "history.embargo=0")
GAP_RULE = load_config(settings=[*BASE, "session.max_length_s=45m"])
GIVEN_RULE = load_config(settings=[*BASE, "session.rule=given", "session.max_length_s=26h"])
CONFIGS = {"gap": GAP_RULE, "given": GIVEN_RULE}


def _united(cases: list[m.Case], *, only: tuple[str, ...] = ()) -> dict[str, list[m.Row]]:
    """Rows of every case and variant by its name, `<case>.<variant>`."""
    return {
        f"{number}.{variant}": m.named(rows, f"{number}.{variant}")
        for number, case in enumerate(cases)
        for variant, rows in m.variants(case).items()
        if not only or variant in only
    }


def _run(
    spark: SparkSession, parts: Mapping[str, list[m.Row]], folder: Path, config: Config, **options: Any
) -> m.Outcome:
    rows = [row for part in parts.values() for row in part]
    source = m.write_files(rows, folder, files=options.pop("files", 5), seed=options.pop("seed", 1))
    return m.through_the_product(spark, source, config, **options)


def _first_disagreement(
    found: m.Outcome, parts: Mapping[str, list[m.Row]], config: Config, *, events_only: bool = False
) -> str:
    """Of the parts that differ from the oracle, the one with the fewest rows, in words."""
    whole = found.by_name()
    for name, rows in sorted(parts.items(), key=lambda part: len(part[1])):
        wanted = m.through_the_oracle(rows, config)
        said = m.disagreement(whole.get(name, m.Outcome()), wanted, events_only=events_only)
        if said:
            return f"{name}: {said}\nrows {rows}"
    return ""


# ---------------------------------------------------------------- relations between variants


def _relabelled(rows: list[m.Row], *, less: int = 0, without: tuple[str, ...] = ()) -> list[str]:
    """Rows without the name of their part and with times moved back by `less` microseconds, sorted as text."""
    moved = {"session_start": less, "session_end": less, "last_ts": less}
    days = {"session_date": less // m.DAY, "window_end": less // m.DAY}
    plain = []
    for row in rows:
        new = {n: v for n, v in row.items() if n not in ("session_id", *without)}
        new |= {n: new[n] - by for n, by in (moved | days).items() if new.get(n) is not None}
        new |= {n: new[n].rpartition(".")[2] for n in ("user_id", "event_id") if n in new}
        plain.append(str(sorted(new.items(), key=lambda item: item[0])))
    return sorted(plain)


def _unequal(part: Mapping[str, m.Outcome], case: m.Case, number: int, config: Config) -> str:
    """Name of the first relation that the variants of a case break, empty if none does."""
    own = {variant: part.get(f"{number}.{variant}", m.Outcome()) for variant in m.variants(case)}
    base = own["base"]
    # two given sessions of one start are ordered by their ids, which hash the user's name
    loose = ("gap_before_ms",) if config.session.rule == "given" else ()
    crowd = replace(
        own["crowd"],
        **{
            t: [r for r in getattr(own["crowd"], t) if not r["user_id"].endswith(".z")]
            for t in ("events", "sessions", "surfaces")
        },
    )
    for name, other in (("permuted", own["permuted"]), ("doubled", own["doubled"]), ("crowd", crowd)):
        for table in ("events", "sessions", "surfaces"):
            left, right = (_relabelled(getattr(o, table), without=loose) for o in (base, other))
            if left != right:
                return f"{name}, {table}"
    shift = m.SHIFT_DAYS * m.DAY
    shifted = own["shifted"]
    days = [[r for r in o.surfaces if r["window_days"] == 1] for o in (base, shifted)]
    if _relabelled(base.sessions, without=loose) != _relabelled(shifted.sessions, less=shift, without=loose):
        return "shifted, sessions"
    if _relabelled(days[0]) != _relabelled(days[1], less=shift):
        return "shifted, day rows"
    return _future_matters(base, own["until"], case.cut_us, config, loose)


def _future_matters(
    whole: m.Outcome, until: m.Outcome, cut_us: int, config: Config, loose: tuple[str, ...]
) -> str:
    """Events after `cut_us` change neither sessions that were over by then nor days that ended a gap before.

    A gap before: until then a later event may still end the dwell of an earlier one.
    """
    over_us = cut_us - int(config.session.gap_s * 1e6)
    given = config.session.rule == "given"  # such a session is never over: its id may come again
    open_dwell = ("dwell_sum", "z_sum", "z_sq_sum", "n_dwell", "n_censored", "dwell_hist", "dwell_share")
    days = [
        [r for r in o.surfaces if r["window_days"] == 1 and r["window_end"] * m.DAY <= over_us]
        for o in (whole, until)
    ]
    left, right = (_relabelled(rows, without=open_dwell if given else ()) for rows in days)
    if left != right:
        return "until, day rows"
    ended = [[r for r in o.sessions if r["session_end"] < over_us and not given] for o in (whole, until)]
    left, right = (_relabelled(rows, without=loose) for rows in ended)
    return "until, sessions" if left != right else ""


@pytest.mark.parametrize("n", MANY)
@pytest.mark.parametrize("rule", CONFIGS)
def test_every_relation_holds_and_every_row_is_the_oracles(
    spark: SparkSession, tmp_path: Path, rule: str, n: int
) -> None:
    """Permuted rows, doubled events, other users, whole-day shifts, later events, disjoint union, files."""
    config, cases = CONFIGS[rule], m.draw_cases(n)
    parts = _united(cases)
    found = _run(spark, parts, tmp_path / "a", config)
    assert _first_disagreement(found, parts, config) == ""
    by_name = found.by_name()
    broken = [(_unequal(by_name, case, number, config), case.rows) for number, case in enumerate(cases)]
    assert [one for one in broken if one[0]][:1] == []
    statuses = {row["dwell_status"] for row in found.events}
    assert statuses == {"observed", "derived", "censored", "capped", "missing"}  # else the draw is too tame
    assert {row["reason"] for row in found.fates} >= {
        None, "NULL_USER", "NULL_SURFACE", "BAD_TIMESTAMP", "TIMESTAMP_RANGE", "ID_TOO_LONG", "FUTURE_EVENT",
        "CONFLICTING_DUPLICATE",
    }  # fmt: skip
    if rule == "gap":
        _other_files_and_partitions_change_no_row(spark, parts, tmp_path / "b", config, found)


def _other_files_and_partitions_change_no_row(
    spark: SparkSession, parts: Mapping[str, list[m.Row]], folder: Path, config: Config, before: m.Outcome
) -> None:
    """Row order, files, shuffle partitions, plan, Arrow batches: the same rows in every table."""
    settings = {
        "spark.sql.shuffle.partitions": "5",
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "64",
    }
    kept = {name: str(spark.conf.get(name)) for name in settings}
    try:
        for name, value in settings.items():
            spark.conf.set(name, value)
        other = _run(spark, parts, folder, config, files=8, seed=2)
    finally:
        for name, value in kept.items():
            spark.conf.set(name, value)
    for table in ("fates", "events", "sessions", "surfaces"):
        left, right = (sorted(map(str, getattr(outcome, table))) for outcome in (before, other))
        assert left == right, table


# ---------------------------------------------------------------- planted bugs


def _zero_for_the_last(good: DataFrame, config: Config) -> DataFrame:
    settled = derive_dwell(assign_sessions(good, config=config), config=config)
    last = F.col("dwell_status") == "censored"
    return settled.withColumns(
        {
            "dwell_ms": F.when(last, 0).otherwise(F.col("dwell_ms")),
            "dwell_status": F.when(last, "derived").otherwise(F.col("dwell_status")),
        }
    )


def _opened_by_the_gap_itself(good: DataFrame, config: Config) -> DataFrame:
    """`>=` instead of `>`: on whole microseconds the same as a gap of one less."""
    session = config.session.model_copy(update={"gap_s": config.session.gap_s - 1e-6})
    other = config.model_copy(update={"session": session})
    return derive_dwell(assign_sessions(good, config=other), config=config)


def _cut_at_midnight(good: DataFrame, config: Config) -> DataFrame:
    daily = good.withColumn("user_id", F.concat_ws("|", "user_id", "event_date"))
    cut = derive_dwell(assign_sessions(daily, config=config), config=config)
    return cut.withColumn("user_id", F.substring_index("user_id", "|", 1))


def _as_it_is(good: DataFrame, config: Config) -> DataFrame:
    return derive_dwell(assign_sessions(good, config=config), config=config)


_PLANTED = {
    "none": _as_it_is,
    "last dwell 0": _zero_for_the_last,
    "new session at the gap": _opened_by_the_gap_itself,
    "cut at midnight": _cut_at_midnight,
    "all columns are the id": _as_it_is,
}


def _all_columns_as_the_id(raw: DataFrame) -> DataFrame:
    said = [F.coalesce(F.col(name).cast("string"), F.lit("-")) for name in raw.columns]
    whole = F.concat_ws("|", "event_id", *said)
    return raw.withColumn(
        "event_id", F.when(F.col("event_id").startswith("all columns"), whole).otherwise(F.col("event_id"))
    )


def _each_with_its_bug(good: DataFrame, config: Config) -> DataFrame:
    plain = good.withColumn("event_id", F.substring_index("event_id", "|", 1))
    each = [
        settle(plain.where(F.col("event_id").startswith(f"{bug}.")), config)
        for bug, settle in _PLANTED.items()
    ]
    return reduce(DataFrame.unionByName, each)


def test_each_planted_bug_is_found_by_the_comparison_with_the_oracle(
    spark: SparkSession, tmp_path: Path
) -> None:
    """The product's steps, one of them altered for a fifth of the users; unaltered they pass the same comparison."""
    cases = m.draw_cases(200)
    parts = {
        f"{bug}.{number}": m.named(list(case.rows), f"{bug}.{number}")
        for bug in _PLANTED
        for number, case in enumerate(cases)
    }
    steps = m.Steps(prepare=_all_columns_as_the_id, settle=_each_with_its_bug)
    found = _run(spark, parts, tmp_path / "a", GAP_RULE, steps=steps, events_only=True)
    for bug in _PLANTED:
        own = {name: rows for name, rows in parts.items() if name.startswith(f"{bug}.")}
        said = _first_disagreement(found, own, GAP_RULE, events_only=True)
        assert (said == "") == (bug == "none"), (bug, said)
