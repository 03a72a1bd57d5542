"""Training rows of every arm: written under their mask version, then read back at the pinned table version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pads
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dynamix.config import Config
from dynamix.contracts import COLD_SEGMENT, MASKS, RUN_LOG, TRAINING_ROWS
from dynamix.declarations import base_stream
from dynamix.errors import ConfigError, GuardError
from dynamix.features.calendar import Calendar
from dynamix.features.conversions import label_impressions
from dynamix.features.dwell import ALL_STREAMS
from dynamix.features.quotas import BaseQuota
from dynamix.features.sql_text import equals
from dynamix.features.streams import event_columns, hidden_attributes, stream_lengths
from dynamix.features.training import COLLECTED, training_rows, with_part
from dynamix.jobs.baseline import stored_mark
from dynamix.jobs.context import Run
from dynamix.jobs.features import cycle_calendar, seen_events
from dynamix.jobs.frames import held
from dynamix.jobs.kinds import kinded_sessions
from dynamix.jobs.mask import newest_segments
from dynamix.jobs.segmenters import PLAIN, read_segmenter
from dynamix.models.attributes import cell_attributes
from dynamix.models.carried import Carried
from dynamix.models.contest import GLOBAL, KEEP_ALL, MASKED
from dynamix.models.dataset import JaggedRows, load_rows
from dynamix.models.dwells import DwellRule
from dynamix.models.event_segmenter import EventSegmenter
from dynamix.models.hashing import hash_ids
from dynamix.models.segmenter import Segmenter
from dynamix.models.serving import Cell, Preparation, StreamScale, cell_quotas


@dataclass(frozen=True)
class ArmRows:
    """What a training reads: rows by arm, and the plain facts of streams, segments and masks beside them."""

    rows: Mapping[str, tuple[str, JaggedRows]]
    calendar: Calendar
    table_version: int
    streams: Mapping[str, StreamScale]
    n_segments: int
    segment_version: str
    segmenter: Segmenter | EventSegmenter | None
    habits: Mapping[str, float]
    cells: Mapping[str, tuple[Cell, ...]]
    statuses: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_streams(self) -> int:
        return 1 + max((s.stream_id for s in self.streams.values()), default=-1)

    def preparation(self, run: Run, *, mask_version: str, surfaces: tuple[str, ...]) -> Preparation:
        """What serving needs to prepare raw requests as these rows were prepared."""
        history = run.config.history
        return Preparation(
            streams=self.streams, surfaces=surfaces, heads=run.config.heads(),
            item_buckets=run.config.train.item_buckets, per_stream=history.per_stream, total=history.total,
            embargo_s=history.embargo_s, mask_version=mask_version, segment_version=self.segment_version,
            cells=self.cells.get(mask_version, ()), segmenter=self.segmenter, habits=self.habits,
            carried=self._carried(run), dwell=self._dwell(run), boost_to=self.boost_to(run, mask_version),
        )  # fmt: skip

    def boost_to(self, run: Run, mask_version: str) -> int:
        """Newest events of a stream that its boosted cells keep; 0 where this mask version boosts none."""
        cells = self.cells.get(mask_version, ())
        longer = any(c.quota > run.config.declaration(c.stream).length for c in cells)
        return run.config.mask.boost_to if longer else 0

    def _dwell(self, run: Run) -> DwellRule:
        """How ingest settled dwells; a stream of several `surface/event_type` has the cap of all streams."""
        mark, session = stored_mark(run.warehouse), run.config.session
        caps, imputed = (mark.baseline.caps_ms, mark.baseline.imputed_ms) if mark else ({}, {})
        raw: dict[int, str] = {}
        for name, scale in self.streams.items():
            events = run.config.declaration(base_stream(name)).events
            pairs = events.pairs | {events.own}
            raw[scale.stream_id] = "/".join(next(iter(pairs))) if len(pairs) == 1 else ALL_STREAMS
        found = {i: caps.get(name, caps.get(ALL_STREAMS)) for i, name in raw.items()}
        return DwellRule(
            derive=run.config.dwell.derive, given=session.rule == "given", gap_us=round(session.gap_s * 1e6),
            length_us=round(session.max_length_s * 1e6), caps_ms={i: c for i, c in found.items() if c is not None},
            imputed_ms={i: tuple(imputed[name]) for i, name in raw.items() if name in imputed},
        )  # fmt: skip

    def _carried(self, run: Run) -> Carried:
        ids = {name: scale.stream_id for name, scale in self.streams.items()}
        hidden = hidden_attributes(ids, run.config)
        return Carried(
            stream_lengths(ids, run.config), {i: tuple(sorted(names)) for i, names in hidden.items()}
        )


def build_arms(run: Run) -> ArmRows:
    """Write and load the rows of keep-all and the newest mask version; the control's rows are cut in memory.

    `training_rows` holds what production trains on. The one-mask control is only compared, so its mask is laid
    on the keep-all rows (`JaggedRows.under_mask`, the rule that serving uses); with `mask.boost_to` on those COLLECTED,
    which are written beside them.
    """
    spark, warehouse = run.spark, run.warehouse
    events = seen_events(run)
    calendar = cycle_calendar(run, events)
    streams = warehouse.read(spark, "streams")
    segments, newest, _ = newest_segments(run)
    stats = warehouse.read(spark, "user_stats").where(F.col("baseline_version") == calendar.baseline_version)
    versions = mask_versions(run, newest)
    history = held(event_columns(events, streams, stats, run.config, sessions=kinded_sessions(run)))
    impressions = held(label_impressions(events, config=run.config))
    empty = with_part(impressions, calendar).isEmpty()  # a row of each arm is an impression of a part
    written = {arm: version for arm, version in versions.items() if arm != GLOBAL}
    if run.config.mask.boost_to:
        written[COLLECTED] = COLLECTED
    for arm, version in written.items():
        run.note(f"train: rows of {arm} ({version})")
        masks = mask_rows(run, version) if arm == MASKED else None
        frame = training_rows(
            history, impressions, segments, masks,
            calendar=calendar, config=run.config, streams=streams, mask_version=version,
        )  # fmt: skip
        where = equals(mask_version=version)
        note = {"run_id": run.run_id}
        warehouse.replace(spark, TRAINING_ROWS, frame, where=where, metadata=note, empty=empty)
    pinned = warehouse.version(spark, TRAINING_ROWS.name)
    assert pinned is not None  # just written; for the type checker
    rows = {
        arm: (version, load_version(run, version, pinned=pinned))
        for arm, version in written.items()
        if arm != COLLECTED
    }
    scales = stream_scales(streams, config=run.config)
    cells = {v: grid_cells(mask_rows(run, v)) for arm, v in versions.items() if arm != KEEP_ALL}
    if GLOBAL in versions:
        control = versions[GLOBAL]
        own = cells[control]
        longest = (
            load_version(run, COLLECTED, pinned=pinned) if run.config.mask.boost_to else rows[KEEP_ALL][1]
        )
        ids = {name: scale.stream_id for name, scale in scales.items()}
        base = BaseQuota(run.config.history.per_stream, stream_lengths(ids, run.config))
        one_mask = longest.under_mask(cell_quotas(own, scales), base, cell_attributes(own, scales))
        rows[GLOBAL] = (control, one_mask)
    top = max((int(r.segment.max(initial=COLD_SEGMENT)) for _, r in rows.values()), default=COLD_SEGMENT)
    top = max([top, *(c.segment_id for grid in cells.values() for c in grid)])
    return ArmRows(
        rows=rows, calendar=calendar, table_version=pinned, streams=scales, n_segments=top + 1,
        segment_version=newest, segmenter=_segmenter(run, newest, calendar), habits=_habits(stats), cells=cells,
    )  # fmt: skip


def mask_versions(run: Run, segment_version: str) -> dict[str, str]:
    """Arm -> mask version: keep-all always, `masked` and `global` where such a version is stored.

    `masked` is the newest version for these segments that no finished training has retired, `global` the newest
    control. GuardError (exit 4) when the newest version of either kind is of other segments than the rows get: run
    `dynamix mask` first (docs/faults.md 4).
    """
    found = {KEEP_ALL: "keep-all"}
    if not run.warehouse.exists(run.spark, MASKS.name):
        return found
    listed = (
        run.warehouse.read(run.spark, MASKS.name)
        .where(F.col("run_date") <= F.lit(run.run_date))
        .groupBy("mask_version", "status", "run_date", "segment_version")
        .agg(F.max("seq").alias("seq"))
        .orderBy(F.col("run_date").desc(), F.col("seq").desc(), "mask_version")
        .collect()
    )
    for arm, rows in (
        (MASKED, [row for row in listed if row["status"] != "control"]),
        (GLOBAL, [row for row in listed if row["status"] == "control"]),
    ):
        if rows and rows[0]["segment_version"] != segment_version:
            raise GuardError(
                f"mask version {rows[0]['mask_version']} is for segments {rows[0]['segment_version']}, the newest are "
                f"{segment_version}; run `dynamix mask` first"
            )
        own = [row for row in rows if row["segment_version"] == segment_version]
        for row in own:
            if row["status"] != "retired" or _retired_by_the_dead(run, str(row["mask_version"])):
                found[arm] = str(row["mask_version"])
                break
    return found


def _retired_by_the_dead(run: Run, version: str) -> bool:
    """True where the gate that retired it belongs to a training which never came to its end: it is asked again."""
    note = run.warehouse.note(MASKS.name, _gate_note(version))
    if note is None:
        return False
    if not run.warehouse.exists(run.spark, RUN_LOG.name):
        return True
    done = run.warehouse.read(run.spark, RUN_LOG.name).where(
        (F.col("run_id") == str(note[_gate_note(version)]))
        & (F.col("step") == "train")
        & (F.col("status") == "done")
    )
    return done.isEmpty()


def _gate_note(version: str) -> str:
    """Key of the note that a commit of `masks` carries: the run whose gate gave the version its status."""
    return f"gate of {version}"


def mask_rows(run: Run, version: str) -> DataFrame:
    """The grid of one mask version."""
    return run.warehouse.read(run.spark, MASKS.name).where(F.col("mask_version") == version)


def set_status(run: Run, version: str, status: str, *, by_gate: bool = False) -> int:
    """Write a mask version's status; publishing retires the one that was published before. New table version.

    With `by_gate` the commit says that this run's gate decided, which counts once the run has come to its end.
    """
    grid = run.warehouse.read(run.spark, MASKS.name)
    written = -1
    if status == "published":
        older = grid.where((F.col("status") == "published") & (F.col("mask_version") != version))
        for row in older.select("mask_version").distinct().collect():
            written = set_status(run, str(row["mask_version"]), "retired")
        grid = run.warehouse.read(run.spark, MASKS.name)
    frame = grid.where(F.col("mask_version") == version).withColumn("status", F.lit(status))
    if frame.where(F.col("status") == status).limit(1).isEmpty():
        raise ConfigError.unknown_version("mask version", version, [])
    where, note = equals(mask_version=version), {"status": status}
    if by_gate:
        note[_gate_note(version)] = run.run_id
    return max(written, run.warehouse.replace(run.spark, MASKS, frame, where=where, metadata=note))


def load_version(
    run: Run,
    version: str,
    *,
    pinned: int,
    surfaces: tuple[str, ...] | None = None,
    item_buckets: int | None = None,
) -> JaggedRows:
    """Rows of one mask version at a pinned table version. GuardError if there are none."""
    where = equals(mask_version=version)
    files = run.warehouse.files(run.spark, TRAINING_ROWS.name, version=pinned, where=where)
    if not files:
        raise GuardError(
            f"training_rows has no rows of mask version {version!r}; no impression is mature in its part: ingest more "
            "days, or shorten `attribution` windows"
        )
    buckets = item_buckets or run.config.train.item_buckets
    return load_rows(files, heads=run.config.heads(), item_buckets=buckets, surfaces=surfaces)


def load_for(run: Run, preparation: Preparation, *, pinned: int) -> JaggedRows:
    """The rows that a model's own mask is laid on, with its surfaces and buckets: keep-all, or COLLECTED for boosts.

    Where the config no longer collects that far, what its boosts would add is missing.
    """
    collected = 0 < preparation.boost_to <= run.config.mask.boost_to
    if preparation.boost_to and not collected:
        run.note(
            f"mask {preparation.mask_version} boosts to {preparation.boost_to} events, mask.boost_to is "
            f"{run.config.mask.boost_to}: it is scored without its boosts"
        )
    return load_version(
        run, COLLECTED if collected else KEEP_ALL, pinned=pinned, surfaces=preparation.surfaces,
        item_buckets=preparation.item_buckets,
    )  # fmt: skip


def load_truth(truth: Path | None) -> dict[str, np.ndarray[Any, Any]]:
    """True p by impression hash, sorted, from `truth_impressions`; empty without a path."""
    if truth is None:
        return {}
    table = pads.dataset(str(truth), format="parquet").to_table(columns=["impression_id", "p"])
    ids = hash_ids(table["impression_id"])
    order = np.argsort(ids)
    return {"impression_hash": ids[order], "p": table["p"].to_numpy()[order]}


def stream_scales(streams: DataFrame, *, config: Config | None = None) -> dict[str, StreamScale]:
    """Id and dwell scale of every stream by name; with a config, which of them never segment because it says so."""
    rows = streams.select("stream_id", "stream", "is_conversion", "has_dwell", "mu", "sigma").collect()
    return {
        str(r["stream"]): StreamScale(
            int(r["stream_id"]),
            float(r["mu"]) if r["has_dwell"] and r["mu"] is not None else None,
            float(r["sigma"]) if r["has_dwell"] and r["sigma"] is not None else None,
            bool(
                r["is_conversion"] or (config is not None and config.declaration(str(r["stream"])).sensitive)
            ),
        )
        for r in rows
    }


def _habits(stats: DataFrame) -> dict[str, float]:
    """Habit of every user that has one; users without are served with habit 0."""
    table = stats.where("habit <> 0").select("user_id", "habit").toArrow()
    return dict(zip(table["user_id"].to_pylist(), table["habit"].to_pylist(), strict=True))


def grid_cells(grid: DataFrame) -> tuple[Cell, ...]:
    """Rows of one mask version as plain cells, sorted."""
    rows = grid.select("segment_id", "tier", "stream", "quota", "boost", "attributes").orderBy(
        "segment_id", "tier", "stream"
    )
    return tuple(
        Cell(
            int(r["segment_id"]), str(r["tier"]), str(r["stream"]), int(r["quota"]), float(r["boost"]),
            None if r["attributes"] is None else tuple(r["attributes"]),
        )
        for r in rows.collect()
    )  # fmt: skip


def _segmenter(run: Run, version: str, calendar: Calendar) -> Segmenter | EventSegmenter | None:
    """The segmenter of this version: a mixture from `segment_registry`, else its file; None where no emission is stored.

    None, too, under a control that places users by anything else: then requests have to name their segment.
    """
    other = run.config.segmentation.control in ("shuffled", "tier")
    if other or not run.warehouse.exists(run.spark, "segment_registry"):
        return None
    rows = (
        run.warehouse.read(run.spark, "segment_registry")
        .where(
            (F.col("segment_version") == version) & (F.col("segment_id") > 0) & (F.col("event") != "death")
        )
        .select("segment_id", "prototype", "share", "guards", "method")
        .orderBy("segment_id")
        .collect()
    )
    rows = [r for r in rows if r["prototype"]]
    if not rows:
        return None
    if rows[0]["method"] != PLAIN:
        return read_segmenter(run, version)
    emission = np.array([r["prototype"] for r in rows], np.float64)
    share = np.maximum(np.array([r["share"] for r in rows], np.float64), 1e-12)
    config = run.config.segmentation
    guards = dict(rows[0]["guards"] or {})
    return Segmenter(
        ids=tuple(int(r["segment_id"]) for r in rows),
        log_emission=np.log(np.maximum(emission / emission.sum(axis=1, keepdims=True), 1e-12)),
        log_prior=np.log(share / share.sum()), confidence=config.confidence, min_events=config.min_events,
        active_from=float(guards.get("active_from", np.inf)), dwell_bins=config.dwell_bins,
        since_us=round(calendar.first.replace(tzinfo=UTC).timestamp() * 1e6),
    )  # fmt: skip
