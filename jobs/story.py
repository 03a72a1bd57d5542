"""One user's story from the tables: the report's typical impression, and `dynamix explain --user`.

What is kept, removed or cut is told by the kernel that makes training rows (features/story.py), the score by the
registered ranker on the stored row (models/waterfall.py). Nothing is worked out a second time here.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.contracts import OPT_OUT, TRAINING_ROWS
from dynamix.errors import ConfigError, EnvironmentTrouble, GuardError
from dynamix.features.quotas import OUTSIDE
from dynamix.features.story import event_fates
from dynamix.features.streams import event_columns, stream_lengths
from dynamix.features.training import COLLECTED
from dynamix.jobs.arm_rows import grid_cells, mask_rows, stream_scales
from dynamix.jobs.context import Run, StepResult
from dynamix.jobs.explain import current_mask
from dynamix.jobs.features import cycle_calendar, seen_events
from dynamix.jobs.kinds import kinded_sessions
from dynamix.jobs.opt_out import without_opted_out
from dynamix.jobs.score import default_model
from dynamix.jobs.sensitive import hidden_story, shown_names
from dynamix.jobs.story_data import IMPRESSION, Bar, Past, Score, Story, lines
from dynamix.jobs.user_lists import stored_names
from dynamix.models.attributes import cell_attributes
from dynamix.models.contest import KEEP_ALL
from dynamix.models.dataset import rows_from_table
from dynamix.models.registry import artefact_folder
from dynamix.models.service import RankerService
from dynamix.models.serving import Cell, cell_quotas
from dynamix.models.waterfall import Waterfall, waterfall

RULE = (
    "chosen as typical: of the test part, outside the hold-out, the impression with the median length of history "
    "among those from which the mask takes events (ties by hash)"
)
RULE_UNTOUCHED = (
    "chosen as typical: of the test part, outside the hold-out, the impression with the median length of history "
    "(ties by hash); no stored history under this mask is shorter"
)


def explain_user(run: Run, user: str, *, impression: str | None = None) -> StepResult:
    """The story of a user's impression under the current mask, a retired one where there is no other.

    Without `impression` it is the user's newest one of `training_rows`.

    `user` is the id as the source has it; where ids are hashed it is hashed by the same key. ConfigError (exit 2)
    for a user or impression without a training row, GuardError (exit 4) for one who opted out, and where a table is
    not written yet or the events changed since the rows were.
    """
    (name,) = stored_names(run.config, [user])
    if run.warehouse.exists(run.spark, OPT_OUT.name):
        gone = run.warehouse.read(run.spark, OPT_OUT.name).where(F.col("user_id") == name)
        if not gone.isEmpty():
            raise GuardError("this user opted out: nothing of theirs is shown; take another user")
    rows = _stored(run).where(F.col("user_id") == name)
    chosen = rows if impression is None else rows.where(F.col("impression_id") == impression)
    found = chosen.orderBy(F.desc("event_ts"), "impression_id").select("impression_id").limit(1).collect()
    if not found:
        what = "impression of this user" if impression is not None else "user"
        raise ConfigError(
            f"this {what} has no training row; allowed: users with a mature impression in the train, "
            "validate or test part of the calendar, and their impressions (table training_rows)"
        )
    version, _ = current_mask(run, statuses=("published", "proposed", "retired"))
    rule = "as asked" if impression is not None else "the user's newest one"
    story = tell(run, str(found[0]["impression_id"]), version, rule=rule)
    return StepResult(facts={"explain": asdict(story), "text": "\n".join(lines(story))})


def typical_story(run: Run, mask_version: str, *, label: str = "") -> Story | None:
    """The story of a typical impression (RULE); None where no history is stored yet, or the events changed since.

    Two Spark jobs over the test part's rows choose it, the rest reads one user.
    """
    if not run.warehouse.exists(run.spark, TRAINING_ROWS.name):
        return None
    rows = _stored(run, versions=(KEEP_ALL, mask_version)).where("part = 'test' AND NOT holdout")
    sizes = rows.select("impression_id", "mask_version", F.size("hist_stream").alias("n"))
    full = sizes.where(F.col("mask_version") == KEEP_ALL).drop("mask_version")
    left = sizes.where(F.col("mask_version") == mask_version).select(
        "impression_id", F.col("n").alias("left")
    )
    both = full.join(left, "impression_id", "left").withColumn(
        "touched", F.coalesce(F.col("left") < F.col("n"), F.lit(False))
    )
    touched, whole = F.when(F.col("touched"), F.col("n")), F.when(F.col("n") > 0, F.col("n"))
    middle = both.agg(
        F.percentile_approx(touched, 0.5).alias("t"), F.percentile_approx(whole, 0.5).alias("a")
    )
    medians = middle.collect()[0]
    median = medians["t"] or medians["a"]
    if median is None:
        return None
    among = both.where("touched") if medians["t"] else both
    order = (F.abs(F.col("n") - median), F.xxhash64("impression_id"), "impression_id")
    chosen = among.orderBy(*order).select("impression_id").limit(1).collect()[0]
    try:
        return tell(run, str(chosen["impression_id"]), mask_version, label=label,
                    rule=RULE if medians["t"] else RULE_UNTOUCHED)  # fmt: skip
    except GuardError as trouble:
        run.note(f"report: no story, {trouble.message}")
        return None


def tell(run: Run, impression: str, mask_version: str, *, rule: str, label: str = "") -> Story:
    """The story of one impression of `training_rows` under one mask version; sensitive streams under their numbers.

    GuardError (exit 4) where the history made from the events is not the stored one.
    """
    row = _stored(run).where(F.col("impression_id") == impression)
    table = row.toArrow()
    plain = {name: table[name][0].as_py() for name in ("user_id", "segment_id", "tier", "holdout", "part")}
    heads = run.config.heads()
    head = label if label in heads else heads[-1]
    y = table[f"label_{head}"][0].as_py()
    streams = run.warehouse.read(run.spark, "streams")
    scales = stream_scales(streams)
    names = {scale.stream_id: name for name, scale in scales.items()}
    cells = grid_cells(mask_rows(run, mask_version))
    events = _events(run, row, str(plain["user_id"]), streams, cells)
    _refuse_changed(events, table)
    score, untold = _score(run, table, head, cells, names)
    segment_name, status = _in_grid(run, mask_version, int(plain["segment_id"]))
    story = Story(
        rule=rule, mask_version=mask_version, mask_status=status, segment_id=int(plain["segment_id"]),
        segment_name=segment_name, tier=str(plain["tier"]),
        holdout=bool(plain["holdout"]), part=str(plain["part"]), label=head,
        outcome=None if y is None else bool(y),
        events=_past(events, names, cells, int(plain["segment_id"]), str(plain["tier"])),
        score=score, untold=untold,
    )  # fmt: skip
    return hidden_story(story, shown_names(run.config, scales))


def _stored(run: Run, *, versions: tuple[str, ...] = (KEEP_ALL,)) -> DataFrame:
    """Rows of `training_rows` of users who did not opt out."""
    rows = run.warehouse.read(run.spark, TRAINING_ROWS.name)
    return without_opted_out(run, rows.where(F.col("mask_version").isin(*versions)))


def _events(
    run: Run, row: DataFrame, user: str, streams: DataFrame, cells: tuple[Cell, ...]
) -> list[dict[str, Any]]:
    """Rows of `event_fates` of the impression, oldest first; in the columns that its training row was made of."""
    events = seen_events(run)
    calendar = cycle_calendar(run, events)
    stats = run.warehouse.read(run.spark, "user_stats")
    stats = stats.where((F.col("baseline_version") == calendar.baseline_version) & (F.col("user_id") == user))
    mine = events.where(F.col("user_id") == user)
    history = event_columns(mine, streams, stats, run.config, sessions=kinded_sessions(run))
    scales = stream_scales(streams)
    fates = event_fates(
        history, row, quotas=cell_quotas(cells, scales), history=run.config.history,
        lengths=stream_lengths({name: scale.stream_id for name, scale in scales.items()}, run.config),
        boost_to=run.config.mask.boost_to,
    )  # fmt: skip
    return [one.asDict() for one in fates.collect()]


def _refuse_changed(events: list[dict[str, Any]], table: Any) -> None:
    inside = [int(e["stream_id"]) for e in events if e["fate"] != OUTSIDE and not e["beyond"]]
    stored = [int(stream) for stream in table["hist_stream"][0].as_py()]
    if inside != stored:
        raise GuardError(
            f"{len(inside)} events make the impression's history now, {len(stored)} are stored in its training row; "
            "events or `history` changed since, run `dynamix train`"
        )


def _past(
    events: list[dict[str, Any]], names: dict[int, str], cells: tuple[Cell, ...], segment: int, tier: str
) -> tuple[Past, ...]:
    boosted = {c.stream for c in cells if c.segment_id == segment and c.tier in ("*", tier) and c.boost > 0}
    return tuple(
        Past(
            names[int(e["stream_id"])], float(e["age_s"]), str(e["fate"]),
            bool(e["beyond"]) or names[int(e["stream_id"])] in boosted, bool(e["usable"]), bool(e["censored"]),
        )
        for e in events
    )  # fmt: skip


def _in_grid(run: Run, mask_version: str, segment: int) -> tuple[str, str]:
    """Name of the segment (its id where the mask does not know it), and the status of the mask version."""
    rows = mask_rows(run, mask_version).select("segment_id", "segment_name", "status").distinct().collect()
    names = {int(r["segment_id"]): str(r["segment_name"]) for r in rows}
    return names.get(segment, str(segment)), str(rows[0]["status"]) if rows else "unknown"


def _score(
    run: Run, table: Any, head: str, cells: tuple[Cell, ...], names: dict[int, str]
) -> tuple[Score | None, str]:
    """The waterfall of the served model, or None and why there is none."""
    registry = run.registry()
    try:
        address, _ = default_model(registry)
        folder, version = artefact_folder(registry, address)
        service = RankerService.load(folder)
    except (ConfigError, GuardError, EnvironmentTrouble) as trouble:
        return None, trouble.message
    if head not in service.config.heads:
        return None, f"{version.address} does not serve {head!r}"
    train = _stored(run).where("part = 'train'")
    base = train.agg(F.avg(f"label_{head}").alias("p")).collect()[0]["p"]
    if base is None:
        return None, f"no row of the train part has a known {head}"
    own = service.preparation
    if (
        0 < own.boost_to <= run.config.mask.boost_to
    ):  # a model with boosts reads more than the stored keep-all row
        same = F.col("impression_id") == table["impression_id"][0].as_py()
        longer = _stored(run, versions=(COLLECTED,)).where(same).toArrow()
        table = longer if longer.num_rows else table
    rows = rows_from_table(
        table, heads=service.config.heads, item_buckets=own.item_buckets, surfaces=own.surfaces, in_order=True
    )
    found = waterfall(service, rows, head=head, base=float(base), order=sorted(names))
    quotas, lost = cell_quotas(cells, own.streams), cell_attributes(cells, own.streams)
    shown = rows.under_mask(quotas, own.base(), lost)
    shorter = shown.tokens < service.as_served(rows).tokens
    masked = float(service.score_stored(shown)[head][0]) if shorter else None
    return _named(found, names, version.address, own.mask_version, masked), ""


def _named(found: Waterfall, names: dict[int, str], model: str, mask: str, masked: float | None) -> Score:
    bars = tuple(
        Bar(IMPRESSION if step.stream_id is None else names[step.stream_id], step.before, step.after)
        for step in found.steps
    )
    return Score(found.head, found.base, found.score, bars, model, mask, masked)
