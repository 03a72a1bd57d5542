"""`dynamix score`: probabilities of the registered ranker, of the test part or of impressions of any days."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.contracts import SCORES, TRAINING_ROWS
from dynamix.errors import ConfigError, GuardError
from dynamix.features.calendar import midnight
from dynamix.features.conversions import impressions_to_predict
from dynamix.features.events import latest_ingest, split_raw
from dynamix.features.sql_text import equals
from dynamix.features.streams import event_columns
from dynamix.features.timeline import parcels_of
from dynamix.features.training import rows_to_score
from dynamix.jobs.arm_rows import load_for
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.features import cycle_calendar, seen_events
from dynamix.jobs.frames import held
from dynamix.jobs.kinds import kinded_sessions
from dynamix.jobs.mask import newest_segments
from dynamix.jobs.raw_rows import open_raw
from dynamix.models.registry import CHALLENGER, CHAMPION, RANKER, Registry, artefact_folder, find
from dynamix.models.service import RankerService
from dynamix.models.shipped import SCORED_DDL, ShippedRanker, scored_table


@dataclass(frozen=True)
class Asked:
    """Impressions by day (half-open, None = no limit) or of a source; neither means the test part."""

    since: date | None = None
    until: date | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if self.source and (self.since or self.until):
            raise ConfigError(
                "--impressions names the rows to score, --from and --to days of the events: give one of the two"
            )
        if self.since and self.until and self.since >= self.until:
            raise ConfigError(
                f"--from {self.since} --to {self.until} holds no day; --to is the day after the last one"
            )

    @property
    def nothing(self) -> bool:
        return not (self.since or self.until or self.source)

    def __str__(self) -> str:
        if self.source:
            return self.source
        return f"{self.since or 'the first day'} to {self.until or 'the run date'}"


def score(
    run: Run, *, model: str | None = None, tracking_uri: str = "", since: date | None = None,
    until: date | None = None, impressions: str | None = None,
) -> StepResult:  # fmt: skip
    """Score with `model`, by default the champion, else the challenger; says which.

    Without days and source: the test part of `training_rows`, on the driver. With `since` and `until` (half-open): the
    impressions of these days of `events`, mature or not; with `impressions`: those of a source that is read as `ingest`
    reads one. Both on the executors. One row per impression and served label in `scores`; rows of the same
    impressions by the same model version are replaced. GuardError where no model is registered or no impression is
    there; ConfigError for an address that does not exist.
    """
    asked = Asked(since, until, impressions)
    registry = run.registry(tracking_uri)
    address, alias = (model, "") if model else default_model(registry)
    folder, version = artefact_folder(registry, address)
    service = RankerService.load(folder)
    result = StepResult(
        facts={"model": version.address, "alias": alias, "mask_version": service.preparation.mask_version}
    )
    named = f"{RANKER} version {version.version}{f' ({alias})' if alias else ''}"
    if asked.nothing:
        frame, rows = _of_the_test_part(run, service)
        run.note(f"score: {rows} impressions of the test part with {named}")
    else:
        frame, rows = _of_asked(
            run, asked, ShippedRanker.pack(folder), result, boost_to=service.preparation.boost_to
        )
        run.note(f"score: {rows} impressions of {asked} with {named}")
    result.counters["rows_read"] = rows
    if rows == 0:
        result.warnings.append("the test part holds no mature impression; nothing was scored")
        return result
    result.tables["scores"] = _write(run, frame, version.version, service.preparation.mask_version)
    return result


def _of_the_test_part(run: Run, service: RankerService) -> tuple[DataFrame, int]:
    """Scores of the test part of the newest `training_rows`, and its impressions."""
    pinned = run.warehouse.version(run.spark, TRAINING_ROWS.name)
    if pinned is None:
        raise GuardError("table 'training_rows' is not written yet; run `dynamix train` first")
    rows = load_for(run, service.preparation, pinned=pinned).select("test")
    scored = scored_table(service, rows, users=pa.nulls(len(rows), pa.string())).drop(["user_id"])
    where = equals(mask_version="keep-all", part="test")
    users = run.warehouse.read(run.spark, TRAINING_ROWS.name).where(where).select("impression_id", "user_id")
    return run.spark.createDataFrame(scored).join(users, "impression_id"), len(rows)


def _of_asked(
    run: Run, asked: Asked, ranker: ShippedRanker, result: StepResult, *, boost_to: int
) -> tuple[DataFrame, int]:
    """Scores of the asked impressions, made on the executors, and how many impressions that are."""
    events = seen_events(run)
    calendar = cycle_calendar(run, events)
    rows = held(_foreign(run, asked.source, result) if asked.source else _of_days(events, asked, run))
    n = rows.count()
    if not n:
        raise GuardError(
            f"no impression to score in {asked}; check the days, `impression_types` and `prediction_rows`"
        )
    streams = run.warehouse.read(run.spark, "streams")
    stats = run.warehouse.read(run.spark, "user_stats").where(
        F.col("baseline_version") == calendar.baseline_version
    )
    segments, _, _ = newest_segments(run)
    frame = rows_to_score(
        event_columns(events, streams, stats, run.config, sessions=kinded_sessions(run)), rows, segments,
        config=run.config, streams=streams, then=ranker.on_executor, schema=SCORED_DDL,
        boost_to=boost_to, parcels=parcels_of(events.count() + n),
    )  # fmt: skip
    return frame, n


def _of_days(events: DataFrame, asked: Asked, run: Run) -> DataFrame:
    day = F.col("event_date")
    inside = F.lit(True)
    if asked.since:
        inside = inside & (day >= F.lit(asked.since))
    if asked.until:
        inside = inside & (day < F.lit(asked.until))
    return impressions_to_predict(events.where(inside), run.config)


def _foreign(run: Run, source: str, result: StepResult) -> DataFrame:
    """Impressions of a source, judged row by row as `ingest` does; what is refused is counted and left out."""
    raw = open_raw(run, source).rows
    split = split_raw(
        raw, config=run.config, run_id=run.run_id, until=midnight(latest_ingest(raw, config=run.config))
    )
    fates = {str(row["fate"]): int(row["count"]) for row in split.judged.groupBy("fate").count().collect()}
    refused = fates.get("quarantined", 0)
    if refused:
        result.warnings.append(
            f"{refused} of {sum(fates.values())} rows of {source} are refused, see `dynamix ingest`, and not scored"
        )
    return impressions_to_predict(split.good, run.config)


def default_model(registry: Registry) -> tuple[str, str]:
    """Address and alias of the champion, else of the challenger. GuardError where there is neither."""
    for alias in (CHAMPION, CHALLENGER):
        if find(registry, RANKER, alias) is not None:
            return f"models:/{RANKER}@{alias}", alias
    raise GuardError(f"no version of {RANKER} carries an alias; run `dynamix train` first")


def _write(run: Run, frame: DataFrame, version: str, mask_version: str) -> int:
    """Put the scores in place of those of the same impressions and model version; one commit."""
    new = held(
        frame.withColumn("model_version", F.lit(version))
        .withColumn("mask_version", F.lit(mask_version))
        .withColumn("scored_at", F.lit(datetime.now(UTC)))
        .select(*SCORES.names)
    )
    full = new
    if run.warehouse.exists(run.spark, SCORES.name):
        stored = run.warehouse.read(run.spark, SCORES.name).where(F.col("model_version") == F.lit(version))
        again = new.select("impression_id").distinct()
        full = stored.select(*SCORES.names).join(again, "impression_id", "left_anti").unionByName(new)
    return run.warehouse.replace(run.spark, SCORES, full, where=equals(model_version=version))
