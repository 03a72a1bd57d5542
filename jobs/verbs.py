"""Verbs that work on a warehouse: open the session, settle the run date, call the step."""

from __future__ import annotations

from argparse import Namespace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.errors import ConfigError, InputError
from dynamix.features.instants import day_sql
from dynamix.features.tables import Warehouse
from dynamix.jobs.audit import audit
from dynamix.jobs.bundle import bundle
from dynamix.jobs.context import Run, StepResult, new_run_id
from dynamix.jobs.diff import diff
from dynamix.jobs.explain import explain
from dynamix.jobs.forget import forget, refuse_wrong_call
from dynamix.jobs.interrupt import plain_interrupts
from dynamix.jobs.maintain import maintain
from dynamix.jobs.monitor import monitor
from dynamix.jobs.places import place_of
from dynamix.jobs.plan import plan
from dynamix.jobs.power import power
from dynamix.jobs.progress_bar import shown_progress
from dynamix.jobs.report import report
from dynamix.jobs.run import STEPS, execute, logged, run_all
from dynamix.jobs.session import get_spark
from dynamix.jobs.settings import dump, refuse_no_table, store_config
from dynamix.jobs.story import explain_user
from dynamix.jobs.troubles import said_plainly

DATELESS = ("forget", "maintain", "diff")
"""Verbs that ask no table for their date: nobody may be left in them after `forget`, the others do not depend on it."""
FROM_NOTHING = ("ingest", "run", "plan", "report", "bundle")
"""Verbs for which a folder may hold no table: they fill it, say that it is empty, or need its registry alone."""


def run_verb(arguments: Namespace, config: Config) -> tuple[StepResult, Run]:
    """Run one warehouse verb under this config. Raises DynamixError with the exit code."""
    events: str | None = getattr(arguments, "events", None)
    day = arguments.run_date
    place = place_of(arguments.warehouse)
    if arguments.verb == "forget":
        refuse_wrong_call(arguments.users, place)
    if arguments.verb not in FROM_NOTHING:
        refuse_no_table(place)
    if arguments.verb in DATELESS:
        day = day or datetime.now(UTC).date()
    get_spark()
    plain_interrupts()
    run = open_run(place, config, events, run_date=day, quiet=arguments.quiet)
    (run.folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    if events is not None and arguments.verb != "plan":
        store_config(run.warehouse.root, config)
    with said_plainly(run.warehouse), shown_progress(run.spark, quiet=arguments.quiet or arguments.json):
        return _dispatch(arguments, run, events), run


def open_run(
    place: Warehouse, config: Config, events: str | None, *, run_date: date | None, quiet: bool = False
) -> Run:
    """A session and a Run whose date is `run_date`, else the day after the latest ingest."""
    spark = get_spark()
    when = run_date or latest_run_date(spark, place, config, events)
    return Run(spark=spark, warehouse=place, config=config, run_date=when, run_id=new_run_id(), quiet=quiet)


def latest_run_date(spark: SparkSession, warehouse: Warehouse, config: Config, events: str | None) -> date:
    """The day after the latest `ingest_ts` of the source, or of the events table."""
    if events is not None:
        from dynamix.features.events import latest_ingest
        from dynamix.features.raw import read_raw

        return latest_ingest(read_raw(spark, events, config=config), config=config)
    day = F.expr(day_sql("unix_micros(ingest_ts)"))
    newest = warehouse.read(spark, "events").agg(F.max(day).alias("d")).collect()[0]["d"]
    if newest is None:
        raise InputError.empty("table 'events'")
    return newest + timedelta(days=1)  # type: ignore[no-any-return]


def _dispatch(arguments: Namespace, run: Run, events: str | None) -> StepResult:
    verb = arguments.verb
    if verb == "run":
        return run_all(
            run,
            events=str(events),
            truth=arguments.truth,
            allow_empty=arguments.allow_empty,
            rebuild=arguments.rebuild,
        )
    if verb == "bundle":
        return bundle(run, out=arguments.out, model=arguments.model)
    if verb == "plan":
        return plan(run, events=events)
    if verb == "report":
        return report(run, out=arguments.out)
    if verb == "power":
        return power(run)
    if verb == "monitor":
        return monitor(run)
    if verb == "audit":
        return audit(run, users=arguments.users, seed=arguments.seed)
    if verb == "maintain":
        return logged(run, verb, maintain, least=arguments.keep_hours)
    if verb == "diff":
        return diff(run, arguments.first, arguments.second)
    if verb == "forget":
        if arguments.dry_run:
            return forget(run, users=arguments.users, dry_run=True)
        return logged(run, verb, forget, users=arguments.users)
    if verb == "explain":
        if arguments.user is not None:
            return explain_user(run, arguments.user, impression=arguments.impression)
        return explain(run, arguments.stream, segment=arguments.segment)
    options: dict[str, Any] = {}
    for name in (
        "allow_empty",
        "rebuild",
        "given",
        "truth",
        "model",
        "register_from",
        "warm_start",
        "since",
        "until",
        "impressions",
    ):
        value = getattr(arguments, name, None)
        if value:
            options[name] = value
    if getattr(arguments, "yesterday", False):
        options |= _yesterday(run.run_date, options)
    assert verb in STEPS, verb  # the parser's choices and the steps agree
    return execute(run, verb, skip=False, source=events, **options)


def _yesterday(day: date, options: dict[str, Any]) -> dict[str, date]:
    """The day before the run date as a range. ConfigError beside another choice of impressions."""
    others = [name for name in ("since", "until", "impressions") if name in options]
    if others:
        raise ConfigError(
            "--yesterday is a range of its own; leave out --from, --to and --impressions, or --yesterday"
        )
    return {"since": day - timedelta(days=1), "until": day}
